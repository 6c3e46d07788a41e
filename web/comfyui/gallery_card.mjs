// One image in the gallery's list: a click enlarges it; it can be starred and selected for comparison.

import * as server from "./api.mjs";
import { element } from "./dom.mjs";
import { factsLine } from "./facts.mjs";

/** Whether two records describe the same file in the same state. */
export const same = (one, other) =>
  one.filename === other.filename && one.subfolder === other.subfolder && one.time === other.time;

/** {picture, item, thumb, is, mark, star}: `is(other)`: whether it shows this image; `mark` and `star` change it. */
export function card(picture, { editable, choose, enlarge, star }) {
  const label = picture.text || picture.filename, written = JSON.stringify(picture);
  const box = element("input", { type: "checkbox", onchange: () => choose(picture), "aria-label": `Select for comparison: ${label}` });
  const thumb = element(
    "button",
    { type: "button", class: "sluice-thumb", title: "Enlarge", onclick: () => enlarge(picture) },
    element("img", { src: server.pictureUrl(picture, true), alt: label, loading: "lazy", width: picture.width, height: picture.height }),
  );
  const starring = element("button", { type: "button", class: "sluice-star", onclick: () => star(picture) });
  const item = element(
    "li",
    {},
    thumb,
    editable && starring,
    element(
      "div",
      { class: "sluice-about" },
      element("p", { class: "sluice-prompt", title: label }, label),
      element("p", { class: "sluice-quiet" }, factsLine(picture)),
      element("label", { class: "sluice-pick" }, box, "compare"),
    ),
  );

  function showStar(on) {
    starring.setAttribute("aria-pressed", String(Boolean(on)));
    starring.setAttribute("aria-label", `Star: ${label}`);
    starring.replaceChildren(element("i", { class: `pi ${on ? "pi-star-fill" : "pi-star"}`, "aria-hidden": "true" }));
  }

  showStar(picture.starred);
  return {
    picture,
    item,
    thumb,
    is: (other) => JSON.stringify(other) === written,
    mark(chosen) {
      box.checked = chosen;
      item.classList.toggle("sluice-chosen", chosen);
    },
    star: showStar,
  };
}
