// The extension of the editor. ComfyUI loads it from the node pack; the standalone server serves it itself.
// It registers the parts that the other files implement.

import { app } from "../../scripts/app.js";
import * as server from "./api.mjs";
import * as finished from "./finished.mjs";
import { addToEditor } from "./for_editor.mjs";
import { galleryPanel } from "./gallery_panel.mjs";
import * as live from "./live.mjs";
import { memoryPanel } from "./memory_panel.mjs";
import { look } from "./missing.mjs";
import { notice } from "./notice.mjs";
import * as problem from "./problem.mjs";
import { offerSwap } from "./swap_menu.mjs";

const NARROW = 600; // CSS pixels of a window in which a workflow at its usual scale shows two nodes

const drawn = new WeakMap(); // element of the sidebar -> {panel, undo}, of the panel that is in it

/**
 * A sidebar tab from a panel. The editor may render again into the same element, into another one before `destroy`, and
 * one tab into the element of another without calling that one's `destroy`.
 */
function tab(panel, description) {
  let shown = null;
  const clear = (root) => {
    drawn.get(root)?.undo();
    drawn.delete(root);
  };
  const destroy = () => {
    if (shown && drawn.get(shown)?.panel === panel) clear(shown);
    shown = null;
  };
  const render = (root) => {
    if (drawn.get(root)?.panel === panel) return;
    destroy();
    clear(root);
    drawn.set(root, { panel, undo: panel(root) });
    shown = root;
  };
  app.extensionManager.registerSidebarTab({ type: "custom", render, destroy, ...description });
}

function dress() {
  const sheet = document.createElement("link");
  sheet.rel = "stylesheet";
  sheet.href = new URL("./style.css", import.meta.url).href;
  document.head.append(sheet);
}

/** If the server has a workflow for the first visit, use it in place of the editor's own. */
async function useOurDefault() {
  const editors = globalThis.comfyAPI?.defaultGraph?.defaultGraph;
  const workflow = editors && (await server.defaultWorkflow());
  if (!workflow) return;
  for (const key of Object.keys(editors)) delete editors[key];
  Object.assign(editors, workflow);
}

let hideMissing = () => {}; // of the workflow that was open before

async function tellWhatIsMissing() {
  const { output } = await app.graphToPrompt();
  const files = await look(output);
  hideMissing();
  if (!files.length) return;
  const names = files.map((file) => file.name).join(", ");
  const detail = `${names}. The Memory tab shows where to get ${files.length === 1 ? "it" : "them"}.`;
  hideMissing = notice("warn", "Files are missing", detail, 6000);
}

/** Choose the file `other` wherever the open workflow names `name`, and look again for what is missing. */
function useInstead(name, other) {
  for (const node of app.rootGraph.nodes) {
    for (const widget of node.widgets ?? []) {
      if (widget.value !== name) continue;
      widget.value = other;
      widget.callback?.(other);
    }
  }
  app.rootGraph.setDirtyCanvas(true, true);
  return tellWhatIsMissing();
}

/** In a narrow window show the whole workflow, with the image that it makes: at the usual scale both are out of sight. */
function fitNarrow() {
  if (window.innerWidth >= NARROW || !app.rootGraph?.nodes.length) return;
  const boxes = app.rootGraph.nodes.map((node) => [...node.boundingRect]);
  const [left, top] = [0, 1].map((side) => Math.min(...boxes.map((box) => box[side])));
  const [right, bottom] = [0, 1].map((side) => Math.max(...boxes.map((box) => box[side] + box[side + 2])));
  const { ds, canvas } = app.canvas;
  const view = canvas.getBoundingClientRect();
  const bar = document.querySelector(".side-tool-bar-container")?.getBoundingClientRect();
  const from = bar && bar.left < view.left + 8 ? bar.right - view.left : 0; // the bar of tabs lies over the canvas
  const room = view.width - from;
  ds.scale = Math.min((0.94 * room) / (right - left), (0.7 * view.height) / (bottom - top), 1);
  ds.offset[0] = (from + room / 2) / ds.scale - (left + right) / 2;
  ds.offset[1] = view.height / 2 / ds.scale - (top + bottom) / 2;
  app.canvas.setDirty(true, true);
}

app.registerExtension({
  name: "sluice",
  settings: finished.settings,
  init: useOurDefault,
  addCustomNodeDefs: offerSwap,
  setup() {
    dress();
    tab((root) => memoryPanel(root, useInstead), {
      id: "sluice-memory",
      icon: "pi pi-microchip",
      title: "Memory",
      tooltip: "Where the models are, and how fast they run",
    });
    tab((root) => galleryPanel(root, (file) => app.handleFile(file)), {
      id: "sluice-gallery",
      icon: "pi pi-images",
      title: "Gallery",
      tooltip: "Finished images, their prompts and seeds",
    });
    const standalone = live.start();
    problem.start(standalone);
    finished.start(standalone);
    standalone.then((ours) => ours && addToEditor());
    return standalone;
  },
  afterConfigureGraph() {
    requestAnimationFrame(fitNarrow); // after the editor has restored the view that the file names
    return tellWhatIsMissing();
  },
});
