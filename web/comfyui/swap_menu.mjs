// "Use Sluice for FLUX" in ComfyUI's menus: replaces nodes of the open workflow by ours, or by ComfyUI's own again.

import { app } from "../../scripts/app.js";
import { notice } from "./notice.mjs";
import { swap } from "./swap.mjs";

const COMMANDS = [
  { id: "sluice.useSluice", label: "Use Sluice for FLUX", icon: "pi pi-arrow-right-arrow-left", back: false },
  { id: "sluice.useComfyUI", label: "Use ComfyUI's nodes again", icon: "pi pi-undo", back: true },
];

async function change(back) {
  const response = await fetch(new URL("./swap_nodes.json", import.meta.url));
  const { workflow, changed, left } = swap(app.graph.serialize(), await response.json(), back);
  if (changed) await app.loadGraphData(workflow, true, false, app.extensionManager.workflow?.activeWorkflow ?? null);
  const summary = changed ? `${changed} nodes changed` : "Nothing to change";
  const severity = left.length ? "warn" : "info";
  notice(severity, summary, left.join("\n"), left.length ? 20000 : 5000);
}

const items = () => [null, ...COMMANDS.map(({ label, back }) => ({ content: label, callback: () => change(back) }))];

/** Adds the commands to the canvas's menu in frontends without a function for that. */
function addToOldMenu() {
  const canvas = globalThis.LGraphCanvas?.prototype;
  if (!canvas || typeof app.collectCanvasMenuItems === "function") return;
  const original = canvas.getCanvasMenuOptions;
  canvas.getCanvasMenuOptions = function (...args) {
    return [...original.apply(this, args), ...items()];
  };
}

/** From the definitions of all nodes: offer the commands where our nodes have ids of their own (in ComfyUI). */
export function offerSwap(definitions) {
  if (definitions.SluiceUNETLoader?.output?.[0] !== "FLUX_MODEL") return;
  app.registerExtension({
    name: "sluice.swap",
    commands: COMMANDS.map(({ id, label, icon, back }) => ({ id, label, icon, function: () => change(back) })),
    menuCommands: [{ path: ["Edit"], commands: COMMANDS.map(({ id }) => id) }],
    getCanvasMenuItems: items,
  });
  addToOldMenu();
}
