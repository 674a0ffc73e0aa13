// Not a module: it runs before the first paint, so that the page does not flash in the other theme.
/** @typedef {"auto" | "light" | "dark"} Theme */

(() => {
  const stored = localStorage.getItem("sama.theme");
  document.documentElement.dataset.theme = stored === "light" || stored === "dark" ? stored : "auto";
})();
