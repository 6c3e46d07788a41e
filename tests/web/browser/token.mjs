// The page that asks for the token, and names in search: see test_faults.py.
//   node token.mjs TOKEN

import assert from "node:assert/strict";
import { openWindow, scene, WINDOWS } from "./page.mjs";

const [token] = process.argv.slice(2);
const { SLUICE_URL } = process.env;

await scene("token", await openWindow(WINDOWS[0][0]), async (editor) => {
  for (const [size, palette] of WINDOWS) {
    await editor.leave(size, { colorScheme: palette });
    const { page } = editor;
    await page.goto(SLUICE_URL);
    const field = page.getByLabel("Token", { exact: true });
    await field.waitFor();
    await editor.shot("asked");
    await field.fill("wrong");
    await page.getByRole("button", { name: "Open" }).click();
    await page.getByRole("alert").getByText("This is not the token").waitFor();
    await field.fill(token);
    await field.press("Enter");
    await page.waitForFunction(() => window.app?.rootGraph);
  }
  await editor.visit(); // now without the token in the address: a cookie has it

  // Search finds each node once.
  const found = await editor.page.evaluate(() => {
    const offered = Object.values(LiteGraph.registered_node_types).filter((type) => !type.skip_list);
    return offered.map((type) => type.nodeData?.display_name ?? type.title).filter((title) => /^KSampler( \(Sluice\))?$/.test(title));
  });
  assert.deepEqual(found, ["KSampler"]);
  return {};
});
