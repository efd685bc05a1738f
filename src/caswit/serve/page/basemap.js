// A web map under the images, if the server was started with one. Its tiles lie in Web Mercator, and the page in the
// pixels of the image, so each tile is laid where a polynomial from the server says.
import { by, map, on, place, exactPixel, say, state } from "./base.js";

const TILE_PX = 256;
const FINEST = 19;
const MOST_TILES = 100;
const pane = map.getPane("basemap");
let tiles = new Map();

const credit = L.control({ position: "bottomleft" });
credit.onAdd = () => L.DomUtil.create("div", "credit");

function polynomial(coefficients, a, b) {
  const terms = [1, a, b, a * a, a * b, b * b, a ** 3, a * a * b, a * b * b, b ** 3];
  return coefficients.map((c) => c.reduce((sum, factor, k) => sum + factor * terms[k], 0));
}

function worldOf(latlng) {
  const { mercator: fit, height, width } = state.view;
  const [row, col] = exactPixel(latlng);
  // Further out the polynomial holds no more.
  const [v, u] = [row / height, col / width].map((x) => Math.min(1.5, Math.max(-0.5, x)));
  return polynomial(fit.to_world, u, v).map((x, k) => x * fit.scale + fit.origin[k]);
}

function pointOf(x, y) {
  const { mercator: fit, height, width } = state.view;
  const [u, v] = polynomial(fit.to_image, (x - fit.origin[0]) / fit.scale, (y - fit.origin[1]) / fit.scale);
  return map.latLngToLayerPoint(place(v * height, u * width));
}

function visible() {
  const { x: width, y: height } = map.getSize();
  const shares = [0, 0.5, 1].flatMap((a) => [0, 0.5, 1].map((b) => [a * width, b * height]));
  const places = shares.map((point) => worldOf(map.containerPointToLatLng(point)));
  const ends = (k) => [Math.min(...places.map((p) => p[k])), Math.max(...places.map((p) => p[k]))];
  const centre = map.containerPointToLatLng([width / 2, height / 2]);
  const near = map.containerPointToLatLng([width / 2 + 50, height / 2]);
  const [[x1, y1], [x2, y2]] = [worldOf(centre), worldOf(near)];
  return { x: ends(0), y: ends(1), perPixel: Math.hypot(x2 - x1, y2 - y1) / 50 };
}

function draw() {
  const shown = by("basemap").checked && state.view?.mercator;
  const wanted = new Map();
  if (shown) {
    const { x, y, perPixel } = visible();
    let zoom = Math.max(0, Math.min(FINEST, Math.round(-Math.log2(perPixel * TILE_PX))));
    const range = ([from, to]) => [Math.max(0, Math.floor(from * 2 ** zoom)), Math.min(2 ** zoom - 1, Math.floor(to * 2 ** zoom))];
    const count = () => [range(x), range(y)].reduce((n, [from, to]) => n * (to - from + 1), 1);
    while (zoom > 0 && count() > MOST_TILES) zoom -= 1;
    for (let col = range(x)[0]; col <= range(x)[1]; col += 1)
      for (let row = range(y)[0]; row <= range(y)[1]; row += 1) wanted.set(`${zoom}/${col}/${row}`, [zoom, col, row]);
  }
  for (const [key, tile] of tiles) if (!wanted.has(key)) tile.remove();
  tiles = new Map([...wanted].map(([key, at]) => [key, lay(tiles.get(key) || load(...at), ...at)]));
  pane.style.display = "";
}

function load(zoom, col, row) {
  const tile = document.createElement("img");
  // Some services answer only browsers that say which page asks; ours says its origin and nothing more.
  Object.assign(tile, { alt: "", width: TILE_PX, height: TILE_PX, referrerPolicy: "origin" });
  tile.src = state.basemap.url.replace("{z}", zoom).replace("{x}", col).replace("{y}", row);
  pane.append(tile);
  return tile;
}

function lay(tile, zoom, col, row) {
  const [corner, right, below] = [[0, 0], [1, 0], [0, 1]].map(([a, b]) => pointOf((col + a) / 2 ** zoom, (row + b) / 2 ** zoom));
  // A little larger, for between whole pixels neighbouring tiles would leave hairlines.
  const [across, down] = [right.subtract(corner), below.subtract(corner)].map((side) => side.multiplyBy(1.002 / TILE_PX));
  tile.style.transform = `matrix(${[across.x, across.y, down.x, down.y, corner.x, corner.y]})`;
  return tile;
}

export function showBasemap(shown) {
  by("basemap").checked = shown && state.basemap !== null;
  if (by("basemap").checked) credit.addTo(map).getContainer().textContent = `Basemap: ${state.basemap.credit}`;
  else credit.remove();
  draw();
}

by("basemap").onchange = () => { showBasemap(by("basemap").checked); say("shown"); };
map.on("zoomstart", () => { pane.style.display = "none"; });
map.on("moveend zoomend viewreset resize", draw);
on("view", () => {
  by("basemap-field").hidden = !state.basemap || !state.view.mercator;
  draw();
});
