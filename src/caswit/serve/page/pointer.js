// What lies under the pointer: classes, confidence, coordinates.
import { areaText, ask, by, element, inside, map, on, percent, pixel, row, state } from "./base.js";

const HOVER_MS = 120;
let asking = null;
let waiting = 0;

export async function lookUp(latlng) {
  clearTimeout(waiting);
  if (!state.view) return;
  const at = pixel(latlng);
  if (!inside(at)) return;
  asking?.abort();
  asking = new AbortController();
  const address = `api/views/${state.view.key}/point?row=${at[0]}&col=${at[1]}`;
  const found = await ask(address, { signal: asking.signal }).catch(() => null);
  if (found) showPoint(found);
}

function showPoint(found) {
  const rows = [];
  const line = (...cells) => {
    const made = cells.map((cell) => (cell instanceof Node ? cell : element("td", cell)));
    made[made.length - 1].colSpan = 4 - made.length;
    rows.push(row(...made));
  };
  const confidence = state.view.layers.find((l) => l.kind === "confidence" && found.layers[l.key]);
  for (const layer of state.view.layers) {
    const value = found.layers[layer.key];
    if (!value?.name) continue;
    const sure = layer.kind === "map" && confidence ? percent(found.layers[confidence.key].confidence) : "";
    line(layer.kind, element("td", value.name, value.color), sure);
  }
  for (const { key } of state.view.polygons) {
    const value = found.layers[key];
    if (!value) continue;
    const sure = value.confidence ? ` · ${percent(value.confidence / 100)}` : "";
    line("polygon", value.name, (value.area_m2 ? areaText(value.area_m2, "m") : "") + sure);
  }
  if (found.model) line("model", element("td", found.model.name, found.model.color), percent(found.model.confidence));
  line("pixel", `row ${found.row}, column ${found.col}`);
  if (found.lonlat) line("lon, lat", found.lonlat.map((degrees) => degrees.toFixed(6)).join(", "));
  by("hover").querySelector("tbody").replaceChildren(...rows);
  by("brief").textContent = brief(found);
  by("hover").querySelector("table").hidden = false;
  by("hover").querySelector("[data-empty]").hidden = true;
}

// For the header, which is all that a folded panel shows.
function brief(found) {
  const values = [state.layer?.key, ...state.view.layers.map((layer) => layer.key)].map((key) => found.layers[key]);
  const first = values.find((value) => value?.name);
  return first?.name || found.model?.name || "";
}

map.on("mousemove", ({ latlng }) => {
  clearTimeout(waiting);
  // Only where the pointer rests: the model needs longer for a tile than the pointer to cross it.
  waiting = setTimeout(() => lookUp(latlng), HOVER_MS);
});
on("view", () => {
  asking?.abort();
  by("hover").querySelector("table").hidden = true;
  by("hover").querySelector("[data-empty]").hidden = false;
});
