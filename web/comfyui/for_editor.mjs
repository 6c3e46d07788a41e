// What our own server adds to the editor: the page for phones in the menu, a list of LoRAs at their nodes and in the menu,
// and a check of the files of every image that is opened.

import { app } from "../../scripts/app.js";
import { chooseLora } from "./lora_list.mjs";
import { tellUsedFiles } from "./used_files.mjs";

const LORA = "lora_name", MODELS = { unet_name: "diffusion_models", ckpt_name: "checkpoints" };
const PHONES = "sluice.phones", LORAS = "sluice.loras";

const widget = (node, name) => node.widgets?.find((one) => one.name === name);

/** {category, name} of the transformer's file of the open workflow, or null. */
function modelOfGraph() {
  for (const node of app.rootGraph.nodes) {
    for (const [name, category] of Object.entries(MODELS)) {
      const value = widget(node, name)?.value;
      if (typeof value === "string") return { category, name: value };
    }
  }
  return null;
}

/** Let a person choose a LoRA for a node; without a node the list is only shown. */
async function choose(node) {
  const chosen = await chooseLora(modelOfGraph());
  if (!chosen || !node) return;
  const set = (name, value) => {
    const one = widget(node, name);
    if (!one) return;
    one.value = value;
    one.callback?.(value);
  };
  set(LORA, chosen.name);
  if (chosen.strength !== null) set("strength_model", chosen.strength);
  app.canvas?.setDirty?.(true, true);
}

const selected = () => Object.values(app.canvas?.selected_nodes ?? {}).find((node) => widget(node, LORA));

/** Add these to the editor. */
export function addToEditor() {
  const open = app.handleFile.bind(app);
  app.handleFile = async (file, ...rest) => {
    const done = await open(file, ...rest);
    tellUsedFiles(file);
    return done;
  };
  app.registerExtension({
    name: "sluice.standalone",
    commands: [
      { id: PHONES, label: "Prompt box (for phones)", icon: "pi pi-mobile", function: () => globalThis.open("/sluice/app", "_blank", "noopener") },
      { id: LORAS, label: "LoRAs that are here", icon: "pi pi-list", function: () => choose(selected()) },
    ],
    menuCommands: [{ path: ["View"], commands: [PHONES, LORAS] }],
    actionBarButtons: [{ icon: "pi pi-mobile", label: "", tooltip: "Prompt box, for phones", onClick: () => globalThis.open("/sluice/app", "_blank", "noopener") }],
    getNodeMenuItems: (node) => (widget(node, LORA) ? [{ content: "Choose a LoRA", callback: () => choose(node) }] : []),
  });
}
