/** @file Requests to the server. Every failure is an `ApiError` with one sentence for the user. */

import { askDialog, byId, showNotice } from "./dom.js";

/** @import { FileObject, Prompt, Rle } from "./state.js" */

const KEY = "sama.key";
const LOST = "The server cannot be reached. Nothing you typed is lost; try again when it is back.";
const WRONG_KEY = "The key has a character that no key has, perhaps an invisible one. Copy it again.";
const BROKEN_UPLOAD = "The upload broke off: the server cannot be reached, or the file is larger than it takes.";

export class ApiError extends Error {
  /** @param {string} message @param {number} status 0 where there was no answer at all @param {string} [code] */
  constructor(message, status, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** @param {unknown} error @returns {boolean} whether the server no longer has a file */
export const isGone = (error) => error instanceof ApiError && error.code === "file_not_found";

/** @param {unknown} error @returns {boolean} whether a request was cancelled by us */
export const isAbort = (error) => error instanceof DOMException && error.name === "AbortError";

/**
 * Shows what went wrong, with a button to try again where that may help.
 * @param {unknown} error
 * @param {() => unknown} retry
 */
export function showError(error, retry) {
  const refused = error instanceof ApiError && error.status >= 400 && error.status < 500;
  const later = error instanceof ApiError && [401, 408, 429].includes(error.status); // 401: the key is asked for again
  showNotice(error instanceof Error ? error.message : String(error), refused && !later ? null : retry);
}

/**
 * As [`showError`], of a request about a file.
 * @param {unknown} error
 * @param {FileObject} file
 * @param {() => unknown} retry
 */
export function showFileError(error, file, retry) {
  if (!isGone(error)) return showError(error, retry);
  showNotice(`The server no longer has ${file.filename}. Open it again to go on with the conversation.`);
}

/** @type {string | null} the key, where the browser forbids the page to keep anything */
let unkept = null;

function keyOf() {
  try {
    return sessionStorage.getItem(KEY) ?? unkept;
  } catch {
    return unkept;
  }
}

/** @param {string} key */
function keepKey(key) {
  unkept = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // then it is asked for again after a reload
  }
}

/** @returns {Record<string, string>} */
function authorization() {
  const key = keyOf();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Whether a key was given, so that plain addresses of media do not work. */
export const hasKey = () => keyOf() !== null;

const keyField = byId("key", HTMLInputElement);
keyField.addEventListener("input", () => {
  // The server's rule. Other characters cannot be sent in a header: each request would fail as if there were no server
  keyField.setCustomValidity(/^[!-~]*$/.test(keyField.value.trim()) ? "" : WRONG_KEY);
});

/** @type {Promise<boolean> | null} one dialog, however many requests were refused */
let asking = null;

/** Asks for the key; false if the user gives none. */
function askForKey() {
  asking ??= askDialog(byId("key-dialog", HTMLDialogElement)).then((answer) => {
    const key = keyField.value.trim();
    const given = answer === "ok" && key !== "";
    if (given) keepKey(key);
    keyField.value = "";
    keyField.setCustomValidity("");
    asking = null;
    return given;
  });
  return asking;
}

/** The server's sentence about a failure. @param {string} text the body of the answer @param {number} status */
function errorOf(text, status) {
  try {
    const { message, code } = JSON.parse(text).error ?? {};
    if (typeof message === "string" && message) return new ApiError(message, status, code);
  } catch {
    // a proxy's answer, which is no JSON
  }
  return new ApiError(`The server answered with the status ${status}. Try again in a moment.`, status);
}

/**
 * @param {string} path below the page's own address
 * @param {RequestInit} options
 * @returns {Promise<Response>} of status 200 to 299
 */
export async function request(path, options = {}) {
  const headers = { ...options.headers, ...authorization() };
  const response = await received(fetch(path, { ...options, headers }));
  if (response.status === 401 && (await askForKey())) return request(path, options);
  if (!response.ok) throw errorOf(await received(response.text()), response.status);
  return response;
}

/**
 * An answer or its body: the connection can also break on the way of the body.
 * @template T
 * @param {Promise<T>} arriving
 */
async function received(arriving) {
  try {
    return await arriving;
  } catch (error) {
    throw isAbort(error) ? error : new ApiError(LOST, 0);
  }
}

/** @param {Response} response @returns {Promise<any>} what its JSON says */
export const jsonOf = (response) => received(response.json());

/** @param {string} path @param {object} body @param {AbortSignal} [signal] */
export const post = (path, body, signal) =>
  request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

/** @returns {Promise<string>} the name of the model */
export const modelName = async () => (await jsonOf(await request("v1/models"))).data[0].id;

/** @returns {Promise<FileObject[]>} */
export const examples = async () => (await jsonOf(await request("v1/examples"))).data;

/** @param {string} id @returns {Promise<FileObject>} */
export const fileObject = async (id) => jsonOf(await request(`v1/files/${id}`));

/**
 * The address of something that an element shows; with a key, of a copy that was fetched with it.
 * @param {string} path
 * @param {AbortSignal} [signal]
 * @param {(fraction: number) => void} [onProgress]
 */
export async function mediaUrl(path, signal, onProgress = () => undefined) {
  if (!hasKey()) return path;
  const { body, headers } = await request(path, { signal });
  const size = Number(headers.get("Content-Length"));
  let loaded = 0;
  const counter = new TransformStream({
    /** @param {Uint8Array} chunk @param {TransformStreamDefaultController} passed */
    transform(chunk, passed) {
      loaded += chunk.length;
      if (size) onProgress(Math.min(1, loaded / size));
      passed.enqueue(chunk);
    },
  });
  return URL.createObjectURL(await received(new Response(body?.pipeThrough(counter), { headers }).blob()));
}

/** Lets go of an address that [mediaUrl] made. @param {string} url */
export function releaseUrl(url) {
  if (url.startsWith("blob:")) URL.revokeObjectURL(url);
}

/**
 * The mask of a region on its frame.
 * @param {string} fileId
 * @param {Prompt} region
 * @param {AbortSignal} signal
 * @returns {Promise<Rle>}
 */
export async function previewRegion(fileId, region, signal) {
  const { size, counts } = await jsonOf(await post("v1/regions/preview", { file_id: fileId, region }, signal));
  return { size, counts };
}

/**
 * A file made of the conversation.
 * @param {object[]} messages
 * @param {string} format
 * @returns {Promise<{ blob: Blob, name: string }>}
 */
export async function exportConversation(messages, format) {
  const response = await post("v1/exports", { messages, format });
  const name = /filename="?([^";]+)"?/.exec(response.headers.get("Content-Disposition") ?? "")?.[1];
  return { blob: await received(response.blob()), name: name ?? `sama.${format}` };
}

/**
 * Sends a file. `fetch` does not report progress of an upload, so this is an XMLHttpRequest.
 * @param {File} file
 * @param {(fraction: number) => void} onProgress
 * @param {AbortSignal} signal
 * @returns {Promise<FileObject>}
 */
export async function upload(file, onProgress, signal) {
  const sent = new XMLHttpRequest();
  sent.open("POST", "v1/files");
  for (const [name, value] of Object.entries(authorization())) sent.setRequestHeader(name, value);
  const form = new FormData();
  form.append("purpose", "vision");
  form.append("file", file);
  await new Promise((resolve, reject) => {
    signal.addEventListener("abort", () => sent.abort());
    sent.upload.onprogress = (event) => onProgress(event.total ? event.loaded / event.total : 0);
    sent.onload = resolve;
    sent.onabort = () => reject(new DOMException("The upload was cancelled.", "AbortError"));
    sent.onerror = () => reject(new ApiError(BROKEN_UPLOAD, 0));
    sent.send(form);
  });
  if (sent.status === 401 && (await askForKey())) return upload(file, onProgress, signal);
  if (sent.status < 200 || sent.status > 299) throw errorOf(sent.responseText, sent.status);
  return JSON.parse(sent.responseText);
}

/**
 * Asks the last question of a conversation and yields the chunks of its answer.
 * @param {string} model
 * @param {object[]} messages
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<any>}
 */
export async function* streamAnswer(model, messages, signal) {
  const response = await post(
    "v1/chat/completions",
    { model, messages, stream: true, stream_options: { include_usage: true } },
    signal,
  );
  if (!response.body) throw new ApiError(LOST, 0);
  try {
    for await (const data of eventData(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw errorOf(data, 500);
      yield chunk;
    }
  } catch (error) {
    throw error instanceof ApiError || isAbort(error) ? error : new ApiError(LOST, 0);
  }
  throw new ApiError("The connection to the server broke in the middle of the answer. Your question is kept.", 0);
}

/**
 * The data of each server-sent event, however the stream is cut into chunks.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<string>}
 */
export async function* eventData(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  /** @type {string[]} */
  let data = [];
  try {
    for (let end = false; !end; ) {
      const { done, value } = await reader.read();
      end = done;
      rest += done ? `${decoder.decode()}\n\n` : decoder.decode(value, { stream: true });
      // A carriage return at the end may be the first half of a line end
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}
