// The page for phones: choose a workflow, set its few inputs, run it, view, vary and share the images; gallery, memory.

import { element } from "/extensions/sluice/dom.mjs";
import { galleryPanel } from "/extensions/sluice/gallery_panel.mjs";
import * as live from "/extensions/sluice/live.mjs";
import { memoryPanel } from "/extensions/sluice/memory_panel.mjs";
import { look, missingList } from "/extensions/sluice/missing.mjs";
import * as problem from "/extensions/sluice/problem.mjs";
import { tellUsedFiles } from "/extensions/sluice/used_files.mjs";
import { api } from "/scripts/api.js";
import { drawForm } from "./form.mjs";
import { jobs } from "./job.mjs";

const KEY = "sluice.app"; // the open workflow and the typed values, for the next visit
const FIRST = { name: "text_to_image", title: "Text to image" };
const find = (id) => document.getElementById(id);

let told = null; // the form of the open workflow, from the server
let form = null;
let opened = FIRST; // {name, title} of a shipped workflow, or {workflow, title}

const say = (text) => (find("told").textContent = text);
const result = jobs(find("result"), { vary, open: openFile, busy, say });

async function request(route, body, headers = { "Content-Type": "application/json" }) {
  const data = headers["Content-Type"] === "application/json" ? JSON.stringify(body) : body;
  const answer = await api.fetchApi(route, body === undefined ? {} : { method: "POST", headers, body: data });
  const found = await answer.json().catch(() => null);
  if (!answer.ok) throw new Error(found?.error?.message ?? `The server answered ${answer.status}.`);
  return found;
}

async function trying(act) {
  try {
    say("");
    await act();
  } catch (error) {
    say(error.message);
  }
}

function show(next, answer, kept) {
  opened = next;
  told = answer;
  find("title").textContent = next.title;
  form = drawForm(find("form"), answer, { kept, changed: remember, say });
  if (!answer.fields.length) say("This workflow has no inputs that are known here. The editor opens it.");
  remember();
  look(told.workflow);
}

function drawMissing() {
  const files = live.missing.value;
  find("missing").classList.toggle("sluice-panel", files.length > 0);
  find("missing").replaceChildren(...missingList(files, live.used.value));
}

function remember() {
  try {
    localStorage[KEY] = JSON.stringify({ opened, kept: form.keep() });
  } catch {
    // a browser without storage: the next visit has no values
  }
}

async function openFile(file) {
  await trying(async () => {
    const answer = await request("/sluice/app/open", file, { "Content-Type": file.type || "application/octet-stream" });
    show({ workflow: answer.workflow, title: file.name }, answer);
    tellUsedFiles(file);
    tab("create");
  });
}

async function openShipped({ name, title }) {
  await trying(async () => show({ name, title }, await request("/sluice/app/form", { name })));
}

async function begin() {
  live.missing.watch(drawMissing);
  live.used.watch(drawMissing);
  let stored = null;
  try {
    stored = JSON.parse(localStorage[KEY] ?? "null");
  } catch {
    // unusable contents
  }
  if (stored?.opened) {
    const answer = await request("/sluice/app/form", stored.opened).catch(() => null);
    if (answer) return show(stored.opened, answer, stored.kept);
  }
  await openShipped(FIRST);
}

// -- run ------------------------------------------------------------------------------------------------------------

async function run() {
  if (!form || !find("form").reportValidity()) return;
  if (form.random()) form.vary();
  await send();
}

async function vary() {
  form.vary();
  await send();
}

async function send() {
  if (find("run").disabled) return; // a second tap makes no second job
  tab("create");
  busy(true);
  await trying(async () => {
    try {
      const { prompt, workflow } = await request("/sluice/app/filled", { workflow: told.workflow, values: form.values(), loras: form.loras() });
      await result.queue(prompt, workflow, form.text());
    } catch (error) {
      busy(false);
      throw error;
    }
  });
}

function busy(on) {
  find("run").disabled = on;
  find("run").textContent = on ? "Running" : "Run";
}

// -- the workflows ----------------------------------------------------------------------------------------------------

async function chooseWorkflow() {
  const file = element("input", { type: "file", accept: "image/*,.json,application/json", "aria-label": "Open an image or a workflow file", onchange: () => (box.close(), openFile(file.files[0])) });
  const list = element("div", { class: "app-templates" });
  const box = element(
    "dialog",
    { class: "app-dialog", "aria-label": "Choose a workflow", onclose: () => box.remove() },
    element("header", {}, element("h2", {}, "Workflows"), element("button", { type: "button", class: "app-button", "aria-label": "Close", onclick: () => box.close() }, "✕")),
    element("label", { class: "app-field" }, element("span", {}, "An image or file of yours"), file),
    list,
  );
  document.body.append(box);
  box.showModal();
  await trying(async () => {
    const groups = await request("/sluice/app/workflows");
    list.replaceChildren(...groups.flatMap(({ title, templates }) => [element("h3", {}, title), ...templates.map((one) => entry(one, () => (box.close(), openShipped(one))))]));
  });
}

function entry({ name, title, description, mediaSubtype }, choose) {
  const picture = element("img", { src: api.apiURL(`/templates/${name}-1.${mediaSubtype}`), alt: "", loading: "lazy" });
  return element("button", { type: "button", class: "app-template", onclick: choose }, picture, element("span", {}, element("strong", {}, title), element("span", { class: "app-soft" }, description)));
}

// -- the views --------------------------------------------------------------------------------------------------------

const panels = { gallery: (root) => galleryPanel(root, openFile), memory: memoryPanel };
let leave = () => {};

function tab(name) {
  if (!find(name).hidden) return;
  leave();
  leave = () => {};
  for (const other of ["create", "gallery", "memory"]) {
    find(other).hidden = other !== name;
    find(`tab-${other}`).setAttribute("aria-selected", String(other === name));
  }
  find("runbar").hidden = name !== "create";
  if (panels[name]) leave = panels[name](find(name));
  scrollTo(0, 0);
}

for (const name of ["create", "gallery", "memory"]) find(`tab-${name}`).addEventListener("click", () => tab(name));
find("choose").addEventListener("click", chooseWorkflow);
find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
const standalone = live.start();
problem.start(standalone);
begin();
result.again();
