/** @file The download menu: files made of the conversation. */

import { exportConversation, showError } from "./api.js";
import { announce, byId, element } from "./dom.js";
import { messages, on, state } from "./state.js";

const FORMATS = [
  ["mp4", "Video with masks", "MP4, H.264"],
  ["coco", "Masks", "COCO JSON"],
  ["png", "Masks as pictures", "ZIP of PNG"],
  ["json", "Conversation", "JSON"],
];

const button = byId("download", HTMLButtonElement);
const menu = byId("download-menu", HTMLElement);

/** Has a file made and saves it. @param {string} format @param {HTMLButtonElement} entry */
async function save(format, entry) {
  entry.disabled = true;
  announce("The file is being made.");
  try {
    const { blob, name } = await exportConversation(messages(), format);
    const url = URL.createObjectURL(blob);
    element("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
    menu.hidePopover();
    announce(`${name} was downloaded.`);
  } catch (error) {
    menu.hidePopover();
    showError(error, () => save(format, entry));
  } finally {
    entry.disabled = false;
  }
}

for (const [format, name, detail] of FORMATS) {
  const entry = element("button", { type: "button", "data-format": format }, name, element("small", {}, detail));
  entry.addEventListener("click", () => void save(format, entry));
  menu.append(entry);
}

on(["turns", "file"], () => {
  button.disabled = state.turns.length === 0;
  button.title = state.turns.length ? "" : "There is nothing to download before the first answer";
});
