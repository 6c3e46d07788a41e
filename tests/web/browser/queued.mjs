// What the editor would queue for each of these files: see test_web.py.
//   node queued.mjs FILE...      tells {file: {id: {class_type, inputs}}} as JSON on the last line

import { openEditor } from "./page.mjs";

const editor = await openEditor();
const queued = {};
try {
  for (const file of process.argv.slice(2)) {
    await editor.page.evaluate(() => window.app.rootGraph.clear());
    await editor.drop(file, file.endsWith(".json") ? "application/json" : "image/png");
    await editor.until(() => window.app.rootGraph.nodes.some((node) => node.type === "SaveImage"));
    const prompt = await editor.page.evaluate(async () => (await window.app.graphToPrompt()).output);
    queued[file] = Object.fromEntries(
      Object.entries(prompt).map(([id, { class_type, inputs }]) => [id, { class_type, inputs }]),
    );
  }
} finally {
  await editor.close();
}
console.log(JSON.stringify(queued));
