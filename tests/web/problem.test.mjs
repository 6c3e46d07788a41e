// The texts of errors, chosen by kind and never by wording.

import assert from "node:assert/strict";
import { test } from "node:test";
import { isOurs, read } from "../../web/comfyui/problem_text.mjs";

const ours = (kind, message) => ({ exception_type: `/packs/sluice.flux_core.errors.${kind}`, exception_message: message });

test("our own errors are sentences, others are told with their kind", () => {
  assert.equal(read(ours("InputError", "Too large.\n")).text, "Too large.");
  assert.equal(read({ exception_type: "ValueError", exception_message: "x" }).text, "ValueError: x");
  assert.equal(read({ exception_type: "WorkerDied", exception_message: "It died." }).text, "It died.");
  assert.equal(read({}).text, "");
});

test("memory is told by the kind of error or by the server", () => {
  assert.ok(read(ours("BudgetTooSmall", "x")).aboutMemory);
  assert.ok(read({ exception_type: "torch.OutOfMemoryError" }).aboutMemory);
  assert.ok(read({ exception_type: "WorkerDied", about: "memory" }).aboutMemory);
  assert.ok(!read(ours("InputError", "out of memory")).aboutMemory);
});

test("inside ComfyUI errors of others stay theirs", () => {
  assert.ok(isOurs(ours("InputError", "x")));
  assert.ok(isOurs({ exception_type: "ValueError", node_type: "SluiceKSampler" }));
  assert.ok(!isOurs({ exception_type: "ValueError", node_type: "KSampler" }));
  assert.ok(!isOurs({}));
});
