// The editor's notices in the corner of the page, for all releases of the editor.

import { app } from "../../scripts/app.js";

/** Show a notice (error, warn, info, success) until it is closed, or for `life` milliseconds. Returns a function that removes it. */
export function notice(severity, summary, detail, life) {
  const toasts = app.extensionManager.toast;
  if (typeof toasts.dismiss === "function") {
    const id = toasts[severity === "warn" ? "warning" : severity](summary, { description: detail, duration: life });
    return () => toasts.dismiss(id);
  }
  const message = { severity, summary, detail, life };
  toasts.add(message);
  return () => toasts.remove(message);
}
