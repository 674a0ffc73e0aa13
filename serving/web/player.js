/** @file Plays a video, or shows a picture, and says which frame is shown. */

import { fileObject, mediaUrl, releaseUrl } from "./api.js";
import { byId, setIcon } from "./dom.js";
import { emit, state } from "./state.js";

/** @import { FileObject } from "./state.js" */

const video = byId("video", HTMLVideoElement);
const picture = byId("picture", HTMLCanvasElement);
const media = byId("media", HTMLElement);
const play = byId("play", HTMLButtonElement);
const scrubber = byId("scrubber", HTMLInputElement);
const frameField = byId("frame", HTMLInputElement);

const SETTLE_MILLISECONDS = 150; // after a seek, in which the callback of its frame usually comes

/** @type {number | null} the frame that was asked for and is not shown yet */
let target = null;
let loads = 0;
let shown = false; // whether the canvas has a frame of the open file
/** @type {string} address of the video */
let address = "";
const BROKEN = "The file could not be loaded: the connection broke, or the browser cannot show it.";

/** Whether a frame of the open file is shown: only then there is something to point at. */
export const isShown = () => shown;
const lastFrame = () => (state.file?.num_frames ?? 1) - 1;
const fps = () => state.file?.fps ?? 1;

/**
 * Copies what the video shows to the canvas above it, in the same task in which the masks of this frame are drawn:
 * picture and masks cannot be of different frames.
 * @param {CanvasImageSource} source
 * @param {number} frame
 */
function show(source, frame) {
  const { width, height } = picture;
  // The copy of a video with odd sides has one row or column more
  picture.getContext("2d")?.drawImage(source, 0, 0, width, height, 0, 0, width, height);
  shown = true;
  state.frame = Math.min(Math.max(frame, 0), lastFrame());
  if (state.frame === target) target = null;
  showPosition();
  emit("frame");
}

/** Waits for the next frame of the video. Frame n is shown from n / fps to (n + 1) / fps. */
function watch() {
  const load = loads;
  if ("requestVideoFrameCallback" in video) {
    video.requestVideoFrameCallback((_now, { mediaTime }) => {
      if (load !== loads) return;
      show(video, Math.round(mediaTime * fps()));
      watch();
    });
  } else {
    requestAnimationFrame(() => {
      if (load !== loads) return;
      const frame = Math.floor(/** @type {HTMLVideoElement} */ (video).currentTime * fps() + 1e-4);
      if (frame !== state.frame) show(video, frame);
      watch();
    });
  }
}

function showPosition() {
  const frame = target ?? state.frame;
  scrubber.value = String(frame);
  scrubber.setAttribute("aria-valuetext", `Frame ${frame} of ${lastFrame()}`);
  scrubber.style.setProperty("--position", String(lastFrame() ? frame / lastFrame() : 0));
  if (document.activeElement !== frameField) frameField.value = String(frame);
  byId("time", HTMLOutputElement).value = `${(frame / fps()).toFixed(2)} s`;
}

/**
 * Loads a file and shows its frame `frame`.
 * @param {FileObject} file
 * @param {number} frame
 * @param {object} options
 * @param {AbortSignal} options.signal
 * @param {(fraction: number) => void} options.onProgress of what is fetched before anything can be shown, with a key
 * @param {() => void} options.onFetched is called after that
 * @param {(error: unknown) => void} options.lost is told why the file cannot be shown any more
 */
export async function load(file, frame, { signal, onProgress, onFetched, lost }) {
  const current = ++loads;
  video.pause();
  video.onerror = null;
  // Nothing of the file before is shown under the name of this one, which may be long on its way
  video.removeAttribute("src");
  video.load();
  releaseUrl(address);
  address = "";
  shown = false;
  [picture.width, picture.height] = [file.width, file.height];
  media.style.setProperty("--ratio", String(file.width / file.height));
  scrubber.max = frameField.max = String(lastFrame());
  byId("frames", HTMLElement).textContent = `of ${lastFrame()}`;
  state.frame = 0;
  target = null;
  emit("frame");
  const url = await mediaUrl(`v1/files/${file.id}/content`, signal, onProgress);
  if (current !== loads || signal.aborted) return releaseUrl(url);
  onFetched();
  if (file.kind === "image") {
    const image = new Image();
    image.src = url;
    await image.decode().catch(() => explain(file)).finally(() => releaseUrl(url));
    if (current === loads) show(image, 0);
    return;
  }
  video.src = address = url;
  watch();
  await new Promise((resolve, reject) => {
    video.onloadedmetadata = resolve; // iOS fetches a frame for a seek alone
    video.onerror = reject;
  }).catch(() => explain(file));
  video.onerror = () => explain(file).catch((error) => current === loads && lost(error));
  if (current === loads) seek(Math.min(frame, lastFrame()));
}

/**
 * Throws the reason why the browser cannot show a file, which an element for media does not tell: that of the server,
 * if it has one.
 * @param {FileObject} file
 * @returns {Promise<never>}
 */
async function explain(file) {
  await fileObject(file.id);
  throw new Error(BROKEN);
}

/** @param {number} frame to be shown, the video paused */
export function seek(frame) {
  if (!state.file) return;
  video.pause();
  target = Math.min(Math.max(Math.round(frame), 0), lastFrame());
  // The middle of the frame's time, where no rounding leads to a neighbour
  if (state.file.kind === "video") video.currentTime = (target + 0.5) / fps();
  showPosition();
}

/** @param {number} frames to go on by, or back by */
export const step = (frames) => seek((target ?? state.frame) + frames);

/** Plays, from the beginning if the end is reached, or pauses. */
export function togglePlay() {
  if (state.file?.kind !== "video") return;
  if (!video.paused) return seek(state.frame);
  target = null;
  if (state.frame === lastFrame()) video.currentTime = 0;
  video.play().catch(() => undefined); // interrupted by a pause
}

/** Stops on the frame that is shown, so that what is drawn next lies on it. */
export function hold() {
  if (!video.paused || target !== null) seek(state.frame); // also while another frame is on its way
}

for (const name of ["play", "pause", "ended"]) {
  video.addEventListener(name, () => {
    setIcon(play, video.paused ? "play" : "pause");
    play.setAttribute("aria-label", video.paused ? "Play" : "Pause");
  });
}
// Where the callback of one frame comes after the next frame was shown, that one has no callback of its own
video.addEventListener("seeked", () => {
  const load = loads;
  setTimeout(() => {
    if (load === loads && target !== null && !video.seeking) show(video, Math.floor(video.currentTime * fps() + 1e-4));
  }, SETTLE_MILLISECONDS);
});
play.addEventListener("click", togglePlay);
byId("first", HTMLButtonElement).addEventListener("click", () => seek(0));
byId("back", HTMLButtonElement).addEventListener("click", () => step(-1));
byId("forward", HTMLButtonElement).addEventListener("click", () => step(1));
byId("last", HTMLButtonElement).addEventListener("click", () => seek(lastFrame()));
scrubber.addEventListener("input", () => seek(scrubber.valueAsNumber));
frameField.addEventListener("change", () => {
  seek(frameField.valueAsNumber || 0);
  frameField.value = String(target ?? state.frame); // what was asked for may lie outside
});
frameField.addEventListener("blur", showPosition);
