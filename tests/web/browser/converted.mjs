// What the editor would queue for each canvas of a file: see test_conversion.py.
//   node converted.mjs CANVASES.json ANSWERS.json      CANVASES is a list; ANSWERS gets {output} or {error} for each

import { readFileSync, writeFileSync } from "node:fs";
import { openEditor } from "./page.mjs";

const [canvases, answers] = process.argv.slice(2);
const editor = await openEditor();
const found = [];
try {
  for (const canvas of JSON.parse(readFileSync(canvases, "utf-8"))) {
    found.push(
      await editor.page.evaluate(async (graph) => {
        try {
          await window.app.loadGraphData(graph);
          const { output } = await window.app.graphToPrompt();
          return { output };
        } catch (error) {
          return { error: String(error) };
        }
      }, canvas),
    );
  }
} finally {
  await editor.close();
}
writeFileSync(answers, JSON.stringify(found));
console.log(JSON.stringify({ count: found.length }));
