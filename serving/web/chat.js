/** @file Asks questions and shows the conversation. */

import { ApiError, isAbort, modelName, showFileError, streamAnswer } from "./api.js";
import { chip, lighting, nameOf } from "./chips.js";
import { announce, byId, element, hideNotice, setIcon, showNotice } from "./dom.js";
import * as editor from "./editor.js";
import { overlap } from "./masks.js";
import { allObjects, emit, maskAt, messages, on, state } from "./state.js";

/** @import { Answer, AnswerObject, Part, Pending, Turn } from "./state.js" */

const SAME_OBJECT = 0.5; // intersection over union, from which an object is what the region points at
const SUGGESTIONS = [["What is ", "?"], ["What does ", " do?"]];

const list = byId("messages", HTMLElement);
const askButton = byId("ask", HTMLButtonElement);
/** @type {AbortController | null} */
let running = null;
/** @type {HTMLElement | null} the answer that is being written */
let pendingNode = null;
let model = "";

/** Asks what stands in the question box. */
export async function ask() {
  const parts = editor.parts();
  const { file } = state;
  if (!file || parts.length === 0) return;
  if (state.pending) return announce("The previous question is still being answered.");
  hideNotice();
  const controller = (running = new AbortController());
  const question = messages(parts);
  /** @type {Pending} */
  const pending = { parts, answer: { content: "", objects: [] }, tracked: new Set(), waiting: true };
  state.pending = pending;
  editor.empty();
  emit("pending");
  announce("Asked. Waiting for the answer.");
  try {
    for await (const chunk of answerChunks(question, controller.signal)) receive(pending, chunk);
    if (state.pending !== pending) return;
    state.turns.push({ parts, answer: pending.answer, ...(pending.cut ? { cut: true } : {}) });
    announce(`${pending.answer.content} ${objectSentence(pending.answer)}`);
    finish();
  } catch (error) {
    if (state.pending !== pending) return;
    finish();
    editor.putBack(parts);
    if (isAbort(error)) showNotice("Stopped. Your question is back in the box.");
    else showFileError(error, file, ask);
  }
}

/**
 * Asks for the chunks of an answer, once more if the server was started again with another model.
 * @param {object[]} question
 * @param {AbortSignal} signal
 */
async function* answerChunks(question, signal) {
  model ||= await modelName();
  try {
    return yield* streamAnswer(model, question, signal);
  } catch (error) {
    if (!(error instanceof ApiError && error.code === "model_not_found")) throw error;
  }
  byId("model", HTMLElement).textContent = model = await modelName();
  yield* streamAnswer(model, question, signal);
}

function finish() {
  running = state.pending = null;
  emit("turns", "objects");
}

/** Stops the answer that is being written; the question goes back into the box. */
export function stop() {
  running?.abort();
}

/** Stops the answer and forgets its question. */
export function drop() {
  state.pending = null;
  running?.abort();
  running = null;
}

/** @param {Answer} answer */
const objectSentence = ({ objects }) => objects.length ? `With masks: ${objects.map(nameOf).join(", ")}.` : "";

/** Adds a chunk of the stream to the answer. @param {Pending} pending @param {any} chunk */
function receive(pending, chunk) {
  const [choice] = chunk.choices;
  if (state.pending !== pending || !choice) return;
  const { content, objects = [], frame } = choice.delta;
  const { answer } = pending;
  if (content) answer.content += content;
  for (const one of objects) {
    const earlier = answer.objects.find(({ id }) => id === one.id);
    if (earlier?.masks && one.masks) one.masks.counts = Object.assign(earlier.masks.counts, one.masks.counts);
    if (earlier) Object.assign(earlier, one);
    else answer.objects.push(one);
  }
  if (frame !== undefined) pending.tracked.add(frame);
  if (choice.finish_reason === "length") pending.cut = true;
  pending.waiting = false;
  showPending();
  if (objects.length || frame !== undefined) emit("objects");
}

// ---- what is shown ----

/** @param {Turn} turn */
function questionNode(turn) {
  const pieces = turn.parts.map((part) => ("text" in part ? part.text : chip(part, foundBy(part, turn))));
  return element("div", { class: "asked" }, element("p", { dir: "auto" }, ...pieces));
}

/**
 * The object that an answer found where the region of its question was drawn.
 * @param {Exclude<Part, { text: string }>} part
 * @param {Turn} turn
 * @returns {AnswerObject | null}
 */
function foundBy(part, turn) {
  if (!("region" in part) || !part.region.mask) return null;
  const { mask, prompt } = part.region;
  for (const object of turn.answer.objects) {
    const other = maskAt(object, prompt.frame);
    if (other && overlap(mask, other) >= SAME_OBJECT) return object;
  }
  return null;
}

/** @param {Answer} answer */
function answerText({ content, objects }) {
  const characters = Array.from(content); // the server counts code points
  /** @type {(Node | string)[]} */
  const pieces = [];
  let position = 0;
  for (const object of [...objects].sort((a, b) => a.start - b.start)) {
    if (object.start < position || object.end <= object.start) continue;
    pieces.push(characters.slice(position, object.start).join(""));
    pieces.push(phrase(object, characters.slice(object.start, object.end).join("")));
    position = object.end;
  }
  pieces.push(characters.slice(position).join(""));
  for (const object of objects.filter(({ start, end }) => end <= start)) pieces.push(" ", phrase(object, nameOf(object)));
  return pieces;
}

/** @param {AnswerObject} object @param {string} text */
function phrase(object, text) {
  const use = () => editor.insertChip({ object: object.id });
  return element(
    "span",
    {
      class: "phrase colored",
      role: "button",
      tabindex: "0",
      title: "Ask about it",
      "--object": object.color,
      ...lighting({ object: object.id }),
      onclick: use,
      onkeydown: (/** @type {KeyboardEvent} */ event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        use();
        editor.focus();
      },
    },
    text,
  );
}

/** @param {Turn} turn */
function answerNode(turn) {
  const node = element("div", { class: "answer" }, element("p", { dir: "auto" }, ...answerText(turn.answer)));
  if (turn.cut) node.append(element("p", { class: "muted" }, "The answer was cut at its greatest length."));
  return node;
}

/**
 * Replaces nodes of the conversation; the focus stays on the same chip or phrase. Nothing is added before them.
 * @param {() => void} replace
 */
function keepFocus(replace) {
  const controls = () => [.../** @type {NodeListOf<HTMLElement>} */ (list.querySelectorAll("button, [tabindex]"))];
  const focused = document.activeElement;
  const place = controls().findIndex((control) => control === focused);
  replace();
  if (place >= 0 && !focused?.isConnected) controls()[place]?.focus({ preventScroll: true });
}

const isAtEnd = () => list.scrollHeight - list.scrollTop - list.clientHeight < 60;

function showPending() {
  const { pending, file } = state;
  if (!pending || !file) return;
  const atEnd = isAtEnd();
  const text = `${pending.waiting} ${pending.answer.content} ${pending.answer.objects.map(({ id }) => id)}`;
  if (pendingNode?.dataset.text !== text) {
    // Not for every frame: a phrase that is being clicked stays the same element
    const node = answerNode(pending);
    node.dataset.text = text;
    if (pending.waiting) node.replaceChildren(element("p", { class: "muted thinking" }, "Looking"));
    const before = pendingNode;
    if (before?.isConnected) keepFocus(() => before.replaceWith(node));
    else list.append(node);
    pendingNode = node;
  }
  const { size } = pending.tracked;
  if (size) {
    const value = { value: String(size), max: String(file.num_frames), "aria-label": "Tracking" };
    const label = element("span", {}, `${size} of ${file.num_frames} frames`);
    pendingNode.querySelector(".tracking")?.remove();
    pendingNode.append(element("div", { class: "tracking" }, element("progress", value), label));
  }
  if (atEnd) list.scrollTop = list.scrollHeight;
}

function show() {
  // Whoever reads further up goes on reading there, unless a question is asked
  const keeps = isAtEnd() || state.pending?.waiting ? null : list.scrollTop;
  pendingNode = null;
  keepFocus(showTurns);
  list.scrollTop = keeps ?? list.scrollHeight;
  showButton();
}

function showTurns() {
  const turns = [...state.turns, ...(state.pending ? [state.pending] : [])];
  list.replaceChildren(
    ...turns.flatMap((turn) => [questionNode(turn), ...(turn === state.pending ? [] : [answerNode(turn)])]),
  );
  if (turns.length === 0) list.append(state.file ? suggestions() : element("p", { class: "muted intro" },
    "Your questions and the answers appear here. Open a clip or a picture first."));
  showPending();
}

/** What to do first, and questions that wait for a region. */
function suggestions() {
  const buttons = SUGGESTIONS.map(([before, after]) => {
    const text = `${before}▢${after}`;
    return element("button", { type: "button", onclick: () => editor.suggest(before, after) }, text);
  });
  return element(
    "div",
    { class: "intro" },
    element("p", {}, "Point at something in the picture. It becomes a numbered chip in your question."),
    element("div", { class: "suggestions" }, ...buttons),
  );
}

function showButton() {
  const answering = state.pending !== null;
  setIcon(askButton, answering ? "stop" : "send");
  askButton.setAttribute("aria-label", answering ? "Stop the answer" : "Ask");
  askButton.title = answering ? "Stop the answer" : "Ask (Enter)";
  askButton.disabled = !answering && (!state.file || editor.parts().length === 0);
}

// Ask becomes Stop under the pointer: the second half of a double click is no stop
askButton.addEventListener("click", (event) => event.detail > 1 && event.preventDefault());
byId("composer", HTMLFormElement).addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.pending) stop();
  else void ask();
});
byId("question", HTMLElement).addEventListener("keydown", (event) => {
  if (event.isComposing || event.keyCode === 229) return; // of an input method; Safari says it by the code alone
  if (event.key !== "Enter" || event.shiftKey || event.target !== event.currentTarget) return;
  event.preventDefault();
  void ask();
});
on(["turns"], () => {
  // The next answer may give the same id to another object
  const objects = allObjects();
  for (const id of state.hidden) if (!objects.has(id)) state.hidden.delete(id);
});
on(["turns", "pending", "file"], show);
on(["question"], showButton);
