// Two workers in the Memory tab, side by side, each with its job: see test_faults.py.
//   node devices.mjs      tells {seen: [{jobs, limits} of each window]}

import assert from "node:assert/strict";
import { openEditor, scene } from "./page.mjs";

await scene("devices", await openEditor(), async (editor) => {
  const { page } = editor;
  const ended = (message) => message.type === "executing" && message.data.node === null;
  await editor.tab("sluice-memory");
  const columns = page.locator(".sluice-worker");
  await page.getByRole("region", { name: "Worker cpu:1" }).getByText("idle", { exact: true }).waitFor();
  assert.equal(await columns.count(), 2);
  await editor.setValue("BasicScheduler", "steps", 600);
  const start = await editor.run();
  await editor.run();
  const seen = [];
  await editor.inWindows(async () => {
    for (const name of ["cpu:0", "cpu:1"]) {
      const column = page.getByRole("region", { name: `Worker ${name}` });
      await column.getByText(/^job \d+$/).waitFor();
      await column.getByText(/ of 600 · .* left$/).waitFor();
    }
    const jobs = await page.locator(".sluice-worker-name .sluice-quiet").allInnerTexts();
    const limits = await page.locator(".sluice-worker .sluice-budget input[name=ram]").evaluateAll((inputs) => inputs.map(({ value }) => value));
    await editor.shot("at_work");
    seen.push({ jobs, limits });
  });
  await page.evaluate(() => window.comfyAPI.api.api.interrupt());
  await editor.hear(ended, start);
  await page.getByRole("region", { name: "Worker cpu:0" }).getByText("idle", { exact: true }).waitFor();
  await page.getByRole("region", { name: "Worker cpu:1" }).getByText("idle", { exact: true }).waitFor();
  return { seen };
});
