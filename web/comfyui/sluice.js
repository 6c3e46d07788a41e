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

app.registerExtension({
  name: "sluice",
  settings: finished.settings,
  init: useOurDefault,
  addCustomNodeDefs: offerSwap,
  setup() {
    dress();
    tab(memoryPanel, {
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
  afterConfigureGraph: tellWhatIsMissing,
});
