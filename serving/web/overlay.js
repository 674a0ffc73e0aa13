/** @file Draws masks and prompts over the shown frame. */

import { byId } from "./dom.js";
import { drawMask } from "./masks.js";
import { allObjects, maskAt, on, state } from "./state.js";

/** @import { Prompt, Region, Rle } from "./state.js" */

export const overlay = byId("overlay", HTMLCanvasElement);

/** What is being drawn with the pointer or the keyboard, in pixels of the video. */
export const gesture = {
  /** @type {number[] | null} */ box: null,
  /** @type {number[][] | null} */ stroke: null,
  /** @type {[number, number] | null} */ crosshair: null,
  /** @type {number} on which it was begun */ frame: 0,
};

const DRAFT_COLOR = "#ffffff"; // not a colour of any object
const FILL = { rest: 0.15, lit: 0.4, dim: 0.08 }; // so light that an object's own colour can still be named

/** Number of pixels of the video that are one pixel of the screen. */
let pixel = 1;

/** Draws everything anew. */
export function draw() {
  const { file } = state;
  const context = overlay.getContext("2d");
  if (!file || !context) return;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, overlay.width, overlay.height);
  const scale = overlay.width / file.width;
  context.scale(scale, overlay.height / file.height);
  pixel = devicePixelRatio / scale;
  for (const object of allObjects().values()) {
    const mask = maskAt(object, state.frame);
    if (mask && !state.hidden.has(object.id)) paint(context, mask, object.color, isLit("object", object.id));
  }
  for (const region of shownRegions()) {
    const lit = isLit("region", region.number);
    if (region.mask) paint(context, region.mask, DRAFT_COLOR, lit);
    drawPrompt(context, region.prompt);
  }
  drawPrompt(context, { frame: state.frame, box: gesture.box ?? undefined, scribble: gesture.stroke ?? undefined });
  if (gesture.crosshair) drawCrosshair(context, gesture.crosshair, file);
}

/** @param {"object" | "region"} kind @param {string | number} name */
const isLit = (kind, name) => state.hover !== null && kind in state.hover && Object.values(state.hover)[0] === name;

/** The regions of the question, written or being answered, on the shown frame, and one whose chip is pointed at. */
function shownRegions() {
  /** @type {Region[]} */
  const earlier = state.turns.flatMap(({ parts }) => parts.flatMap((part) => ("region" in part ? [part.region] : [])));
  const asked = (state.pending?.parts ?? []).flatMap((part) => ("region" in part ? [part.region] : []));
  const regions = [...earlier.filter(({ number }) => isLit("region", number)), ...asked, ...state.draft];
  return regions.filter(({ prompt }) => prompt.frame === state.frame);
}

/** @param {CanvasRenderingContext2D} context @param {Rle} mask @param {string} color @param {boolean} lit */
function paint(context, mask, color, lit) {
  const opacity = lit ? FILL.lit : state.hover ? FILL.dim : FILL.rest;
  drawMask(context, mask, color, { opacity, line: lit ? 3 : 2, pixel });
}

/**
 * Strokes a path in white on a dark rim, which can be seen on any picture.
 * @param {CanvasRenderingContext2D} context
 * @param {Path2D} path
 * @param {number} width in pixels of the screen
 */
function strokeLine(context, path, width) {
  for (const [extra, color] of /** @type {const} */ ([[2, "rgb(0 0 0 / 60%)"], [0, "#ffffff"]])) {
    context.lineWidth = (width + extra) * pixel;
    context.strokeStyle = color;
    context.stroke(path);
  }
}

/** @param {CanvasRenderingContext2D} context @param {Prompt} prompt */
function drawPrompt(context, { box, scribble, points = [], labels = [] }) {
  context.lineJoin = context.lineCap = "round";
  const path = new Path2D();
  if (box) path.rect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
  scribble?.forEach(([x, y], index) => (index ? path.lineTo(x, y) : path.moveTo(x, y)));
  if (scribble?.length === 1) path.lineTo(scribble[0][0], scribble[0][1]);
  if (box) context.setLineDash([6 * pixel, 5 * pixel]);
  if (box || scribble) strokeLine(context, path, scribble ? 4 : 1.5);
  context.setLineDash([]);
  points.forEach(([x, y], index) => drawPoint(context, x + 0.5, y + 0.5, labels[index] !== 0));
}

/** @param {CanvasRenderingContext2D} context @param {number} x @param {number} y @param {boolean} adds */
function drawPoint(context, x, y, adds) {
  const disc = new Path2D();
  disc.arc(x, y, 7 * pixel, 0, 2 * Math.PI);
  context.fillStyle = adds ? "#3b47c4" : "#c22f3d";
  context.fill(disc);
  strokeLine(context, disc, 1.5);
  const sign = new Path2D();
  sign.moveTo(x - 3 * pixel, y);
  sign.lineTo(x + 3 * pixel, y);
  if (adds) sign.moveTo(x, y - 3 * pixel);
  if (adds) sign.lineTo(x, y + 3 * pixel);
  context.lineWidth = 1.5 * pixel;
  context.stroke(sign);
}

/** @param {CanvasRenderingContext2D} context @param {[number, number]} at @param {{ width: number, height: number }} size */
function drawCrosshair(context, [x, y], { width, height }) {
  const path = new Path2D();
  for (const [from, to, gap] of [[0, x, -6], [width, x, 6]]) {
    path.moveTo(from, y + 0.5);
    path.lineTo(to + 0.5 + gap * pixel, y + 0.5);
  }
  for (const [from, to, gap] of [[0, y, -6], [height, y, 6]]) {
    path.moveTo(x + 0.5, from);
    path.lineTo(x + 0.5, to + 0.5 + gap * pixel);
  }
  strokeLine(context, path, 1);
}

new ResizeObserver(([{ contentRect }]) => {
  overlay.width = Math.max(1, Math.round(contentRect.width * devicePixelRatio));
  overlay.height = Math.max(1, Math.round(contentRect.height * devicePixelRatio));
  draw();
}).observe(overlay);

on(["file", "frame", "pending", "objects", "draft", "view"], draw);
