/** @file Opens a file: chosen, dropped, or one of the examples. */

import { examples, fileObject, hasKey, isAbort, isGone, mediaUrl, releaseUrl, showError, showFileError, upload } from "./api.js";
import { drop } from "./chat.js";
import { announce, askDialog, byId, element, hideNotice, showNotice } from "./dom.js";
import { empty } from "./editor.js";
import { load } from "./player.js";
import { emit, state } from "./state.js";

/** @import { FileObject } from "./state.js" */

const field = byId("file", HTMLInputElement);
const stage = byId("stage", HTMLElement);
const bar = byId("loading-bar", HTMLProgressElement);

/** What is being opened. The last choice counts: it gives up what was chosen before. */
let opening = new AbortController();

function begin() {
  opening.abort();
  return (opening = new AbortController());
}

/** @param {"empty" | "loading" | "media"} name of what the stage shows */
function showStage(name) {
  for (const one of ["empty", "loading", "media"]) byId(one, HTMLElement).hidden = one !== name;
  for (const id of ["tools", "transport"]) byId(id, HTMLElement).inert = name !== "media";
}

/** Shows how much of a file has come or gone. @param {string} text @param {AbortController} controller */
function showLoading(text, controller) {
  byId("loading-text", HTMLElement).textContent = text;
  byId("loading-cancel", HTMLButtonElement).onclick = () => controller.abort();
  bar.value = 0;
  showStage("loading");
}

/** @returns {Promise<boolean>} whether the conversation so far may be dropped */
async function mayStartAnew() {
  if (state.turns.length === 0 && !state.pending) return true;
  return (await askDialog(byId("confirm-dialog", HTMLDialogElement))) === "ok";
}

/** Begins a new conversation about the same file. */
export async function startAnew() {
  if (await mayStartAnew()) forget();
}

/** @param {boolean} [keepsText] whether what is typed in the question box stays */
function forget(keepsText = false) {
  drop();
  [state.turns, state.nextNumber] = [[], 1];
  state.hidden.clear();
  empty(keepsText);
  hideNotice();
  emit("turns", "objects");
}

/**
 * Shows a file of the server. The conversation goes on if it is about this file; otherwise a new one begins.
 * @param {FileObject} file
 * @param {number} [frame]
 * @param {AbortController} [controller] of what is being opened
 */
export async function open(file, frame = 0, controller = begin()) {
  const { signal } = controller;
  if (state.file?.id !== file.id) {
    const isNew = state.turns.length === 0 && !state.pending; // what is typed then belongs to no conversation
    const may = await mayStartAnew();
    if (signal.aborted) return;
    if (!may) return showStage(state.file ? "media" : "empty");
    if (state.file) forget(isNew); // before the first file there is only what was written, which stays
  }
  state.file = file;
  hideNotice();
  try {
    if (hasKey()) showLoading(`Loading ${file.filename}`, controller);
    else showStage("media");
    emit("file");
    await load(file, frame, {
      signal,
      onProgress: (fraction) => (bar.value = fraction),
      onFetched: () => showStage("media"),
      lost: (error) => showLoss(error, file, () => open(file, state.frame)),
    });
    if (signal.aborted) return;
    announce(`${file.filename} is open.`);
    if (file.warnings?.length) showNotice(file.warnings.join(" "));
  } catch (error) {
    if (opening !== controller) return; // another file was chosen meanwhile
    if (!byId("loading", HTMLElement).hidden) showStage("empty");
    if (isAbort(error)) showNotice(`${file.filename} was not loaded.`, () => open(file, frame));
    else showLoss(error, file, () => open(file, frame));
  }
}

/** Says why a file cannot be shown, and offers others if it is gone. @type {typeof showFileError} */
function showLoss(error, file, retry) {
  if (isGone(error)) showStage("empty");
  showFileError(error, file, retry);
}

/**
 * Shows the file of a kept conversation, if the server still has it.
 * @param {FileObject} file
 * @param {number} frame
 */
export async function reopen(file, frame) {
  const controller = begin();
  state.file = file;
  showStage("media");
  emit("file", "turns", "objects");
  try {
    const known = await fileObject(file.id);
    if (!controller.signal.aborted) await open(known, frame, controller);
  } catch (error) {
    if (!controller.signal.aborted) showLoss(error, file, () => reopen(file, frame));
  }
}

/** @param {File} file to be sent */
async function send(file) {
  const controller = begin();
  const text = byId("loading-text", HTMLElement);
  hideNotice();
  showLoading(`Uploading ${file.name}`, controller);
  try {
    const sent = await upload(file, (fraction) => {
      if (fraction < 1) bar.value = fraction;
      else {
        bar.removeAttribute("value");
        text.textContent = `Preparing ${file.name}`;
      }
    }, controller.signal);
    await open(sent, 0, controller);
  } catch (error) {
    if (opening !== controller) return; // another file was chosen meanwhile
    showStage(state.file ? "media" : "empty");
    if (!isAbort(error)) showError(error, () => send(file));
  }
}

/** Opens an example; the server stores those again that it deleted since they were listed. @param {FileObject} file */
async function openExample(file) {
  const controller = begin();
  try {
    const found = (await examples()).find(({ id }) => id === file.id) ?? file;
    if (!controller.signal.aborted) await open(found, 0, controller);
  } catch (error) {
    if (!controller.signal.aborted) showError(error, () => openExample(file));
  }
}

/** Fills the list of examples. */
export async function showExamples() {
  const list = byId("examples", HTMLElement);
  const entries = (await examples()).map((file) => {
    const image = element("img", { alt: "", width: "160", height: "90" });
    void mediaUrl(`v1/files/${file.id}/frames/0`).then((url) => {
      image.onload = () => releaseUrl(url);
      image.src = url;
    }, () => undefined);
    const length = file.kind === "video" ? `${file.num_frames} frames` : "picture";
    return element("li", {}, element(
      "button",
      { type: "button", onclick: () => void openExample(file) },
      image,
      element("span", { dir: "auto" }, file.filename),
      element("small", {}, length),
    ));
  });
  list.replaceChildren(...entries);
}

for (const id of ["open", "choose"]) byId(id, HTMLButtonElement).addEventListener("click", () => field.click());
field.addEventListener("change", () => {
  const [file] = field.files ?? [];
  if (file) void send(file);
  field.value = "";
});
byId("new", HTMLButtonElement).addEventListener("click", () => void startAnew());

/** @param {DragEvent} event */
const carriesFiles = (event) => event.dataTransfer?.types.includes("Files") ?? false;
addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  stage.classList.add("dropping");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? stage.classList.remove("dropping"));
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  stage.classList.remove("dropping");
  const [file] = event.dataTransfer?.files ?? [];
  if (file) void send(file);
});
