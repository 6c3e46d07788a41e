// The title of the browser tab as text. Pure.

const MARKS = { success: "✓ ", error: "✗ " };
const EDITOR = "ComfyUI";

/**
 * The editor's title as this page shows it: with a mark for a job that has `ended` ("success", "error" or null) while
 * the page was in the background and, on our own server, with our name in place of the editor's. Applying it twice
 * changes nothing.
 */
export function pageTitle(title, { ended, standalone }) {
  const plain = Object.values(MARKS).reduce((text, mark) => (text.startsWith(mark) ? text.slice(mark.length) : text), title);
  const named = standalone && plain.endsWith(EDITOR) ? `${plain.slice(0, -EDITOR.length)}Sluice` : plain;
  return (MARKS[ended] ?? "") + named;
}
