// What is known now, kept outside of any element: the panels come and go, this stays. Draws nothing.

import * as server from "./api.mjs";
import { after, EMPTY, EVENTS } from "./memory_state.mjs";

const ENDINGS = ["execution_start", "execution_success", "execution_error", "execution_interrupted"];

/** A value that can be watched. */
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
    /** Call `tell` on every change; returns the function that ends it. */
    watch(tell) {
      watchers.add(tell);
      return () => watchers.delete(tell);
    },
  };
}

/** The state of memory, kept true by the events of the core. */
export const memory = watched(EMPTY);

/** The budgets in force, {vram, ram} as they are typed; null where they cannot be changed from here. */
export const budget = watched(null);

/** Files that the open workflow needs and that are nowhere: models and tokenizers. */
export const missing = watched([]);

/** What stopped the last job, {title, text}, if it was about memory; else null. */
export const problem = watched(null);

/** Whether the running job was asked to stop and has not done so yet. */
export const stopping = watched(false);

/** Begin to listen. Events that came before are caught up on. Whether a server of our own answers, not ComfyUI. */
export async function start() {
  server.listen(EVENTS, (data, event) => memory.set(after(memory.value, event, data)));
  server.listen(["sluice.budget"], budget.set);
  server.listen(["sluice.stopping"], () => stopping.set(true));
  server.listen(ENDINGS, () => stopping.set(false));
  const known = await server.memory();
  if (known && !memory.value.models.length) {
    for (const event of EVENTS.filter((name) => known[name])) memory.set(after(memory.value, event, known[event]));
  }
  return known !== null;
}
