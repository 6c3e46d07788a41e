// The title of the browser tab.

import assert from "node:assert/strict";
import { test } from "node:test";
import { pageTitle } from "../../web/comfyui/page_title.mjs";

test("our own server's page has our name, and a job that ended in the background a mark", () => {
  const quiet = { ended: null, standalone: true };
  assert.equal(pageTitle("*four_steps - ComfyUI", quiet), "*four_steps - Sluice");
  assert.equal(pageTitle("four_steps - ComfyUI", { ...quiet, standalone: false }), "four_steps - ComfyUI");
  assert.equal(pageTitle("ComfyUI", { ...quiet, ended: "success" }), "✓ Sluice");
  assert.equal(pageTitle("✓ Sluice", { ...quiet, ended: "error" }), "✗ Sluice");
  assert.equal(pageTitle("✗ Sluice", quiet), "Sluice");
  for (const ended of [null, "success", "error"]) {
    const once = pageTitle("[50%]x - ComfyUI", { ended, standalone: true });
    assert.equal(pageTitle(once, { ended, standalone: true }), once);
  }
});
