// Two images in one frame with a slider between them, in a dialog that is removed when it is closed.

import { element } from "./dom.mjs";

/** Show two images {url, title, facts}, to the left and to the right of the slider, and a line about both. */
export function compare(left, right, about = "") {
  const frame = element("div", { class: "sluice-frame" });
  const slider = element("input", {
    type: "range",
    min: "0",
    max: "100",
    step: "0.1",
    value: "50",
    class: "sluice-slider",
    "aria-label": "Visible part of the left image",
    oninput: () => frame.style.setProperty("--sluice-cut", `${slider.value}%`),
  });
  frame.append(picture(left, "sluice-left"), picture(right, "sluice-right"), element("span", { class: "sluice-cut" }), slider);
  const dialog = element(
    "dialog",
    { class: "sluice-compare", "aria-label": "Comparison of two images", onclose: () => dialog.remove() },
    element("form", { method: "dialog" }, element("button", { class: "sluice-button", "aria-label": "Close" }, "Close")),
    frame,
    about && element("p", { class: "sluice-quiet" }, about),
    element("div", { class: "sluice-captions" }, caption(left), caption(right)),
  );
  document.body.append(dialog);
  dialog.showModal();
  slider.focus();
}

const picture = ({ url, title }, side) => element("img", { class: side, src: url, alt: title, draggable: "false" });

const caption = ({ title, facts }) =>
  element("p", {}, element("strong", {}, title), element("span", { class: "sluice-quiet" }, facts));
