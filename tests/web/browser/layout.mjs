// The positions of the nodes of the shipped workflows on the screen: see test_faults.py.
//   node layout.mjs SIZE PALETTE FILE...      tells {file: [left, top, right, bottom] of all nodes, in pixels}

import { basename } from "node:path";
import { openEditor, scene } from "./page.mjs";

const [size, palette, ...files] = process.argv.slice(2);

await scene("layout", await openEditor(size, palette), async (editor) => {
  const { page } = editor;
  const boxes = () =>
    page.evaluate(() => {
      const { scale, offset } = window.app.canvas.ds;
      return window.app.rootGraph.nodes.map(({ pos, size, flags }) => {
        const left = (pos[0] + offset[0]) * scale, top = (pos[1] - 30 + offset[1]) * scale;
        const height = flags.collapsed ? 30 : size[1] + 30;
        return [left, top, left + size[0] * scale, top + height * scale];
      });
    });
  const around = (all) => [0, 1].map((side) => Math.min(...all.map((box) => box[side]))).concat(
    [2, 3].map((side) => Math.max(...all.map((box) => box[side]))));
  const seen = { first_visit: around(await boxes()) };
  for (const file of files) {
    await page.evaluate(() => window.app.rootGraph.clear());
    await editor.drop(file, file.endsWith(".json") ? "application/json" : undefined);
    await editor.until(() => window.app.rootGraph.nodes.some((node) => node.type === "SaveImage"));
    seen[basename(file)] = around(await boxes());
    if (file.includes("image_to_image")) {
      await editor.until(() => window.app.rootGraph.nodes.find((node) => node.type === "LoadImage").imgs?.[0]?.naturalWidth > 0);
      await editor.shot("layout_image_to_image");
    }
  }

  // The template browser shows each with a picture.
  const sketch = page.waitForResponse((answer) => answer.url().endsWith("/templates/flux1_dev-1.svg") && answer.ok());
  await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.BrowseTemplates"));
  await page.getByText("FLUX.1 schnell").first().waitFor();
  await sketch;
  await editor.shot("layout_templates");
  return { boxes: seen };
});
