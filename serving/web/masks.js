/** @file Masks from COCO run lengths: decoded, compared and drawn. */

/** @import { Rle } from "./state.js" */

/**
 * @typedef {object} Shape the part of a mask that is not empty
 * @property {number} x
 * @property {number} y
 * @property {number} width
 * @property {number} height
 * @property {Uint8Array} bits row by row, 1 inside
 */

const MAX_CHUNKS = 6; // five bits each; a run length of more would exceed any frame
const MAX_CACHED_PIXELS = 16e6;

/**
 * The run lengths of COCO's compressed text, zeros first. A character minus 48 is a chunk of six bits: five of the
 * number, the lowest first, and one that says whether it goes on; bit 4 of the last chunk is the sign. From the fourth
 * number on, a number is the difference from the run two places before.
 * @param {string} counts
 * @returns {number[]}
 */
export function runLengths(counts) {
  /** @type {number[]} */
  const runs = [];
  for (let position = 0; position < counts.length; ) {
    let value = 0;
    let chunk = 32;
    for (let shift = 0; chunk & 32; shift += 5) {
      chunk = counts.charCodeAt(position++) - 48;
      if (!(chunk >= 0 && chunk < 64) || shift >= 5 * MAX_CHUNKS) throw new Error("The code of a mask is damaged.");
      value |= (chunk & 31) << shift;
      if ((chunk & 48) === 16) value |= -1 << (shift + 5);
    }
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

/**
 * First pixel and one past the last pixel of each run of ones, counted column by column.
 * @param {Rle} rle
 * @returns {[number, number][]}
 */
function stretches(rle) {
  /** @type {[number, number][]} */
  const found = [];
  let position = 0;
  runLengths(rle.counts).forEach((run, index) => {
    if (run < 0) throw new Error("The code of a mask is damaged.");
    if (index % 2 && run) found.push([position, position + run]);
    position += run;
  });
  if (position !== rle.size[0] * rle.size[1]) throw new Error("The code of a mask does not fill its size.");
  return found;
}

/** @param {Rle} rle @returns {Shape} */
export function decode(rle) {
  const height = rle.size[0];
  const runs = stretches(rle);
  let [left, top, right, bottom] = [Infinity, Infinity, -1, -1];
  for (const [start, end] of runs) {
    const [first, last] = [Math.floor(start / height), Math.floor((end - 1) / height)];
    [left, right] = [Math.min(left, first), Math.max(right, last)];
    top = first === last ? Math.min(top, start % height) : 0;
    bottom = first === last ? Math.max(bottom, (end - 1) % height) : height - 1;
  }
  if (right < 0) return { x: 0, y: 0, width: 0, height: 0, bits: new Uint8Array() };
  const shape = { x: left, y: top, width: right - left + 1, height: bottom - top + 1 };
  const bits = new Uint8Array(shape.width * shape.height);
  for (const [start, end] of runs) {
    let [column, row] = [Math.floor(start / height), start % height];
    for (let pixel = start; pixel < end; pixel++) {
      bits[(row - top) * shape.width + column - left] = 1;
      if (++row === height) [column, row] = [column + 1, 0];
    }
  }
  return { ...shape, bits };
}

/** Intersection over union of two masks of one size. @param {Rle} one @param {Rle} other */
export function overlap(one, other) {
  const [first, second] = [stretches(one), stretches(other)];
  const area = [...first, ...second].reduce((sum, [start, end]) => sum + end - start, 0);
  let shared = 0;
  for (let i = 0, j = 0; i < first.length && j < second.length; ) {
    shared += Math.max(0, Math.min(first[i][1], second[j][1]) - Math.max(first[i][0], second[j][0]));
    if (first[i][1] < second[j][1]) i++;
    else j++;
  }
  return area ? shared / (area - shared) : 0;
}

// The sides of a square of four pixels that the outline joins, by which of them are inside: 1 top left, 2 top right,
// 4 bottom right, 8 bottom left
const SIDES = ["", "lt", "tr", "lr", "rb", "ltrb", "tb", "lb", "lb", "tb", "trlb", "rb", "lr", "tr", "lt", ""];
/** @type {Record<string, [number, number]>} */
const MIDDLES = { t: [1, 0.5], r: [1.5, 1], b: [1, 1.5], l: [0.5, 1] };

/**
 * The outline of a shape, half way between the pixels inside and those outside ("marching squares").
 * @param {Shape} shape
 */
function outline({ x, y, width, height, bits }) {
  const path = new Path2D();
  const stride = width + 2; // with a border of zeros
  const padded = new Uint8Array(stride * (height + 2));
  for (let row = 0; row < height; row++) padded.set(bits.subarray(row * width, (row + 1) * width), (row + 1) * stride + 1);
  for (let row = -1; row < height; row++) {
    for (let column = -1; column < width; column++) {
      const i = (row + 1) * stride + column + 1;
      const corners = padded[i] + 2 * padded[i + 1] + 4 * padded[i + stride + 1] + 8 * padded[i + stride];
      if (corners % 15 === 0) continue; // all outside or all inside
      [...SIDES[corners]].forEach((side, index) => {
        const [right, down] = MIDDLES[side];
        if (index % 2) path.lineTo(x + column + right, y + row + down);
        else path.moveTo(x + column + right, y + row + down);
      });
    }
  }
  return path;
}

/** The inside of a shape as an opaque picture of one colour. @param {Shape} shape @param {string} color */
function filled({ width, height, bits }, color) {
  const canvas = new OffscreenCanvas(width, height);
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(width, height);
  for (let index = 0; index < bits.length; index++) image.data[4 * index + 3] = 255 * bits[index];
  context.putImageData(image, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = color;
  context.fillRect(0, 0, width, height);
  return canvas;
}

/** @typedef {{ shape: Shape, path: Path2D, fill: OffscreenCanvas }} Drawn */
/** @type {Map<string, Drawn | null>} the least recently drawn first */
const cache = new Map();
let cachedPixels = 0;

/** @param {Rle} rle @param {string} color @returns {Drawn | null} null for an empty mask */
function drawn(rle, color) {
  const name = `${color} ${rle.size} ${rle.counts}`;
  let entry = cache.get(name);
  if (entry === undefined) {
    const shape = decode(rle);
    entry = shape.width ? { shape, path: outline(shape), fill: filled(shape, color) } : null;
    cachedPixels += shape.bits.length;
  }
  cache.delete(name);
  cache.set(name, entry);
  for (const [oldest, value] of cache) {
    if (cachedPixels <= MAX_CACHED_PIXELS || oldest === name) break;
    cache.delete(oldest);
    cachedPixels -= value?.shape.bits.length ?? 0;
  }
  return entry;
}

/**
 * Draws a mask in pixels of the video; the context's transform maps them to the canvas.
 * @param {CanvasRenderingContext2D} context
 * @param {Rle} rle
 * @param {string} color
 * @param {{ opacity: number, line: number, pixel: number }} style opacity of the fill, width of the outline in pixels
 *   of the screen, and how many pixels of the video one of them is
 */
export function drawMask(context, rle, color, { opacity, line, pixel }) {
  const mask = drawn(rle, color);
  if (!mask) return;
  context.save();
  context.globalAlpha = opacity;
  context.drawImage(mask.fill, mask.shape.x, mask.shape.y);
  context.globalAlpha = 1;
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = (line + 2) * pixel;
  context.strokeStyle = "rgb(0 0 0 / 50%)";
  context.stroke(mask.path);
  context.lineWidth = line * pixel;
  context.strokeStyle = color;
  context.stroke(mask.path);
  context.restore();
}
