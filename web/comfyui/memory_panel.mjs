// The memory panel: the memory of loaded models, the time of a step and what limits it, and the budgets; several workers
// are shown one below the other, each with its job. Draws the state of `live`. The forms of budgets are created once and
// not drawn again, so that typed text is kept.

import { budgetForm } from "./budget_form.mjs";
import { doctorCard } from "./doctor_card.mjs";
import { element, oncePerFrame, shape } from "./dom.mjs";
import { bytes, plural, seconds } from "./format.mjs";
import { lent, missing, paused, problem, stopping, used, workers } from "./live.mjs";
import { memoryName, spending, verdict } from "./memory_state.mjs";
import { missingList } from "./missing.mjs";
import { lentCard, pauseButton, pausedCard } from "./paused_jobs.mjs";
import { problemCard } from "./problem.mjs";
import { residencyMap } from "./residency_map.mjs";
import { usedFilesCard } from "./used_files.mjs";
import { doing, drawn } from "./workers_state.mjs";

const CHART = { width: 300, height: 56 };

/**
 * Draw into `root` and keep it up to date. Returns a function that removes the panel.
 * use: see missingList.
 */
export function memoryPanel(root, use = null) {
  const lacking = element("div", { class: "sluice-stack" }), columns = element("div", { class: "sluice-workers" });
  let shown = [], above = [];
  const draw = oncePerFrame(() => {
    const told = drawn(workers.value), now = [problem.value, lent.value, missing.value, used.value, paused.value];
    // Buttons must not be replaced at each step of a job: a click that began on one would be lost.
    if (now.length !== above.length || now.some((value, number) => value !== above[number])) {
      above = now;
      lacking.replaceChildren(...problemCard(problem.value), ...lentCard(lent.value), ...missingList(missing.value, used.value, use), ...usedFilesCard(used.value), ...pausedCard(paused.value));
    }
    if (told.map(({ name }) => name).join() !== shown.map(({ name }) => name).join()) {
      shown.forEach(({ end }) => end());
      shown = told.map(({ name }) => workerColumn(name));
      columns.replaceChildren(...shown.map((column) => column.element));
    }
    told.forEach((worker, number) => shown[number].show(worker, told.length > 1));
  });
  root.classList.add("sluice-panel");
  root.replaceChildren(heading("Memory"), element("div", { class: "sluice-body" }, lacking, columns, doctorCard()));
  const ends = [workers.watch(draw), missing.watch(draw), used.watch(draw), problem.watch(draw), stopping.watch(draw), paused.watch(draw), lent.watch(draw), draw.cancel];
  draw();
  return () => {
    ends.forEach((end) => end());
    shown.forEach(({ end }) => end());
    root.replaceChildren();
  };
}

/** One worker: {name, element, show, end}. Its name and job are shown if there are several workers. */
function workerColumn(name) {
  const title = element("div", {}), live = element("div", { class: "sluice-stack" }), maps = element("div", { class: "sluice-stack" });
  const actions = element("div", { class: "sluice-stack" }), form = budgetForm(name);
  let pausable = null; // the job that the button pauses
  return {
    name,
    element: element("section", { class: "sluice-stack sluice-worker", "aria-label": name ? `Worker ${name}` : "Memory" }, title, live, actions, form.element, maps),
    end: form.end,
    show(worker, several) {
      const { state } = worker, ending = several ? stopping.value.includes(worker.job) : stopping.value.length > 0;
      const run = state.planning ? [planningCard(state, ending)] : state.models.length || state.pace ? [stepCard(state, ending), ...state.models.slice(0, 1).map(budgetCard)] : [nothingYet()];
      title.replaceChildren(...(several ? [element("h3", { class: "sluice-worker-name" }, name, element("span", { class: "sluice-quiet" }, doing(worker)))] : []));
      live.replaceChildren(...deviceCard(state.device), ...run, ...othersCard(state.others));
      maps.replaceChildren(...state.models.map(modelCard));
      const job = worker.job && !ending ? worker.job : null;
      form.follow(worker.job !== null || state.planning);
      if (job !== pausable) actions.replaceChildren(...(job ? [pauseButton(job)] : []));
      pausable = job;
    },
  };
}

/** The heading of a panel, as in the editor's own panels. */
export const heading = (title, ...beside) =>
  element("header", { class: "sluice-heading" }, element("h2", {}, title), ...beside);

function nothingYet() {
  return element(
    "p",
    { class: "sluice-empty" },
    "No model is in memory yet. Press Run: its map appears here, with the predicted time of a step.",
  );
}

/** In place of the figures of the last job, from the start of a job to the plan of its first model: seconds for large files. */
function planningCard({ pace }, ending) {
  const text = "A job has started. Its prediction and its budget appear here when its plan is made.";
  return card("Step", ending ? "stopping" : pace ? progress(pace) : "planning", element("p", { class: "sluice-quiet" }, text));
}

/** The device, its number type and its memory. */
function deviceCard(device) {
  if (!device) return [];
  return [
    card(
      device.name,
      device.dtype,
      element("p", { class: "sluice-quiet" }, `${bytes(device.total_bytes)} of ${device.type === "cpu" ? "RAM" : "VRAM"}`),
      device.warning && element("p", { class: "sluice-verdict sluice-warning" }, device.warning),
    ),
  ];
}

/** What the other devices that make one image with this one report of their memory: a line for each model. */
function othersCard(others) {
  if (!others.length) return [];
  return [card("Other devices", "last run", ...others.map(({ device, line }) => element("p", { class: "sluice-quiet" }, `${device}: ${line}`)))];
}

function card(title, beside, ...children) {
  return element(
    "section",
    { class: "sluice-card" },
    element("h3", {}, element("span", { class: "sluice-grow", title }, title), element("span", { class: "sluice-quiet" }, beside)),
    ...children,
  );
}

function stepCard(state, ending) {
  const { models, steps, pace } = state, last = steps.at(-1), plan = models[0]?.plan, told = verdict(state);
  const predicted = last?.predicted_seconds ?? plan?.seconds_per_step;
  return card(
    "Step",
    ending ? "stopping" : pace ? progress(pace) : "",
    element(
      "dl",
      { class: "sluice-figures" },
      figure("actual", seconds(last?.seconds ?? pace?.seconds_per_step)),
      figure("predicted", seconds(predicted)),
      figure("stall", seconds(last?.waited_seconds)),
      figure("bound by", plan?.bound ?? "–"),
    ),
    steps.length > 1 ? chart(steps, predicted) : null,
    told && element("p", { class: `sluice-verdict sluice-${told.tone}` }, told.text),
  );
}

const progress = ({ step, steps, seconds_left: left }) =>
  `${Math.round(step)} of ${Math.round(steps)}${step < steps ? ` · ${seconds(left)} left` : ""}`;

const figure = (name, value) => element("div", {}, element("dt", {}, name), element("dd", {}, value));

/** A bar for each step, its stall in another colour, and a line for the prediction. */
function chart(steps, predicted) {
  const top = Math.max(predicted ?? 0, ...steps.map((step) => step.seconds)) * 1.1 || 1;
  const wide = CHART.width / Math.max(steps.length, 12), tall = (time) => (CHART.height * time) / top;
  const bars = steps.flatMap(({ seconds: time, waited_seconds: stall = 0 }, number) => {
    const x = number * wide + 1, width = Math.max(wide - 2, 1);
    return [
      shape("rect", { class: "sluice-bar", x, width, y: CHART.height - tall(time), height: tall(time) }),
      shape("rect", { class: "sluice-stall", x, width, y: CHART.height - tall(time), height: tall(stall) }),
    ];
  });
  const y = CHART.height - tall(predicted ?? 0);
  const label = `${plural(steps.length, "step")}, ${seconds(steps.at(-1).seconds)} the last; predicted ${seconds(predicted)}`;
  return shape(
    "svg",
    { class: "sluice-chart", viewBox: `0 0 ${CHART.width} ${CHART.height}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    ...bars,
    ...(predicted ? [shape("line", { class: "sluice-predicted", x1: 0, x2: CHART.width, y1: y, y2: y })] : []),
  );
}

function budgetCard({ model, plan, limit, peak, stale }) {
  const spent = spending({ plan, limit, peak });
  return card(
    "Budget",
    stale ? "last run, before the change" : `${peak === null ? "predicted" : "measured"} peak of ${model}`,
    meter(memoryName(plan), peak ?? spent.planned, spent),
    element("p", { class: "sluice-quiet" }, traffic(plan)),
  );
}

function traffic({ streamed_bytes_per_step: moved, disk_bytes_per_step: read, host_bytes: host }) {
  if (!moved) return "All weights are resident: nothing is streamed.";
  const staged = host ? `, through ${bytes(host)} of RAM` : "";
  return `${bytes(moved)} streamed per step${read ? `, ${read === moved ? "all" : bytes(read)} from disk` : ""}${staged}.`;
}

/** A bar of parts within a limit, with a mark at the measured peak. */
function meter(name, used, { parts, limit, whole, peak }) {
  const share = (size) => `${(100 * size) / whole}%`, told = `${bytes(used)} of ${bytes(limit)}`;
  return element(
    "div",
    { class: "sluice-meter" },
    element(
      "div",
      { class: "sluice-line" },
      element("span", { class: "sluice-grow" }, name),
      element("span", { class: `sluice-figure${used > limit ? " sluice-over" : ""}` }, told),
    ),
    element(
      "div",
      {
        class: "sluice-track",
        role: "meter",
        "aria-label": `${name} used`,
        "aria-valuemin": 0,
        "aria-valuemax": whole,
        "aria-valuenow": used,
        "aria-valuetext": told,
      },
      parts.map(({ what, bytes: size }) =>
        element("span", { class: "sluice-part", style: `width:${share(size)}`, title: `${what}: ${bytes(size)}` }),
      ),
      peak === null ? null : element("span", { class: "sluice-peak", style: `left:${share(peak)}`, title: `peak: ${bytes(peak)}` }),
    ),
    element(
      "ul",
      { class: "sluice-keys" },
      parts.map(({ what, bytes: size }) => element("li", {}, element("i"), `${what} ${bytes(size)}`)),
    ),
  );
}

function modelCard({ model, plan, moving }) {
  const total = plan.units.reduce((sum, unit) => sum + unit.bytes, 0);
  const file = plan.model && plan.model !== model ? `${model} · ${plan.model}` : model;
  return card(file, `${plural(plan.units.length, "group")} · ${bytes(total)}`, residencyMap(plan.units, moving));
}
