// Polygons of a map: those of the part that is seen, simplified by the server.
import { ask, by, coarseness, exactPixel, map, on, say, state } from "./base.js";

const MARGIN = 0.25;
const outlines = L.layerGroup().addTo(map);
let asking = null;

export const shownPolygons = () => [...by("polygons").querySelectorAll("input:checked")].map((box) => box.value);

function offer() {
  by("polygons").replaceChildren(...state.view.polygons.map(({ key, title }) => {
    const box = document.createElement("input");
    Object.assign(box, { type: "checkbox", value: key, onchange: () => { draw(); say("shown"); } });
    const label = document.createElement("label");
    label.className = "check";
    label.append(box, ` Polygons: ${title}`);
    return label;
  }));
  draw();
}

export function showPolygons(keys) {
  for (const box of by("polygons").querySelectorAll("input")) box.checked = keys.includes(box.value);
  draw();
}

async function draw() {
  asking?.abort();
  by("more-polygons").hidden = true;
  const keys = state.view ? shownPolygons() : [];
  if (!keys.length) return outlines.clearLayers();
  asking = new AbortController();
  const bounds = map.getBounds().pad(MARGIN);
  const [[top, left], [bottom, right]] = [exactPixel(bounds.getNorthWest()), exactPixel(bounds.getSouthEast())].map((p) => p.map(Math.floor));
  const part = `row=${top}&col=${left}&height=${bottom - top + 1}&width=${right - left + 1}&px=${coarseness()}`;
  const addresses = keys.map((key) => `api/views/${state.view.key}/polygons/${key}?${part}`);
  try {
    const found = await Promise.all(addresses.map((address) => ask(address, { signal: asking.signal })));
    put(found.flatMap((each) => each.polygons), found.reduce((sum, each) => sum + each.left_out, 0));
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message);
  }
}

function put(polygons, left) {
  const classes = state.view.layers.flatMap((layer) => (layer.kind === "map" ? layer.classes : []));
  const colours = new Map(classes.map((c) => [c.id, c.color]));
  outlines.clearLayers();
  const style = { pane: "polygons", fill: false, interactive: false, smoothFactor: 0 };
  for (const { id, rings } of polygons) {
    if (state.hidden.has(id)) continue;
    const corners = rings.map((polygon) => polygon.map((ring) => ring.map(([row, col]) => [-row / state.scale, col / state.scale])));
    outlines.addLayer(L.polygon(corners, { ...style, color: "#101316", weight: 3.5, opacity: 0.75 }));
    outlines.addLayer(L.polygon(corners, { ...style, color: colours.get(id) || "#ffffff", weight: 1.5 }));
  }
  if (left) tell(`The largest are drawn; zoom in for ${left.toLocaleString("en")} more.`);
}

function tell(text) {
  by("more-polygons").hidden = false;
  by("more-polygons").textContent = text;
}

map.on("moveend", draw);
on("view", offer);
on("classes", draw);
