/** @file Shows an item: its frames with masks, its objects, its text. */

import { mediaUrl, releaseUrl, showError } from "./api.js";
import { byId, element, icon, setIcon } from "./dom.js";
import { drawMask } from "./masks.js";
import { pieces, review } from "./review_state.js";

/** @import { Item, Statement } from "./review_state.js" */

const PLAY_DELAY = 400; // milliseconds a frame: few of them are shown
const FILL = { rest: 0.12, lit: 0.4, dim: 0.05 };

const picture = byId("picture", HTMLCanvasElement);
const overlay = byId("overlay", HTMLCanvasElement);
const scrubber = byId("scrubber", HTMLInputElement);

/** @type {Map<number, Promise<HTMLImageElement>>} pictures of the item's frames by their place */
let pictures = new Map();
let timer = 0;
/** Place of the frame whose picture is drawn, -1 before the first. The next one may be on its way. */
let drawn = -1;

// ---- frames ----

/** @param {Item} item @param {number} place @returns {Promise<HTMLImageElement>} */
async function fetchPicture(item, place) {
  const query = new URLSearchParams({ id: item.id, number: String(item.frames[place]), hash: item.hash });
  const url = await mediaUrl(`v1/review/frame?${query}`);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    throw new Error(`Frame ${item.frames[place]} cannot be shown.`);
  } finally {
    releaseUrl(url);
  }
  return image;
}

/** @param {Item} item @param {number} place */
function pictureOf(item, place) {
  const known = pictures.get(place) ?? fetchPicture(item, place);
  pictures.set(place, known);
  return known;
}

/** Shows a frame of the item. @param {number} place in its frames */
export async function seek(place) {
  const { item } = review;
  if (!item) return;
  review.place = Math.max(0, Math.min(place, item.frames.length - 1));
  scrubber.value = String(review.place);
  scrubber.style.setProperty("--position", String(item.frames.length > 1 ? review.place / (item.frames.length - 1) : 0));
  const name = `Frame ${item.frames[review.place]}`;
  byId("frame", HTMLOutputElement).value = `${name} (${review.place + 1} of ${item.frames.length})`;
  scrubber.setAttribute("aria-valuetext", name);
  picture.setAttribute("aria-label", name);
  const shown = review.place;
  try {
    const image = await pictureOf(item, shown);
    if (review.item !== item || review.place !== shown) return; // another one is shown by now
    [picture.width, picture.height] = [image.naturalWidth, image.naturalHeight];
    picture.getContext("2d")?.drawImage(image, 0, 0);
    picture.dataset.frame = String(item.frames[shown]);
    drawn = shown;
    drawMasks();
    if (shown + 1 < item.frames.length) void pictureOf(item, shown + 1).catch(() => undefined);
  } catch (error) {
    pictures.delete(shown);
    if (review.item === item) showError(error, () => seek(shown));
  }
}

/** @param {number} by number of shown frames */
export const step = (by) => {
  pause();
  void seek(review.place + by);
};

export function pause() {
  clearInterval(timer);
  timer = 0;
  setIcon(byId("play", HTMLButtonElement), "play");
  byId("play", HTMLButtonElement).setAttribute("aria-label", "Play");
}

export function togglePlay() {
  if (timer) return pause();
  if (!review.item) return;
  setIcon(byId("play", HTMLButtonElement), "pause");
  byId("play", HTMLButtonElement).setAttribute("aria-label", "Pause");
  timer = setInterval(() => {
    const count = review.item?.frames.length ?? 1;
    void seek((review.place + 1) % count);
  }, PLAY_DELAY);
}

// ---- masks ----

/** Draws the masks of the frame whose picture is drawn. */
export function drawMasks() {
  const { item } = review;
  const context = overlay.getContext("2d");
  if (!item || !context) return;
  const box = overlay.getBoundingClientRect();
  [overlay.width, overlay.height] = [Math.round(box.width * devicePixelRatio), Math.round(box.height * devicePixelRatio)];
  if (!review.masks || drawn < 0) return;
  for (const { label, color, masks } of item.objects) {
    const mask = masks[drawn];
    if (!mask || review.hidden.has(label)) continue;
    const [height, width] = mask.size; // of an object that may be scaled to the frame
    context.setTransform(overlay.width / width, 0, 0, overlay.height / height, 0, 0);
    const lit = review.hover === label;
    const opacity = lit ? FILL.lit : review.hover ? FILL.dim : FILL.rest;
    drawMask(context, mask, color, { opacity, line: lit ? 3 : 2, pixel: (width * devicePixelRatio) / overlay.width });
  }
  context.setTransform(1, 0, 0, 1, 0, 0);
}

export function toggleMasks() {
  review.masks = !review.masks;
  const button = byId("masks", HTMLButtonElement);
  button.setAttribute("aria-pressed", String(review.masks));
  setIcon(button, review.masks ? "eye" : "hidden");
  drawMasks();
}

/** @param {string | null} label */
function point(label) {
  review.hover = label;
  for (const node of document.querySelectorAll("[data-object]")) {
    node.classList.toggle("lit", label !== null && node instanceof HTMLElement && node.dataset.object === label);
  }
  drawMasks();
}

/** @param {string} label */
const colorOf = (label) => review.item?.objects.find((object) => object.label === label)?.color ?? "#9aa2b1";

/** @param {string} label */
const badge = (label) => element("span", { class: "badge", "--object": colorOf(label) }, label.replace("obj", ""));

/** What lights an object up. @param {string} label */
const pointing = (label) => ({
  "data-object": label,
  "--object": colorOf(label),
  onpointerenter: () => point(label),
  onpointerleave: () => point(null),
});

// ---- text ----

/** @param {string} text @returns {(Node | string)[]} */
function tagged(text) {
  return pieces(text).flatMap(({ text: words, labels }) => {
    if (!labels.length) return [words];
    const badges = labels.flatMap((label) => [badge(label), " "]);
    badges.pop();
    const phrase = words ? [element("span", { class: "phrase", ...pointing(labels[0]) }, words), " "] : [];
    return [...phrase, ...badges];
  });
}

/** @param {Statement} statement */
const statementText = ({ text, first, last }) =>
  element("p", { class: "answer statement", dir: "auto" }, text, element("small", {}, `frames ${first} to ${last}`));

/** @param {Item} item */
function textOf(item) {
  if ("statements" in item.text) {
    const about = item.about ? [" ", badge(item.about)] : [];
    return [element("p", { class: "asked" }, "Description of", ...about), ...item.text.statements.map(statementText)];
  }
  const { question, answer } = item.text;
  return [
    element("p", { class: "asked", dir: "auto" }, element("bdi", { class: "unseen" }, "Question: "), ...tagged(question)),
    element("p", { class: "answer", dir: "auto" }, element("bdi", { class: "unseen" }, "Answer: "), ...tagged(answer)),
  ];
}

/** @param {string} label */
function objectToggle(label) {
  const button = element(
    "button",
    { type: "button", "aria-pressed": "true", "aria-label": `Object ${label.replace("obj", "")}`, ...pointing(label) },
    badge(label),
    icon("eye"),
  );
  button.addEventListener("click", () => {
    if (!review.hidden.delete(label)) review.hidden.add(label);
    const seen = !review.hidden.has(label);
    button.setAttribute("aria-pressed", String(seen));
    setIcon(button, seen ? "eye" : "hidden");
    drawMasks();
  });
  return element("li", {}, button);
}

/** Shows an item from its first frame on. @param {Item} item */
export function showItem(item) {
  drawn = -1;
  pause();
  pictures = new Map();
  picture.width = overlay.width = 0;
  delete picture.dataset.frame;
  review.hidden.clear();
  review.hover = null;
  byId("media", HTMLElement).hidden = false;
  byId("media", HTMLElement).style.setProperty("--ratio", String(item.video.width / item.video.height));
  byId("item-name", HTMLElement).textContent = item.id;
  byId("objects", HTMLElement).replaceChildren(...item.objects.map(({ label }) => objectToggle(label)));
  byId("messages", HTMLElement).replaceChildren(...textOf(item));
  byId("messages", HTMLElement).scrollTop = 0;
  scrubber.max = String(item.frames.length - 1);
  void seek(0);
}

/** Takes the frames away. */
export function hideItem() {
  pause();
  byId("media", HTMLElement).hidden = true;
  delete picture.dataset.frame;
}

byId("back", HTMLButtonElement).addEventListener("click", () => step(-1));
byId("forward", HTMLButtonElement).addEventListener("click", () => step(1));
byId("play", HTMLButtonElement).addEventListener("click", togglePlay);
byId("masks", HTMLButtonElement).addEventListener("click", toggleMasks);
scrubber.addEventListener("input", () => {
  pause();
  void seek(Number(scrubber.value));
});
new ResizeObserver(drawMasks).observe(overlay);
