// Our own tabs, dialogs and pages for people with low vision or without a mouse: see test_faults.py.
//   node access.mjs MISSING.json FOREIGN.png      tells what axe-core finds amiss, by place and window; what is told of files

import assert from "node:assert/strict";
import { openEditor, scene } from "./page.mjs";

const [absent, foreign] = process.argv.slice(2);

await scene("access", await openEditor(), async (editor) => {
  const { page } = editor;
  const found = {};
  const check = async (name, ...where) => {
    await page.waitForTimeout(400); // the theme's colours fade in
    found[`${name} ${editor.size}`] = await editor.axe(...where);
    await editor.shot(name);
  };
  const checkAll = (name, ...where) => editor.inWindows(() => check(name, ...where));
  const ended = (message) => message.type === "executing" && message.data.node === null;

  await editor.tab("sluice-memory");
  await page.locator(".sluice-card").first().waitFor();
  await checkAll("memory_before", ".sluice-panel");
  await editor.hear(ended, await editor.runBesides("sluice-memory"));
  await page.getByText("measured peak").waitFor();
  await page.getByLabel("RAM", { exact: true }).fill("much");
  await page.getByRole("button", { name: "Set", exact: true }).click();
  await page.locator(".sluice-budget .sluice-over").waitFor();
  await checkAll("memory", ".sluice-panel");
  await page.evaluate(() => window.app.rootGraph.clear());
  await editor.drop(absent, "application/json");
  await page.locator(".sluice-missing").waitFor();
  await checkAll("memory_missing", ".sluice-panel");

  // An image from another server: each of its files is the same, another one, missing, or here under another name.
  await page.evaluate(() => window.app.rootGraph.clear());
  await editor.drop(foreign);
  await editor.notice.getByText("This image was made with other files").first().waitFor();
  await page.locator(".sluice-used").getByText("mine.safetensors is here under another name: choose renamed.safetensors.").waitFor();
  const used = await page.locator(".sluice-used li").evaluateAll((items) =>
    Object.fromEntries(items.map((item) => [item.querySelector("strong").textContent, [item.querySelector("span").textContent, item.querySelector("p")?.textContent ?? ""]])));
  await editor.notice.getByRole("button", { name: "Close" }).first().click(); // it lies over the panel of a small window
  await checkAll("used_files", ".sluice-panel");

  // The one that is here under another name is used with a click, and no longer listed as missing.
  const lacking = page.locator(".sluice-missing");
  await lacking.getByText("The same file is here, named renamed.safetensors").waitFor();
  await lacking.getByRole("heading", { name: "1 file missing" }).waitFor();
  await lacking.getByRole("button", { name: "Use renamed.safetensors" }).click();
  await lacking.getByText("The same file is here").waitFor({ state: "detached" });
  await lacking.getByText("FLUX.1-Turbo-Alpha.safetensors (694 MB)").waitFor();
  const chosen = await page.evaluate(() => window.app.rootGraph.nodes.flatMap((node) => node.widgets ?? []).map(({ value }) => value));
  assert.ok(chosen.includes("renamed.safetensors") && !chosen.includes("mine.safetensors"));

  // The list of the installed LoRAs in the editor.
  await page.evaluate(() => void window.app.extensionManager.command.execute("sluice.loras")); // it ends with the dialog
  await page.locator(".sluice-loras").getByText("renamed.safetensors").waitFor();
  await checkAll("loras", ".sluice-loras");
  await page.keyboard.press("Escape");

  await editor.tab("sluice-gallery");
  await page.locator(".sluice-thumb").first().waitFor();
  await checkAll("gallery", ".sluice-panel");
  await page.locator(".sluice-thumb").first().click();
  await checkAll("lightbox", ".sluice-lightbox");
  await page.keyboard.press("Escape");
  const boxes = page.locator(".sluice-pick input");
  await boxes.nth(0).check();
  await boxes.nth(1).check();
  await page.getByRole("button", { name: "Compare", exact: true }).click();
  await checkAll("compare", ".sluice-compare");
  return { found, used };
});
