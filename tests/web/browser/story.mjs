// The actions of a person on the first day, in a real browser, on the real server: see test_web.py.
//   node story.mjs WORKFLOW.png OUTPUT_FOLDER MISSING.json      tells what was seen as JSON on the last line

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { openEditor, WINDOWS } from "./page.mjs";

const [workflow, outputs, lacking] = process.argv.slice(2);
const RECORDED = JSON.parse(readFileSync(new URL("../fixtures/recorded_run.json", import.meta.url)));
const editor = await openEditor();
const { page } = editor;
const seen = {};
editor.name = "story";

const ended = (message) => message.type === "executing" && message.data.node === null;
const values = (type) =>
  page.evaluate((wanted) => {
    const node = window.app.rootGraph.nodes.find((one) => one.type === wanted);
    return Object.fromEntries(node.widgets.map((widget) => [widget.name, widget.value]));
  }, type);
const shownPictures = () =>
  page.evaluate(() => window.app.rootGraph.nodes.find((one) => one.type === "SaveImage").imgs?.length ?? 0);
const empty = () => page.evaluate(() => window.app.rootGraph.clear());

try {
  // The first visit: the small model's workflow is there, ready to run.
  await editor.until(() => window.app.rootGraph.nodes.some((node) => node.type === "SamplerCustomAdvanced"));
  seen.first_visit = await editor.types();
  await page.waitForTimeout(1500);
  await editor.shot("1_first_visit");

  // Drop the picture.
  await empty();
  await editor.drop(workflow);
  await editor.until(() => window.app.rootGraph.nodes.some((node) => node.type === "SaveImage"));
  seen.dropped = await editor.types();
  assert.deepEqual(seen.dropped, seen.first_visit);
  await page.waitForTimeout(500);
  await editor.shot("2_dropped");

  // Run it: progress, previews, the picture in its node.
  let start = await editor.run();
  await editor.hear((message) => message.type === "preview", start);
  await editor.shot("3_running");
  await editor.hear(ended, start);
  const heard = editor.heard.slice(start);
  seen.progress = heard.filter((message) => message.type === "progress").length;
  seen.previews = heard.filter((message) => message.type === "preview" && message.kind === 4).length;
  assert.ok(seen.progress >= 12 && seen.previews >= 1);
  assert.ok(heard.some((message) => message.type === "execution_success"));
  await editor.until(() => window.app.rootGraph.nodes.find((one) => one.type === "SaveImage").imgs?.length);
  seen.shown = await shownPictures();
  await page.waitForTimeout(500);
  await editor.shot("4_finished");

  // The memory tab, in both themes.
  await editor.tab("sluice-memory");
  await page.waitForTimeout(700);
  await editor.shot("5_memory_dark");
  await editor.theme("light");
  await page.waitForTimeout(700);
  await editor.shot("6_memory_light");

  // The gallery has it.
  await editor.tab("sluice-gallery");
  await page.waitForTimeout(1200);
  await editor.shot("7_gallery_light");
  await editor.theme("dark");
  await page.waitForTimeout(700);
  await editor.shot("8_gallery_dark");
  seen.gallery = await page.evaluate(() => document.body.innerText.includes("navy background"));
  assert.ok(seen.gallery, "the gallery shows the prompt of the image");
  await editor.tab("sluice-gallery");

  // Drop the result again, change the seed, run again: only what depends on the seed runs.
  const result = join(outputs, readdirSync(outputs).filter((name) => name.endsWith(".png")).sort().at(-1));
  await empty();
  await editor.drop(result);
  await editor.until(() => window.app.rootGraph.nodes.some((node) => node.type === "SaveImage"));
  assert.deepEqual(await editor.types(), seen.dropped);
  await editor.setValue("RandomNoise", "noise_seed", 8);
  start = await editor.run();
  await editor.hear(ended, start);
  const types = await page.evaluate(() =>
    Object.fromEntries(window.app.rootGraph.nodes.map((node) => [String(node.id), node.type])));
  const cached = editor.heard.slice(start).find((message) => message.type === "execution_cached").data.nodes;
  seen.cached = cached.map((id) => types[id]).sort();
  for (const kind of ["UNETLoader", "DualCLIPLoader", "VAELoader", "CLIPTextEncode"]) {
    assert.ok(seen.cached.includes(kind), `${kind} was cached`);
  }
  assert.ok(!seen.cached.includes("SamplerCustomAdvanced"));
  seen.seed = (await values("RandomNoise")).noise_seed;
  await page.waitForTimeout(500);
  await editor.shot("9_again");

  // The gallery has both: filter them, compare them, open one.
  await editor.tab("sluice-gallery");
  const boxes = page.locator(".sluice-gallery input[type=checkbox]");
  await editor.until(() => document.querySelectorAll(".sluice-gallery input[type=checkbox]").length === 2);
  const filter = page.locator("input.sluice-filter");
  await filter.fill("purple elephant");
  await page.getByText("No image has all these words.").waitFor();
  await filter.fill("STAR navy");
  await boxes.nth(1).waitFor();
  await boxes.nth(0).check();
  await boxes.nth(1).check();
  await page.getByRole("button", { name: "Compare", exact: true }).click();
  const slider = page.getByRole("slider", { name: "Visible part of the left image" });
  const cut = () => page.locator(".sluice-frame").evaluate((frame) => getComputedStyle(frame).getPropertyValue("--sluice-cut"));
  await slider.fill("30");
  seen.cut = await cut();
  assert.equal(seen.cut, "30%");
  await page.waitForTimeout(300);
  await editor.shot("10_compare_dark");
  await page.locator(".sluice-compare").getByRole("button", { name: "Close" }).click();
  await page.locator(".sluice-compare").waitFor({ state: "detached" });
  await page.locator(".sluice-thumb").nth(1).click();
  await page.getByRole("button", { name: "Open workflow" }).click();
  await editor.until(() => window.app.rootGraph.nodes.find((one) => one.type === "RandomNoise")?.widgets[0].value === 7);
  seen.opened = await editor.types();
  assert.deepEqual(seen.opened, seen.dropped);

  // Give it a budget in the memory tab: from the next run on the panel shows where every unit is.
  await editor.tab("sluice-memory");
  await page.getByLabel("RAM", { exact: true }).fill("2G");
  await page.getByRole("button", { name: "Set", exact: true }).click();
  await page.getByText("In force for the next job.").waitFor();
  await editor.setValue("RandomNoise", "noise_seed", 9);
  start = await editor.run();
  await editor.hear((message) => message.type === "sluice.memory.plan", start);
  await editor.hear(ended, start);
  await page.getByText("All weights are resident: nothing is streamed.").waitFor();
  seen.managed = true;
  await editor.shot("11_budget");

  // A long run, interrupted.
  await editor.setValue("BasicScheduler", "steps", 400);
  start = await editor.run();
  await editor.hear((message) => message.type === "progress", start);
  await page.evaluate(() => window.comfyAPI.api.api.interrupt());
  await editor.hear((message) => message.type === "execution_interrupted", start);
  await editor.hear(ended, start);
  seen.interrupted = true;
  await editor.shot("12_interrupted");

  // A workflow with missing files: the memory tab lists their sources. A valid workflow removes the list.
  await empty();
  await editor.drop(lacking, "application/json");
  await page.locator(".sluice-missing").getByText("T5-XXL tokenizer (").waitFor();
  seen.sources = await page.locator(".sluice-missing a").evaluateAll((links) => links.map((link) => link.href));
  await editor.shot("13_missing");
  await empty();
  await editor.drop(workflow);
  await page.locator(".sluice-missing").waitFor({ state: "detached" });

  // A large model on a small card, from the core's events: each of its groups is in the map.
  const worker = await page.evaluate(async () => (await (await window.comfyAPI.api.api.fetchApi("/sluice/workers")).json())[0].name);
  for (const { event, data } of RECORDED) {
    const detail = { ...data, worker };
    await page.evaluate(([name, detail]) => window.comfyAPI.api.api.dispatchEvent(new CustomEvent(name, { detail })), [event, detail]);
    if (event === "sluice.memory.at") await page.locator(".sluice-legend .sluice-moving").waitFor();
  }
  const map = page.getByRole("img", { name: /^76 groups of weights: 43 resident, / });
  await map.waitFor();
  seen.cells = await map.locator(".sluice-cell").count();
  await page.waitForTimeout(500);
  await editor.shot("14_map_dark");
  await editor.theme("light");
  await page.waitForTimeout(700);
  await editor.shot("15_map_light");

  // A job starts: until its first plan, the figures of the last one are not shown as its own.
  const events = [["sluice.workers", { workers: [{ name: worker, job: "x", number: 1, taking: true }] }], ["sluice.started", { worker }]];
  for (const event of events) {
    await page.evaluate(([name, detail]) => window.comfyAPI.api.api.dispatchEvent(new CustomEvent(name, { detail })), event);
  }
  await page.getByText("A job has started. Its prediction").waitFor();
  assert.equal(await page.locator(".sluice-figures").count(), 0);
  await editor.shot("15_planning_light");

  // Another person, on a phone: the same first visit, and a first image.
  await editor.fresh(...WINDOWS[1]);
  await editor.until(() => window.app.rootGraph.nodes.some((node) => node.type === "SamplerCustomAdvanced"));
  seen.on_a_phone = await editor.types();
  start = await editor.run();
  await editor.hear(ended, start);
  await editor.until(() => window.app.rootGraph.nodes.find((one) => one.type === "SaveImage").imgs?.length);
  await editor.shot("16_finished");

  seen.errors = editor.errors;
  seen.elsewhere = editor.elsewhere;
  assert.deepEqual(editor.errors, [], "no error on the page");
} catch (error) {
  await editor.shot("failed");
  throw error;
} finally {
  await editor.close();
}
console.log(JSON.stringify(seen));
