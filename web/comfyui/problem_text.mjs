// The text of an `execution_error` event, from ComfyUI's fields and `about`, which our own server adds. Pure.

const OURS = /(^|\.)flux_core\.errors\.(\w+)$/;
const MEMORY = ["BudgetTooSmall", "OutOfMemoryError", "MemoryError"];

/** Whether an error was raised by us, or in a node of ours. */
export const isOurs = ({ exception_type: type, node_type: node }) => OURS.test(type ?? "") || (node ?? "").startsWith("Sluice");

/** {text, aboutMemory}. Our own errors are sentences; the text of others begins with their class. */
export function read({ exception_type: type = "", exception_message: message = "", about }) {
  const kind = type.split(".").at(-1), text = message.trim();
  const known = OURS.test(type) || type === "WorkerDied" || type === "SluiceError";
  return {
    text: known || !kind ? text : `${kind}: ${text}`,
    aboutMemory: about === "memory" || MEMORY.includes(kind),
  };
}
