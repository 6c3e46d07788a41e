// The positions of the nodes of the shipped workflows on the screen: see test_faults.py.
//   node layout.mjs FILE...      tells {boxes: {size: {file: [left, top, right, bottom] of all nodes, in pixels}}}

import { basename } from "node:path";
import { openEditor, scene, WINDOWS } from "./page.mjs";

const files = process.argv.slice(2);

await scene("layout", await openEditor(), async (editor) => {
  const boxes = () =>
    editor.page.evaluate(() => {
      const { scale, offset } = window.app.canvas.ds;
      return window.app.rootGraph.nodes.map(({ pos, size, flags }) => {
        const left = (pos[0] + offset[0]) * scale, top = (pos[1] - 30 + offset[1]) * scale;
        const height = flags.collapsed ? 30 : size[1] + 30;
        return [left, top, left + size[0] * scale, top + height * scale];
      });
    });
  const around = (all) => [0, 1].map((side) => Math.min(...all.map((box) => box[side]))).concat(
    [2, 3].map((side) => Math.max(...all.map((box) => box[side]))));
  const seen = {};
  for (const [size, palette] of WINDOWS) {
    if (editor.size !== size) await editor.fresh(size, palette);
    seen[size] = { first_visit: around(await boxes()) };
    for (const file of files) {
      await editor.page.evaluate(() => window.app.rootGraph.clear());
      await editor.drop(file, file.endsWith(".json") ? "application/json" : undefined);
      await editor.until(() => window.app.rootGraph.nodes.some((node) => node.type === "SaveImage"));
      await editor.until(() => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(() => go(true)))));
      seen[size][basename(file)] = around(await boxes());
      if (file.includes("image_to_image")) {
        await editor.until(() => window.app.rootGraph.nodes.find((node) => node.type === "LoadImage").imgs?.[0]?.naturalWidth > 0);
        await editor.shot("image_to_image");
      }
    }
  }

  // The template browser shows each with a picture.
  const { page } = editor;
  const sketch = page.waitForResponse((answer) => answer.url().endsWith("/templates/flux1_dev-1.svg") && answer.ok());
  await editor.inWindows(async () => {
    if (!editor.small) {
      await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.BrowseTemplates"));
      await sketch;
    }
    await page.getByText("FLUX.1 schnell").first().waitFor();
    await editor.shot("templates");
  });
  return { boxes: seen };
});
