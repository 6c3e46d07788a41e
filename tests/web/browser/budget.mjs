// The budgets in the form after a restart: see test_faults.py.
//   node budget.mjs      tells {rams: [the budget shown in each window]}

import { openEditor, scene } from "./page.mjs";

await scene("budget", await openEditor(), async (editor) => {
  const rams = [];
  await editor.inWindows(async () => {
    await editor.opened("sluice-memory", false);
    await editor.opened("sluice-memory");
    await editor.until(() => document.querySelector(".sluice-budget input[name=ram]")?.value === "3G");
    rams.push(await editor.page.getByLabel("RAM", { exact: true }).inputValue());
  });
  return { rams };
});
