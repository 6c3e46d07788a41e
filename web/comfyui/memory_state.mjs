// What is known about memory, from the events that the core emits. Pure: a state and an event make the next state.
//
//   sluice.memory.plan    a plan comes into force: {model, limit_bytes, plan: {seconds_per_step, bound, peak_bytes,
//                         resident_bytes, streamed_bytes_per_step, disk_bytes_per_step, ring: {slots, slot_bytes},
//                         host_bytes, fixed: {purpose: bytes}, units: [{name, class: "V" | "P" | "R" | "D", bytes}]}}
//   sluice.memory.at      units on their way just now: {model, units: [their numbers]}
//   sluice.memory.step    one pass through the model: {model, step, seconds, predicted_seconds, waited_seconds, homes}
//   sluice.memory.job     the model has done its work: {model, plan, limit_bytes, peak_bytes, stall_seconds, warning}
//   sluice.memory.freed   nothing is in memory any more: {}
//   sluice.device         what is computed on: {name, type, dtype, total_bytes, free_bytes, ram_bytes, text, warning}
//   sluice.budget         the budgets have been changed: {vram, ram}
//   sluice.step           a node's step, of which each may be several passes: {step, steps, seconds_per_step, seconds_left}
//
// All sizes are bytes, all times seconds.

const RUN_EVENTS = ["sluice.memory.plan", "sluice.memory.at", "sluice.memory.step", "sluice.memory.job", "sluice.memory.freed"];
const ENDS = ["execution_start", "execution_interrupted", "execution_error"]; // what the figures of a run end with
export const EVENTS = [...RUN_EVENTS, "sluice.step", "sluice.device", "sluice.budget", ...ENDS];
export const EMPTY = Object.freeze({ models: Object.freeze([]), steps: Object.freeze([]), pace: null, device: null });
export const CLASSES = Object.freeze({
  V: "resident",
  P: "streamed from pinned RAM",
  R: "streamed from RAM",
  D: "streamed from disk",
});

const REMEMBERED_STEPS = 60;
const COLUMNS = 19;
const LATE = 1.25, LATE_SECONDS = 0.1; // over what was predicted, from which it is worth a word: the core's own measure

/**
 * The state after one event: `models` as {model, plan, limit, peak, warning, moving, stale}, the one that ran last
 * first; `steps`, its passes so far; `pace`, how the node comes along that runs it; `device`, what computes. Figures of
 * a run under budgets that do not hold any more are `stale`.
 */
export function after(state, event, data) {
  switch (event) {
    case "sluice.memory.plan": {
      const steps = state.models[0]?.model === data.model && !state.models[0].done ? state.steps : [];
      return { ...inFront(state, data.model, { ...FRESH, plan: data.plan, limit: data.limit_bytes, peak: null }), steps };
    }
    case "sluice.memory.at":
      return inFront(state, data.model, { moving: data.units });
    case "sluice.memory.step":
      return withStep(state, data);
    case "sluice.memory.job":
      return inFront(state, data.model, {
        ...FRESH, plan: data.plan, limit: data.limit_bytes, peak: data.peak_bytes, warning: data.warning, done: true,
      });
    case "sluice.memory.freed":
      return { ...EMPTY, device: state.device };
    case "sluice.device":
      return { ...state, device: data };
    case "sluice.budget":
      return { ...state, models: state.models.map((one) => ({ ...one, stale: true })), steps: [], pace: null };
    case "execution_start":
    case "execution_interrupted":
    case "execution_error":
      return { ...state, models: state.models.map((one) => ({ ...one, moving: [] })), pace: null };
    case "sluice.step":
      return { ...state, pace: data };
    default:
      return state;
  }
}

const FRESH = { warning: null, moving: [], done: false, stale: false }; // what a new plan says nothing of

/** The state with news of a model, which comes to the front. Of a model without a plan nothing can be shown. */
function inFront(state, model, news) {
  const known = state.models.find((one) => one.model === model) ?? { model, peak: null, warning: null, moving: [] };
  if (!known.plan && !news.plan) return state;
  return { ...state, models: [{ ...known, ...news }, ...state.models.filter((one) => one.model !== model)] };
}

/** Homes may have changed without a new plan: what was to stay had to stream. */
function withStep(state, data) {
  const steps = data.step > (state.steps.at(-1)?.step ?? 0) && state.models[0]?.model === data.model ? state.steps : [];
  const known = state.models.find((one) => one.model === data.model);
  const units = known?.plan.units.map((unit, number) => ({ ...unit, class: data.homes?.[number] ?? unit.class }));
  const next = known ? inFront(state, data.model, { plan: { ...known.plan, units }, done: false }) : state;
  return { ...next, steps: [...steps, data].slice(-REMEMBERED_STEPS) };
}

const WORKING = ["activations", "workspace"]; // what is known after a run, as the rest of what was measured

/** How the budget is spent: parts {what, bytes} that sum up to the measured peak, or to the predicted one before it. */
export function spending({ plan, limit, peak }) {
  const weights = [
    { what: "resident weights", bytes: plan.resident_bytes },
    { what: `ring (${plan.ring.slots} slots)`, bytes: plan.ring.slots * plan.ring.slot_bytes },
  ];
  const fixed = Object.entries(plan.fixed).map(([what, bytes]) => ({ what, bytes }));
  const planned = total([...weights, ...fixed]);
  const parts = (peak === null ? [...weights, ...fixed] : measured(weights, fixed, peak)).filter((part) => part.bytes > 0);
  return { parts, planned, peak, limit, whole: Math.max(limit, planned, peak ?? 0) };
}

/** The same parts as far as they are certain; activations are what is left of the peak, and what exceeds it is cut. */
function measured(weights, fixed, peak) {
  const certain = [...weights, ...fixed.filter(({ what }) => !WORKING.includes(what))];
  let left = peak;
  const parts = certain.map(({ what, bytes }) => {
    const seen = Math.min(bytes, left);
    left -= seen;
    return { what, bytes: seen };
  });
  return [...parts, { what: "activations", bytes: left }];
}

const total = (parts) => parts.reduce((sum, part) => sum + part.bytes, 0);

/** Without staging in RAM weights are read straight into the device's memory: then that memory is RAM. */
export const memoryName = (plan) => (plan.host_bytes > 0 ? "VRAM" : "RAM");

/** Units by class, in the order of CLASSES: {V: {count, bytes}, ...}, only those that occur. */
export function tally(units) {
  const letters = [...new Set([...Object.keys(CLASSES), ...units.map((unit) => unit.class)])];
  const counted = letters.map((letter) => {
    const members = units.filter((unit) => unit.class === letter);
    return [letter, { count: members.length, bytes: members.reduce((sum, unit) => sum + unit.bytes, 0) }];
  });
  return Object.fromEntries(counted.filter(([, { count }]) => count));
}

/**
 * Rows of the residency map: one for the image halves and one for the text halves of the double blocks, the single
 * blocks in rows of the same length, everything else in rows per group. A row is {label, cells}, a cell its
 * units: more than one where a block's weights are divided between two homes.
 */
export function rows(units) {
  const groups = new Map();
  for (const unit of units) {
    const label = groupOf(unit.name), place = placeOf(unit.name);
    if (!groups.has(label)) groups.set(label, new Map());
    const cells = groups.get(label);
    cells.set(place, [...(cells.get(place) ?? []), unit]);
  }
  const columns = groups.get("double · image")?.size || COLUMNS;
  return [...groups].flatMap(([label, cells]) => inRows(label, [...cells.values()], columns));
}

function groupOf(name) {
  const [, net, own] = CONTROLNET.exec(name) ?? [];
  if (net) return `${net} · ${groupOf(own)}`;
  const [room, , part] = name.split(".");
  if (room === "double_blocks") return part?.startsWith("txt") ? "double · text" : "double · image";
  if (room === "single_blocks") return "single";
  return /^[a-z_]+/i.exec(room)?.[0].replaceAll("_", " ") ?? "rest";
}

/** What the halves of a divided unit have in common. */
const placeOf = (name) => /^(controlnets\.[^.]+\.)?(double_blocks\.\d+\.(img|txt)|single_blocks\.\d+)/.exec(name)?.[0] ?? name;

/** A unit of a ControlNet: the file's name without the number that tells it from others, and the name it has in there. */
const CONTROLNET = /^controlnets\.([^.]+)-[0-9a-f]{8}\.(.+)$/;

function inRows(label, cells, columns) {
  const out = [];
  for (let start = 0; start < cells.length; start += columns) {
    out.push({ label: start ? "" : label, cells: cells.slice(start, start + columns) });
  }
  return out;
}

/** What the last pass says in one sentence: {tone: "good" | "warning", text}, or null before the first. */
export function verdict({ models, steps }) {
  const last = steps.at(-1), warning = models[0]?.warning;
  if (warning) return { tone: "warning", text: warning };
  if (!last?.predicted_seconds) return null;
  const ratio = last.seconds / last.predicted_seconds;
  if (ratio <= LATE) return { tone: "good", text: "As predicted" };
  if (last.seconds <= last.predicted_seconds + LATE_SECONDS) return { tone: "good", text: "Steps too short to judge" };
  const late = last.waited_seconds > (last.seconds - last.predicted_seconds) / 2;
  const cause = late ? "weights came late" : "the arithmetic was slower";
  return { tone: "warning", text: `${Math.round((ratio - 1) * 100)} % slower than predicted: ${cause}` };
}
