// A dialog with the LoRA files that the server has: family, rank, trigger words, and whether each fits the model.

import * as server from "./api.mjs";
import { element } from "./dom.mjs";
import { bytes } from "./format.mjs";

/**
 * Let a person choose a LoRA for `model` ({category, name} of the transformer's file, or null). `write(words)`, if given,
 * puts trigger words into the prompt. Returns {name, strength}, or null if the dialog was closed; strength is null unless
 * the file was made for a particular one.
 */
export function chooseLora(model, { write } = {}) {
  return new Promise((done) => {
    const list = element("ul", { class: "sluice-lora-list" }), said = element("p", { role: "status" }, "Reading the files…");
    let chosen = null;
    const box = element(
      "dialog",
      { class: "sluice-loras", "aria-label": "Choose a LoRA", onclose: () => (box.remove(), done(chosen)), onkeydown: (event) => event.stopPropagation() },
      element("header", { class: "sluice-large-bar" }, element("h2", { class: "sluice-grow" }, "LoRAs"), element("button", { type: "button", class: "sluice-button", "aria-label": "Close", onclick: () => box.close() }, "✕")),
      said,
      list,
    );
    const choose = (one) => {
      chosen = { name: one.name, strength: one.strength };
      box.close();
    };
    document.body.append(box);
    box.showModal();
    server.loras(model).then(
      (found) => {
        said.textContent = found?.length ? "" : "There is no LoRA in the folder models/loras.";
        list.replaceChildren(...(found ?? []).map((one) => item(one, choose, write)));
      },
      (error) => (said.textContent = error.message),
    );
  });
}

function item(one, choose, write) {
  const facts = [one.family, one.rank && `rank ${one.rank}`, one.bytes && bytes(one.bytes), one.strength && `made for strength ${one.strength}`];
  const state = one.fits === null ? "" : one.fits ? "fits" : "does not fit";
  return element(
    "li",
    { class: "sluice-card" },
    element("h3", {}, element("span", { class: "sluice-lora-name" }, one.name), state && element("span", { class: `sluice-quiet${one.fits ? "" : " sluice-over"}` }, state)),
    element("p", { class: "sluice-quiet" }, facts.filter(Boolean).join(" · ") || one.about),
    one.triggers.length ? element("p", {}, `Trigger words: ${one.triggers.join(", ")}`) : null,
    one.why ? element("p", { class: "sluice-quiet" }, one.why) : null,
    element(
      "div",
      { class: "sluice-acts" },
      element("button", { type: "button", class: "sluice-button", disabled: one.fits === false, "aria-label": `Use ${one.name}`, onclick: () => choose(one) }, "Use"),
      write && one.triggers.length && one.fits !== false
        ? element("button", { type: "button", class: "sluice-button", "aria-label": `Use with its word: ${one.name}, ${one.triggers[0]}`, onclick: () => (write(one.triggers[0]), choose(one)) }, "Use with its word")
        : null,
    ),
  );
}
