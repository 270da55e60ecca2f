"use strict";
// Light and dark, news of a run that lasts, and what a printed page needs.
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const remembered = () => { try { return localStorage.getItem("boxless-theme"); } catch { return null; } };
  const set = (theme) => {
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light" : "Dark";
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  set(remembered() ?? (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", () => remembered() ?? set(dark.matches ? "dark" : "light"));
  button.addEventListener("click", () => {
    set(root.dataset.theme === "dark" ? "light" : "dark");
    try { localStorage.setItem("boxless-theme", root.dataset.theme); } catch { /* a page opened from a file may not */ }
  });

  let before = null;
  addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    set("light");
    for (const each of document.querySelectorAll("details:not(.recipe)")) each.open = true;
  });
  addEventListener("afterprint", () => set(before));

  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }
  for (const each of document.querySelectorAll(".enlarge")) {
    each.addEventListener("click", () => {
      const dialog = document.getElementById("enlarged"), image = dialog.querySelector("img");
      image.src = each.firstElementChild.src;
      image.alt = each.firstElementChild.alt;
      dialog.showModal();
    });
  }

  const shown = document.body.dataset.live;
  if (shown) {
    const ask = async () => {
      try {
        const answer = await fetch("state", { cache: "no-store" });
        if (answer.ok && (await answer.text()) !== shown && !document.querySelector("dialog[open]")) location.reload();
      } catch { /* the server has ended; the page stays */ }
    };
    setInterval(ask, 5000);
  }
})();
