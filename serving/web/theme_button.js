/** @file The button that changes between the themes. */

import { byId, setIcon } from "./dom.js";

const THEMES = ["auto", "light", "dark"];

function showTheme() {
  const theme = document.documentElement.dataset.theme ?? "auto";
  const button = byId("theme", HTMLButtonElement);
  setIcon(button, theme);
  const names = { auto: "as the system", light: "light", dark: "dark" };
  button.title = `Theme: ${names[/** @type {"auto"} */ (theme)]}`;
  button.setAttribute("aria-label", button.title);
}

byId("theme", HTMLButtonElement).addEventListener("click", () => {
  const { dataset } = document.documentElement;
  dataset.theme = THEMES[(THEMES.indexOf(dataset.theme ?? "auto") + 1) % THEMES.length];
  localStorage.setItem("sama.theme", dataset.theme);
  showTheme();
});

showTheme();
