// The form for the budgets: two fields and a button. It works while a job runs.

import * as server from "./api.mjs";
import { element } from "./dom.mjs";
import { budgetWord } from "./format.mjs";
import { budget } from "./live.mjs";

const TRIES = 60, PAUSE = 500; // ms: half a minute, in which a worker imports PyTorch
const FIELDS = { vram: "VRAM", ram: "RAM" };

/**
 * {element, follow, end} for one worker. Hidden until its budget is known. `follow(busy)` tells whether a job runs: then
 * a change is in force from its next step on.
 */
export function budgetForm(worker) {
  let ended = false, busy = false;
  const said = element("p", { class: "sluice-quiet", role: "status" });
  const inputs = Object.keys(FIELDS).map((name) =>
    element("input", { type: "text", name, autocomplete: "off", spellcheck: "false", size: "6", placeholder: "auto" }),
  );
  const button = element("button", { type: "submit", class: "sluice-button" }, "Set");
  const form = element(
    "form",
    { class: "sluice-card sluice-budget", onsubmit: apply },
    element("h3", {}, "Change the budget"),
    element(
      "div",
      { class: "sluice-fields" },
      inputs.map((input) => element("label", {}, FIELDS[input.name], input)),
      button,
    ),
    said,
  );

  async function apply(event) {
    event.preventDefault();
    button.disabled = true;
    try {
      learn(await server.setBudget(worker, Object.fromEntries(inputs.map((input) => [input.name, budgetWord(input.value)]))));
      say(busy ? "In force from the next step on." : "In force for the next job.");
    } catch (error) {
      say(error.message, true);
    }
    button.disabled = false;
  }

  function say(text, wrong = false) {
    said.textContent = text;
    said.classList.toggle("sluice-over", wrong);
  }

  function show() {
    const known = budget.value[worker];
    form.hidden = !known || !Object.keys(known).length;
    for (const input of inputs) {
      if (document.activeElement !== input) input.value = known?.[input.name] ?? "auto";
    }
  }

  /** A worker that still starts has no answer yet. */
  async function fetchBudget(tries = TRIES) {
    try {
      const answer = await server.setBudget(worker, {});
      learn(answer);
      const unknown = answer && !Object.keys(answer[worker] ?? {}).length;
      if (unknown && tries && !ended) setTimeout(fetchBudget, PAUSE, tries - 1);
    } catch (error) {
      say(error.message, true);
    }
  }

  function learn(answer) {
    if (answer) budget.set({ ...budget.value, ...answer });
  }

  say("Sizes like 8G or 900M, or auto.");
  show();
  const unwatch = budget.watch(show);
  fetchBudget();
  return { element: form, follow: (runs) => (busy = runs), end: () => ((ended = true), unwatch()) };
}
