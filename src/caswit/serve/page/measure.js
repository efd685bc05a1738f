// Lengths and areas on the ground: each click sets a point; the server measures along geodesics.
import { areaText, ask, by, exactPixel, lengthText, map, on, place, squareMetres, state } from "./base.js";

export const tool = { kind: null };
const LINE = { color: "#ffd23f", weight: 3, interactive: false };
const drawn = L.layerGroup().addTo(map);
let points = [];
let asked = 0;

function choose(kind) {
  tool.kind = kind;
  for (const name of ["length", "area"]) by(name).setAttribute("aria-pressed", kind === name);
  by("measure").hidden = !kind;
  map.getContainer().classList.toggle("measuring", kind !== null);
  map.doubleClickZoom[kind ? "disable" : "enable"]();
  points = [];
  show();
}

export function addPoint(latlng) {
  const last = points[points.length - 1];
  const next = exactPixel(latlng);
  // The second click of a double click sets no point of its own.
  if (last && map.latLngToContainerPoint(place(...last)).distanceTo(map.latLngToContainerPoint(latlng)) < 2) return;
  points.push(next);
  show();
}

function undo() {
  points.pop();
  show();
}

async function show(pointer) {
  drawn.clearLayers();
  const places = points.map((point) => place(...point));
  const corners = pointer && places.length ? [...places, pointer] : places;
  // A dark line under a bright one can be seen on any image.
  for (const style of [{ ...LINE, color: "#15181d", weight: 5 }, LINE])
    drawn.addLayer(tool.kind === "area" ? L.polygon(corners, { ...style, fillOpacity: 0.08 }) : L.polyline(corners, style));
  for (const at of places)
    drawn.addLayer(L.circleMarker(at, { radius: 4, color: "#15181d", weight: 2, fillColor: LINE.color, fillOpacity: 1, interactive: false }));
  if (pointer) return;
  by("undo").disabled = !points.length;
  const enough = points.length >= (tool.kind === "area" ? 3 : 2);
  const question = ++asked;
  if (!enough) {
    by("measured").textContent = tool.kind ? "Click points on the map, or press Enter for its centre." : "";
    return;
  }
  const address = `api/views/${state.view.key}/measure?places=${points.flat().map((x) => x.toFixed(3))}`;
  const found = await ask(address).catch((error) => ({ error: error.message }));
  if (question === asked) by("measured").textContent = found.error || sizes(found);
}

function sizes({ unit, length, perimeter, area }) {
  if (tool.kind === "length") return `Length ${lengthText(length, unit)}`;
  const hectares = unit === "m" ? ` (${(area / 1e4).toFixed(area < 1e5 ? 4 : 2)} ha)` : "";
  return `Area ${unit === "m" ? squareMetres(area) : areaText(area, unit)}${hectares}, perimeter ${lengthText(perimeter, unit)}`;
}

for (const kind of ["length", "area"]) by(kind).onclick = () => choose(tool.kind === kind ? null : kind);
by("undo").onclick = undo;
by("measured-end").onclick = () => choose(null);
map.on("mousemove", ({ latlng }) => { if (tool.kind && points.length) show(latlng); });
map.getContainer().addEventListener("mouseleave", () => { if (tool.kind && points.length) show(); });
document.addEventListener("keydown", (event) => {
  if (!tool.kind || event.target.matches("input, select")) return;
  if (event.key === "Escape") choose(null);
  if (event.key === "Backspace") undo();
});
on("view", () => choose(null));
