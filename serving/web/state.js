/** @file What the page knows: the file, the conversation, and the question that is being written. */

/**
 * @typedef {object} FileObject a video or picture on the server
 * @property {string} id
 * @property {string} filename
 * @property {"video" | "image"} kind
 * @property {number} width
 * @property {number} height
 * @property {number} num_frames
 * @property {number | null} fps
 * @property {string[]} [warnings] what is damaged or missing in it
 *
 * @typedef {{ size: [number, number], counts: string }} Rle COCO run lengths; the size is [height, width]
 *
 * @typedef {object} Prompt what was drawn on one frame, in pixels of the video; exactly one of points, box, scribble
 * @property {number} frame
 * @property {number[][]} [points]
 * @property {number[]} [labels]
 * @property {number[]} [box]
 * @property {number[][]} [scribble]
 *
 * @typedef {object} Region a prompt and its mask. A changed prompt is a new region of the same number
 * @property {number} number counted from 1 over the conversation
 * @property {Prompt} prompt
 * @property {Rle | null} mask null until the server has answered
 *
 * @typedef {{ text: string } | { region: Region } | { object: string }} Part a piece of a question
 *
 * @typedef {object} AnswerObject as the server sends it
 * @property {string} id
 * @property {string} phrase
 * @property {number} start of the phrase in the answer, in characters (code points)
 * @property {number} end
 * @property {string} color
 * @property {number | null} [score]
 * @property {[number, number][]} [frames] first and last frame of each visible stretch
 * @property {{ size: [number, number], counts: Record<string, string> }} [masks]
 *
 * @typedef {{ content: string, objects: AnswerObject[] }} Answer
 * @typedef {{ parts: Part[], answer: Answer, cut?: boolean }} Turn
 * @typedef {Turn & { tracked: Set<number>, waiting: boolean }} Pending the turn that is being answered
 * @typedef {"points" | "box" | "scribble"} Tool
 * @typedef {{ object: string } | { region: number } | null} Hover
 * @typedef {"file" | "turns" | "pending" | "objects" | "draft" | "question" | "frame" | "view"} Topic
 */

export const state = {
  /** @type {FileObject | null} */ file: null,
  /** @type {Turn[]} */ turns: [],
  /** @type {Pending | null} */ pending: null,
  /** @type {Region[]} */ draft: [],
  /** @type {number | null} the region that further clicks refine */ active: null,
  /** @type {number} of the next new region */ nextNumber: 1,
  /** @type {Set<string>} ids of objects whose masks are not drawn */ hidden: new Set(),
  /** @type {Hover} */ hover: null,
  /** @type {number} the frame that is shown */ frame: 0,
};

/** @type {Map<Topic, (() => void)[]>} */
const listeners = new Map();

/** Calls a function whenever a topic changes. @param {Topic[]} topics @param {() => void} listener */
export function on(topics, listener) {
  for (const topic of topics) listeners.set(topic, [...(listeners.get(topic) ?? []), listener]);
}

/** @param {Topic[]} topics that have changed */
export function emit(...topics) {
  for (const listener of new Set(topics.flatMap((topic) => listeners.get(topic) ?? []))) listener();
}

/** The objects of all answers by id, each as the first answer about it has it: what the server points at and exports. */
export function allObjects() {
  /** @type {Map<string, AnswerObject>} */
  const objects = new Map();
  for (const { answer } of [...state.turns, ...(state.pending ? [state.pending] : [])]) {
    for (const one of answer.objects) if (!objects.has(one.id)) objects.set(one.id, one);
  }
  return objects;
}

/**
 * The mask of an object on a frame; null where it is not visible.
 * @param {AnswerObject} object
 * @param {number} frame
 * @returns {Rle | null}
 */
export function maskAt(object, frame) {
  const counts = object.masks?.counts[String(frame)];
  return object.masks && counts !== undefined ? { size: object.masks.size, counts } : null;
}

/** First and last frame of each stretch of frames. @param {Iterable<number>} frames @returns {[number, number][]} */
export function stretchesOf(frames) {
  /** @type {[number, number][]} */
  const stretches = [];
  for (const frame of [...frames].sort((a, b) => a - b)) {
    const last = stretches.at(-1);
    if (last && last[1] === frame - 1) last[1] = frame;
    else stretches.push([frame, frame]);
  }
  return stretches;
}

/** The stretches on which an object is visible. @param {AnswerObject} object */
export const visibleFrames = ({ masks, frames = [] }) =>
  masks ? stretchesOf(Object.keys(masks.counts).map(Number)) : frames;

/**
 * The conversation as the server takes it.
 * @param {Part[] | null} question the next question, or null for the conversation so far
 * @returns {object[]}
 */
export function messages(question = null) {
  const file = state.file;
  if (!file) return [];
  const type = file.kind === "image" ? "image_url" : "video_url";
  /** @type {object[]} */
  const list = [];
  /** @type {Set<string>} */
  const sent = new Set();
  for (const turn of [...state.turns, ...(question ? [{ parts: question, answer: null }] : [])]) {
    const source = list.length ? [] : [{ type, [type]: { file_id: file.id } }];
    list.push({ role: "user", content: [...source, ...turn.parts.map(contentPart)] });
    if (turn.answer) list.push({ role: "assistant", ...turn.answer, objects: turn.answer.objects.map((one) => sentObject(one, sent)) });
  }
  return list;
}

/**
 * An object with its masks in the first answer about it, which is the one that the server reads: with them in each
 * answer, a long conversation about a long video would be too large to be sent.
 * @param {AnswerObject} object
 * @param {Set<string>} sent ids of the objects that have been sent with masks
 */
function sentObject(object, sent) {
  if (sent.has(object.id)) return { ...object, masks: undefined };
  sent.add(object.id);
  return object;
}

/** @param {Part} part */
function contentPart(part) {
  if ("text" in part) return { type: "text", text: part.text };
  return { type: "region", region: "object" in part ? { object: part.object } : part.region.prompt };
}
