// The part of the editor's scripts/app.js that our panels use, for a page without the editor: notices, and no graph.

import { element } from "/extensions/sluice/dom.mjs";

const shown = new Map(); // message -> its element

const toast = {
  add(message) {
    const { severity, summary, detail, life } = message;
    const close = element("button", { type: "button", "aria-label": "Close", onclick: () => toast.remove(message) }, "✕");
    const box = element("div", { class: `app-notice app-${severity}` }, element("div", {}, element("strong", {}, summary), detail ? element("p", {}, detail) : null), close);
    shown.set(message, box);
    document.querySelector("#notices").append(box);
    if (life) setTimeout(() => toast.remove(message), life);
  },
  remove(message) {
    shown.get(message)?.remove();
    shown.delete(message);
  },
};

export const app = { rootGraph: null, extensionManager: { toast, setting: { get: () => undefined } } };
