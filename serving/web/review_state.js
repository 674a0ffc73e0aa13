/** @file What the review page knows: the item, the shown frame, who reviews. */

/** @import { Rle } from "./state.js" */

/**
 * @typedef {{ label: string, color: string, masks: (Rle | null)[] }} ReviewObject a mask for each shown frame
 * @typedef {{ text: string, first: number, last: number }} Statement
 * @typedef {{ question: string, answer: string }} Dialogue
 * @typedef {{ statements: Statement[] }} Description
 *
 * @typedef {object} Item
 * @property {string} id
 * @property {string} hash of all that is shown: a decision about something else is refused
 * @property {Dialogue | Description} text
 * @property {string | null} about the object that statements are about
 * @property {{ height: number, width: number, frames: number }} video
 * @property {number[]} frames
 * @property {ReviewObject[]} objects
 * @property {{ decision: string, reasons: string[] } | null} decision of this person
 *
 * @typedef {{ items: number, decided: number, own: number, skipped: number, waiting: number }} Progress
 */

export const review = {
  /** @type {Item | null} */ item: null,
  /** @type {Record<string, string>} reasons for a rejection */ reasons: {},
  /** place in the item's frames */ place: 0,
  /** @type {Set<string>} labels of objects whose masks are not drawn */ hidden: new Set(),
  /** whether masks are drawn at all */ masks: true,
  /** @type {string | null} label of the object that is pointed at */ hover: null,
  /** whether the person has looked at what the checks found */ informed: false,
  /** when the item was shown, in milliseconds */ shownAt: 0,
  reviewer: localStorage.getItem("sama.reviewer") ?? "",
};

/** @typedef {{ text: string, labels: string[] }} Piece text, and the objects whose tags follow it */

const TAGS = /<p>(.*?)<\/p>((?:\s*<obj\d+>)+)|<obj(\d+)>/gs;

/**
 * A tagged text in pieces: plain text, phrases with their objects, and objects without a phrase.
 * @param {string} text
 * @returns {Piece[]}
 */
export function pieces(text) {
  /** @type {Piece[]} */
  const found = [];
  let position = 0;
  for (const match of text.matchAll(TAGS)) {
    if (match.index > position) found.push({ text: text.slice(position, match.index), labels: [] });
    const labels = match[3] ? [`obj${match[3]}`] : [...match[2].matchAll(/<(obj\d+)>/g)].map((tag) => tag[1]);
    found.push({ text: (match[1] ?? "").trim(), labels });
    position = match.index + match[0].length;
  }
  if (position < text.length) found.push({ text: text.slice(position), labels: [] });
  return found;
}
