// The address of the page holds what is shown, so that a link or a bookmark brings it back.
import { attention, explainPixel } from "./attention.js";
import { showBasemap } from "./basemap.js";
import { by, exactPixel, map, note, on, place, state } from "./base.js";
import { hideClasses } from "./legend.js";
import { setOpacity, showBands, showLayer, showView } from "./layers.js";
import { setSwipe, swipe } from "./swipe.js";
import { showPolygons, shownPolygons } from "./polygons.js";

let ready = false;

export const linked = () => new URLSearchParams(location.hash.slice(1));

const numbers = (text) => (/^-?\d+(\.\d+)?(,-?\d+(\.\d+)?)*$/.test(text || "") ? text.split(",").map(Number) : []);

function write() {
  if (!ready || !state.view) return;
  const about = new URLSearchParams({
    image: state.view.key,
    layer: state.layer?.key || "none",
    center: exactPixel(map.getCenter()).map((x) => x.toFixed(1)),
    zoom: map.getZoom(),
    opacity: by("opacity").value,
  });
  if (state.bands) about.set("bands", state.bands);
  if (by("swipe").checked) about.set("swipe", Math.round(100 * swipe.share));
  if (state.hidden.size) about.set("off", [...state.hidden].sort((a, b) => a - b));
  if (shownPolygons().length) about.set("polygons", shownPolygons());
  if (by("basemap").checked) about.set("basemap", "on");
  if (attention.point) {
    about.set("point", attention.point);
    about.set("stage", attention.stage);
    if (by("head").value >= 0) about.set("head", by("head").value);
  }
  history.replaceState(null, "", `#${about}`.replaceAll("%2C", ","));
}

// Everything in a link may be missing, or be meant for another folder: what is not known is passed over.
export function restore() {
  ready = false;
  const about = linked();
  const view = state.views.find((each) => each.key === about.get("image"));
  if (view) {
    by("view").value = view.key;
    if (view !== state.view) showView(view);
    showBands(numbers(about.get("bands")));
    const layer = view.layers.find((each) => each.key === about.get("layer") && each.kind !== "image");
    if (layer || about.get("layer") === "none") showLayer(layer);
    const [opacity] = numbers(about.get("opacity"));
    if (opacity >= 0 && opacity <= 100) by("opacity").value = opacity;
    setOpacity();
    hideClasses(numbers(about.get("off")));
    const [share] = numbers(about.get("swipe"));
    setSwipe(share !== undefined, (share ?? 50) / 100);
    showPolygons((about.get("polygons") || "").split(","));
    showBasemap(about.get("basemap") === "on");
    const [center, [zoom]] = [numbers(about.get("center")), numbers(about.get("zoom"))];
    if (center.length === 2 && zoom !== undefined) map.setView(place(...center), zoom, { animate: false });
    const [point, [stage], [head]] = ["point", "stage", "head"].map((name) => numbers(about.get(name)));
    if (point.length === 2) explainPixel(point.map(Math.floor), { stage, head });
  }
  ready = true;
  if (!numbers(about.get("point")).length) write();
}

async function copy() {
  write();
  try {
    await navigator.clipboard.writeText(location.href);
    note("The link is copied. It works while this server runs.");
  } catch {
    note("The browser does not allow copying here; the link is in its address bar.");
  }
}

for (const what of ["view", "layer", "shown"]) on(what, write);
map.on("moveend", write);
by("link").onclick = copy;
addEventListener("hashchange", restore);
