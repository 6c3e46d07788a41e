// The state of memory, computed from the events of the core. Pure: a state and an event give the next state.
//
//   sluice.memory.plan    a plan takes effect: {model, limit_bytes, plan: {seconds_per_step, bound, peak_bytes,
//                         resident_bytes, streamed_bytes_per_step, disk_bytes_per_step, ring: {slots, slot_bytes},
//                         host_bytes, fixed: {purpose: bytes}, units: [{name, class: "V" | "P" | "R" | "D", bytes}]}}
//   sluice.memory.at      groups in the ring now: {model, units: [their numbers]}
//   sluice.memory.step    one pass through the model: {model, step, seconds, predicted_seconds, waited_seconds, homes}
//   sluice.memory.job     the model's run has ended: {model, plan, limit_bytes, peak_bytes, stall_seconds, warning}
//   sluice.memory.freed   all memory was freed: {}
//   sluice.device.job     a model's run on another device, of several that make one image, has ended: {device, line}
//   sluice.device         the device: {name, type, dtype, total_bytes, free_bytes, ram_bytes, text, warning}
//   sluice.budget         the budgets have been changed: {vram, ram}
//   sluice.started        a job has started, of any page: {prompt_id}
//   sluice.step           a node's step, of which each may be several passes: {step, steps, seconds_per_step, seconds_left}
//
// All sizes are bytes, all times seconds.

const RUN_EVENTS = ["sluice.memory.plan", "sluice.memory.at", "sluice.memory.step", "sluice.memory.job", "sluice.memory.freed"];
const STARTS = ["sluice.started", "execution_start"]; // ComfyUI itself sends the second one only
const ENDS = ["execution_success", "execution_interrupted", "execution_error"];
export const EVENTS = [...RUN_EVENTS, "sluice.step", "sluice.device", "sluice.device.job", "sluice.budget", ...STARTS, ...ENDS];
export const EMPTY = Object.freeze({ models: Object.freeze([]), steps: Object.freeze([]), pace: null, device: null, others: Object.freeze([]), planning: false });
export const CLASSES = Object.freeze({
  V: "resident",
  P: "streamed from pinned RAM",
  R: "streamed from RAM",
  D: "streamed from disk",
});

const REMEMBERED_STEPS = 60;
const COLUMNS = 19;
const LATE = 1.25, LATE_SECONDS = 0.1; // actual over predicted from which a step is called slow, as in the core

/**
 * The state after one event. `models`: {model, plan, limit, peak, warning, moving, stale}, the one that ran last first;
 * `steps`: its passes; `pace`: the progress of its node; `device`: the device; `others`: the newest report of each model
 * on the other devices, {device, line}; `planning`: whether a job has started of which no model has a plan yet. Figures of a run under budgets that have changed since are `stale`.
 */
export function after(state, event, data) {
  switch (event) {
    case "sluice.memory.plan": {
      const steps = state.models[0]?.model === data.model && !state.models[0].done ? state.steps : [];
      return { ...inFront(state, data.model, { ...FRESH, plan: data.plan, limit: data.limit_bytes, peak: null }), steps, planning: false };
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
    case "sluice.device.job": {
      const about = ({ device, line }) => `${device} ${line.split(":")[0]}`;
      return { ...state, others: [...state.others.filter((one) => about(one) !== about(data)), data] };
    }
    case "sluice.budget":
      return { ...state, models: state.models.map((one) => ({ ...one, stale: true })), steps: [], pace: null };
    case "sluice.started":
    case "execution_start":
      return { ...still(state), steps: [], others: [], planning: true };
    case "execution_interrupted":
    case "execution_error":
      return { ...still(state), planning: false };
    case "execution_success":
      return { ...state, planning: false };
    case "sluice.step":
      return { ...state, pace: data };
    default:
      return state;
  }
}

/** The state while no model runs: nothing is moving, and no node has progress. */
const still = (state) => ({ ...state, models: state.models.map((one) => ({ ...one, moving: [] })), pace: null });

/** The state of a worker without a job: the end of a job is sent to the page that queued it, and to no other. */
export const idle = (state) => ({ ...state, pace: state.pace?.step < state.pace?.steps ? null : state.pace, planning: false });

const FRESH = { warning: null, moving: [], done: false, stale: false }; // values that a new plan resets

/** The state with changes of a model, which becomes the first one. A model without a plan is not shown. */
function inFront(state, model, news) {
  const known = state.models.find((one) => one.model === model) ?? { model, peak: null, warning: null, moving: [] };
  if (!known.plan && !news.plan) return state;
  return { ...state, models: [{ ...known, ...news }, ...state.models.filter((one) => one.model !== model)] };
}

/** Locations can change without a new plan, if a resident group had to be streamed. */
function withStep(state, data) {
  const steps = data.step > (state.steps.at(-1)?.step ?? 0) && state.models[0]?.model === data.model ? state.steps : [];
  const known = state.models.find((one) => one.model === data.model);
  const units = known?.plan.units.map((unit, number) => ({ ...unit, class: data.homes?.[number] ?? unit.class }));
  const next = known ? inFront(state, data.model, { plan: { ...known.plan, units }, done: false }) : state;
  return { ...next, steps: [...steps, data].slice(-REMEMBERED_STEPS), planning: false };
}

const WORKING = ["activations", "workspace"]; // known after a run, as the rest of the measured peak

/** The use of the budget: parts {what, bytes} whose sum is the measured peak, or before it the predicted one. */
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

/** The parts after a run: those that are known, and activations as the rest of the peak. */
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

/** Whether the device is a CPU: then there are no staging buffers in RAM, and files are read into its memory directly. */
export const memoryName = (plan) => (plan.host_bytes > 0 ? "VRAM" : "RAM");

/** Groups by location, in the order of CLASSES: {V: {count, bytes}, ...}, only those that occur. */
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
 * blocks in rows of the same length, all others in rows by name. A row is {label, cells}, a cell its
 * units: more than one where a block's weights are divided between two locations.
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

/** The common name of the halves of a divided group. */
const placeOf = (name) => /^(controlnets\.[^.]+\.)?(double_blocks\.\d+\.(img|txt)|single_blocks\.\d+)/.exec(name)?.[0] ?? name;

/** A unit of a ControlNet: the file's name without the number that distinguishes it, and the unit's name in the file. */
const CONTROLNET = /^controlnets\.([^.]+)-[0-9a-f]{8}\.(.+)$/;

function inRows(label, cells, columns) {
  const out = [];
  for (let start = 0; start < cells.length; start += columns) {
    out.push({ label: start ? "" : label, cells: cells.slice(start, start + columns) });
  }
  return out;
}

/** A verdict on the last pass: {tone: "good" | "warning", text}, or null before the first one. */
export function verdict({ models, steps }) {
  const last = steps.at(-1), warning = models[0]?.warning;
  if (warning) return { tone: "warning", text: warning };
  if (!last?.predicted_seconds) return null;
  const ratio = last.seconds / last.predicted_seconds;
  if (ratio <= LATE) return { tone: "good", text: "As predicted" };
  if (last.seconds <= last.predicted_seconds + LATE_SECONDS) return { tone: "good", text: "Steps too short to judge" };
  const late = last.waited_seconds > (last.seconds - last.predicted_seconds) / 2;
  const cause = late ? "weights came late" : "the computation was slower";
  return { tone: "warning", text: `${Math.round((ratio - 1) * 100)} % slower than predicted: ${cause}` };
}
