// Two pictures in one frame and a slider between them. Draws into a dialog of its own and takes it away again.

import { element } from "./dom.mjs";

/** Show two pictures {url, title, facts}, one to the left of the slider and one to the right of it. */
export function compare(left, right) {
  const frame = element("div", { class: "sluice-frame" });
  const slider = element("input", {
    type: "range",
    min: "0",
    max: "100",
    step: "0.1",
    value: "50",
    class: "sluice-slider",
    "aria-label": "How much of the left picture is seen",
    oninput: () => frame.style.setProperty("--sluice-cut", `${slider.value}%`),
  });
  frame.append(picture(left, "sluice-left"), picture(right, "sluice-right"), element("span", { class: "sluice-cut" }), slider);
  const dialog = element(
    "dialog",
    { class: "sluice-compare", "aria-label": "Two pictures compared", onclose: () => dialog.remove() },
    element("form", { method: "dialog" }, element("button", { class: "sluice-button", "aria-label": "Close" }, "Close")),
    frame,
    element("div", { class: "sluice-captions" }, caption(left), caption(right)),
  );
  document.body.append(dialog);
  dialog.showModal();
  slider.focus();
}

const picture = ({ url, title }, side) => element("img", { class: side, src: url, alt: title, draggable: "false" });

const caption = ({ title, facts }) =>
  element("p", {}, element("strong", {}, title), element("span", { class: "sluice-quiet" }, facts));
