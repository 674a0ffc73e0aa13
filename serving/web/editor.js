/** @file The question box: text with chips in it. */

import { chip } from "./chips.js";
import { byId } from "./dom.js";
import { canRedo, canUndo, change, finishRegion, redo, reset, undo } from "./draft.js";
import { allObjects, emit, on, state } from "./state.js";

/** @import { Part, Region } from "./state.js" */

const box = byId("question", HTMLElement);
/** @type {Map<number, Region>} every region that had a chip here, for the browser's own undo */
const known = new Map();
/** @type {Map<number, Text>} where the chips of removed regions stood: an undo puts them back there */
const places = new Map();
/** @type {Range | null} where the caret is, or was when the box lost the focus */
let caret = null;
/** Whether the last change was made by typing, so that undo is the browser's. */
let typedLast = false;
/** The text of the last suggestion, which another one may replace. */
let suggested = "";

const chipsOf = () => /** @type {HTMLElement[]} */ ([...box.querySelectorAll(".chip")]);

/** @param {HTMLElement} node @returns {number | null} */
const regionOf = (node) => (node.dataset.region ? Number(node.dataset.region) : null);

/** The question as text and regions, without space around it. @returns {Part[]} */
export function parts() {
  /** @type {Part[]} */
  const found = [];
  for (const node of box.childNodes) {
    const last = found.at(-1);
    if (node instanceof HTMLElement && node.classList.contains("chip")) {
      const region = state.draft.find(({ number }) => number === regionOf(node));
      if (region) found.push({ region });
      else if (node.dataset.part) found.push({ object: node.dataset.part });
    } else {
      const text = node instanceof HTMLBRElement ? "\n" : node.textContent ?? "";
      if (last && "text" in last) last.text += text;
      else if (text) found.push({ text });
    }
  }
  const [first, last] = [found[0], found.at(-1)];
  if (first && "text" in first) first.text = first.text.trimStart();
  if (last && "text" in last) last.text = last.text.trimEnd();
  return found.filter((part) => !("text" in part) || part.text !== "");
}

/** Puts a question into the box, before what stands there already. @param {Part[]} question */
export function putBack(question) {
  const regions = question.flatMap((part) => ("region" in part ? [part.region] : []));
  if (box.childNodes.length) box.prepend(" ");
  box.prepend(...question.map((part) => ("text" in part ? document.createTextNode(part.text) : editableChip(part))));
  reset([...regions, ...state.draft]);
  caret = null;
}

/** What is typed in the box, without its spaces, some of which were not typed. */
const typed = () => parts().map((part) => ("text" in part ? part.text : "")).join("").replace(/\s/g, "");

/**
 * Writes a question around the place of its region, or around the regions that are there; after what is typed already.
 * @param {string} before
 * @param {string} after
 */
export function suggest(before, after) {
  const end = document.createTextNode(after);
  if (["", suggested].includes(typed())) {
    box.replaceChildren(before, ...chipsOf().flatMap((node, index) => (index ? [" ", node] : [node])), end);
    suggested = typed();
  } else box.append(" ", before, end);
  box.focus();
  const range = document.createRange();
  range.setStartBefore(end);
  setCaret(range);
  emit("question");
}

/** Empties the box. @param {boolean} [keepsText] whether only its regions and objects go */
export function empty(keepsText = false) {
  if (keepsText) for (const node of chipsOf()) node.remove();
  else box.replaceChildren();
  caret = null;
  known.clear();
  places.clear();
  reset();
}

/** The caret, or the end of the box if it never had one. */
function caretRange() {
  if (caret && box.contains(caret.commonAncestorContainer)) return caret;
  const range = document.createRange();
  range.selectNodeContents(box);
  range.collapse(false);
  return range;
}

/** @param {Range} range */
function setCaret(range) {
  caret = range;
  if (document.activeElement === box) document.getSelection()?.setBaseAndExtent(range.startContainer, range.startOffset,
    range.endContainer, range.endOffset);
}

function readCaret() {
  const selection = document.getSelection();
  if (selection?.rangeCount && box.contains(selection.anchorNode)) caret = selection.getRangeAt(0).cloneRange();
}

/** Moves the focus to the box, with the caret where it was. */
export function focus() {
  box.focus();
}

/** @param {Exclude<Part, { text: string }>} part */
function editableChip(part) {
  const node = chip(part, null, () => {
    const range = document.createRange();
    range.setStartBefore(takeOut(node));
    box.focus();
    setCaret(range);
    readChips();
  });
  return node;
}

/** Removes a chip. @param {HTMLElement} node @returns {Text} an empty text where it stood */
function takeOut(node) {
  const place = document.createTextNode("");
  const number = regionOf(node);
  if (number !== null) places.set(number, place);
  node.replaceWith(place);
  return place;
}

/** Puts the chip of a region where it stood before it was removed, or at the caret. @param {Region} region */
function putChip(region) {
  const place = places.get(region.number);
  if (!place || !box.contains(place)) return insertChip({ region });
  const node = editableChip({ region });
  place.before(node);
  setCaretAfter(node);
}

/** Puts a chip at the caret, apart from the word before it. @param {Exclude<Part, { text: string }>} part */
export function insertChip(part) {
  const range = caretRange().cloneRange();
  range.collapse(false); // what is selected in the box stays there
  const before = range.cloneRange();
  before.setStart(box, 0);
  const node = editableChip(part);
  range.insertNode(node);
  if (/\S$/.test(before.toString())) node.before(" ");
  setCaretAfter(node);
  emit("question");
}

/** @param {Node} node */
function setCaretAfter(node) {
  const range = document.createRange();
  range.setStartAfter(node);
  setCaret(range);
}

/** @param {Node} node @returns {Element | null} the chip directly before a node, which no text separates from it */
function previousChip(node) {
  let { previousSibling } = node;
  while (previousSibling instanceof Text && previousSibling.data === "") ({ previousSibling } = previousSibling);
  return previousSibling instanceof HTMLElement && previousSibling.classList.contains("chip") ? previousSibling : null;
}

/** Keeps the regions equal to the chips, whatever removed or restored a chip. */
function readChips() {
  // The browser's undo can bring back a region of the file before
  for (const node of chipsOf()) {
    const number = regionOf(node);
    if (number !== null && !known.has(number)) node.remove();
  }
  const numbers = chipsOf().map(regionOf);
  const kept = state.draft.filter(({ number }) => numbers.includes(number));
  const restored = numbers.flatMap((number) => {
    const region = number === null || kept.some((one) => one.number === number) ? undefined : known.get(number);
    return region ? [region] : [];
  });
  if (kept.length !== state.draft.length || restored.length) change([...kept, ...restored], null);
  emit("question");
}

/** @param {KeyboardEvent} event */
export function undoKey(event) {
  const inBox = event.target === box;
  const [possible, act] = event.shiftKey ? [canRedo(), redo] : [canUndo(), undo];
  if ((inBox && typedLast) || !possible) return;
  event.preventDefault();
  act();
}

// The browser would begin at the start of the text
box.addEventListener("focus", () => setCaret(caretRange()));
box.addEventListener("beforeinput", (event) => {
  if (event.inputType !== "insertText" || !/^[\p{L}\p{N}]/u.test(event.data ?? "")) return;
  const range = document.getSelection()?.getRangeAt(0);
  if (!range?.collapsed) return;
  const probe = document.createTextNode("");
  range.insertNode(probe);
  if (!previousChip(probe)) return probe.remove();
  // A word directly after a chip is set apart from it
  probe.data = " ";
  document.getSelection()?.collapse(probe, 1);
});
box.addEventListener("input", () => {
  readCaret(); // the event of the selection comes later, perhaps after a click elsewhere
  finishRegion();
  readChips();
  typedLast = true;
});
document.addEventListener("selectionchange", readCaret);

on(["draft"], () => {
  typedLast = false;
  for (const region of state.draft) known.set(region.number, region);
  const numbers = state.draft.map(({ number }) => number);
  for (const node of chipsOf()) {
    const number = regionOf(node);
    if (number !== null && !numbers.includes(number)) takeOut(node);
  }
  const present = chipsOf().map(regionOf);
  for (const region of state.draft) if (!present.includes(region.number)) putChip(region);
  emit("question");
});
on(["turns"], () => {
  // Objects of an answer that was stopped or failed: the server refuses questions about them
  const objects = allObjects();
  const unknown = chipsOf().filter(({ dataset }) => dataset.part && !objects.has(dataset.part));
  for (const node of unknown) node.remove();
  if (unknown.length) emit("question");
});
on(["question"], () => box.classList.toggle("blank", parts().length === 0));
