/** @file Chips: regions and objects as they stand in questions; what is pointed at lights up everywhere. */

import { element, icon } from "./dom.js";
import { seek } from "./player.js";
import { allObjects, emit, on, state, visibleFrames } from "./state.js";

/** @import { Attributes } from "./dom.js" */
/** @import { AnswerObject, Hover, Part, Region } from "./state.js" */

/**
 * Attributes of an element that lights up its object or region while it is pointed at or focused.
 * @param {NonNullable<Hover>} target
 * @returns {Attributes}
 */
export function lighting(target) {
  /** @param {Hover} hover */
  const light = (hover) => {
    state.hover = hover;
    emit("view");
  };
  return {
    onpointerenter: () => light(target),
    onpointerleave: () => light(null),
    onfocusin: () => light(target),
    onfocusout: () => light(null),
    ..."object" in target ? { "data-object": target.object } : {},
  };
}

/** @param {string} id such as o3 */
export const numberOf = (id) => id.replace(/^\D+/, "");

/** @param {AnswerObject} object */
export const nameOf = (object) => object.phrase || `Object ${numberOf(object.id)}`;

/**
 * A chip.
 * @param {Exclude<Part, { text: string }>} part
 * @param {AnswerObject | null} found the object that the answer found where the region was drawn
 * @param {(() => void) | null} remove for a chip of the question that is being written
 */
export function chip(part, found = null, remove = null) {
  const object = "object" in part ? allObjects().get(part.object) ?? null : found;
  const region = "region" in part ? part.region : null;
  const label = region ? `${region.number}` : object ? nameOf(object) : "?";
  const about = region
    ? `Region ${region.number} on frame ${region.prompt.frame}${found ? `: ${nameOf(found)}` : ""}`
    : `${label}, object of an answer`;
  const button = element(
    "button",
    { type: "button", class: "chip-label", "aria-label": region ? about : false, title: about, onclick: () => visit(part, object) },
    region ? icon(kindOf(region)) : element("span", { class: "badge" }, numberOf("object" in part ? part.object : "")),
    element("bdi", {}, label),
  );
  const node = element(
    "span",
    {
      class: object ? "chip colored" : "chip",
      contenteditable: "false",
      ...lighting(object ? { object: object.id } : { region: region?.number ?? 0 }),
      ...(object ? { "--object": object.color } : {}),
      ...(region ? { "data-region": String(region.number) } : {}),
      "data-part": "object" in part ? part.object : "",
    },
    button,
  );
  if (remove) {
    const close = { type: "button", class: "chip-remove", "aria-label": `Remove ${about}`, onclick: remove };
    node.append(element("button", close, icon("close")));
    node.addEventListener("keydown", (event) => {
      if (event.key !== "Delete" && event.key !== "Backspace") return;
      event.preventDefault();
      remove();
    });
  }
  return node;
}

/** @param {Region} region */
const kindOf = ({ prompt }) => (prompt.points ? "points" : prompt.box ? "box" : "scribble");

/** @param {Exclude<Part, { text: string }>} part @param {AnswerObject | null} object */
function visit(part, object) {
  if ("region" in part) {
    const { number, prompt } = part.region;
    seek(prompt.frame);
    if (state.draft.some((region) => region.number === number)) state.active = number;
    emit("draft");
  } else if (object) {
    const first = visibleFrames(object)[0];
    if (first) seek(first[0]);
  }
}

// What was pointed at may be gone, without an event
on(["draft", "turns", "pending"], () => {
  if (!state.hover) return;
  state.hover = null;
  emit("view");
});
on(["view"], () => {
  const lit = state.hover && "object" in state.hover ? state.hover.object : null;
  for (const node of document.querySelectorAll("[data-object]")) {
    node.classList.toggle("lit", node.getAttribute("data-object") === lit);
  }
});
