/** @file The regions of the question that is being written: undo, redo, and their masks from the server. */

import { isAbort, previewRegion, showError } from "./api.js";
import { announce } from "./dom.js";
import { emit, state } from "./state.js";

/** @import { Prompt, Region } from "./state.js" */
/** @typedef {{ draft: Region[], active: number | null }} Snapshot */

const PREVIEW_DELAY = 80; // milliseconds: clicks in quick succession ask once

/** @type {Snapshot[]} */
let past = [];
/** @type {Snapshot[]} */
let future = [];
/** @type {Map<Region, AbortController>} requests under way */
const requested = new Map();
let timer = 0;

export const canUndo = () => past.length > 0;
export const canRedo = () => future.length > 0;

/** @param {Snapshot} snapshot */
function show({ draft, active }) {
  [state.draft, state.active] = [draft, active];
  emit("draft");
  clearTimeout(timer);
  timer = setTimeout(requestMasks, PREVIEW_DELAY);
}

/**
 * Changes the regions; the change can be undone.
 * @param {Region[]} draft
 * @param {number | null} active the region that further clicks refine
 */
export function change(draft, active) {
  past.push({ draft: state.draft, active: state.active });
  future = [];
  show({ draft, active });
}

/** Takes the last change back. */
export function undo() {
  const snapshot = past.pop();
  if (!snapshot) return;
  future.push({ draft: state.draft, active: state.active });
  show(snapshot);
}

/** Makes the change again that was taken back last. */
export function redo() {
  const snapshot = future.pop();
  if (!snapshot) return;
  past.push({ draft: state.draft, active: state.active });
  show(snapshot);
}

/** Removes the region that clicks refine; if there is none, all of them. */
export function clear() {
  if (state.draft.length === 0) return;
  change(state.active === null ? [] : state.draft.filter(({ number }) => number !== state.active), null);
}

/** Begins anew, with nothing to undo. @param {Region[]} draft */
export function reset(draft = []) {
  past = [];
  future = [];
  show({ draft, active: null });
}

/** Further clicks begin a new region. */
export function finishRegion() {
  if (state.active === null) return;
  state.active = null;
  emit("draft");
}

/** @param {Prompt} prompt of a new region */
export function addRegion(prompt) {
  const region = { number: state.nextNumber++, prompt, mask: null };
  change([...state.draft, region], region.number);
}

/** The region that a click on the shown frame refines. */
export function refinable() {
  const region = state.draft.find(({ number }) => number === state.active);
  return region?.prompt.points && region.prompt.frame === state.frame ? region : null;
}

/**
 * A click: it refines the active region of clicks on this frame, or begins a new one.
 * @param {[number, number]} point
 * @param {boolean} adds
 * @returns {boolean} whether there is anything it could take away from
 */
export function addPoint(point, adds) {
  const region = refinable();
  if (!region) {
    if (adds) addRegion({ frame: state.frame, points: [point], labels: [1] });
    return adds;
  }
  const { frame, points = [], labels = [] } = region.prompt;
  const prompt = { frame, points: [...points, point], labels: [...labels, adds ? 1 : 0] };
  const refined = { ...region, prompt, mask: null };
  change(state.draft.map((one) => (one === region ? refined : one)), region.number);
  return true;
}

/** Asks for the masks that are missing. A request about a prompt that was changed meanwhile is given up. */
function requestMasks() {
  for (const [region, controller] of requested) {
    if (!state.draft.some((one) => one.number === region.number && one !== region)) continue;
    controller.abort();
    requested.delete(region);
  }
  for (const region of state.draft) {
    if (region.mask === null && !requested.has(region)) void requestMask(region);
  }
}

/** @param {Region} region */
async function requestMask(region) {
  if (!state.file) return;
  const controller = new AbortController();
  requested.set(region, controller);
  try {
    region.mask = await previewRegion(state.file.id, region.prompt, controller.signal);
    announce(`Region ${region.number} has a mask on frame ${region.prompt.frame}.`);
    emit("objects");
    if (!state.draft.includes(region)) emit("turns"); // it was asked about meanwhile
  } catch (error) {
    if (isAbort(error) || !state.draft.includes(region)) return;
    showError(error, requestMasks);
  } finally {
    if (requested.get(region) === controller) requested.delete(region);
  }
}
