// An image dropped on ComfyUI's own page, and run: see opened.py.
//   node opened.mjs IMAGE.png      tells {nodes: their types}

import { basename } from "node:path";
import { openWindow } from "../web/browser/page.mjs";

const [image] = process.argv.slice(2);
const { SLUICE_URL } = process.env;
const editor = await openWindow("1440x900");
const { page } = editor;
try {
  await page.goto(SLUICE_URL);
  await page.waitForFunction(() => window.app?.graph?.nodes && window.app.extensionManager && !document.querySelector("#splash-loader"));
  await page.waitForTimeout(2000); // the workflow of a first visit is opened late
  await page.keyboard.press("Escape"); // the list of templates
  await page.evaluate(() => window.app.graph.clear());
  await editor.drop(image);
  await page.waitForFunction(() => window.app.graph.nodes.some(({ type }) => /SaveImage$/.test(type)));
  const nodes = await page.evaluate(() => window.app.graph.nodes.map(({ type }) => type).sort());
  await page.locator("[data-testid=queue-button]").first().click();
  await page.waitForFunction(() => window.app.graph.nodes.find(({ type }) => /SaveImage$/.test(type)).imgs?.[0]?.naturalWidth > 0, null, { timeout: 280_000 });
  await page.waitForTimeout(500);
  await editor.shot(`opened_${basename(image, ".png")}`);
  console.log(JSON.stringify({ nodes }));
} catch (error) {
  await editor.shot("opened_failed");
  throw error;
} finally {
  await editor.close();
}
