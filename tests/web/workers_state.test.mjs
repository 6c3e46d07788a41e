import assert from "node:assert/strict";
import { test } from "node:test";
import { afterEvent, doing, drawn, jobsOf, NOBODY } from "../../web/comfyui/workers_state.mjs";

const TWO = { workers: [{ name: "cpu:0", job: "a", number: 4, taking: true }, { name: "cpu:1", job: null, number: null, taking: true }] };
const BUSY = { workers: [TWO.workers[0], { ...TWO.workers[1], job: "b", number: 5 }] };
const STEP = (worker, step) => ["sluice.step", { worker, step, steps: 8, seconds_left: 1 }];
const states = (known) => Object.fromEntries(drawn(known).map(({ name, state }) => [name, state.pace?.step ?? null]));
const replay = (...events) => events.reduce((known, [event, data]) => afterEvent(known, event, data), NOBODY);

test("each worker has a state of its own", () => {
  const known = replay(["sluice.workers", BUSY], STEP("cpu:0", 3), STEP("cpu:1", 5));
  assert.deepEqual(states(known), { "cpu:0": 3, "cpu:1": 5 });
});

test("the end of a job ends the pace of the worker that ran it, and of no other", () => {
  const known = replay(["sluice.workers", BUSY], STEP("cpu:0", 3), STEP("cpu:1", 5), ["execution_error", { prompt_id: "a" }]);
  assert.deepEqual(states(known), { "cpu:0": null, "cpu:1": 5 });
  assert.deepEqual(states(afterEvent(known, "execution_error", { prompt_id: "of nobody" })), { "cpu:0": null, "cpu:1": 5 });
});

test("a worker without a job shows no progress of one: the end of another page's job is not sent here", () => {
  const known = replay(["sluice.workers", BUSY], STEP("cpu:0", 3), STEP("cpu:1", 8));
  const idle = { workers: TWO.workers.map((worker) => ({ ...worker, job: null })) };
  assert.deepEqual(states(afterEvent(known, "sluice.workers", idle)), { "cpu:0": null, "cpu:1": 8 });
  assert.deepEqual([jobsOf(known), jobsOf(afterEvent(known, "sluice.workers", idle))], [["a", "b"], []]);
});

test("where nobody tells of workers there is one without a name", () => {
  assert.deepEqual(states(NOBODY), { "": null });
  assert.deepEqual(states(replay(STEP(undefined, 2))), { "": 2 });
  assert.deepEqual(states(replay(STEP(undefined, 2), ["execution_start", { prompt_id: "x" }])), { "": null });
});

test("a plan is being made for a job that runs, and for none that another page's job has left behind", () => {
  const planning = (known) => drawn(known).map(({ state }) => state.planning);
  const known = replay(["sluice.workers", TWO], ["sluice.started", { worker: "cpu:0" }], ["sluice.started", { worker: "cpu:1" }]);
  assert.deepEqual(planning(known), [true, false]);
  assert.deepEqual(planning(replay(["execution_start", { prompt_id: "x" }])), [true]);
});

test("what a worker does is said in words", () => {
  const [busy, idle] = drawn(replay(["sluice.workers", TWO]));
  const fetching = { ...busy, fetching: "fetching ae.safetensors: 3 of 300 MiB" };
  assert.deepEqual([fetching, { ...fetching, contact: false }].map(doing), [fetching.fetching, "out of contact"]);
  assert.deepEqual([busy, idle, { ...idle, taking: false }, { ...busy, number: -4 }].map(doing), ["job 4", "idle", "takes no more jobs", "job 4"]);
});
