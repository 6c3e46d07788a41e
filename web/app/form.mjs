// The form of a workflow: one control for each input that the server lists, and the LoRAs that are added to it.

import { element } from "/extensions/sluice/dom.mjs";
import { chooseLora } from "/extensions/sluice/lora_list.mjs";
import { api } from "/scripts/api.js";

const MOST_SEEDS = 2 ** 48; // the same range as on the command line: a page shows numbers up to 2^53 exactly
const WIDE = new Set(["text", "image", "lora", "seed"]);

/** A new seed. */
const newSeed = () => Math.floor(Math.random() * MOST_SEEDS);

/**
 * Draw the form `told` (of POST /sluice/app/form) into `root`. `changed` is called after every change, `say(text)` shows a
 * problem. Returns {values, loras, random, text, vary, keep}: the values to send; whether each run uses new seeds; the
 * first text; `vary` sets new seeds; `keep` returns the values to restore later.
 */
export function drawForm(root, told, { kept = {}, changed, say }) {
  const controls = told.fields.map((field) => control(field, told, { kept: kept.values?.[keyOf(field)], changed, say, write }));
  const added = (kept.loras ?? []).map(([name, strength]) => ({ name, strength }));
  const list = element("ul", { class: "app-loras" });
  const random = element("input", { type: "checkbox", onchange: changed });
  random.checked = Boolean(kept.random);

  /** Append words to the first text, for trigger words. */
  function write(words) {
    const first = controls.find(({ field }) => field.kind === "text");
    if (first && !first.get().includes(words)) first.set(first.get() ? `${first.get()}, ${words}` : words);
    changed();
  }

  function drawLoras() {
    list.replaceChildren(...added.map((one) => loraRow(one, () => (added.splice(added.indexOf(one), 1), drawLoras(), changed()), changed)));
  }

  async function addLora() {
    const chosen = await chooseLora(told.model, { write });
    if (!chosen) return;
    added.push({ name: chosen.name, strength: chosen.strength ?? 1 });
    drawLoras();
    changed();
  }

  const hasSeed = controls.some(({ field }) => field.kind === "seed");
  root.replaceChildren(
    ...controls.map(({ box }) => box),
    ...(hasSeed ? [element("label", { class: "app-check" }, random, "New seed for each run")] : []),
    ...(told.loras ? [element("div", { class: "app-wide" }, list, element("button", { type: "button", class: "app-button", onclick: addLora }, "Add a LoRA"))] : []),
  );
  drawLoras();
  return {
    values: () => controls.map(({ field, get }) => [field.node, field.input, get()]),
    loras: () => added.map(({ name, strength }) => [name, strength]),
    random: () => random.checked,
    text: () => controls.find(({ field }) => field.kind === "text")?.get() ?? "",
    vary() {
      for (const { field, set } of controls) if (field.kind === "seed") set(newSeed());
      changed();
    },
    keep: () => ({
      values: Object.fromEntries(controls.map(({ field, get }) => [keyOf(field), get()])),
      loras: added.map(({ name, strength }) => [name, strength]),
      random: random.checked,
    }),
  };
}

const keyOf = ({ node, input }) => `${node}.${input}`;

/** {field, box, get, set} of one input. */
function control(field, told, { kept, changed, say, write }) {
  const value = kept === undefined || (field.choices && !field.choices.includes(kept)) ? field.value : kept;
  const made = { text, image, lora, switch: toggle, choice, seed: number, integer: number, number }[field.kind](field, value, { told, changed, say, write });
  const wide = WIDE.has(field.kind) ? " app-wide" : "";
  const box = field.kind === "switch"
    ? element("label", { class: "app-check" }, made.input, field.label)
    : element(made.several ? "div" : "label", { class: `app-field${wide}` }, element("span", {}, field.label), made.input);
  return { field, box, get: made.get, set: made.set };
}

function text(field, value, { changed }) {
  const input = element("textarea", { rows: 4, oninput: changed });
  input.value = value; // as a child it would be part of the label's text
  return { input, get: () => input.value, set: (next) => (input.value = next) };
}

function number(field, value, { changed }) {
  const whole = field.kind !== "number";
  const step = whole ? 1 : field.step ?? "any"; // the server rounds to its own steps
  const input = element("input", { type: "number", inputmode: whole ? "numeric" : "decimal", required: true, min: field.min, max: field.max, step, value, oninput: changed });
  return { input, get: () => Number(input.value), set: (next) => (input.value = next) };
}

function toggle(field, value, { changed }) {
  const input = element("input", { type: "checkbox", onchange: changed });
  input.checked = value;
  return { input, get: () => input.checked, set: (next) => (input.checked = next) };
}

function choice(field, value, { changed }) {
  const input = element("select", { onchange: changed }, field.choices.map((one) => element("option", { value: one }, String(one))));
  input.value = value;
  return { input, get: () => input.value, set: (next) => (input.value = next) };
}

/** A LoRA that the workflow itself has: its name, and a button that opens the list. */
function lora(field, value, { told, changed, write }) {
  let name = value;
  const input = element("button", { type: "button", class: "app-button app-start", "aria-label": "Choose a LoRA", onclick: open }, name || "none");
  async function open() {
    const chosen = await chooseLora(told.model, { write });
    if (!chosen) return;
    set(chosen.name);
    changed();
  }
  const set = (next) => (name = input.textContent = next);
  return { input, several: true, get: () => name, set };
}

/** A picture: shown, and replaced by one of the phone. */
function image(field, value, { changed, say }) {
  let name = value;
  const shown = element("img", { class: "app-picture", alt: "" });
  const file = element("input", { type: "file", accept: "image/*", "aria-label": `${field.label}: choose a picture`, onchange: upload });
  const input = element("div", { class: "app-upload" }, shown, file);
  const set = (next) => {
    name = next;
    const [, plain, kind] = /^(.*?)(?: \[(input|output|temp)\])?$/.exec(next);
    const cut = plain.lastIndexOf("/");
    const query = new URLSearchParams({ filename: plain.slice(cut + 1), subfolder: cut < 0 ? "" : plain.slice(0, cut), type: kind ?? "input" });
    shown.src = api.apiURL(`/view?${query}`);
    shown.alt = next;
  };
  async function upload() {
    if (!file.files.length) return;
    const body = new FormData();
    body.append("image", file.files[0]);
    const answer = await api.fetchApi("/upload/image", { method: "POST", body });
    const told = await answer.json().catch(() => null);
    if (!answer.ok) return say(told?.error?.message ?? "The picture could not be sent.");
    set(told.subfolder ? `${told.subfolder}/${told.name}` : told.name);
    changed();
  }
  if (value) set(value);
  return { input, several: true, get: () => name, set };
}

function loraRow(one, remove, changed) {
  const strength = element("input", { type: "number", inputmode: "decimal", step: "any", required: true, value: one.strength, "aria-label": `Strength of ${one.name}`, oninput: () => ((one.strength = Number(strength.value)), changed()) });
  return element(
    "li",
    {},
    element("span", { class: "app-name" }, one.name),
    strength,
    element("button", { type: "button", class: "app-button", "aria-label": `Remove ${one.name}`, onclick: remove }, "✕"),
  );
}
