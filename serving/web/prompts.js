/** @file Points at things with the pointer, or with a crosshair that the arrow keys move. */

import { announce, byId } from "./dom.js";
import { addPoint, addRegion, canRedo, canUndo, clear, finishRegion, redo, refinable, undo } from "./draft.js";
import { draw, gesture, overlay } from "./overlay.js";
import { hold, isShown } from "./player.js";
import { on, state } from "./state.js";

/** @import { Tool } from "./state.js" */

const MAX_STROKE_POINTS = 2000;
const MOVES = /** @type {Record<string, [number, number]>} */ ({
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
});
const USES = {
  points: "Click on something.",
  box: "Drag a box around something.",
  scribble: "Draw a stroke along something.",
};

const hint = byId("hint", HTMLElement);
const tools = byId("tools", HTMLElement);

/** @param {string} name of a group of radio buttons */
const chosen = (name) => {
  const button = tools.querySelector(`input[name=${name}]:checked`);
  return button instanceof HTMLInputElement ? button.value : "";
};
const tool = () => /** @type {Tool} */ (chosen("tool"));

/**
 * The pixel of the video under the pointer; beyond the edge, the nearest.
 * @param {PointerEvent} event
 * @returns {[number, number]}
 */
function pixelAt(event) {
  const rectangle = overlay.getBoundingClientRect();
  return inside(
    ((event.clientX - rectangle.left) / rectangle.width) * (state.file?.width ?? 1),
    ((event.clientY - rectangle.top) / rectangle.height) * (state.file?.height ?? 1),
  );
}

/** @param {number} x @param {number} y @returns {[number, number]} */
function inside(x, y) {
  const { width = 1, height = 1 } = state.file ?? {};
  return [Math.min(Math.max(Math.floor(x), 0), width - 1), Math.min(Math.max(Math.floor(y), 0), height - 1)];
}

/** @param {[number, number]} at @param {boolean} adds */
function begin(at, adds) {
  hold();
  gesture.frame = state.frame; // another one may be shown at its end
  if (tool() === "box") gesture.box = [...at, ...at];
  else if (tool() === "scribble") gesture.stroke = [at];
  else if (!addPoint(at, adds)) warn("Click on something first; then take away what does not belong to it.");
  draw();
}

/** Says why nothing was drawn. @param {string} text */
function warn(text) {
  hint.textContent = text;
  hint.classList.add("warns");
  announce(text);
}

/** @param {[number, number]} at */
function move(at) {
  if (gesture.box) gesture.box = [gesture.box[0], gesture.box[1], ...at];
  const last = gesture.stroke?.at(-1);
  if (last && (last[0] !== at[0] || last[1] !== at[1])) gesture.stroke?.push(at);
}

function end() {
  const { box, stroke, frame } = gesture;
  cancel();
  if (box) {
    const [left, right] = [Math.min(box[0], box[2]), Math.max(box[0], box[2]) + 1];
    const [top, bottom] = [Math.min(box[1], box[3]), Math.max(box[1], box[3]) + 1];
    if (right - left > 2 && bottom - top > 2) addRegion({ frame, box: [left, top, right, bottom] });
    else warn("That box is too small: drag from one corner to the other.");
  }
  if (stroke?.length === 1) addRegion({ frame, points: stroke, labels: [1] }); // a tap is a click
  else if (stroke) {
    const every = Math.ceil(stroke.length / MAX_STROKE_POINTS);
    addRegion({ frame, scribble: stroke.filter((_, index) => index % every === 0) });
  }
}

/** Drops what is being drawn; false if there was nothing. */
export function cancel() {
  const drawing = gesture.box !== null || gesture.stroke !== null;
  gesture.box = gesture.stroke = null;
  draw();
  return drawing;
}

/** @param {boolean} shown */
function showCrosshair(shown) {
  const { width = 1, height = 1 } = state.file ?? {};
  gesture.crosshair = shown ? inside(width / 2, height / 2) : null;
  cancel();
  showHint();
  announce(shown ? hint.textContent : "");
}

function showHint() {
  const focused = document.activeElement;
  const refining = refinable() !== null && tool() === "points";
  hint.classList.remove("warns");
  if (gesture.crosshair) hint.textContent = "Arrows move the crosshair, Enter clicks, Esc leaves.";
  else if (refining) hint.textContent = `Region ${state.active}: click to add, right click to take away.`;
  else hint.textContent = USES[tool()];
  byId("undo", HTMLButtonElement).disabled = !canUndo();
  byId("redo", HTMLButtonElement).disabled = !canRedo();
  byId("clear", HTMLButtonElement).disabled = state.draft.length === 0;
  byId("finish", HTMLButtonElement).disabled = !refining;
  // A disabled button would lose the focus to nothing
  if (focused instanceof HTMLButtonElement && focused.disabled && tools.contains(focused)) overlay.focus();
  byId("signs", HTMLElement).inert = tool() !== "points";
  overlay.dataset.tool = tool();
}

/** @param {KeyboardEvent} event on the picture */
function onKey(event) {
  const at = gesture.crosshair;
  const places = event.key === "Enter" || (event.key === " " && at !== null);
  if (!isShown() || (!at && !places)) return;
  if (!at) showCrosshair(true);
  else if (event.key === "Escape") {
    if (!cancel()) showCrosshair(false);
  } else if (event.key in MOVES && state.file) {
    const length = event.ctrlKey ? 1 : Math.max(1, Math.round(state.file.width / (event.shiftKey ? 16 : 100)));
    gesture.crosshair = inside(at[0] + MOVES[event.key][0] * length, at[1] + MOVES[event.key][1] * length);
    move(gesture.crosshair);
    draw();
    announce(`Column ${gesture.crosshair[0]}, row ${gesture.crosshair[1]}.`);
  } else if (places || event.key === "-") {
    if (gesture.box || gesture.stroke) end();
    else begin(at, event.key !== "-" && !event.altKey && chosen("sign") === "1");
  } else return;
  event.preventDefault();
  event.stopPropagation();
}

overlay.addEventListener("pointerdown", (event) => {
  // A second finger zooms
  if (!isShown() || !event.isPrimary || (event.button !== 0 && event.button !== 2)) return;
  overlay.setPointerCapture(event.pointerId);
  if (gesture.crosshair) showCrosshair(false);
  begin(pixelAt(event), event.button === 0 && !event.altKey && chosen("sign") === "1");
});
overlay.addEventListener("pointermove", (event) => {
  if (gesture.crosshair || !event.isPrimary || !(gesture.box || gesture.stroke)) return;
  for (const one of event.getCoalescedEvents?.() ?? [event]) move(pixelAt(one));
  draw();
});
overlay.addEventListener("pointerup", (event) => {
  if (event.isPrimary && !gesture.crosshair) end();
});
overlay.addEventListener("pointercancel", cancel);
overlay.addEventListener("contextmenu", (event) => event.preventDefault());
// Who points in the middle of writing goes on writing
overlay.addEventListener("mousedown", (event) => {
  if (document.activeElement === byId("question", HTMLElement)) event.preventDefault();
});
overlay.addEventListener("keydown", onKey);
overlay.addEventListener("blur", () => gesture.crosshair && showCrosshair(false));
tools.addEventListener("change", () => {
  finishRegionUnlessPoints();
  showHint();
});
// With the mouse, buttons do not take the focus: the keys go on to work on the picture
tools.addEventListener("mousedown", (event) => event.preventDefault());
byId("undo", HTMLButtonElement).addEventListener("click", undo);
byId("redo", HTMLButtonElement).addEventListener("click", redo);
byId("clear", HTMLButtonElement).addEventListener("click", clear);
byId("finish", HTMLButtonElement).addEventListener("click", finishRegion);

function finishRegionUnlessPoints() {
  if (tool() !== "points") finishRegion();
}

on(["draft", "file"], showHint);
on(["frame"], () => {
  const { num_frames = 1 } = state.file ?? {};
  overlay.setAttribute("aria-label", `Frame ${state.frame} of ${num_frames - 1}. Press Enter to point with the keys.`);
  showHint();
});
