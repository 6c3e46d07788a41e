// The residency map: a cell for each group of a model's weights, with the colour and letter of its location.

import { element } from "./dom.mjs";
import { bytes, plural } from "./format.mjs";
import { CLASSES, rows, tally } from "./memory_state.mjs";

/** The map of a model's groups with its legend. `moving`: the numbers of those in the ring. */
export function residencyMap(units, moving) {
  const now = new Set(moving.map((number) => units[number]));
  return element(
    "figure",
    { class: "sluice-map" },
    element(
      "div",
      { role: "img", "aria-label": summary(units) },
      rows(units).map((line) => row(line, now)),
    ),
    legend(units, now),
  );
}

function row({ label, cells }, now) {
  return element(
    "div",
    { class: "sluice-map-row" },
    element("span", { class: "sluice-map-label" }, label),
    element("div", { class: "sluice-map-cells" }, cells.map((parts) => element("div", { class: "sluice-unit" }, parts.map((unit) => part(unit, now.has(unit)))))),
  );
}

function part({ name, class: letter, bytes: size }, moving) {
  return element(
    "span",
    {
      class: `sluice-cell sluice-${letter}${moving ? " sluice-moving" : ""}`,
      title: `${name} · ${bytes(size)} · ${CLASSES[letter] ?? letter}${moving ? " · being streamed now" : ""}`,
    },
    letter,
  );
}

function legend(units, now) {
  const entries = Object.entries(tally(units)).map(([letter, { count, bytes: size }]) =>
    element(
      "li",
      {},
      element("span", { class: `sluice-cell sluice-${letter}`, "aria-hidden": "true" }, letter),
      element("span", { class: "sluice-grow" }, CLASSES[letter] ?? letter),
      element("span", { class: "sluice-figure" }, `${count} · ${bytes(size)}`),
    ),
  );
  if (now.size) {
    entries.push(
      element(
        "li",
        {},
        element("span", { class: "sluice-cell sluice-moving", "aria-hidden": "true" }),
        element("span", { class: "sluice-grow" }, "being streamed now"),
        element("span", { class: "sluice-figure" }, String(now.size)),
      ),
    );
  }
  return element("ul", { class: "sluice-legend" }, entries);
}

function summary(units) {
  const parts = Object.entries(tally(units)).map(([letter, { count }]) => `${count} ${CLASSES[letter] ?? letter}`);
  return `${plural(units.length, "group")} of weights: ${parts.join(", ")}.`;
}
