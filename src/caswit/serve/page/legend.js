// The classes of a layer: their colours and areas, and which of them are drawn.
import { areaText, ask, by, element, on, percent, row, say, state } from "./base.js";
import { redrawLayer } from "./layers.js";

export const legend = { entries: [] };

const FIXED = {
  confidence: [{ name: "dark: unsure, bright: sure" }],
  errors: [{ name: "wrong", color: "#e22626" }, { name: "not labelled", color: "#28292e" }],
};

async function showLegend() {
  const { layer, view } = state;
  by("legend").hidden = !layer;
  by("all-classes").hidden = true;
  legend.entries = [];
  if (!layer) return;
  if (FIXED[layer.kind]) {
    legend.entries = FIXED[layer.kind];
    by("legend").querySelector("tbody").replaceChildren(...legend.entries.map((c) => row(element("td", c.name, c.color))));
    return;
  }
  const classes = layer.classes.filter((c) => !c.ignore);
  draw(classes);
  const areas = await ask(`api/views/${view.key}/layers/${layer.key}/areas`).catch(() => []);
  if (layer !== state.layer) return;
  const counted = new Map(areas.map((a) => [a.id, a]));
  draw(classes
    .map((c) => ({ ...c, ...counted.get(c.id) }))
    .filter((c) => !c.name.startsWith("class ") || c.pixels));
}

function draw(entries) {
  legend.entries = entries;
  const focused = document.activeElement?.dataset?.class;
  by("legend").querySelector("tbody").replaceChildren(...entries.map((entry) => {
    const { id, name, color, share } = entry;
    const box = document.createElement("input");
    Object.assign(box, { type: "checkbox", checked: !state.hidden.has(id), onchange: () => turn(id, box.checked) });
    box.dataset.class = id;
    const label = element("label", "");
    label.append(box, element("span", name, color));
    const cell = element("td", label);
    const sizes = share === undefined ? [] : [element("td", sizeText(entry)), element("td", percent(share))];
    return row(cell, ...sizes);
  }));
  if (focused) by("legend").querySelector(`[data-class="${focused}"]`)?.focus();
  by("all-classes").hidden = !state.hidden.size;
}

export function sizeText({ area_m2: area, pixels, exact }) {
  return (exact ? "" : "≈ ") + (area === null ? areaText(pixels, "px") : areaText(area, "m"));
}

function turn(id, shown) {
  state.hidden[shown ? "delete" : "add"](id);
  changed();
}

export function hideClasses(ids) {
  const known = new Set(state.layer?.classes.map((c) => c.id));
  state.hidden = new Set(ids.filter((id) => known.has(id)));
  changed();
}

function changed() {
  draw(legend.entries);
  redrawLayer();
  say("classes");
  say("shown");
}

by("all-classes").onclick = () => hideClasses([]);
for (const what of ["layer", "areas"]) on(what, showLegend);
