// The editor's notices in the corner of the page, by whichever way its release offers.

import { app } from "../../scripts/app.js";

/** Show a notice (error, warn, info, success) until it is closed, or for `life` milliseconds; returns the function that takes it away. */
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
