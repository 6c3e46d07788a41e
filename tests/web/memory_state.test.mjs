import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { after, CLASSES, EMPTY, rows, spending, tally, verdict } from "../../web/comfyui/memory_state.mjs";

const RUN = JSON.parse(readFileSync(new URL("./fixtures/recorded_run.json", import.meta.url)));
const replay = (events, from = EMPTY) => events.reduce((state, { event, data }) => after(state, event, data), from);
const of = (kind) => RUN.filter(({ event }) => event === `sluice.memory.${kind}`).map(({ data }) => data);
const [PLANNED] = of("plan"), UNITS = PLANNED.plan.units;

test("a recorded run leaves one model with its newest plan, all its passes and the measured peak", () => {
  const { models, steps, pace } = replay(RUN);
  assert.deepEqual(models.map(({ model }) => model), [PLANNED.model]);
  assert.deepEqual(models[0].plan, of("plan").at(-1).plan);
  assert.equal(models[0].peak, of("job")[0].peak_bytes);
  assert.deepEqual(steps.map(({ step }) => step), of("step").map(({ step }) => step));
  assert.equal(pace.step, steps.length);
});

test("events never change a state that somebody may still be drawing", () => {
  let state = EMPTY;
  for (const { event, data } of RUN) {
    const before = structuredClone(state);
    const next = after(state, event, data);
    assert.deepEqual(state, before);
    state = next;
  }
});

test("every unit has one cell in the map, and the halves of the double blocks are apart", () => {
  const drawn = rows(UNITS);
  assert.deepEqual(new Set(drawn.flatMap(({ cells }) => cells.flat())), new Set(UNITS));
  assert.deepEqual(drawn.map(({ label, cells }) => [label, cells.length]), [["double · image", 19], ["double · text", 19], ["single", 19], ["", 19]]);
});

test("a unit that is divided between two homes stays one cell, and the rows stay in line", () => {
  const [first, ...others] = UNITS;
  const halves = [{ ...first, name: `${first.name}_attn.qkv` }, { ...first, name: `${first.name}_mlp` }];
  const drawn = rows([...halves, ...others]);
  assert.deepEqual(drawn.map(({ cells }) => cells.length), [19, 19, 19, 19]);
  assert.deepEqual(drawn[0].cells[0], halves);
});

test("the blocks of a ControlNet have rows of their own, named after its file", () => {
  const names = ["controlnets.union-0a1b2c3d.double_blocks.0.img", "controlnets.union-0a1b2c3d.single_blocks.0.linear", "single_blocks.0.linear"];
  const drawn = rows(names.map((name) => ({ name, class: "D", bytes: 1 })));
  assert.deepEqual(drawn.map(({ label }) => label), ["union · double · image", "union · single", "single"]);
});

test("models of other kinds are grouped by what their units are called", () => {
  const units = ["encoder.block.0", "encoder.block.1", "embeddings"].map((name) => ({ name, class: "D", bytes: 1 }));
  assert.deepEqual(rows(units).map(({ label, cells }) => [label, cells.length]), [["encoder", 2], ["embeddings", 1]]);
});

test("the tally accounts for every unit and every byte, in classes that have a name", () => {
  const counted = tally(UNITS);
  assert.deepEqual(Object.keys(counted).filter((letter) => !(letter in CLASSES)), []);
  const sum = (key) => Object.values(counted).reduce((total, entry) => total + entry[key], 0);
  assert.equal(sum("count"), UNITS.length);
  assert.equal(sum("bytes"), UNITS.reduce((total, unit) => total + unit.bytes, 0));
});

test("the parts of the budget sum up to the peak, and everything fits in the bar", () => {
  for (const peak of [null, 1000, PLANNED.plan.peak_bytes, 2 * PLANNED.limit_bytes]) {
    const { parts, planned, whole } = spending({ plan: PLANNED.plan, limit: PLANNED.limit_bytes, peak });
    assert.ok(Math.abs(planned - PLANNED.plan.peak_bytes) < 1e-3 * planned);
    assert.equal(parts.reduce((sum, part) => sum + part.bytes, 0), peak ?? planned);
    assert.ok(Math.max(planned, peak ?? 0, PLANNED.limit_bytes) <= whole);
  }
});

test("a plan that changes in mid-run keeps the passes, a run that starts again forgets them", () => {
  const started = replay(RUN.slice(0, 6)), passes = started.steps.length;
  assert.ok(passes > 0);
  assert.equal(after(started, "sluice.memory.plan", of("plan")[1]).steps.length, passes);
  assert.deepEqual(after(replay(RUN), "sluice.memory.plan", PLANNED).steps, []);
  assert.deepEqual(after(replay(RUN), "sluice.memory.step", { ...of("step")[0], step: 1 }).steps.length, 1);
});

test("the model that runs comes first, and another one's passes are not mixed with its own", () => {
  const other = { ...PLANNED, model: "t5xxl" };
  const state = replay([...RUN, { event: "sluice.memory.plan", data: other }, { event: "sluice.memory.step", data: { model: "t5xxl", step: 1, seconds: 2 } }]);
  assert.deepEqual(state.models.map(({ model }) => model), ["t5xxl", PLANNED.model]);
  assert.equal(state.steps.length, 1);
});

test("a pass tells where units really were", () => {
  const homes = "D".repeat(UNITS.length);
  const { models } = replay([RUN[0], { event: "sluice.memory.step", data: { ...of("step")[0], homes } }]);
  assert.deepEqual(Object.keys(tally(models[0].plan.units)), ["D"]);
});

test("what is on its way is marked until the model is done", () => {
  const until = RUN.findIndex(({ event }) => event === "sluice.memory.at");
  assert.deepEqual(replay(RUN.slice(0, until + 1)).models[0].moving, of("at")[0].units);
  assert.deepEqual(replay(RUN).models[0].moving, []);
});

test("a pass is worth a warning, with its cause, only when it took a quarter longer than predicted", () => {
  const told = (seconds, waited = 0) => {
    const data = { model: PLANNED.model, step: 1, seconds, predicted_seconds: 1, waited_seconds: waited };
    return verdict(replay([RUN[0], { event: "sluice.memory.step", data }]));
  };
  assert.equal(told(1.2).tone, "good");
  assert.deepEqual(told(1.5, 0.4), { tone: "warning", text: "50 % slower than predicted: weights came late" });
  assert.deepEqual(told(1.5, 0.1), { tone: "warning", text: "50 % slower than predicted: the computation was slower" });
  const data = { ...of("job")[0], warning: "The disk gave 0.20 GB/s." };
  assert.deepEqual(verdict(replay([RUN[0], { event: "sluice.memory.job", data }])), { tone: "warning", text: data.warning });
});

test("what is freed is not shown any more; a model without a plan, and what is not ours, changes no map", () => {
  assert.deepEqual(after(replay(RUN), "sluice.memory.freed", {}), EMPTY);
  assert.deepEqual(after(EMPTY, "sluice.memory.step", { model: "x", step: 1 }).models, []);
  assert.equal(after(EMPTY, "sluice.memory.at", { model: "x", units: [1] }), EMPTY);
  assert.equal(after(EMPTY, "progress", {}), EMPTY);
});

test("figures of a run do not outlive what they were measured under", () => {
  const done = replay(RUN);
  assert.equal(after(done, "sluice.memory.plan", PLANNED).models[0].peak, null, "a new run has no peak yet");
  const changed = after(done, "sluice.budget", { vram: "auto", ram: "2G" });
  assert.ok(changed.models[0].stale && !changed.steps.length && !changed.pace);
  assert.ok(!after(changed, "sluice.memory.plan", PLANNED).models[0].stale);
  const running = replay(RUN.slice(0, RUN.findIndex(({ event }) => event === "sluice.memory.at") + 1));
  for (const end of ["execution_interrupted", "execution_error", "execution_start"]) {
    const ended = after({ ...running, pace: { step: 3, steps: 400 } }, end, {});
    assert.deepEqual([ended.pace, ended.models[0].moving], [null, []], end);
  }
});

test("from the start of a job to its first plan the figures of the last job are not shown as its own", () => {
  for (const start of ["sluice.started", "execution_start"]) {
    const started = after(replay(RUN), start, { prompt_id: "x" });
    assert.ok(started.planning && !started.steps.length && !started.pace, start);
    assert.ok(!after(started, "sluice.memory.plan", PLANNED).planning);
    assert.ok(!after(started, "sluice.memory.step", of("step")[0]).planning);
    for (const end of ["execution_success", "execution_interrupted", "execution_error"]) assert.ok(!after(started, end, {}).planning, end);
  }
});

test("the device is known whatever happens to models", () => {
  const device = { name: "CPU", type: "cpu", dtype: "float32", total_bytes: 1 };
  const state = after(replay(RUN), "sluice.device", device);
  assert.deepEqual(after(state, "sluice.memory.freed", {}), { ...EMPTY, device });
});

test("of each model on another device the newest report is shown, until the next job", () => {
  const told = (device, line) => ({ event: "sluice.device.job", data: { device, line } });
  const reports = [told("cpu:1", "transformer: peak 1 GiB"), told("cpu:2", "transformer: peak 2 GiB"), told("cpu:1", "encoder: peak 3 GiB")];
  const state = replay([...RUN, ...reports, told("cpu:1", "transformer: peak 4 GiB")]);
  assert.deepEqual(state.others.map(({ device, line }) => `${device} ${line}`), ["cpu:2 transformer: peak 2 GiB", "cpu:1 encoder: peak 3 GiB", "cpu:1 transformer: peak 4 GiB"]);
  assert.deepEqual(after(state, "sluice.started", {}).others, []);
});
