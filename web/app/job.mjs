// One job of this page: queues it, shows its progress from the server's messages, and its images with buttons.

import { element } from "/extensions/sluice/dom.mjs";
import { copyText, lightbox } from "/extensions/sluice/lightbox.mjs";
import * as server from "/extensions/sluice/api.mjs";
import { api } from "/scripts/api.js";

const INSIST = 2500; // ms after which a second cancel ends the job's process: see INSIST_SECONDS of the server

/**
 * The result's part of the page. `acts`: {vary, open(file)}; `busy(on)` is called when a job begins and ends, `say(text)`
 * shows a problem. Returns {queue}: `queue(prompt, workflow, text)` adds a job, whose images are called `text`, and shows it.
 */
export function jobs(root, { vary, open, busy, say }) {
  const picture = element("img", { class: "app-result-image", alt: "" });
  const look = element("button", { type: "button", class: "app-look", "aria-label": "Look at the image", onclick: enlarge }, picture);
  const bar = element("progress", { max: 1, value: 0, "aria-label": "Progress" });
  const state = element("p", { class: "app-told", role: "status" });
  const cancel = element("button", { type: "button", class: "app-button", onclick: stop }, "Cancel");
  const strip = element("div", { class: "app-strip" });
  const download = element("a", { class: "app-button" }, "Download");
  const share = element("button", { type: "button", class: "app-button", onclick: shareImage }, "Share");
  const again = element("button", { type: "button", class: "app-button", onclick: vary }, "Vary");
  const actions = element("div", { class: "app-actions" }, again, download, share);
  root.replaceChildren(look, bar, state, cancel, strip, actions);
  let current = null, results = [], at = 0, previewed = null, words = "";

  async function queue(prompt, workflow, text) {
    const extra_pnginfo = workflow ? { workflow } : {};
    const headers = { "Content-Type": "application/json" };
    const body = JSON.stringify({ prompt, client_id: api.clientId, extra_data: { extra_pnginfo, preview_method: "auto" } });
    const answer = await api.fetchApi("/prompt", { method: "POST", headers, body });
    const told = await answer.json().catch(() => null);
    if (!answer.ok) return say((told?.problems ?? [told?.error?.message ?? "The server refused the job."]).join("\n"));
    words = text;
    begin(told.prompt_id);
  }

  function begin(id) {
    current = id;
    results = [];
    busy(true);
    root.hidden = false;
    look.hidden = strip.hidden = actions.hidden = true;
    bar.hidden = cancel.hidden = false;
    cancel.disabled = false;
    bar.removeAttribute("value"); // the waiting time is unknown
    state.textContent = "Waiting";
    root.scrollIntoView({ block: "start" });
  }

  function end(text) {
    current = null;
    busy(false);
    bar.hidden = cancel.hidden = true;
    state.textContent = text;
  }

  async function stop() {
    const stopped = current;
    cancel.disabled = true;
    state.textContent = "Stopping";
    setTimeout(() => {
      if (current !== stopped) return;
      cancel.disabled = false;
      state.textContent = "Stopping after the block that is being computed. If that takes too long, cancel again: its process is then ended.";
    }, INSIST);
    await api.fetchApi(`/jobs/${stopped}/cancel`, { method: "POST" });
  }

  /** Show the images of a finished job. */
  function show(outputs) {
    results = Object.values(outputs ?? {}).flatMap((output) => output.images ?? []).filter((image) => image.type === "output");
    if (!results.length) return end("The workflow made no image.");
    end("");
    strip.replaceChildren(...(results.length > 1 ? results.map((image, number) => thumb(image, number)) : []));
    strip.hidden = results.length < 2;
    actions.hidden = false;
    select(0);
    root.scrollIntoView({ block: "start" });
  }

  function thumb(image, number) {
    const small = element("img", { src: server.pictureUrl(image, true), alt: "" });
    return element("button", { type: "button", "aria-label": `Image ${number + 1} of ${results.length}`, onclick: () => select(number) }, small);
  }

  function select(number) {
    at = number;
    forget();
    picture.src = server.pictureUrl(results[at]);
    picture.alt = `Result ${at + 1} of ${results.length}`;
    look.hidden = false;
    look.disabled = false;
    download.href = picture.src;
    download.download = results[at].filename;
    share.hidden = !navigator.canShare?.({ files: [new File([""], "image.png", { type: "image/png" })] });
  }

  function enlarge() {
    const pictures = results.map((image) => ({ ...image, text: words, has_workflow: true }));
    lightbox(pictures, at, { open: async (image) => open(await server.pictureFile(image)), copy: copyText, star: null, remove: null });
  }

  /** Share the file with another program of the phone; it contains its workflow. */
  async function shareImage() {
    try {
      await navigator.share({ files: [await server.pictureFile(results[at])] });
    } catch (error) {
      if (error.name !== "AbortError") say(`It could not be shared: ${error.message}. Download it instead.`);
    }
  }

  function forget() {
    if (previewed) URL.revokeObjectURL(previewed);
    previewed = null;
  }

  /** After an interruption of the connection: whether the job has ended. */
  async function catchUp() {
    if (!current) return;
    const found = await api.fetchApi(`/history/${current}`).then((answer) => answer.json()).catch(() => ({}));
    const entry = found[current];
    if (entry) finish(entry);
  }

  function finish({ outputs, status }) {
    if (status?.status_str === "success") show(outputs);
    else end("The job did not end with an image.");
  }

  const mine = (data) => current && data?.prompt_id === current;
  const on = (event, act) => server.listen([event], (data) => mine(data) && act(data));
  on("execution_start", () => (state.textContent = "Running"));
  on("progress", ({ value, max }) => {
    bar.value = value / max;
    state.textContent = `Step ${value} of ${max}`;
  });
  on("executing", ({ node }) => node === null && catchUp()); // sent when the history has the job
  on("execution_error", () => end("The job failed."));
  on("execution_interrupted", () => end("Cancelled."));
  server.listen(["b_preview"], (blob) => {
    if (!current) return;
    forget();
    picture.src = previewed = URL.createObjectURL(blob);
    picture.alt = "Preview";
    look.hidden = false;
    look.disabled = true;
  });
  server.listen(["reconnected"], catchUp);
  return { queue };
}
