// What all parts of the page share: the state, the map, and how places on it are named. Places are (row, column) in
// pixels of the image; the map shows the image's own pixel grid, so that images without a georeference look no
// different. Leaflet's latitude is minus the row.

export const by = (id) => document.getElementById(id);

export const state = { views: [], explains: false, basemap: null, view: null, layer: null, hidden: new Set(), bands: null };

// Canvas: what is drawn over the map can be copied into a picture.
export const map = L.map("map", {
  crs: L.CRS.Simple, attributionControl: false, zoomSnap: 0.25, wheelPxPerZoomLevel: 90, preferCanvas: true,
});
export const PANES = ["basemap", "tilePane", "layer", "heatmap", "polygons", "overlayPane"];
for (const [name, order] of [["basemap", 100], ["layer", 300], ["heatmap", 350], ["polygons", 380]])
  map.createPane(name).style.zIndex = order;

export const place = (row, col) => L.latLng(-row / state.scale, col / state.scale);
export const box = ([row, col, height, width]) => L.latLngBounds(place(row, col), place(row + height, col + width));
export const exactPixel = (latlng) => [-latlng.lat * state.scale, latlng.lng * state.scale];
export const pixel = (latlng) => exactPixel(latlng).map(Math.floor);
export const inside = ([row, col]) => row >= 0 && col >= 0 && row < state.view.height && col < state.view.width;

// Pixels of the image for each pixel of the screen.
export const coarseness = () => state.scale / 2 ** map.getZoom();

// What happens: "view" another image is shown, "layer" another layer or other classes of it, "shown" the state that a
// link holds has changed.
const happenings = new EventTarget();
export const on = (what, act) => happenings.addEventListener(what, act);
export const say = (what) => happenings.dispatchEvent(new Event(what));

export async function ask(address, options) {
  const reply = await fetch(address, options);
  const content = await reply.json();
  if (!reply.ok) throw new Error(typeof content.detail === "string" ? content.detail : `error ${reply.status}`);
  return content;
}

export function note(text) {
  by("note").textContent = text || "";
  by("note").hidden = !text;
}

export const percent = (share) => `${(100 * share).toFixed(share < 0.0995 && share > 0 ? 1 : 0)} %`;

const rounded = (value) => (value && value < 100 ? value.toFixed(1) : Math.round(value).toLocaleString("en"));

export function lengthText(length, unit, digits) {
  const [value, name] = unit === "m" && length >= 1000 ? [length / 1000, "km"] : [length, unit];
  return `${digits ? +value.toPrecision(digits) : value.toFixed(unit === "m" ? (name === "km" ? 3 : 2) : 1)} ${name}`;
}

export const squareMetres = (area) => `${rounded(area)} m²`;

export function areaText(area, unit) {
  if (unit !== "m") return area >= 1e6 ? `${(area / 1e6).toFixed(2)} M px` : `${rounded(area)} px`;
  if (area >= 1e6) return `${(area / 1e6).toFixed(2)} km²`;
  return area >= 1e4 ? `${(area / 1e4).toFixed(2)} ha` : `${rounded(area)} m²`;
}

export function element(name, text, colour) {
  const made = document.createElement(name);
  if (colour) {
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.setProperty("--colour", colour);
    made.append(swatch);
  }
  made.append(text);
  return made;
}

export function row(...cells) {
  const made = document.createElement("tr");
  made.append(...cells);
  return made;
}
