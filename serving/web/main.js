/** @file Starts the page: what was kept, the server's name, the keys of the keyboard. */

import { ApiError, modelName, showError } from "./api.js";
import "./chat.js";
import { byId, showNotice } from "./dom.js";
import "./download.js";
import { clear } from "./draft.js";
import * as editor from "./editor.js";
import { reopen, showExamples } from "./files.js";
import "./lanes.js";
import { seek, step, togglePlay } from "./player.js";
import { cancel } from "./prompts.js";
import { emit, on, state } from "./state.js";
import { keep, kept, sweep } from "./storage.js";
import "./theme_button.js";

const SAVE_DELAY = 300; // milliseconds
const POLL_DELAY = 2000;

// ---- the server ----

/** Waits for the server's model, then fills what comes from it. */
async function connect() {
  const name = byId("model", HTMLElement);
  try {
    name.textContent = await modelName();
    await showExamples();
  } catch (error) {
    if (error instanceof ApiError && error.status === 503) {
      name.textContent = "The model is being loaded";
      setTimeout(connect, POLL_DELAY);
    } else showError(error, connect);
  }
}

// ---- what is kept over a reload ----

let timer = 0;
let restored = false;

function save() {
  clearTimeout(timer);
  if (!restored) return; // the state is still empty, and would replace what was kept
  const { file, turns, pending, nextNumber, hidden, frame } = state;
  // A question that is being answered is asked again by hand after a reload
  const question = [...(pending?.parts ?? []), ...editor.parts()];
  keep({ file, turns, question, nextNumber, hidden: [...hidden], frame }).catch(() => {
    showNotice("The browser has no room for this conversation: it will not survive a reload. Download it to keep it.");
  });
}

async function restore() {
  const conversation = await kept().finally(() => (restored = true));
  if (!conversation) return;
  [state.turns, state.nextNumber] = [conversation.turns, conversation.nextNumber];
  state.hidden = new Set(conversation.hidden);
  [state.file, state.frame] = [conversation.file, conversation.frame];
  if (conversation.question.length) editor.putBack(conversation.question);
  if (conversation.file) await reopen(conversation.file, conversation.frame);
}

// ---- keys ----

/** @param {EventTarget | null} target */
const isText = (target) =>
  target instanceof HTMLElement &&
  (target.isContentEditable || (target instanceof HTMLInputElement && !["range", "radio"].includes(target.type)));

/** @param {EventTarget | null} target @param {string} kinds */
const isOne = (target, kinds) => target instanceof Element && target.matches(kinds);

/** @type {Record<string, (event: KeyboardEvent) => void>} */
const KEYS = {
  " ": togglePlay,
  ArrowLeft: (event) => step(event.shiftKey ? -10 : -1),
  ArrowRight: (event) => step(event.shiftKey ? 10 : 1),
  Home: () => seek(0),
  End: () => seek(Infinity),
};

function showHelp() {
  byId("help-dialog", HTMLDialogElement).showModal();
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  if (event.isComposing || event.keyCode === 229) return; // of an input method; Safari says it by the code alone
  if (event.defaultPrevented || document.querySelector("dialog[open], :popover-open")) return;
  if (event.key === "F1") event.preventDefault();
  if (event.key === "F1") return showHelp();
  if (event.key === "Escape") return void (cancel() || clear());
  const command = event.ctrlKey || event.metaKey;
  if (command && event.key.toLowerCase() === "z") return editor.undoKey(event);
  if (isText(event.target) || command || event.altKey) return;
  const isButton = isOne(event.target, "button, summary, [role=button]") && event.key === " ";
  const isRadio = isOne(event.target, "[type=radio]");
  if (event.key in KEYS && !isButton && !isRadio) {
    event.preventDefault();
    KEYS[event.key](event);
  } else if (event.key.length === 1 && event.key !== " ") editor.focus(); // where the letter then goes
}

// ---- help, title ----

byId("help", HTMLButtonElement).addEventListener("click", showHelp);

on(["file"], () => {
  const { file } = state;
  const length = file?.kind === "video" ? ` · ${file.num_frames} frames · ${Number((file.fps ?? 0).toFixed(2))} fps` : "";
  byId("file-name", HTMLElement).textContent = file ? file.filename : "";
  byId("file-name", HTMLElement).dataset.detail = file ? `${file.width} × ${file.height}${length}` : "";
  document.title = file ? `${file.filename} · SAMA` : "SAMA";
  document.body.dataset.kind = file?.kind ?? "none";
});
on(["file", "turns"], () => (byId("new", HTMLButtonElement).disabled = state.turns.length === 0));
on(["file", "turns", "pending", "objects", "question", "frame"], () => {
  clearTimeout(timer);
  timer = setTimeout(save, SAVE_DELAY);
});
addEventListener("pagehide", save);
addEventListener("keydown", onKey);
if (innerWidth < 720) byId("objects", HTMLDetailsElement).open = false;

emit("file", "turns", "draft");
void connect();
// A browser that forbids the page to keep anything has kept nothing
void restore().catch(() => undefined).finally(() => sweep().catch(() => undefined));
