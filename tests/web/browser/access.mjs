// Our own tabs, dialogs and pages as people use them who see little or hold no mouse: see test_faults.py.
//   node access.mjs SIZE PALETTE MISSING.json      tells what axe-core finds amiss, by place

import { openEditor, scene } from "./page.mjs";

const [size, palette, lacking] = process.argv.slice(2);
const small = Number(size.split("x")[0]) < 600;

await scene(`access_${size}_${palette}`, await openEditor(size, palette), async (editor) => {
  const { page } = editor;
  const found = {};
  const settled = () => page.waitForTimeout(400); // the theme's colours fade in
  const check = async (name, ...where) => {
    await settled();
    found[name] = await editor.axe(...where);
    await editor.shot(`access_${name}_${size}_${palette}`);
  };
  const ended = (message) => message.type === "executing" && message.data.node === null;

  await editor.tab("sluice-memory");
  await page.locator(".sluice-card").first().waitFor();
  await check("memory_before", ".sluice-panel");
  if (small) await editor.tab("sluice-memory");
  await editor.hear(ended, await editor.run());
  if (small) await editor.tab("sluice-memory");
  await page.getByText("measured peak").waitFor();
  await page.getByLabel("RAM", { exact: true }).fill("much");
  await page.getByRole("button", { name: "Set", exact: true }).click();
  await page.locator(".sluice-budget .sluice-over").waitFor();
  await check("memory", ".sluice-panel");
  await page.evaluate(() => window.app.rootGraph.clear());
  await editor.drop(lacking, "application/json");
  await page.locator(".sluice-missing").waitFor();
  await check("memory_missing", ".sluice-panel");

  await editor.tab("sluice-gallery");
  await page.locator(".sluice-thumb").first().waitFor();
  await check("gallery", ".sluice-panel");
  await page.locator(".sluice-thumb").first().click();
  await check("lightbox", ".sluice-lightbox");
  await page.keyboard.press("Escape");
  const boxes = page.locator(".sluice-pick input");
  await boxes.nth(0).check();
  await boxes.nth(1).check();
  await page.getByRole("button", { name: "Compare", exact: true }).click();
  await check("compare", ".sluice-compare");
  return { found };
});
