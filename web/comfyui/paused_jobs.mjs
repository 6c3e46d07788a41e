// Pausing: the button beside a running job, the list of jobs that are paused, and the programs that jobs wait for.

import { dropJob, pauseJob, resumeJob } from "./api.mjs";
import { element } from "./dom.mjs";

/** Pauses the job: it stops after the current block, frees its memory and can be resumed. */
export const pauseButton = (job) =>
  element("button", { class: "sluice-button", type: "button", title: "Stop after the current block and go on later with the same result", onclick: once(() => pauseJob(job)) }, "Pause");

/** A card with the paused jobs; nothing if there are none. */
export function pausedCard(jobs) {
  if (!jobs.length) return [];
  const rows = jobs.map(({ prompt_id, number, created, stopping, aside }) => {
    const name = `Job ${Math.abs(number)}`;
    const state = aside ? (stopping ? "stops for other jobs" : "waits for other jobs") : stopping ? "stopping" : new Date(created).toLocaleTimeString([], { timeStyle: "short" });
    const rule = aside ? { title: "Other jobs go first. It stops after its step and continues when no other job waits." } : {};
    return element(
      "li",
      { class: "sluice-line sluice-paused", ...rule },
      element("span", { class: "sluice-grow" }, name, element("span", { class: "sluice-quiet" }, ` · ${state}`)),
      aside ? "" : element("button", { class: "sluice-button", type: "button", disabled: stopping, "aria-label": `Resume ${name}`, onclick: once(() => resumeJob(prompt_id)) }, "Resume"),
      element("button", { class: "sluice-button", type: "button", disabled: aside && stopping, "aria-label": `Remove ${name}`, onclick: once(() => dropJob(prompt_id)) }, "Remove"),
    );
  });
  return [element("section", { class: "sluice-card", "aria-label": "Paused jobs" }, element("h3", {}, "Paused"), element("ul", { class: "sluice-stack" }, rows))];
}

/** A card with the programs that have the card, for which jobs wait; nothing without one. */
export function lentCard(leases) {
  if (!leases.length) return [];
  const rows = leases.map(({ by, until }) => element("li", { class: "sluice-line" }, `${by}, until ${new Date(until).toLocaleTimeString()} at the latest`));
  return [element("section", { class: "sluice-card", "aria-label": "Card in use" }, element("h3", {}, "Jobs wait: the memory is lent to"), element("ul", { class: "sluice-stack" }, rows))];
}

/** A handler that acts once; the server's next message then changes the page. */
function once(act) {
  return async ({ currentTarget: button }) => {
    button.disabled = true;
    try {
      await act();
    } catch (error) {
      button.disabled = false;
      button.title = error.message;
    }
  };
}
