/** @file Small helpers for the document. Text from the server or the user is only ever set as text. */

/** The element with an id. @template {HTMLElement} T @param {string} id @param {new () => T} kind @returns {T} */
export function byId(id, kind) {
  const element = document.getElementById(id);
  if (!(element instanceof kind)) throw new Error(`The page has no ${kind.name} with the id ${id}.`);
  return element;
}

/** @typedef {Record<string, string | boolean | ((event: any) => void)>} Attributes */

/**
 * A new element.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Attributes} attributes `onclick` and the like are listeners; `--name` sets a CSS variable; `true` and
 *   `false` set or leave out an attribute.
 * @param {(Node | string)[]} children strings become text nodes
 * @returns {HTMLElementTagNameMap[K]}
 */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, String(value));
    else if (value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** An icon of icons.svg. @param {string} name */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.append(document.createElementNS("http://www.w3.org/2000/svg", "use"));
  svg.setAttribute("aria-hidden", "true");
  setIcon(svg, name);
  return svg;
}

/** Changes the icon inside an element. @param {Element} parent @param {string} name */
export function setIcon(parent, name) {
  parent.querySelector("use")?.setAttribute("href", `icons.svg#${name}`);
}

/** Says something to screen readers. @param {string} text */
export function announce(text) {
  byId("announcer", HTMLElement).textContent = text;
}

/**
 * Opens a dialog and waits for its answer, the value of the button that closed it.
 * @param {HTMLDialogElement} dialog
 * @returns {Promise<string>}
 */
export function askDialog(dialog) {
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}

/**
 * A message with a button to try again, until the next message or until it is closed.
 * @param {string} text
 * @param {(() => unknown) | null} retry
 */
export function showNotice(text, retry = null) {
  byId("notice", HTMLElement).hidden = false;
  byId("notice-text", HTMLElement).textContent = text;
  const button = byId("notice-retry", HTMLButtonElement);
  button.hidden = retry === null;
  button.onclick = () => {
    hideNotice();
    retry?.();
  };
  byId("notice-close", HTMLButtonElement).onclick = hideNotice;
}

/** Takes the message away. */
export function hideNotice() {
  byId("notice", HTMLElement).hidden = true;
}
