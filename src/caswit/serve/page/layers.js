// Images and the layers over them: tiles, opacity, and maps that are still being computed.
import { onChoice, setBands, showChoice } from "./bands.js";
import { ask, box, by, map, note, percent, say, state } from "./base.js";

const TILE_PX = 256;
const POLL_MS = 3000;
const drawn = { image: null, layer: null };

function tileAddress(layer) {
  const hide = layer.kind === "map" || layer.kind === "truth" ? [...state.hidden].sort((a, b) => a - b) : [];
  const address = `api/views/${state.view.key}/layers/${layer.key}/tiles/{z}/{x}/{y}?v=${layer.revision}`;
  const bands = layer.kind === "image" && state.bands ? `&bands=${state.bands}` : "";
  return (hide.length ? `${address}&hide=${hide}` : address) + bands;
}

function tiles(layer, pane) {
  const { max_zoom: finest, min_zoom: coarsest, height, width } = state.view;
  return L.tileLayer(tileAddress(layer), {
    pane, tileSize: TILE_PX, noWrap: true, bounds: box([0, 0, height, width]), maxNativeZoom: finest,
    minNativeZoom: Math.max(coarsest, layer.min_zoom), maxZoom: finest + 5, minZoom: -2,
  });
}

// A panel at the bottom of the screen, as on a telephone; otherwise it is at the right.
export const narrow = matchMedia("(max-width: 40rem)");

// What the panel covers, as padding at the map's bottom right corner.
export function covered() {
  const [panel, whole] = [by("panel").getBoundingClientRect(), map.getContainer().getBoundingClientRect()];
  return narrow.matches ? [0, whole.bottom - panel.top] : [whole.right - panel.left, 0];
}

// Shows the image in the part that the panel leaves free: whole, or so that it fills that part.
function fit(fill) {
  const { height, width } = state.view;
  const whole = box([0, 0, height, width]);
  const padding = L.point(covered());
  const zoom = map.getBoundsZoom(whole, fill, padding);
  const centre = map.project(whole.getCenter(), zoom).add(padding.divideBy(2));
  // Without animation: one that still runs is cut short by the next call and ends beside its aim.
  map.setView(map.unproject(centre, zoom), zoom, { animate: false });
}

// A folded panel shows its header alone, which is where to say that there is more than can be seen.
const PART = "a part: drag it, or zoom out";

function showPart() {
  const whole = map.getBounds().pad(0.01).contains(box([0, 0, state.view.height, state.view.width]));
  by("brief").textContent = narrow.matches && !whole ? PART : "";
}

map.on("dragstart zoomstart", () => { if (by("brief").textContent === PART) by("brief").textContent = ""; });

// How far the map may be moved: a screen beyond the image at any zoom. Less would push a narrow image off the middle.
function reach(whole) {
  const { x: width, y: height } = map.getSize().divideBy(2 ** map.getMinZoom());
  const [low, high] = [whole.getSouthWest(), whole.getNorthEast()];
  return L.latLngBounds([low.lat - height, low.lng - width], [high.lat + height, high.lng + width]);
}

export function showView(view) {
  const before = state.view;
  Object.assign(state, { view, scale: 2 ** view.max_zoom, hidden: new Set() });
  for (const name of ["image", "layer"]) drawn[name]?.remove();
  drawn.image = null;
  // Bounds first: limits of the image before would move the map once more.
  map.setMaxBounds(null);
  map.setMinZoom(-Infinity);
  map.setMaxZoom(view.max_zoom + 5);
  fit(false);
  map.setMinZoom(Math.min(map.getZoom(), Math.max(-1, view.min_zoom - 1)));
  map.setMaxBounds(reach(box([0, 0, view.height, view.width])));
  // A wide image would be a strip on an upright screen with nothing above and below.
  if (narrow.matches) fit(true);
  showPart();
  showChoice(before);
  const image = view.layers.find((layer) => layer.kind === "image");
  if (image) drawn.image = tiles(image, "tilePane").addTo(map);
  const choices = view.layers.filter((layer) => layer.kind !== "image");
  by("layer").replaceChildren(...choices.map((l) => new Option(`${l.kind}: ${l.title}`, l.key)), new Option("none", ""));
  const messages = [];
  if (view.min_zoom > 0) messages.push("This image has no overviews, so it cannot be seen whole; gdaladdo makes some.");
  if (!image) messages.push("The image of this map is not among what is served.");
  note(messages.join(" "));
  say("view");
  showLayer(choices.find((l) => l.kind === "map") || choices[0]);
}

export function showLayer(layer) {
  by("layer").value = layer ? layer.key : "";
  if (layer?.key !== state.layer?.key) state.hidden = new Set();
  state.layer = layer || null;
  drawn.layer?.remove();
  drawn.layer = null;
  if (layer) {
    drawn.layer = tiles(layer, "layer").addTo(map);
    setOpacity();
  }
  showProgress();
  say("layer");
}

// New pictures are fetched into the tiles that are there: tiles made anew would flicker, and Leaflet asks for them at a
// zoom between whole numbers, where there are none.
function refetch(tileLayer, layer) {
  tileLayer.setUrl(tileAddress(layer), true);
  for (const tile of Object.values(tileLayer._tiles)) tile.el.src = tileLayer.getTileUrl(tile.coords);
}

export function redrawLayer() {
  if (drawn.layer) refetch(drawn.layer, state.layer);
}

export function showBands(bands) {
  if (!setBands(bands)) return;
  if (drawn.image) refetch(drawn.image, state.view.layers.find((layer) => layer.kind === "image"));
  say("shown");
}

export function setOpacity() {
  drawn.layer?.setOpacity(by("opacity").value / 100);
}

function showProgress() {
  const computing = state.layer !== null && state.layer.done < 1;
  by("progress").hidden = !computing;
  if (!computing) return;
  by("progress").querySelector("progress").value = state.layer.done;
  by("progress").querySelector("span").textContent = `${percent(state.layer.done)} computed`;
}

async function refresh() {
  // The folder is listed again only while a map is being computed: otherwise the page asks for nothing when left open.
  const all = state.views.flatMap((view) => view.layers);
  if (!all.some((layer) => layer.done < 1) && state.views.length) return;
  const { views } = await ask("api/views").catch(() => ({ views: [] }));
  const view = views.find((v) => v.key === state.view?.key);
  if (!view) return;
  const keys = (v) => [...v.layers, ...v.polygons].map((layer) => layer.key).join();
  if (keys(view) !== keys(state.view)) return loadViews();
  const fresh = view.layers.find((layer) => layer.key === state.layer?.key);
  const changed = fresh && fresh.revision !== state.layer.revision;
  state.views = views;
  Object.assign(state.view, view);
  if (!changed) return;
  state.layer = fresh;
  refetch(drawn.layer, fresh);
  showProgress();
  say("areas");
}

export async function loadViews(wanted) {
  try {
    Object.assign(state, await ask("api/views"));
  } catch (error) {
    return note(`The server does not answer: ${error.message}`);
  }
  by("view").replaceChildren(...state.views.map((view) => new Option(view.title, view.key)));
  const named = (key) => state.views.find((view) => view.key === key);
  const best = named(wanted) || named(state.view?.key) || state.views.find((view) => view.layers.length > 1) || state.views[0];
  if (!best) return note("There is no image here.");
  by("view").value = best.key;
  showView(best);
}

by("view").onchange = () => showView(state.views.find((view) => view.key === by("view").value));
by("layer").onchange = () => showLayer(state.view.layers.find((layer) => layer.key === by("layer").value));
by("opacity").oninput = () => { setOpacity(); say("shown"); };
onChoice(showBands);
by("whole").onclick = () => fit(false);
setInterval(refresh, POLL_MS);
