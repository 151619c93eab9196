/* The theme alone.  Loaded without defer, so that the first paint has it. */
(() => {
  "use strict";
  const root = document.documentElement;
  let kept = null;
  try { kept = localStorage.getItem("joblog-theme"); } catch { /* a private window */ }
  const asked = new URLSearchParams(location.search).get("theme") || kept;
  if (asked === "light" || asked === "dark") root.dataset.theme = asked;
  root.classList.add("scripted");
})();
