// A page of a headless Chromium with the editor in it, and what a person does there. The addresses come from the environment:
//   SLUICE_URL   the server                  PLAYWRIGHT  the folder of playwright-core
//   BROWSER      a running one to connect to  CHROMIUM   the program to start where there is none
//   SCREENSHOTS  the folder for pictures of the page

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, join } from "node:path";

const { SLUICE_URL, BROWSER, PLAYWRIGHT = "playwright-core", CHROMIUM = "/usr/bin/chromium", SCREENSHOTS = "." } = process.env;
const PATIENCE = 60_000; // ms; for the first page on a busy machine
const THUMB = 44; // CSS pixels

const TITLES = { "sluice-memory": "Memory", "sluice-gallery": "Gallery" };

// Every fault is looked for in both: a window of a notebook computer, and one of a phone.
export const WINDOWS = [["1440x900", "dark"], ["400x800", "light"]];

// It must not connect to the internet: each attempt is an error in the log of a closed network.
export const QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** A window of this size, "1440x900", without a page in it. */
export async function openWindow(size = "1600x1000", options = {}) {
  const { chromium } = createRequire(import.meta.url)(PLAYWRIGHT);
  const [width, height] = size.split("x").map(Number);
  const browser = BROWSER
    ? await chromium.connect(BROWSER)
    : await chromium.launch({ executablePath: CHROMIUM, headless: true, args: QUIET });
  const page = await browser.newPage({ viewport: { width, height }, ...options });
  return new Editor(browser, page);
}

/** The page after its editor has started in the first of WINDOWS, with all that the server says to it kept in `heard`. */
export async function openEditor(size = WINDOWS[0][0], palette = WINDOWS[0][1]) {
  const editor = await openWindow(size);
  await editor.visit();
  await editor.theme(palette);
  return editor;
}

/** Run a scene: `play(editor)` returns what it saw, which is told as JSON on the last line; a failure is pictured. */
export async function scene(name, editor, play) {
  let seen;
  editor.name = name;
  try {
    seen = await play(editor);
    if (editor.errors.length) throw new Error(`the page has errors: ${editor.errors.join("; ")}`);
  } catch (error) {
    await editor.shot("failed");
    throw error;
  } finally {
    await editor.close();
  }
  console.log(JSON.stringify({ ...seen, elsewhere: editor.elsewhere }));
}

class Editor {
  constructor(browser, page) {
    this.browser = browser;
    this.errors = []; // errors of the page
    this.elsewhere = []; // requests to other servers
    this.follow(page);
  }

  /** Note what this page says and asks for, from now on. */
  follow(page) {
    this.page = page;
    this.heard = []; // websocket messages {type, data}; previews as {type: "preview", bytes}
    page.setDefaultTimeout(PATIENCE);
    this.resized();
    page.on("websocket", (socket) => socket.on("framereceived", ({ payload }) => this.heard.push(decoded(payload))));
    page.on("pageerror", (error) => this.errors.push(String(error)));
    page.on("request", (request) => {
      if (!/^(data|blob):/.test(request.url()) && !request.url().startsWith(SLUICE_URL)) this.elsewhere.push(request.url());
    });
  }

  /** Note the size of the window, as it is now. */
  resized() {
    const { width, height } = this.page.viewportSize();
    this.size = `${width}x${height}`;
    this.small = width < 600; // no room for a panel and the canvas at once
  }

  /** Do `look(size)` in each of WINDOWS: the page keeps its state, as when a person turns or resizes a screen. */
  async inWindows(look) {
    for (const [size, palette] of WINDOWS) {
      const [width, height] = size.split("x").map(Number);
      await this.page.setViewportSize({ width, height });
      this.resized();
      await this.theme(palette);
      await look(size);
    }
  }

  /** A new page in a window of this size, without any state of the page before: another person's. */
  async leave(size, options = {}) {
    await this.page.context().close();
    const [width, height] = size.split("x").map(Number);
    this.follow(await this.browser.newPage({ viewport: { width, height }, ...options }));
  }

  /** Such a page with the editor in it. */
  async fresh(size, palette) {
    await this.leave(size);
    await this.visit();
    await this.theme(palette);
  }

  async visit(address = SLUICE_URL) {
    await this.page.goto(address);
    await this.page.waitForFunction(() => window.app?.rootGraph && document.querySelector("[data-testid$='-tab-button']"));
    await this.page.waitForFunction(() => !document.querySelector("#splash-loader"));
  }

  /** Wait until `condition`, evaluated in the page with `argument`, holds; returns its value. */
  async until(condition, argument) {
    return (await this.page.waitForFunction(condition, argument)).jsonValue();
  }

  /** Wait until something heard since `start` passes the test; returns it. */
  async hear(wanted, start = 0) {
    for (const end = Date.now() + PATIENCE; Date.now() < end; await this.page.waitForTimeout(20)) {
      const found = this.heard.slice(start).find(wanted);
      if (found) return found;
    }
    throw new Error(`waited in vain; heard ${this.heard.slice(start).map(({ type }) => type)}`);
  }

  /** Drop a file on the canvas, as the browser reports it. */
  async drop(path, type = "image/png") {
    const dropped = { data: readFileSync(path).toString("base64"), name: basename(path), type };
    await this.page.evaluate(async ({ data, name, type }) => {
      const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], name, { type }));
      const canvas = document.querySelector("#graph-canvas") ?? document.querySelector("canvas");
      const { x, y, width, height } = canvas.getBoundingClientRect();
      const at = { clientX: x + width / 2, clientY: y + height / 2, bubbles: true, cancelable: true, dataTransfer: transfer };
      for (const kind of ["dragenter", "dragover", "drop"]) canvas.dispatchEvent(new DragEvent(kind, at));
    }, dropped);
  }

  /** The editor's notices, in the markup of any of its releases. */
  get notice() {
    return this.page.locator(".p-toast-message, li[role=alert]");
  }

  /** Node types on the canvas, sorted. */
  types() {
    return this.page.evaluate(() => window.app.rootGraph.nodes.map((node) => node.type).sort());
  }

  /** Press Run; returns the mark in `heard` from which its messages come. */
  async run() {
    const start = this.heard.length;
    await this.page.getByTestId("queue-button").click();
    return start;
  }

  tab(id) {
    return this.page.getByTestId(`${id}-tab-button`).click();
  }

  /** Open a tab of the sidebar, or close it, if it is not so already. */
  async opened(id, open = true) {
    const { page } = this;
    const panel = page.locator(".sluice-panel").filter({ has: page.getByRole("heading", { name: TITLES[id], exact: true }) });
    if ((await panel.count()) > 0 === open) return;
    await this.tab(id);
    await panel.waitFor({ state: open ? "visible" : "detached" });
  }

  /** Run where a panel lies over the button in a small window: it is closed meanwhile. */
  async runBesides(id) {
    if (this.small) await this.opened(id, false);
    const start = await this.run();
    await this.opened(id);
    return start;
  }

  /** Write a value into the widget of the only node of a type. */
  setValue(type, name, value) {
    return this.page.evaluate(([wanted, widget, given]) => {
      const node = window.app.rootGraph.nodes.find((one) => one.type === wanted);
      node.widgets.find((one) => one.name === widget).value = given;
    }, [type, name, value]);
  }

  /** POST to the server as the page does; returns {status, body}. */
  post(route, body) {
    return this.page.evaluate(async ([path, data]) => {
      const headers = { "Content-Type": "application/json" };
      const answer = await window.comfyAPI.api.api.fetchApi(path, { method: "POST", headers, body: JSON.stringify(data) });
      return { status: answer.status, body: await answer.json().catch(() => null) };
    }, [route, body]);
  }

  /** What axe-core finds amiss within these selectors that is serious or worse: [{id, impact, what, where}]. */
  async axe(...include) {
    const source = readFileSync(join(dirname(PLAYWRIGHT), "axe-core", "axe.min.js"), "utf-8");
    await this.page.evaluate(source);
    const found = await this.page.evaluate((selectors) => window.axe.run({ include: selectors.map((one) => [one]) }), include);
    return found.violations
      .filter(({ impact }) => impact === "serious" || impact === "critical")
      .map(({ id, impact, nodes }) => ({ id, impact, where: nodes.map(({ html, any }) => `${html.slice(0, 160)} ${any[0]?.message ?? ""}`) }));
  }

  /** The controls in `root` that are smaller than a thumb. */
  smallTargets(root) {
    return this.page.evaluate(smallTargets, [root, THUMB]);
  }

  theme(palette) {
    return this.page.evaluate((id) => window.app.extensionManager.setting.set("Comfy.ColorPalette", id), palette);
  }

  /** A picture of the page, named after the scene, what it shows and the size of the window. */
  shot(what) {
    return this.page.screenshot({ path: join(SCREENSHOTS, `${this.name}_${what}_${this.size}.png`) });
  }

  close() {
    return this.browser.close();
  }
}

function decoded(payload) {
  if (typeof payload === "string") return JSON.parse(payload);
  return { type: "preview", kind: payload.readUInt32BE(0), bytes: payload.length };
}

/** Evaluated in the page; a box to tick counts with its label. */
function smallTargets([root, thumb]) {
  const places = [...document.querySelectorAll(`${root} :is(button, a[href], input, select, textarea, summary)`)];
  return places
    .map((one) => (one.matches("[type=checkbox]") ? (one.closest("label") ?? one) : one))
    .filter((one) => one.checkVisibility({ visibilityProperty: true }))
    .map((one) => [one.outerHTML.slice(0, 120), one.getBoundingClientRect()])
    .filter(([, box]) => box.width > 0 && (box.width < thumb || box.height < thumb))
    .map(([html, box]) => `${html} ${Math.round(box.width)}x${Math.round(box.height)}`);
}
