// A bar that says how long 100 pixels of the screen are, rounded.
import { coarseness, map, on, state } from "./base.js";

const bar = L.control({ position: "bottomleft" });
bar.onAdd = () => L.DomUtil.create("div", "scale");
bar.addTo(map);

export const scale = { px: 0, text: "" };

function showScale() {
  if (!state.view) return;
  const length = 100 * coarseness() * (state.view.gsd_m || 1);
  const step = 10 ** Math.floor(Math.log10(length));
  const round = [5, 2, 1].map((k) => k * step).find((value) => value <= length);
  scale.px = (100 * round) / length;
  scale.text = state.view.gsd_m ? (round >= 1000 ? `${round / 1000} km` : `${+round.toPrecision(1)} m`) : `${+round.toPrecision(1)} px`;
  bar.getContainer().style.width = `${scale.px}px`;
  bar.getContainer().textContent = scale.text;
}

map.on("zoom resize viewreset", showScale);
on("view", showScale);
