/** @file The review page: gives out items, takes decisions, keys. */

import { ApiError, jsonOf, post, request, showError } from "./api.js";
import { announce, askDialog, byId, element, hideNotice, showNotice } from "./dom.js";
import { review } from "./review_state.js";
import { hideItem, pause, showItem, step, toggleMasks, togglePlay } from "./review_view.js";
import "./theme_button.js";

/** @import { Item, Progress } from "./review_state.js" */

const editForm = byId("edit-form", HTMLFormElement);
const rejectForm = byId("reject-form", HTMLFormElement);
const decisions = byId("decisions", HTMLElement);
let busy = false;
/** @type {{ id: string, hash: string, values: string[] } | null} an edit that was left without saving */
let unsaved = null;

// ---- items ----

/** @param {{ item: Item | null, progress: Progress, reasons: Record<string, string> }} found */
function show({ item, progress, reasons }) {
  review.item = item;
  review.reasons = reasons;
  review.informed = false;
  review.shownAt = performance.now();
  closePanels();
  byId("progress", HTMLElement).textContent = `${progress.decided} of ${progress.items} decided, ${progress.own} by you`;
  byId("undo", HTMLButtonElement).disabled = progress.own + progress.skipped === 0;
  byId("done", HTMLElement).hidden = item !== null;
  byId("again", HTMLElement).hidden = progress.skipped === 0;
  byId("transport", HTMLElement).inert = item === null;
  for (const name of ["accept", "edit", "reject", "skip", "look"]) byId(name, HTMLButtonElement).disabled = item === null;
  if (item) {
    showItem(item);
    announce(`Item ${item.id}`);
  } else {
    hideItem();
    for (const name of ["messages", "objects", "item-name", "frame"]) byId(name, HTMLElement).replaceChildren();
    const skipped = progress.skipped ? ` You skipped ${progress.skipped}.` : "";
    byId("done-text", HTMLElement).textContent = `You decided ${progress.own} of ${progress.items} items.${skipped}`;
    byId("done-title", HTMLElement).focus();
  }
}

/**
 * Runs one request at a time; keys and clicks that come meanwhile do nothing.
 * @param {() => Promise<unknown>} work
 * @param {(error: unknown) => void} [failed]
 */
async function exclusively(work, failed) {
  if (busy) return;
  const focused = document.activeElement;
  const byKey = focused?.matches(":focus-visible") ?? false;
  busy = true;
  decisions.inert = true;
  hideNotice();
  try {
    await work();
  } catch (error) {
    if (error instanceof ApiError && error.status === 409) showNotice(error.message, loadNext);
    else if (failed) failed(error);
    else showError(error, () => exclusively(work));
  } finally {
    busy = false;
    decisions.inert = false;
    giveFocusBack(focused, byKey);
  }
}

/**
 * Gives the focus back that an inert or hidden control has lost. A control that was clicked does not get it: the next
 * space would be meant to play, and would decide about an item that nobody has seen.
 * @param {Element | null} focused
 * @param {boolean} byKey
 */
function giveFocusBack(focused, byKey) {
  const isLost = document.activeElement === focused || document.activeElement === document.body;
  if (!isLost || !(focused instanceof HTMLElement) || focused === document.body) return;
  if (!focused.checkVisibility() || focused.matches(":disabled")) byId("messages", HTMLElement).focus();
  else if (byKey) focused.focus();
}

/** @param {string} path @param {Record<string, string>} query */
const get = async (path, query) => jsonOf(await request(`v1/review/${path}?${new URLSearchParams(query)}`));

/** @param {boolean} skipped */
const fetchNext = async (skipped = false) => show(await get("next", { reviewer: review.reviewer, skipped: String(skipped) }));

const loadNext = () => exclusively(fetchNext);

/**
 * Sends a decision about the item and goes on to the next one.
 * @param {string} decision
 * @param {{ edit?: object, reasons?: string[] }} [fields]
 * @param {(error: unknown) => void} [failed]
 */
function decide(decision, fields = {}, failed) {
  const { item } = review;
  if (!item) return;
  void exclusively(async () => {
    const seconds = Math.round(performance.now() - review.shownAt) / 1000;
    const about = { id: item.id, hash: item.hash, reviewer: review.reviewer, seconds, informed: review.informed };
    await post("v1/review/decisions", { ...about, decision, ...fields });
    try {
      await fetchNext();
    } catch (error) {
      showError(error, loadNext); // the decision is saved, and is not sent again
    }
  }, failed);
}

function undo() {
  void exclusively(async () => {
    const { id } = await jsonOf(await post("v1/review/undo", { reviewer: review.reviewer }));
    if (id === null) return announce("There is nothing to undo.");
    try {
      await fetchAgain(id);
    } catch (error) {
      showError(error, () => exclusively(() => fetchAgain(id))); // the decision is taken back, and no other one is
    }
  });
}

/** @param {string} id of an item that was decided */
const fetchAgain = async (id) => show(await get("items", { id, reviewer: review.reviewer }));

// ---- panels ----

function closePanels() {
  editForm.hidden = rejectForm.hidden = byId("checks", HTMLElement).hidden = true;
  decisions.hidden = false;
}

/** @param {HTMLFormElement} form */
function openPanel(form) {
  closePanels();
  pause();
  form.hidden = false;
  decisions.hidden = true;
}

/** Leaves an edit or a rejection; whether there was one. */
function leave() {
  const open = !editForm.hidden || !rejectForm.hidden;
  if (!editForm.hidden && review.item) unsaved = { id: review.item.id, hash: review.item.hash, values: fieldValues() };
  closePanels();
  if (open) byId("accept", HTMLButtonElement).focus();
  return open;
}

/** @param {string} name @param {string} title @param {string} text */
function field(name, title, text) {
  const area = element("textarea", { name, rows: String(Math.min(8, Math.max(2, Math.ceil(text.length / 44)))), spellcheck: "true", dir: "auto" });
  area.value = text;
  return element("label", {}, title, area);
}

function openEdit() {
  const { item } = review;
  if (!item || busy) return; // another item may be on its way
  openPanel(editForm);
  byId("edit-problem", HTMLElement).hidden = true;
  byId("edit-hint", HTMLElement).hidden = "statements" in item.text; // which have no tags
  const fields =
    "statements" in item.text
      ? item.text.statements.map(({ text, first, last }, i) => field(`${i}`, `Statement, frames ${first} to ${last}`, text))
      : [field("question", "Question", item.text.question), field("answer", "Answer", item.text.answer)];
  byId("edit-fields", HTMLElement).replaceChildren(...fields);
  if (unsaved?.id === item.id && unsaved.hash === item.hash) {
    const { values } = unsaved;
    editAreas().forEach((area, index) => (area.value = values[index]));
  }
  fields.at(-1)?.querySelector("textarea")?.focus();
}

const editAreas = () => [...editForm.querySelectorAll("textarea")];
const fieldValues = () => editAreas().map(({ value }) => value);

/** What stands in the fields, in the form of the item's text; an empty statement is left out. @param {Item} item */
function editedText(item) {
  const values = fieldValues().map((value) => value.trim());
  if (!("statements" in item.text)) return { question: values[0], answer: values[1] };
  const statements = item.text.statements.map((statement, i) => ({ ...statement, text: values[i] }));
  return { statements: statements.filter(({ text }) => text !== "") };
}

function saveEdit() {
  const { item } = review;
  if (!item) return;
  const edit = editedText(item);
  if (JSON.stringify(edit) === JSON.stringify(item.text)) return showProblem("Nothing is changed. Accept it instead, or change something.");
  unsaved = null;
  decide("edit", { edit }, (error) => showProblem(error instanceof Error ? error.message : String(error)));
}

/** @param {string} text */
function showProblem(text) {
  byId("edit-problem", HTMLElement).textContent = text;
  byId("edit-problem", HTMLElement).hidden = false;
}

function openReject() {
  if (!review.item || busy) return;
  openPanel(rejectForm);
  const before = review.item.decision?.reasons ?? [];
  const boxes = Object.entries(review.reasons).map(([name, words], index) => {
    const box = element("input", { type: "checkbox", name, checked: before.includes(name) });
    return element("label", {}, box, element("kbd", {}, String(index + 1)), words);
  });
  byId("reject-reasons", HTMLElement).replaceChildren(...boxes);
  boxes[0].querySelector("input")?.focus();
}

function sendReject() {
  const reasons = [...rejectForm.querySelectorAll("input")].filter(({ checked }) => checked).map(({ name }) => name);
  decide("reject", { reasons });
}

/** Shows what the checks found; the decision will say so. */
function openChecks() {
  const { item } = review;
  const panel = byId("checks", HTMLElement);
  if (!item || !panel.hidden) return void (panel.hidden = true);
  void exclusively(async () => {
    /** @type {{ reasons: { code: string, detail: string }[], scores: Record<string, unknown>, suggested: string }} */
    const { reasons, scores, suggested } = await get("checks", { id: item.id });
    review.informed = true;
    const lines = reasons.map(({ code, detail }) => element("p", {}, element("code", {}, code), `: ${detail}`));
    const values = Object.entries(scores).map(([name, value]) => element("p", {}, `${name}: ${JSON.stringify(value)}`));
    const none = lines.length ? [] : [element("p", {}, "The checks found nothing.")];
    panel.replaceChildren(...lines, ...none, ...values, element("p", { class: "muted" }, `Suggested: ${suggested}`));
    panel.hidden = false;
  });
}

// ---- who ----

async function askName() {
  const input = byId("name", HTMLInputElement);
  input.value = review.reviewer;
  do await askDialog(byId("name-dialog", HTMLDialogElement));
  while (!input.value.trim() && !review.reviewer);
  review.reviewer = input.value.trim() || review.reviewer;
  localStorage.setItem("sama.reviewer", review.reviewer);
  byId("reviewer", HTMLButtonElement).textContent = review.reviewer;
}

async function begin() {
  if (!review.reviewer) await askName();
  byId("reviewer", HTMLButtonElement).textContent = review.reviewer;
  await loadNext();
}

// ---- keys ----

/** @type {Record<string, () => void>} */
const KEYS = {
  a: () => decide("accept"),
  e: openEdit,
  r: openReject,
  s: () => decide("skip"),
  u: undo,
  c: openChecks,
  m: toggleMasks,
  " ": togglePlay,
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
};

/** @param {EventTarget | null} target @param {string} kinds */
const isOne = (target, kinds) => target instanceof Element && target.matches(kinds);

/** @param {KeyboardEvent} event */
function onRejectKey(event) {
  const box = rejectForm.querySelectorAll("input")[Number(event.key) - 1];
  if (event.key >= "1" && event.key <= "9" && box) box.checked = !box.checked;
  else if (event.key === "Enter" && !isOne(event.target, "button")) sendReject();
  else return;
  event.preventDefault();
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  if (event.isComposing || event.keyCode === 229) return; // of an input method; Safari says it by the code alone
  if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
  if (event.key === "F1") {
    event.preventDefault();
    return byId("help-dialog", HTMLDialogElement).showModal();
  }
  if (event.key === "Escape") return void (leave() && event.preventDefault());
  const command = event.ctrlKey || event.metaKey;
  if (!editForm.hidden) return void (command && event.key === "Enter" && saveEdit());
  if (!rejectForm.hidden) return onRejectKey(event);
  if (command || event.altKey || event.repeat) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!(key in KEYS) || (key === " " && isOne(event.target, "button"))) return;
  if (key.startsWith("Arrow") && isOne(event.target, "[type=range]")) return;
  event.preventDefault();
  KEYS[key]();
}

/** @param {HTMLFormElement} form @param {() => void} send */
function onSubmit(form, send) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
}

for (const [name, key] of [["accept", "a"], ["edit", "e"], ["reject", "r"], ["skip", "s"], ["undo", "u"], ["look", "c"]]) {
  byId(name, HTMLButtonElement).addEventListener("click", KEYS[key]);
}
onSubmit(editForm, saveEdit);
onSubmit(rejectForm, sendReject);
byId("edit-cancel", HTMLButtonElement).addEventListener("click", leave);
byId("reject-cancel", HTMLButtonElement).addEventListener("click", leave);
byId("again", HTMLButtonElement).addEventListener("click", () => exclusively(() => fetchNext(true)));
byId("refresh", HTMLButtonElement).addEventListener("click", loadNext);
byId("help", HTMLButtonElement).addEventListener("click", () => byId("help-dialog", HTMLDialogElement).showModal());
byId("reviewer", HTMLButtonElement).addEventListener("click", async () => {
  await askName();
  if (editForm.hidden && rejectForm.hidden) void loadNext(); // else what is written would be lost
});
addEventListener("keydown", onKey);
void begin();
