// The page of `caswit serve`: starts its parts, and hands on clicks.
import { explainPixel } from "./attention.js";
import { by, map, on, pixel, state } from "./base.js";
import { loadViews, narrow } from "./layers.js";
import { linked, restore } from "./link.js";
import { addPoint, tool } from "./measure.js";
import { lookUp } from "./pointer.js";
import "./picture.js";

function act(latlng) {
  if (!state.view) return;
  if (tool.kind) return addPoint(latlng);
  lookUp(latlng);
  explainPixel(pixel(latlng));
}

function fold(closed) {
  const before = by("panel").offsetHeight;
  by("body").hidden = closed;
  // What was in the middle of the free part stays there.
  if (narrow.matches && state.view) map.panBy([0, (by("panel").offsetHeight - before) / 2], { animate: false });
  by("fold").setAttribute("aria-expanded", !closed);
  by("fold").textContent = closed ? "Show" : "Hide";
}

map.on("click", ({ latlng }) => act(latlng));
map.getContainer().addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target === map.getContainer()) act(map.getCenter());
});
// Leaflet gives the map the focus at every click; its outline and the cross in its middle are for the keyboard.
addEventListener("keydown", () => document.documentElement.classList.add("keyboard"), true);
addEventListener("pointerdown", () => document.documentElement.classList.remove("keyboard"), true);
by("fold").onclick = () => fold(!by("body").hidden);
// A telephone shows the map first.
fold(narrow.matches);
on("view", () => { document.title = `${state.view.title} – caswit`; });
await loadViews(linked().get("image"));
if (state.view) restore();
by("panel").dataset.ready = "yes";
