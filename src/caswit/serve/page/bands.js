// Which three bands of an image are shown as red, green and blue, where it has others than three.
import { by, state } from "./base.js";

const CHANNELS = ["red", "green", "blue"];
const boxes = CHANNELS.map((name) => by(`band-${name}`));

const imageOf = (view) => view?.layers.find((layer) => layer.kind === "image");
const choosable = (image) => image !== undefined && image.bands.length > 1 && image.bands.length !== 3;
const namesOf = (image) => image.bands.map((name, index) => (name ? `${index + 1} ${name}` : `band ${index + 1}`));
const same = (one, other) => one.join() === other.join();

// The choice of another view goes on where the bands are the same, as in the scenes of one dataset.
export function showChoice(before) {
  const [image, last] = [imageOf(state.view), imageOf(before)];
  const keeps = state.bands && image && last && same(image.bands, last.bands) && same(image.shown, last.shown);
  if (!keeps) state.bands = null;
  by("bands").hidden = !choosable(image);
  if (!choosable(image)) return;
  for (const box of boxes) box.replaceChildren(...namesOf(image).map((name, index) => new Option(name, index + 1)));
  mark(image);
}

function mark(image) {
  boxes.forEach((box, index) => { box.value = (state.bands || image.shown)[index]; });
  by("usual-bands").hidden = state.bands === null;
}

// Sets the choice, null for the usual one; what is no choice for this image is passed over. True if it changed.
export function setBands(bands) {
  const image = imageOf(state.view);
  const known = bands?.length === 3 && bands.every((n) => Number.isInteger(n) && n >= 1 && n <= image?.bands.length);
  const chosen = choosable(image) && known && !same(bands, image.shown) ? bands : null;
  const changed = !same(chosen || [], state.bands || []);
  state.bands = chosen;
  if (choosable(image)) mark(image);
  return changed;
}

export const chosenBands = () => boxes.map((box) => Number(box.value));
export const onChoice = (act) => {
  for (const box of boxes) box.onchange = () => act(chosenBands());
  by("usual-bands").onclick = () => act(null);
};
