// "Check this machine": the findings of `sluice doctor` about the server's machine.

import { doctor } from "./api.mjs";
import { element } from "./dom.mjs";

/** The card with its button; {element}. */
export function doctorCard() {
  const told = element("div", { class: "sluice-stack", role: "status" });
  const button = element("button", { class: "sluice-button", type: "button", onclick: check }, "Check this machine");
  async function check() {
    button.disabled = true;
    told.replaceChildren(element("p", { class: "sluice-quiet" }, "Checking the card, PyTorch, disks and model files …"));
    try {
      const findings = await doctor();
      told.replaceChildren(findings ? lines(findings) : element("p", { class: "sluice-quiet" }, "Inside ComfyUI: run sluice doctor in a terminal."));
    } catch (error) {
      told.replaceChildren(element("p", { class: "sluice-verdict sluice-warning" }, error.message));
    } finally {
      button.disabled = false;
      told.scrollIntoView({ block: "nearest" });
    }
  }
  return element("section", { class: "sluice-card" }, element("h3", {}, "Machine"), element("p", {}, button), told);
}

const lines = (findings) =>
  element(
    "ul",
    { class: "sluice-stack sluice-findings" },
    findings.map(({ subject, text, advice, good }) =>
      element(
        "li",
        {},
        element("p", { class: `sluice-verdict sluice-${good ? "good" : "warning"}` }, element("b", {}, subject), ` ${text}`),
        advice ? element("p", { class: "sluice-quiet" }, advice) : null,
      ),
    ),
  );
