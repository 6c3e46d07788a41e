// One job of this page: queues it, shows its progress from the server's messages, and its images with buttons. The state
// of the job is the server's: it is asked for whenever a message says that it may have changed, also by another page.

import { element } from "/extensions/sluice/dom.mjs";
import { copyText, lightbox } from "/extensions/sluice/lightbox.mjs";
import * as server from "/extensions/sluice/api.mjs";
import { api } from "/scripts/api.js";

const INSIST = 2500; // ms after which a second cancel ends the job's process: see INSIST_SECONDS of the server
const KEY = "sluice.job"; // the job that is shown, {id, words}, for the page when it is loaded again

/**
 * The result's part of the page. `vary()` and `open(file)` are called by an image's buttons, `busy(on)` when a job begins
 * and ends; `say(text)` shows a problem. Returns {queue, again}: `queue(prompt, workflow, text)` adds a job, whose images are called `text`, and
 * shows it, or throws the server's refusal; `again()` shows the job that this page showed before it was loaded again.
 */
export function jobs(root, { vary, open, busy, say }) {
  const picture = element("img", { class: "app-result-image", alt: "", onerror: gone });
  const look = element("button", { type: "button", class: "app-look", "aria-label": "Look at the image", onclick: enlarge }, picture);
  const bar = element("progress", { max: 1, value: 0, "aria-label": "Progress" });
  const state = element("p", { class: "app-told", role: "status" });
  const cancel = element("button", { type: "button", class: "app-button", onclick: stop }, "Cancel");
  const strip = element("div", { class: "app-strip" });
  const download = element("a", { class: "app-button" }, "Download");
  const share = element("button", { type: "button", class: "app-button", onclick: shareImage }, "Share");
  const other = element("button", { type: "button", class: "app-button", onclick: vary }, "Vary");
  const actions = element("div", { class: "app-actions" }, other, download, share);
  root.replaceChildren(look, bar, state, cancel, strip, actions);
  let current = null, stopping = false, results = [], at = 0, previewed = null, words = "";

  async function queue(prompt, workflow, text) {
    const extra_pnginfo = workflow ? { workflow } : {};
    const headers = { "Content-Type": "application/json" };
    const body = JSON.stringify({ prompt, client_id: api.clientId, extra_data: { extra_pnginfo, preview_method: "auto" } });
    const answer = await api.fetchApi("/prompt", { method: "POST", headers, body });
    const told = await answer.json().catch(() => null);
    if (!answer.ok) throw new Error((told?.problems ?? [told?.error?.message ?? "The server refused the job."]).join("\n"));
    words = text;
    store({ id: told.prompt_id, words });
    await follow(told.prompt_id);
  }

  async function again() {
    const stored = storedJob();
    if (!stored) return;
    words = stored.words;
    await follow(stored.id);
  }

  /** Show this job from now on. Its state is asked for at once: messages about it can have come before its number. */
  async function follow(id) {
    current = id;
    results = [];
    wait("Waiting");
    root.scrollIntoView({ block: "start" });
    await catchUp();
  }

  /** Show that the job waits or runs. */
  function wait(text) {
    stopping = false;
    busy(true);
    root.hidden = false;
    look.hidden = strip.hidden = actions.hidden = true;
    bar.hidden = cancel.hidden = false;
    cancel.disabled = false;
    bar.removeAttribute("value"); // the waiting time is unknown
    state.textContent = text;
  }

  function end(text) {
    current = null;
    if (text) store(null);
    rest(text);
    cancel.hidden = true;
  }

  /** Show that nothing is being computed. */
  function rest(text) {
    stopping = false;
    busy(false);
    bar.hidden = true;
    state.textContent = text;
  }

  async function stop() {
    const stopped = current;
    cancel.disabled = stopping = true;
    state.textContent = "Stopping";
    setTimeout(() => {
      if (current !== stopped || !stopping) return;
      cancel.disabled = false;
      state.textContent = "Stopping after the block that is being computed. If that takes too long, cancel again: its process is then ended.";
    }, INSIST);
    try {
      await api.fetchApi(`/jobs/${stopped}/cancel`, { method: "POST" });
    } catch {
      cancel.disabled = stopping = false;
      state.textContent = "The server cannot be reached: the job was not cancelled.";
    }
    await catchUp(); // a job that waits or is paused is removed without a message of its own
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

  /** The image was deleted, in the gallery for example. */
  function gone() {
    if (current) return;
    look.hidden = strip.hidden = actions.hidden = true;
    end("The image does not exist any more.");
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

  /** Show the state that the job has on the server. */
  async function catchUp() {
    const asked = current;
    if (!asked) return;
    const answer = await api.fetchApi(`/jobs/${asked}`).catch(() => null);
    const job = answer?.ok ? await answer.json() : null;
    if (current !== asked || !(job || answer?.status === 404)) return; // another job, or no connection: "reconnected" follows
    switch (job?.status) {
      case "pending":
        if (!stopping) wait("Waiting");
        return;
      case "in_progress":
        if (!stopping && (bar.hidden || state.textContent === "Waiting")) wait("Running");
        return;
      case "paused":
        cancel.disabled = false;
        return rest("Paused. Resume it in the tab Memory.");
      case "completed":
        return show(job.outputs);
      case "failed":
        return end("The job failed.");
      case "cancelled":
        return end("Cancelled.");
      default:
        return end("The job was removed.");
    }
  }

  const mine = (data) => current && data?.prompt_id === current;
  const on = (event, act) => server.listen([event], (data) => mine(data) && act(data));
  on("execution_start", catchUp);
  on("progress", ({ value, max }) => {
    if (stopping) return;
    bar.value = value / max;
    state.textContent = `Step ${value} of ${max}`;
  });
  on("executing", ({ node }) => node === null && catchUp()); // sent when the job's end is stored
  server.listen(["b_preview"], (blob) => {
    if (!current) return;
    forget();
    picture.src = previewed = URL.createObjectURL(blob);
    picture.alt = "Preview";
    look.hidden = false;
    look.disabled = true;
  });
  server.listen(["reconnected", "sluice.paused"], catchUp); // the second one also when jobs are removed
  return { queue, again };
}

function storedJob() {
  try {
    return JSON.parse(sessionStorage[KEY] ?? "null");
  } catch {
    return null; // a browser without storage
  }
}

function store(job) {
  try {
    sessionStorage[KEY] = JSON.stringify(job);
  } catch {
    // a browser without storage: the next visit shows no job
  }
}
