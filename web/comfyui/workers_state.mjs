// The state of each worker: its job and its memory. Pure: a state and an event give the next state.
//
//   sluice.workers   {workers: [{name, job, number, client_id, models, taking, contact, fetching}]}: job and number are
//                    null while it is idle; contact: whether a worker on another machine answers; fetching: a text
//
// Events about one worker carry its name in `worker`; inside ComfyUI there is one, without a name.

import { after, EMPTY, idle } from "./memory_state.mjs";

const OF_A_JOB = ["execution_start", "execution_success", "execution_interrupted", "execution_error"];

export const NOBODY = Object.freeze({ workers: Object.freeze([]), states: Object.freeze({}) });

/** The state after one event. */
export function afterEvent(known, event, data) {
  if (event === "sluice.workers") return { ...known, workers: data.workers };
  const name = nameOf(known, event, data);
  if (name === null) return known;
  return { ...known, states: { ...known.states, [name]: after(known.states[name] ?? EMPTY, event, data) } };
}

/** The worker of an event; null if it is unknown. Events of a job contain no worker: it is the one that runs the job. */
function nameOf({ workers }, event, data) {
  if (!OF_A_JOB.includes(event)) return data.worker ?? "";
  if (workers.length > 1) return workers.find(({ job }) => job === data.prompt_id)?.name ?? null;
  return workers[0]?.name ?? "";
}

/** The workers to draw, each with its state; one without a name inside ComfyUI. */
export function drawn({ workers, states }) {
  const told = workers.length ? workers : [{ name: Object.keys(states)[0] ?? "", job: null, number: null, taking: true }];
  return told.map((worker) => {
    const state = states[worker.name] ?? EMPTY;
    return { ...worker, state: worker.name !== "" && worker.job === null ? idle(state) : state };
  });
}

/** The jobs that the workers run. */
export const jobsOf = ({ workers }) => workers.map(({ job }) => job).filter((job) => job !== null);

/** A worker's activity in a few words. */
export function doing({ job, number, taking, contact, fetching }) {
  if (contact === false) return "out of contact";
  if (fetching) return fetching;
  if (job !== null) return number === null ? "running a job" : `job ${Math.abs(number)}`;
  return taking ? "idle" : "takes no more jobs";
}
