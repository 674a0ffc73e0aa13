/** @file The objects of all answers, each with a lane that shows on which frames it is visible. */

import { lighting, nameOf, numberOf } from "./chips.js";
import { byId, element, icon } from "./dom.js";
import { focus, insertChip } from "./editor.js";
import { seek } from "./player.js";
import { allObjects, emit, on, state, stretchesOf, visibleFrames } from "./state.js";

/** @import { AnswerObject } from "./state.js" */

const list = byId("lanes", HTMLElement);

/** @param {AnswerObject} object */
function row(object) {
  const hidden = state.hidden.has(object.id);
  const name = nameOf(object);
  const eye = element(
    "button",
    {
      type: "button",
      class: "icon",
      "aria-label": `Show ${name}`,
      "aria-pressed": String(!hidden),
      title: hidden ? "Show the masks" : "Hide the masks",
      onclick: () => {
        if (!state.hidden.delete(object.id)) state.hidden.add(object.id);
        emit("objects");
      },
    },
    icon(hidden ? "hidden" : "eye"),
  );
  const use = () => {
    insertChip({ object: object.id });
    focus();
  };
  const label = element(
    "button",
    { type: "button", class: "object-name", title: "Ask about it", onclick: use },
    element("span", { class: "badge" }, numberOf(object.id)),
    element("span", { class: "name" }, name),
  );
  const score = typeof object.score === "number" ? object.score.toFixed(2) : "";
  return element(
    "li",
    { class: hidden ? "colored off" : "colored", "--object": object.color, ...lighting({ object: object.id }) },
    eye,
    label,
    element("span", { class: "score", title: "How well the model thinks that the masks fit, from 0 to 1" }, score),
    lane(object, name),
  );
}

/** @param {AnswerObject} object @param {string} name */
function lane(object, name) {
  const frames = state.file?.num_frames ?? 1;
  const stretches = visibleFrames(object);
  const where = stretches.map(([first, last]) => (first === last ? `${first}` : `${first} to ${last}`)).join(", ");
  const about = stretches.length ? `${name} is visible on the frames ${where}. Go to the next of them.` : `${name} is not visible.`;
  /** @param {MouseEvent} event */
  const go = (event) => {
    const rectangle = bar.getBoundingClientRect();
    const next = stretches.find(([first]) => first > state.frame) ?? stretches[0];
    // A click by the keyboard has no place
    if (event.detail) seek(Math.floor(((event.clientX - rectangle.left) / rectangle.width) * frames));
    else if (next) seek(next[0]);
  };
  const bar = element("button", { type: "button", class: "lane", "aria-label": about, onclick: go });
  /** @param {"span" | "i"} tag @param {number} first @param {number} last */
  const piece = (tag, first, last) =>
    element(tag, { "--from": String(first / frames), "--length": String((last - first + 1) / frames) });
  for (const [first, last] of stretches) bar.append(piece("span", first, last));
  if (state.pending && state.pending.answer.objects.some(({ id }) => id === object.id)) {
    for (const [first, last] of stretchesOf(state.pending.tracked)) bar.append(piece("i", first, last));
  }
  return bar;
}

/** Shows the list; the focus stays on the same control. */
function show() {
  const objects = [...allObjects().values()].sort((a, b) => Number(numberOf(a.id)) - Number(numberOf(b.id)));
  const focused = document.activeElement;
  const [index, control] = focused && list.contains(focused)
    ? [[...list.children].findIndex((one) => one.contains(focused)), focused.classList[0]]
    : [-1, ""];
  list.replaceChildren(...objects.map(row));
  const again = list.children[index]?.querySelector(`.${control}`);
  if (again instanceof HTMLElement) again.focus();
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
