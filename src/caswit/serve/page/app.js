// The page of `caswit serve`. Places are (row, column) in pixels of the image; the map shows the image's own pixel
// grid, so that images without a georeference look no different. Leaflet's latitude is minus the row.
"use strict";

const TILE_PX = 256;
const POLL_MS = 3000;
const HOVER_MS = 120;
const by = (id) => document.getElementById(id);

const state = { views: [], explains: false, view: null, layer: null, stage: null, found: null, clicks: 0 };
const map = L.map("map", { crs: L.CRS.Simple, attributionControl: false, zoomSnap: 0.25, wheelPxPerZoomLevel: 90 });
for (const [name, order] of [["layer", 300], ["heatmap", 350]]) map.createPane(name).style.zIndex = order;
const drawn = { image: null, layer: null, heatmap: null, marks: L.layerGroup().addTo(map) };

const place = (row, col) => L.latLng(-row / state.scale, col / state.scale);
const box = ([row, col, height, width]) => L.latLngBounds(place(row, col), place(row + height, col + width));
const pixel = (latlng) => [Math.floor(-latlng.lat * state.scale), Math.floor(latlng.lng * state.scale)];
const inside = ([row, col]) => row >= 0 && col >= 0 && row < state.view.height && col < state.view.width;
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 && share > 0 ? 1 : 0)} %`;

async function ask(address, options) {
  const reply = await fetch(address, options);
  const content = await reply.json();
  if (!reply.ok) throw new Error(typeof content.detail === "string" ? content.detail : `error ${reply.status}`);
  return content;
}

function note(text) {
  by("note").textContent = text || "";
  by("note").hidden = !text;
}

function element(name, text, colour) {
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

function row(...cells) {
  const made = document.createElement("tr");
  made.append(...cells);
  return made;
}

// ---- views and layers ----------------------------------------------------------------------------------------------

const tileAddress = (layer) =>
  `api/views/${state.view.key}/layers/${layer.key}/tiles/{z}/{x}/{y}?v=${layer.revision}`;

function tiles(layer, pane) {
  const { max_zoom: finest, min_zoom: coarsest, height, width } = state.view;
  return L.tileLayer(tileAddress(layer), {
    pane, tileSize: TILE_PX, noWrap: true, bounds: box([0, 0, height, width]), maxNativeZoom: finest,
    minNativeZoom: Math.max(coarsest, layer.min_zoom), maxZoom: finest + 5, minZoom: -2,
  });
}

function showView(view) {
  forget();
  Object.assign(state, { view, scale: 2 ** view.max_zoom });
  for (const name of ["image", "layer"]) drawn[name]?.remove();
  drawn.image = tiles(view.layers[0], "tilePane").addTo(map);
  map.setMaxZoom(view.max_zoom + 5);
  map.setMinZoom(Math.max(-1, view.min_zoom - 1));
  const whole = box([0, 0, view.height, view.width]);
  map.setMaxBounds(whole.pad(1.5));
  map.fitBounds(whole, { paddingBottomRight: innerWidth > 640 ? [330, 0] : [0, innerHeight * 0.42] });
  const choices = view.layers.slice(1);
  by("layer").replaceChildren(...choices.map((l) => new Option(`${l.kind}: ${l.title}`, l.key)), new Option("none", ""));
  const first = choices.find((l) => l.kind === "map") || choices[0];
  by("layer").value = first ? first.key : "";
  note(view.min_zoom > 0 ? "This image has no overviews, so it cannot be seen whole; gdaladdo makes some." : "");
  showLayer(first);
}

function showLayer(layer) {
  drawn.layer?.remove();
  drawn.layer = null;
  state.layer = layer || null;
  if (layer) {
    drawn.layer = tiles(layer, "layer").addTo(map);
    setOpacity();
  }
  showProgress();
  showLegend();
  clip();
}

async function showLegend() {
  const layer = state.layer;
  const body = by("legend").querySelector("tbody");
  by("legend").hidden = !layer;
  if (!layer) return;
  if (layer.kind === "confidence") {
    body.replaceChildren(row(element("td", "dark: unsure, bright: sure")));
    return;
  }
  if (layer.kind === "errors") {
    body.replaceChildren(row(element("td", "wrong", "#e22626")), row(element("td", "not labelled", "#28292e")));
    return;
  }
  const shown = layer.classes.filter((c) => !c.ignore);
  body.replaceChildren(...shown.map((c) => row(element("td", c.name, c.color))));
  const areas = await ask(`api/views/${state.view.key}/layers/${layer.key}/areas`).catch(() => []);
  if (layer !== state.layer) return;
  const counted = new Map(areas.map((a) => [a.id, a]));
  const rows = shown.filter((c) => !c.name.startsWith("class ") || counted.get(c.id)?.pixels);
  body.replaceChildren(...rows.map((c) => {
    const area = counted.get(c.id);
    return row(element("td", c.name, c.color), ...(area ? [element("td", size(area)), element("td", percent(area.share))] : []));
  }));
}

function size({ area_m2: area, pixels, exact }) {
  const about = exact ? "" : "≈ ";
  if (area === null) return `${about}${pixels >= 1e6 ? `${(pixels / 1e6).toFixed(2)} M` : pixels.toLocaleString("en")} px`;
  if (area >= 1e6) return `${about}${(area / 1e6).toFixed(2)} km²`;
  return area >= 1e4 ? `${about}${(area / 1e4).toFixed(2)} ha` : `${about}${area.toFixed(0)} m²`;
}

function setOpacity() {
  drawn.layer?.setOpacity(by("opacity").value / 100);
}

// ---- a map that is still being computed ------------------------------------------------------------------------------

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
  for (const view of views.filter((v) => v.key === state.view?.key)) {
    const fresh = view.layers.find((layer) => layer.key === state.layer?.key);
    const changed = fresh && fresh.revision !== state.layer.revision;
    const keys = (v) => v.layers.map((layer) => layer.key).join();
    if (keys(view) !== keys(state.view)) return loadViews();
    Object.assign(state.view, view);
    if (!changed) continue;
    state.layer = fresh;
    // New pictures are fetched into the tiles that are there, since tiles made anew would flicker.
    drawn.layer.setUrl(tileAddress(fresh), true);
    for (const tile of Object.values(drawn.layer._tiles)) tile.el.src = drawn.layer.getTileUrl(tile.coords);
    showProgress();
    showLegend();
  }
}

// ---- swipe -------------------------------------------------------------------------------------------------------------

let divider = 0.5;

function clip() {
  const pane = map.getPane("layer");
  const on = by("swipe").checked && drawn.layer !== null;
  by("divider").hidden = !on;
  if (!on) {
    pane.style.clip = "";
    return;
  }
  const { x: width, y: height } = map.getSize();
  const [top, bottom] = [map.containerPointToLayerPoint([0, 0]), map.containerPointToLayerPoint([width * divider, height])];
  pane.style.clip = `rect(${top.y}px, ${bottom.x}px, ${bottom.y}px, ${top.x}px)`;
  by("divider").style.left = `${100 * divider}%`;
  by("divider").setAttribute("aria-valuenow", Math.round(100 * divider));
}

function moveDivider(share) {
  divider = Math.min(0.98, Math.max(0.02, share));
  clip();
}

by("divider").addEventListener("pointerdown", (event) => {
  event.preventDefault();
  by("divider").setPointerCapture(event.pointerId);
  const move = (moved) => moveDivider(moved.clientX / innerWidth);
  by("divider").addEventListener("pointermove", move);
  by("divider").addEventListener("pointerup", () => by("divider").removeEventListener("pointermove", move), { once: true });
});
by("divider").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
  if (step) moveDivider(divider + step);
});

// ---- hover -------------------------------------------------------------------------------------------------------------

let hovering = null;
let waiting = 0;

function hover(event) {
  clearTimeout(waiting);
  // Only where the pointer rests: the model needs longer for a tile than the pointer to cross it.
  waiting = setTimeout(async () => {
    if (!state.view) return;
    const at = pixel(event.latlng);
    if (!inside(at)) return;
    hovering?.abort();
    hovering = new AbortController();
    const address = `api/views/${state.view.key}/point?row=${at[0]}&col=${at[1]}`;
    const found = await ask(address, { signal: hovering.signal }).catch(() => null);
    if (found) showPoint(found);
  }, HOVER_MS);
}

function showPoint(found) {
  const rows = [];
  const confidence = state.view.layers.find((l) => l.kind === "confidence" && found.layers[l.key]);
  for (const layer of state.view.layers) {
    const value = found.layers[layer.key];
    if (!value?.name) continue;
    const sure = layer.kind === "map" && confidence ? percent(found.layers[confidence.key].confidence) : "";
    rows.push(row(element("td", layer.kind), element("td", value.name, value.color), element("td", sure)));
  }
  if (found.model) {
    const { name, color, confidence: sure } = found.model;
    rows.push(row(element("td", "model"), element("td", name, color), element("td", percent(sure))));
  }
  const where = [element("td", "pixel"), element("td", `row ${found.row}, column ${found.col}`), element("td", "")];
  rows.push(row(...where));
  if (found.lonlat) {
    const [lon, lat] = found.lonlat;
    rows.push(row(element("td", "lon, lat"), element("td", `${lon.toFixed(6)}, ${lat.toFixed(6)}`), element("td", "")));
  }
  by("hover").querySelector("tbody").replaceChildren(...rows);
  by("hover").querySelector("table").hidden = false;
  by("hover").querySelector("[data-empty]").hidden = true;
}

// ---- attention -----------------------------------------------------------------------------------------------------------

async function explainPixel(event) {
  if (!state.explains || !state.view) return;
  const at = pixel(event.latlng);
  if (!inside(at)) return;
  const hint = by("attention").querySelector("[data-hint]");
  const click = ++state.clicks;
  hint.hidden = false;
  hint.textContent = "Computing …";
  try {
    const found = await ask(`api/views/${state.view.key}/attention?row=${at[0]}&col=${at[1]}`);
    if (click !== state.clicks) return; // a later click, or another view, has taken its place
    hint.hidden = true;
    showFound(found);
  } catch (error) {
    if (click === state.clicks) hint.textContent = error.message;
  }
}

function showFound(found) {
  state.found = found;
  const stages = found.stages.map((s) => s.stage);
  if (!stages.includes(state.stage)) state.stage = stages[stages.length - 1];
  drawn.marks.clearLayers();
  const line = { color: "#fff", weight: 2, fill: false, interactive: false };
  drawn.marks.addLayer(L.rectangle(box(found.context), { ...line, dashArray: "6 5" }));
  drawn.marks.addLayer(L.rectangle(box(found.tile), line));
  const dot = { radius: 5, color: "#15181d", weight: 2, fillColor: "#fff", fillOpacity: 1, interactive: false };
  drawn.marks.addLayer(L.circleMarker(place(found.row + 0.5, found.col + 0.5), dot));
  by("attention").querySelector("[data-found]").hidden = false;
  by("attention").querySelector(".stages").replaceChildren(...stages.map((stage) => {
    const button = element("button", String(stage));
    button.type = "button";
    button.setAttribute("aria-label", `Stage ${stage}`);
    button.onclick = () => showStage(stage);
    return button;
  }));
  showProbabilities(found);
  showStage(state.stage);
}

function showStage(stage) {
  state.stage = stage;
  const shown = state.found.stages.find((s) => s.stage === stage);
  for (const button of by("attention").querySelectorAll(".stages button"))
    button.setAttribute("aria-pressed", button.textContent === String(stage));
  by("head").replaceChildren(new Option("mean", -1), ...shown.heads.map((_, k) => new Option(`head ${k + 1}`, k)));
  by("peak").textContent = `${shown.tokens.join(" × ")} tokens; peak ${shown.peak.toFixed(1)} times uniform attention`;
  showHead();
}

function showHead() {
  const shown = state.found.stages.find((s) => s.stage === state.stage);
  const head = Number(by("head").value);
  drawn.heatmap?.remove();
  const options = { pane: "heatmap", className: "heatmap", alt: `Attention of stage ${state.stage}` };
  drawn.heatmap = L.imageOverlay(head < 0 ? shown.mean : shown.heads[head], box(state.found.context), options).addTo(map);
  map.getPane("layer").style.opacity = 0.12; // two palettes over one another cannot be read
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
  state.found = null;
  state.clicks += 1;
  drawn.heatmap?.remove();
  drawn.heatmap = null;
  map.getPane("layer").style.opacity = "";
  drawn.marks.clearLayers();
  by("attention").hidden = !state.explains;
  by("attention").querySelector("[data-found]").hidden = true;
  const hint = by("attention").querySelector("[data-hint]");
  hint.hidden = false;
  hint.textContent = "Click a pixel.";
}

// ---- scale bar -----------------------------------------------------------------------------------------------------------

const bar = L.control({ position: "bottomleft" });
bar.onAdd = () => L.DomUtil.create("div", "scale");
bar.addTo(map);

function showScale() {
  if (!state.view) return;
  const pixels = 100 * state.scale / 2 ** map.getZoom(); // of the image, in 100 of the screen
  const length = pixels * (state.view.gsd_m || 1);
  const step = 10 ** Math.floor(Math.log10(length));
  const round = [5, 2, 1].map((k) => k * step).find((value) => value <= length);
  const text = state.view.gsd_m ? (round >= 1000 ? `${round / 1000} km` : `${round} m`) : `${round} px`;
  Object.assign(bar.getContainer().style, { width: `${(100 * round) / length}px` });
  bar.getContainer().textContent = text;
}

// ---- together --------------------------------------------------------------------------------------------------------------

async function loadViews() {
  try {
    Object.assign(state, await ask("api/views"));
  } catch (error) {
    return note(`The server does not answer: ${error.message}`);
  }
  by("view").replaceChildren(...state.views.map((view) => new Option(view.title, view.key)));
  const same = state.views.find((view) => view.key === state.view?.key);
  const best = same || state.views.find((view) => view.layers.length > 1) || state.views[0];
  if (!best) return note("There is no image here.");
  by("view").value = best.key;
  showView(best);
  by("panel").dataset.ready = "yes";
}

by("view").onchange = () => showView(state.views.find((view) => view.key === by("view").value));
by("layer").onchange = () => showLayer(state.view.layers.find((layer) => layer.key === by("layer").value));
by("opacity").oninput = setOpacity;
by("swipe").onchange = clip;
by("head").onchange = showHead;
by("clear").onclick = forget;
by("fold").onclick = () => {
  const open = by("body").hidden;
  by("body").hidden = !open;
  by("fold").setAttribute("aria-expanded", open);
  by("fold").textContent = open ? "Hide" : "Show";
};
map.on("move zoom resize viewreset", () => { clip(); showScale(); });
map.on("mousemove", hover);
map.on("click", explainPixel);
setInterval(refresh, POLL_MS);
loadViews();
