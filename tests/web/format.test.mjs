import assert from "node:assert/strict";
import { test } from "node:test";
import { budgetWord, bytes, plural, seconds } from "../../web/comfyui/format.mjs";

test("sizes have three digits and a binary unit", () => {
  assert.deepEqual([0, 1023, 1536, 2 ** 20, 8.5 * 2 ** 30, 123.4 * 2 ** 20].map(bytes), ["0 B", "1023 B", "1.50 KiB", "1 MiB", "8.50 GiB", "123 MiB"]);
});

test("times read from milliseconds to hours, and never show 60 seconds or 1000 milliseconds", () => {
  assert.deepEqual([0.0123, 0.99996, 1.5, 59.7, 75, 3599.6, 7260].map(seconds), ["12.3 ms", "1.00 s", "1.50 s", "1 min 0 s", "1 min 15 s", "1 h 0 min", "2 h 1 min"]);
});

test("what is not known is a dash, whatever asks", () => {
  for (const unknown of [undefined, null, NaN, Infinity, "8"]) assert.deepEqual([bytes(unknown), seconds(unknown)], ["–", "–"]);
});

test("a bare number is a budget in GiB, nothing is auto, everything else is the server's to read", () => {
  assert.deepEqual(["", " auto ", "8", "7,5", "900M", "lots"].map(budgetWord), ["auto", "auto", "8G", "7,5G", "900M", "lots"]);
});

test("one step is one step", () => assert.deepEqual([0, 1, 2].map((n) => plural(n, "step")), ["0 steps", "1 step", "2 steps"]));
