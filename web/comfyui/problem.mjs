// Shows errors of jobs and warnings: as notices on the page, and errors about memory in the Memory tab too.

import { app } from "../../scripts/app.js";
import * as server from "./api.mjs";
import { element } from "./dom.mjs";
import { problem, stopping } from "./live.mjs";
import { notice } from "./notice.mjs";
import { isOurs, read } from "./problem_text.mjs";

/** Start to listen. `standalone`, a promise: whether to show all errors, or only those of our own nodes. */
export function start(standalone) {
  let hide = () => {};
  const show = (summary, detail) => {
    hide();
    hide = notice("error", summary, detail);
  };
  server.listen(["execution_start"], () => {
    problem.set(null);
    hide();
  });
  let done = () => {};
  stopping.watch(() => {
    done();
    done = stopping.value.length ? notice("info", "Stopping", "The job ends after the block that is being computed. If that takes too long, cancel again: its process is then ended.") : () => {};
  });
  const warned = new Set(); // texts shown since the last job began
  server.listen(["execution_start"], () => warned.clear());
  server.listen(["sluice.warning"], ({ text }) => {
    if (warned.has(text)) return;
    warned.add(text);
    notice("warn", "Warning", text, 15000);
  });
  server.listen(["sluice.refused"], ({ problems }) => show("The workflow cannot run", problems.join("\n")));
  server.listen(["execution_error"], async (data) => {
    if (!isOurs(data) && !(await standalone)) return;
    const { text, aboutMemory } = read(data), title = titleOf(data);
    problem.set(aboutMemory ? { title, text } : null);
    show(title, text);
  });
}

/** The section that shows an error in the Memory tab; [] without one. */
export function problemCard(told) {
  if (!told) return [];
  return [
    element(
      "section",
      { class: "sluice-card sluice-problem", role: "alert" },
      element("h3", {}, told.title),
      element("p", {}, told.text),
    ),
  ];
}

function titleOf({ node_id: id, node_type: type }) {
  const title = app.rootGraph?.getNodeById?.(Number(id))?.title || type;
  return title ? `The node "${title}" failed` : "The job failed";
}
