// The page for phones: prompt, run, look, vary, share; gallery, memory, LoRAs and other workflows. See test_faults.py.
//   node phone.mjs SIZE PALETTE PICTURE FOLDER      tells {prompts, downloaded, found (axe), small (targets), ...}

import assert from "node:assert/strict";
import { join } from "node:path";
import { openWindow, scene } from "./page.mjs";

const [size, palette, picture, folder] = process.argv.slice(2);
const phone = { colorScheme: palette, hasTouch: true, isMobile: true, acceptDownloads: true };
await scene(`phone_${palette}`, await openWindow(size, phone), async (editor) => {
  const { page } = editor;
  const found = {}, small = {};
  const check = async (name, root) => {
    await page.waitForTimeout(200);
    found[name] = await editor.axe(root);
    small[name] = await editor.smallTargets(root);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(wide <= 0, `${name} is ${wide} pixels too wide`);
    await editor.shot(name);
  };
  const result = page.locator(".app-result-image"), run = page.getByRole("button", { name: "Run", exact: true });
  const finished = async (before = "") => {
    await page.waitForFunction((old) => {
      const image = document.querySelector(".app-result-image");
      return image.alt.startsWith("Result") && image.src !== old && image.naturalWidth > 0;
    }, before);
    return result.evaluate((image) => image.src);
  };

  // Prompt, run.
  await page.goto(process.env.SLUICE_URL + "/sluice/app");
  const prompt = page.getByLabel("Prompt", { exact: true });
  await prompt.waitFor();
  await check("create", "body");
  await prompt.tap();
  await prompt.fill("a green heart on the left, white background");
  const steps = page.getByLabel("Steps", { exact: true });
  await steps.fill("6");
  await run.tap();
  await page.getByRole("progressbar", { name: "Progress" }).waitFor();
  const first = await finished();
  const previews = editor.heard.filter(({ type }) => type === "preview").length;
  await check("result", "body");

  // A wrong value is told beside its field, which is scrolled to and not behind the bars.
  await steps.fill("0");
  await page.evaluate(() => scrollTo(0, 0));
  await run.tap();
  await page.waitForFunction(() => document.activeElement.matches(":invalid"));
  await page.waitForTimeout(300);
  const [field, foot] = await Promise.all([steps.boundingBox(), page.locator(".app-foot").boundingBox()]);
  assert.ok(field.y > 60 && field.y + field.height < foot.y, `${field.y} to ${field.y + field.height}, the bar from ${foot.y}`);
  await editor.shot("wrong_value");
  await steps.fill("6");

  // Look.
  await page.getByRole("button", { name: "Look at the image" }).tap();
  await page.locator(".sluice-lightbox").waitFor();
  await check("look", ".sluice-lightbox");
  await page.getByRole("button", { name: "Close" }).tap();

  // Vary: another seed, another image.
  const seed = page.getByLabel("Seed", { exact: true }), before = await seed.inputValue();
  await page.getByRole("button", { name: "Vary" }).tap();
  await finished(first);
  assert.notEqual(await seed.inputValue(), before);

  // Share: the unchanged file, with its workflow.
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("link", { name: "Download" }).tap()]);
  const downloaded = join(folder, download.suggestedFilename());
  await download.saveAs(downloaded);

  // Two taps make one job; it is still shown after the page is loaded again, while it is paused, resumed and cancelled.
  if (palette === "dark") {
    const state = (text) => page.locator("#result").getByRole("status").getByText(text).waitFor();
    await steps.fill("900");
    await run.dblclick();
    await state(/^Step /);
    await page.reload();
    await state(/^Step /);
    const jobs = await page.evaluate(async () => (await fetch("/queue")).json());
    assert.deepEqual([jobs.queue_running.length, jobs.queue_pending.length], [1, 0]);
    await page.getByRole("tab", { name: "Memory" }).tap();
    await page.getByRole("button", { name: "Pause", exact: true }).tap();
    await page.locator(".sluice-paused button:enabled", { hasText: "Resume" }).waitFor();
    await page.getByRole("tab", { name: "Create" }).tap();
    await state("Paused. Resume it in the tab Memory.");
    await editor.shot("paused");
    await page.getByRole("tab", { name: "Memory" }).tap();
    await page.locator(".sluice-paused button", { hasText: "Resume" }).tap();
    await page.getByRole("tab", { name: "Create" }).tap();
    await state(/^Step /);
    await page.getByRole("button", { name: "Cancel" }).tap();
    await state("Cancelled.");
    assert.ok(await run.isEnabled());
    await steps.fill("6");
  }

  // A LoRA of those that are here, with what is known of each.
  await page.getByRole("button", { name: "Add a LoRA" }).tap();
  await page.getByText("Trigger words: my cat").waitFor();
  await page.getByText("another shape").waitFor();
  assert.ok(await page.getByRole("button", { name: "Use large.safetensors" }).isDisabled());
  await check("loras", ".sluice-loras");
  await page.getByRole("button", { name: "Use with its word: fits.safetensors, my cat" }).tap();
  const strength = page.getByLabel("Strength of fits.safetensors");
  await strength.fill("0.5");
  const last = await result.evaluate((image) => image.src);
  await run.tap();
  await finished(last);

  // Gallery and memory, and back with an image's workflow. What was typed is still there after the page is loaded again.
  await page.getByRole("tab", { name: "Gallery" }).tap();
  await page.locator(".sluice-thumb").nth(2).waitFor();
  await check("gallery", "body");
  await page.getByRole("tab", { name: "Memory" }).tap();
  await page.getByText("measured peak").waitFor();
  await check("memory", "body");
  await page.getByRole("tab", { name: "Gallery" }).tap();
  await page.locator(".sluice-thumb").nth(0).tap();
  await page.getByRole("button", { name: "Open workflow" }).tap();
  await page.waitForFunction(() => document.querySelector(".app-form textarea")?.value.endsWith(", my cat"));
  assert.equal(await page.getByLabel("LoRA strength").inputValue(), "0.5");
  await prompt.fill("a purple star");
  await page.reload();
  await page.waitForFunction(() => document.querySelector(".app-form textarea")?.value === "a purple star");

  // A workflow with a start picture of the phone; and one of FLUX.1, whose files are listed where they are missing.
  await page.locator("#choose").tap();
  await page.getByRole("button", { name: /^Image to image A sketch/ }).waitFor();
  await check("workflows", ".app-dialog");
  await page.getByRole("button", { name: /^Image to image A sketch/ }).tap();
  const upload = page.getByLabel("Sketch: choose a picture");
  await upload.setInputFiles(picture);
  await page.locator(`.app-picture[alt^="teal"]`).waitFor();
  await page.locator("#choose").tap();
  await page.getByRole("button", { name: /^FLUX.1 dev The usual/ }).tap();
  await page.getByText("flux1-dev.safetensors (23.8 GB)").waitFor();
  await check("missing", "body");
  await run.tap();
  await page.getByText("The workflow cannot run").waitFor();

  // The page for votes without a comparison.
  await page.goto(process.env.SLUICE_URL + "/sluice/compare");
  await page.getByText("There is no comparison yet. Make one in a terminal").waitFor();
  assert.equal(await page.getByRole("button").count(), 0);
  await check("compare_none", "body");
  return { found, small, downloaded, previews };
});
