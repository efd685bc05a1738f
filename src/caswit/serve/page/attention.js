// Where the model looked when it labelled a pixel: heat maps over the image, and its answers with other context.
import { ask, box, by, element, inside, lengthText, map, on, percent, place, row, say, state } from "./base.js";

export const attention = { stage: null, point: null };
let found = null;
let clicks = 0;
let heatmap = null;
const marks = L.layerGroup().addTo(map);
const part = (selector) => by("attention").querySelector(selector);

export async function explainPixel(at, { stage, head } = {}) {
  if (!state.explains || !state.view || !inside(at)) return;
  const click = ++clicks;
  part("[data-hint]").hidden = false;
  part("[data-hint]").textContent = "Computing …";
  try {
    const answer = await ask(`api/views/${state.view.key}/attention?row=${at[0]}&col=${at[1]}`);
    if (click !== clicks) return; // a later click, or another view, has taken its place
    part("[data-hint]").hidden = true;
    attention.stage = stage ?? attention.stage;
    showFound(answer, head);
  } catch (error) {
    if (click === clicks) part("[data-hint]").textContent = error.message;
  }
}

function showFound(answer, head) {
  found = answer;
  attention.point = [found.row, found.col];
  const stages = found.stages.map((s) => s.stage);
  if (!stages.includes(attention.stage)) attention.stage = stages[stages.length - 1];
  marks.clearLayers();
  const line = { color: "#fff", weight: 2, fill: false, interactive: false };
  marks.addLayer(L.rectangle(box(found.context), { ...line, dashArray: "6 5" }));
  marks.addLayer(L.rectangle(box(found.tile), line));
  const dot = { radius: 5, color: "#15181d", weight: 2, fillColor: "#fff", fillOpacity: 1, interactive: false };
  marks.addLayer(L.circleMarker(place(found.row + 0.5, found.col + 0.5), dot));
  part("[data-found]").hidden = false;
  part(".stages").replaceChildren(...found.stages.map(stageButton));
  showProbabilities(found);
  setOnTop(true);
  showStage(attention.stage, head);
}

function stageButton({ stage, tokens }) {
  const side = found.context[2] / tokens[0];
  const size = state.view.gsd_m ? lengthText(side * state.view.gsd_m, "m", 2) : `${+side.toFixed(1)} px`;
  const button = element("button", element("b", `Stage ${stage}`));
  button.append(element("small", size));
  Object.assign(button, { type: "button", onclick: () => { setOnTop(true); showStage(stage); } });
  button.dataset.stage = stage;
  button.title = `Attention after stage ${stage} of the encoder: each token is ${size} wide on the ground`;
  button.setAttribute("aria-label", `Stage ${stage}, tokens ${size} wide`);
  return button;
}

function showStage(stage, head = -1) {
  attention.stage = stage;
  const shown = found.stages.find((s) => s.stage === stage);
  for (const button of part(".stages").children)
    button.setAttribute("aria-pressed", Number(button.dataset.stage) === stage);
  by("head").replaceChildren(new Option("mean of all", -1), ...shown.heads.map((_, k) => new Option(`head ${k + 1}`, k)));
  by("head").value = head in shown.heads ? head : -1;
  by("peak").textContent =
    `${shown.tokens.join(" × ")} tokens over the context; peak ${shown.peak.toFixed(1)} times uniform attention`;
  showHead();
}

function showHead() {
  const shown = found.stages.find((s) => s.stage === attention.stage);
  const head = Number(by("head").value);
  heatmap?.remove();
  const options = { pane: "heatmap", className: "heatmap", alt: `Attention of stage ${attention.stage}` };
  heatmap = L.imageOverlay(head < 0 ? shown.mean : shown.heads[head], box(found.context), options).addTo(map);
  say("shown");
}

// Two palettes over one another cannot be read, so either the heat map or the layer is on top: what was asked for last.
function setOnTop(attended) {
  by("heat").checked = attended;
  map.getPane("heatmap").style.display = attended ? "" : "none";
  map.getPane("layer").style.opacity = attended ? 0.12 : "";
}

function showProbabilities({ probabilities, changed }) {
  const kinds = Object.keys(probabilities[0].values);
  const top = document.createElement("thead");
  top.append(row(element("th", "context"), ...kinds.map((kind) => element("th", kind))));
  const body = document.createElement("tbody");
  const shown = probabilities.filter((p) => Math.max(...Object.values(p.values)) >= 0.01).slice(0, 6);
  body.append(...shown.map((p) => row(element("td", p.name, p.color), ...kinds.map((k) => element("td", percent(p.values[k]))))));
  by("probabilities").replaceChildren(top, body);
  by("changed").textContent = `With masked context ${percent(changed)} of the tile's pixels get another class.`;
}

function forget() {
  found = null;
  attention.point = null;
  clicks += 1;
  heatmap?.remove();
  heatmap = null;
  setOnTop(false);
  marks.clearLayers();
  by("attention").hidden = !state.explains || !state.view?.layers.some((layer) => layer.kind === "image");
  part("[data-found]").hidden = true;
  part("[data-hint]").hidden = false;
  part("[data-hint]").textContent = "Click a pixel.";
  say("shown");
}

by("heat").onchange = () => setOnTop(by("heat").checked);
by("head").onchange = showHead;
by("clear").onclick = forget;
for (const [control, act] of [["opacity", "input"], ["swipe", "input"], ["divider", "pointerdown"], ["divider", "keydown"]])
  by(control).addEventListener(act, () => setOnTop(false));
on("layer", () => setOnTop(false));
on("classes", () => setOnTop(false));
on("view", forget);
