// The view as a PNG file, plain or with title, legend and scale.
import { by, map, note, PANES, percent, state } from "./base.js";
import { covered } from "./layers.js";
import { legend, sizeText } from "./legend.js";
import { scale } from "./scale.js";
import { swipe } from "./swipe.js";

const LEGEND_PX = 300;
const FONT = '"Segoe UI", Roboto, "Helvetica Neue", sans-serif';

const opacityOf = (node) => (node && node !== map.getContainer() ? getComputedStyle(node).opacity * opacityOf(node.parentElement) : 1);

function drawMap(canvas, width, height) {
  const origin = map.getContainer().getBoundingClientRect();
  canvas.fillStyle = getComputedStyle(map.getContainer()).backgroundColor;
  canvas.fillRect(0, 0, width, height);
  canvas.imageSmoothingEnabled = false;
  for (const name of PANES) {
    const pane = map.getPane(name);
    // Pictures from elsewhere may be looked at and not copied, so the basemap stays out.
    if (name === "basemap" || pane.style.display === "none") continue;
    canvas.save();
    canvas.beginPath();
    canvas.rect(0, 0, name === "layer" && by("swipe").checked ? map.getSize().x * swipe.share : width, height);
    canvas.clip();
    for (const part of pane.querySelectorAll("img, canvas")) {
      if (part instanceof HTMLImageElement && !(part.complete && part.naturalWidth)) continue;
      const at = part.getBoundingClientRect();
      canvas.globalAlpha = opacityOf(part);
      canvas.drawImage(part, at.left - origin.left, at.top - origin.top, at.width, at.height);
    }
    canvas.restore();
  }
}

function lines() {
  const shown = legend.entries.filter((c) => !state.hidden.has(c.id));
  return shown.map((c) => ({
    colour: c.color, text: c.name, size: c.share === undefined ? "" : `${sizeText(c)}   ${percent(c.share)}`,
  }));
}

function fitted(canvas, text, width) {
  if (canvas.measureText(text).width <= width) return text;
  let end = text.length;
  while (end > 1 && canvas.measureText(`${text.slice(0, end)}…`).width > width) end -= 1;
  return `${text.slice(0, end)}…`;
}

function drawLegend(canvas, left, height) {
  const [x, right] = [left + 20, left + LEGEND_PX - 20];
  canvas.fillStyle = "#ffffff";
  canvas.fillRect(left, 0, LEGEND_PX, height);
  const write = (text, y, { font = `14px ${FONT}`, colour = "#1b1e24", from = x, most = right - from } = {}) => {
    Object.assign(canvas, { font, fillStyle: colour, textAlign: "left" });
    canvas.fillText(fitted(canvas, text, most), from, y);
  };
  write(state.view.title, 36, { font: `600 17px ${FONT}` });
  if (state.layer) write(`${state.layer.kind}: ${state.layer.title}`, 58, { colour: "#59626f" });
  let y = 92;
  for (const { colour, text, size } of lines()) {
    if (y > height - 70) break;
    if (colour) {
      canvas.fillStyle = colour;
      canvas.fillRect(x, y - 12, 15, 15);
      canvas.strokeStyle = "#8b929c";
      canvas.strokeRect(x + 0.5, y - 11.5, 14, 14);
    }
    Object.assign(canvas, { font: `14px ${FONT}` });
    const taken = canvas.measureText(size).width;
    write(size, y, { from: right - taken, most: taken + 1, colour: "#59626f" });
    write(text, y, { from: colour ? x + 24 : x, most: right - x - 32 - taken });
    y += 26;
  }
  canvas.strokeStyle = "#1b1e24";
  canvas.lineWidth = 2;
  canvas.beginPath();
  canvas.moveTo(x, height - 36);
  canvas.lineTo(x, height - 28);
  canvas.lineTo(x + scale.px, height - 28);
  canvas.lineTo(x + scale.px, height - 36);
  canvas.stroke();
  write(scale.text, height - 42);
}

function save(withLegend) {
  if (!state.view) return;
  // What the panel covers is left out, as it is on the screen.
  const { x: width, y: height } = map.getSize().subtract(L.point(covered()));
  const sheet = document.createElement("canvas");
  const fine = devicePixelRatio || 1;
  Object.assign(sheet, { width: (width + (withLegend ? LEGEND_PX : 0)) * fine, height: height * fine });
  const canvas = sheet.getContext("2d");
  canvas.scale(fine, fine);
  drawMap(canvas, width, height);
  if (withLegend) drawLegend(canvas, width, height);
  sheet.toBlob((content) => {
    if (!content) return note("The picture could not be made; try a smaller window.");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(content);
    link.download = `${state.view.title.replace(/.*[/\\]/, "").replace(/\.\w+$/, "")}_view.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }, "image/png");
}

by("save").onclick = () => save(false);
by("save-legend").onclick = () => save(true);
