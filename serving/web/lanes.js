/** @file The objects of all answers, each with a lane that shows on which frames it is visible. */

import { lighting, nameOf, numberOf } from "./chips.js";
import { byId, element, icon, setIcon } from "./dom.js";
import { focus, insertChip } from "./editor.js";
import { seek } from "./player.js";
import { allObjects, emit, on, state, stretchesOf, visibleFrames } from "./state.js";

/** @import { AnswerObject } from "./state.js" */

const list = byId("lanes", HTMLElement);

/** @typedef {{ node: HTMLElement, update: (object: AnswerObject) => void }} Row */

/** @type {Map<string, Row>} by object: a row stays while frames arrive, or a press would be released on another one */
let rows = new Map();

/** @param {string} id of an object @returns {Row} */
function row(id) {
  const eye = element("button", { type: "button", class: "icon" }, icon("eye"));
  eye.addEventListener("click", () => {
    if (!state.hidden.delete(id)) state.hidden.add(id);
    emit("objects");
  });
  const name = element("span", { class: "name", dir: "auto" });
  const use = () => {
    insertChip({ object: id });
    focus();
  };
  const label = element(
    "button",
    { type: "button", class: "object-name", title: "Ask about it", onclick: use },
    element("span", { class: "badge" }, numberOf(id)),
    name,
  );
  const score = element("span", { class: "score", title: "How well the model thinks that the masks fit, from 0 to 1" });
  const { bar, fill } = lane();
  const node = element("li", { class: "colored", ...lighting({ object: id }) }, eye, label, score, bar);
  return {
    node,
    update(object) {
      const hidden = state.hidden.has(id);
      name.textContent = nameOf(object);
      score.textContent = typeof object.score === "number" ? object.score.toFixed(2) : "";
      setIcon(eye, hidden ? "hidden" : "eye");
      eye.title = hidden ? "Show the masks" : "Hide the masks";
      eye.setAttribute("aria-label", `Show ${nameOf(object)}`);
      eye.setAttribute("aria-pressed", String(!hidden));
      node.classList.toggle("off", hidden);
      node.style.setProperty("--object", object.color);
      fill(object);
    },
  };
}

/** The frames of an object as a bar, and a function that draws them. */
function lane() {
  /** @type {[number, number][]} */
  let stretches = [];
  let frames = 1;
  /** @param {MouseEvent} event */
  const go = (event) => {
    const rectangle = bar.getBoundingClientRect();
    const next = stretches.find(([first]) => first > state.frame) ?? stretches[0];
    // A click by the keyboard has no place
    if (event.detail) seek(Math.floor(((event.clientX - rectangle.left) / rectangle.width) * frames));
    else if (next) seek(next[0]);
  };
  const bar = element("button", { type: "button", class: "lane", onclick: go });
  /** @param {AnswerObject} object */
  const fill = (object) => {
    [stretches, frames] = [visibleFrames(object), state.file?.num_frames ?? 1];
    const name = nameOf(object);
    const where = stretches.map(([first, last]) => (first === last ? `${first}` : `${first} to ${last}`)).join(", ");
    const about = stretches.length ? `${name} is visible on the frames ${where}. Go to the next of them.` : `${name} is not visible.`;
    bar.setAttribute("aria-label", about);
    /** @param {"span" | "i"} tag */
    const piece = (tag) => (/** @type {[number, number]} */ [first, last]) =>
      element(tag, { "--from": String(first / frames), "--length": String((last - first + 1) / frames) });
    const isTracked = state.pending?.answer.objects.some(({ id }) => id === object.id);
    const tracked = isTracked ? stretchesOf(state.pending?.tracked ?? []) : [];
    bar.replaceChildren(...stretches.map(piece("span")), ...tracked.map(piece("i")));
  };
  return { bar, fill };
}

/** Shows the list; the focus stays on the same control. */
function show() {
  const objects = [...allObjects().values()].sort((a, b) => Number(numberOf(a.id)) - Number(numberOf(b.id)));
  rows = new Map(objects.map(({ id }) => [id, rows.get(id) ?? row(id)]));
  for (const object of objects) rows.get(object.id)?.update(object);
  const nodes = [...rows.values()].map(({ node }) => node);
  if (nodes.length !== list.children.length || nodes.some((node, index) => node !== list.children[index])) {
    const focused = document.activeElement;
    list.replaceChildren(...nodes);
    if (focused instanceof HTMLElement && list.contains(focused)) focused.focus();
  }
  list.hidden = objects.length === 0;
  byId("no-objects", HTMLElement).hidden = objects.length > 0;
  byId("objects-count", HTMLElement).textContent = objects.length ? String(objects.length) : "";
}

let scheduled = 0;
on(["objects", "turns", "file"], () => {
  cancelAnimationFrame(scheduled);
  scheduled = requestAnimationFrame(show); // once, however many frames have arrived
});
on(["frame"], () => {
  const frames = state.file?.num_frames ?? 1;
  list.style.setProperty("--playhead", String((state.frame + 0.5) / frames));
});
