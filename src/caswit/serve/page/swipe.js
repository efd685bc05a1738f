// A bar with the layer on its left and the image alone on its right.
import { by, map, on, say, state } from "./base.js";

export const swipe = { share: 0.5 };

function clip() {
  const pane = map.getPane("layer");
  const shown = by("swipe").checked && state.layer !== null;
  by("divider").hidden = !shown;
  if (!shown) {
    pane.style.clip = "";
    return;
  }
  const { x: width, y: height } = map.getSize();
  const [top, bottom] = [map.containerPointToLayerPoint([0, 0]), map.containerPointToLayerPoint([width * swipe.share, height])];
  pane.style.clip = `rect(${top.y}px, ${bottom.x}px, ${bottom.y}px, ${top.x}px)`;
  by("divider").style.left = `${100 * swipe.share}%`;
  by("divider").setAttribute("aria-valuenow", Math.round(100 * swipe.share));
}

export function setSwipe(shown, share = swipe.share) {
  by("swipe").checked = shown;
  swipe.share = Math.min(0.98, Math.max(0.02, share));
  clip();
  say("shown");
}

by("divider").addEventListener("pointerdown", (event) => {
  event.preventDefault();
  by("divider").setPointerCapture(event.pointerId);
  const move = (moved) => setSwipe(true, moved.clientX / innerWidth);
  by("divider").addEventListener("pointermove", move);
  for (const end of ["pointerup", "pointercancel"])
    by("divider").addEventListener(end, () => by("divider").removeEventListener("pointermove", move), { once: true });
});
by("divider").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
  if (step) setSwipe(true, swipe.share + step);
});
by("swipe").onchange = () => setSwipe(by("swipe").checked);
map.on("move zoom resize viewreset", clip);
on("layer", clip);
