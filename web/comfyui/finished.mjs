// Shows that a job has ended while the page was in the background: a mark in the title of the browser tab and, if the
// setting is on, a notification of the system. Also names the browser tab.

import { app } from "../../scripts/app.js";
import * as server from "./api.mjs";
import { pageTitle } from "./page_title.mjs";

const SETTING = "Sluice.NotifyWhenDone";
const ENDS = { execution_success: "success", execution_error: "error" };

/** For `registerExtension`: the setting that allows notifications. The browser asks for permission when it is set. */
export const settings = [
  {
    id: SETTING,
    name: "Notify me when a job ends while this page is in the background",
    category: ["Sluice", "Jobs", "Notification"],
    type: "boolean",
    defaultValue: false,
    onChange: (on) => {
      if (on && globalThis.Notification?.permission === "default") Notification.requestPermission();
    },
  },
];

/** Start to listen. `standalone`, a promise: whether the page belongs to our own server. */
export async function start(standalone) {
  const state = { ended: null, standalone: await standalone };
  const show = () => {
    const title = pageTitle(document.title, state);
    if (title !== document.title) document.title = title;
  };
  new MutationObserver(show).observe(document.head, { subtree: true, childList: true, characterData: true });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    state.ended = null;
    show();
  });
  server.listen(Object.keys(ENDS), (_, event) => {
    if (!document.hidden) return;
    state.ended = ENDS[event];
    show();
    if (allowed()) new Notification("Sluice", { body: state.ended === "success" ? "The job is done." : "The job failed." });
  });
  show();
}

const allowed = () => app.extensionManager.setting.get(SETTING) && globalThis.Notification?.permission === "granted";
