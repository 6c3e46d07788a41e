// Our two tabs, opened in turns: see test_faults.py.
//   node tabs.mjs

import assert from "node:assert/strict";
import { openEditor, scene } from "./page.mjs";

await scene("tabs", await openEditor(), async (editor) => {
  const { page } = editor;
  const panel = (title) => page.locator(".sluice-panel").filter({ has: page.getByRole("heading", { name: title, exact: true }) });
  await editor.inWindows(async () => {
    for (const [id, title] of [["memory", "Memory"], ["gallery", "Gallery"], ["memory", "Memory"], ["gallery", "Gallery"], ["memory", "Memory"]]) {
      await editor.tab(`sluice-${id}`);
      await panel(title).waitFor();
      assert.equal(await page.locator(".sluice-panel").count(), 1, "one panel is on the page");
      assert.equal(await page.locator("input.sluice-filter").count(), id === "gallery" ? 1 : 0);
      assert.equal(await page.locator(".sluice-budget").count(), id === "memory" ? 1 : 0);
    }
    // A tab that is closed and opened again is as before.
    await editor.tab("sluice-memory");
    await page.locator(".sluice-panel").waitFor({ state: "detached" });
    await editor.tab("sluice-memory");
    await panel("Memory").waitFor();
    await editor.shot("closed_and_opened");
    await editor.tab("sluice-memory");
    await page.locator(".sluice-panel").waitFor({ state: "detached" });
  });
  return {};
});
