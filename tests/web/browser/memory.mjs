// The Memory tab on the first run, with valid and invalid budgets: see test_faults.py.
//   node memory.mjs      tells {seen: [{figures, models} of each window]}

import { openEditor, scene } from "./page.mjs";

await scene("memory", await openEditor(), async (editor) => {
  const { page } = editor;
  const ended = (message) => message.type === "executing" && message.data.node === null;
  const seen = [];

  // The device is shown before anything runs, and map, prediction and peak after the first run.
  await editor.tab("sluice-memory");
  await page.locator(".sluice-card").getByText(/^b?float(16|32)$/).waitFor();
  let start = await editor.runBesides("sluice-memory");
  await editor.hear(ended, start);
  await editor.inWindows(async () => {
    await page.locator(".sluice-card", { hasText: "measured peak" }).waitFor();
    const figures = await page.locator(".sluice-figures dd").allInnerTexts();
    const models = await page.locator(".sluice-map").evaluateAll((maps) =>
      maps.map((map) => map.closest("section").querySelector("h3 span").textContent.split(" · ")[0]));
    await page.getByRole("img", { name: /^8 groups of weights: 8 resident/ }).waitFor();
    await editor.shot("first_run");
    seen.push({ figures, models });
  });

  // The check of the machine shows its findings with advice.
  await page.getByRole("button", { name: "Check this machine" }).click();
  await editor.inWindows(async () => {
    await page.locator(".sluice-findings li", { hasText: "only the small model that comes with Sluice" }).getByText("Download FLUX.1").waitFor();
    await editor.shot("machine");
  });

  // Invalid budgets get an error, and nothing changes.
  const field = page.getByLabel("RAM", { exact: true }), set = page.getByRole("button", { name: "Set", exact: true });
  await editor.inWindows(async () => {
    for (const [label, given, answer] of [
      ["RAM", "0", "0 MiB of RAM is too little: this program takes"],
      ["RAM", "100M", "100 MiB of RAM is too little"],
      ["RAM", "1000G", "1000.00 GiB of RAM is more than there is"],
      ["VRAM", "8G", "There is no GPU here"],
      ["RAM", "-5G", "'-5G' is not a size"],
    ]) {
      await page.getByLabel(label, { exact: true }).fill(given);
      await set.click();
      await page.locator(".sluice-budget .sluice-over").getByText(answer).waitFor();
      await page.getByLabel(label, { exact: true }).fill("auto");
    }
    await editor.shot("budget");
  });

  // After a valid one, older measurements are marked.
  await field.fill("3G");
  await set.click();
  await page.getByText("In force for the next job.").waitFor();
  await editor.inWindows(() => page.getByText("last run, before the change").waitFor());

  // A running job can be paused and resumed.
  await editor.setValue("BasicScheduler", "steps", 600);
  start = await editor.runBesides("sluice-memory");
  await page.locator(".sluice-card").getByText(/ left$/).waitFor();
  await page.getByRole("button", { name: "Pause", exact: true }).click();
  await editor.inWindows(async () => {
    await page.locator(".sluice-paused button:enabled", { hasText: "Resume" }).waitFor();
    await editor.shot("paused");
  });
  await page.locator(".sluice-paused button", { hasText: "Resume" }).click();
  await page.locator(".sluice-paused").waitFor({ state: "detached" });

  // A cancelled job shows no remaining work.
  start = editor.heard.length;
  await page.locator(".sluice-card").getByText(/ left$/).waitFor();
  await page.evaluate(() => window.comfyAPI.api.api.interrupt());
  await editor.hear(ended, start);
  await editor.inWindows(() => page.locator(".sluice-card").getByText(/ left$/).waitFor({ state: "detached" }));
  return { seen };
});
