// The budgets in the form after a restart: see test_faults.py.
//   node budget.mjs SIZE PALETTE

import { openEditor, scene } from "./page.mjs";

const [size, palette] = process.argv.slice(2);

await scene(`budget_${size}_${palette}`, await openEditor(size, palette), async (editor) => {
  await editor.tab("sluice-memory");
  await editor.until(() => document.querySelector(".sluice-budget input[name=ram]")?.value === "3G");
  return { ram: await editor.page.getByLabel("RAM", { exact: true }).inputValue() };
});
