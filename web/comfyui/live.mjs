// The current state, which all panels share and which remains when they are removed.

import * as server from "./api.mjs";
import { EVENTS } from "./memory_state.mjs";
import { afterEvent, jobsOf, NOBODY } from "./workers_state.mjs";

const OVER = ["sluice.started", "execution_start", "execution_success", "execution_error", "execution_interrupted"];

/** A value with listeners. */
export function watched(value) {
  const watchers = new Set();
  return {
    get value() {
      return value;
    },
    set(next) {
      value = next;
      for (const tell of watchers) tell();
    },
    /** Calls `tell` at each change. Returns a function that ends this. */
    watch(tell) {
      watchers.add(tell);
      return () => watchers.delete(tell);
    },
  };
}

/** The workers with their jobs and the state of their memory, updated by events. */
export const workers = watched(NOBODY);

/** The budgets in force, {name of the worker: {vram, ram}} as typed; none where they cannot be changed here. */
export const budget = watched({});

/** Files that the open workflow needs and that were not found: models and tokenizers. */
export const missing = watched([]);

/** The files that the image opened last was made with, {title, files: [{category, name, state, text}]}; null without one. */
export const used = watched(null);

/** The error of the last job, {title, text}, if it was about memory; else null. */
export const problem = watched(null);

/** The running jobs that are being stopped: their prompt_ids. */
export const stopping = watched([]);

function stopped(jobs) {
  if (stopping.value.some((job) => jobs.includes(job))) stopping.set(stopping.value.filter((job) => !jobs.includes(job)));
}

/** The paused jobs, oldest first: [{prompt_id, number, created, stopping}]. */
export const paused = watched([]);

/** Programs that have the card, [{by, until}]: until when, in milliseconds since 1970. */
export const lent = watched([]);
let lentEnds = 0;

function setLent(leases) {
  clearTimeout(lentEnds);
  lent.set(leases.map(({ by, seconds }) => ({ by, until: Date.now() + 1000 * seconds })));
  const last = Math.max(0, ...leases.map(({ seconds }) => seconds));
  if (last) lentEnds = setTimeout(() => lent.set([]), 1000 * last);
}

/** Start to listen, and fetch earlier events. Returns whether the server is our own, not ComfyUI. */
export async function start() {
  const hear = (data, event) => {
    const before = jobsOf(workers.value);
    workers.set(afterEvent(workers.value, event, data));
    // The end of another page's job is not sent here: its worker no longer has it.
    stopped(before.filter((job) => !jobsOf(workers.value).includes(job)));
  };
  server.listen(["sluice.workers", ...EVENTS], hear);
  server.listen(["sluice.budget"], ({ worker = "", ...allowed }) => budget.set({ ...budget.value, [worker]: allowed }));
  server.listen(["sluice.stopping"], ({ prompt_id }) => stopping.set([...stopping.value, prompt_id]));
  server.listen(OVER, ({ prompt_id }) => stopped([prompt_id]));
  server.listen(["sluice.paused"], ({ jobs }) => paused.set(jobs));
  server.listen(["sluice.lent"], ({ leases }) => setLent(leases));
  const known = await server.workers();
  if (known) {
    const heard = new Set(Object.keys(workers.value.states)); // received since the page listens: newer than the following
    hear({ workers: known }, "sluice.workers");
    for (const { name, events } of known.filter((worker) => !heard.has(worker.name))) {
      for (const event of Object.keys(events)) hear({ ...events[event], worker: name }, event); // oldest first
    }
  }
  if (known) setLent((await server.leases()) ?? []);
  if (known) paused.set((await server.pausedJobs()) ?? []);
  return known !== null;
}
