// The page that asks for the token, and names in search: see test_faults.py.
//   node token.mjs SIZE PALETTE TOKEN

import assert from "node:assert/strict";
import { openWindow, scene } from "./page.mjs";

const [size, palette, token] = process.argv.slice(2);
const { SLUICE_URL } = process.env;

await scene(`token_${size}_${palette}`, await openWindow(size, { colorScheme: palette }), async (editor) => {
  const { page } = editor;
  await page.goto(SLUICE_URL);
  const field = page.getByLabel("Token", { exact: true });
  await field.waitFor();
  await editor.shot(`token_${size}_${palette}`);
  await field.fill("wrong");
  await page.getByRole("button", { name: "Open" }).click();
  await page.getByRole("alert").getByText("This is not the token").waitFor();
  await field.fill(token);
  await field.press("Enter");
  await page.waitForFunction(() => window.app?.rootGraph);
  await editor.visit(); // now without the token in the address: a cookie has it

  // Search finds each node once.
  const found = await page.evaluate(() => {
    const offered = Object.values(LiteGraph.registered_node_types).filter((type) => !type.skip_list);
    return offered.map((type) => type.nodeData?.display_name ?? type.title).filter((title) => /^KSampler( \(Sluice\))?$/.test(title));
  });
  assert.deepEqual(found, ["KSampler"]);
  return {};
});
