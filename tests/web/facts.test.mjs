import assert from "node:assert/strict";
import { test } from "node:test";
import { factsLine, factsOf, filtered, galleryOf, likeness, sorted } from "../../web/comfyui/facts.mjs";

const GRAPH = {
  1: { class_type: "UNETLoader", inputs: { unet_name: "flux.safetensors" } },
  2: { class_type: "CLIPTextEncode", inputs: { text: "a lighthouse at dusk", clip: ["8", 0] } },
  3: { class_type: "CLIPTextEncode", inputs: { text: "everything that is ugly, blurred or has too many fingers", clip: ["8", 0] } },
  4: { class_type: "EmptySD3LatentImage", inputs: { width: 832, height: 1216, batch_size: 1 } },
  5: { class_type: "KSampler", inputs: { model: ["1", 0], positive: ["2", 0], negative: ["3", 0], latent_image: ["4", 0], seed: 42, steps: 20 } },
  6: { class_type: "VAEDecode", inputs: { samples: ["5", 0] } },
  9: { class_type: "SaveImage", inputs: { images: ["6", 0] } },
};

test("prompt, seed, steps and size are those above the node that saved, the negative prompt is none of them", () => {
  assert.deepEqual(factsOf(GRAPH, "9"), { text: "a lighthouse at dusk", seed: 42, steps: 20, width: 832, height: 1216 });
});

test("what a prompt does not say is null, and loops and missing nodes end", () => {
  const loop = { 1: { inputs: { a: ["2", 0] } }, 2: { inputs: { b: ["1", 0], c: ["99", 0] } } };
  for (const graph of [{}, loop, { 9: {} }]) {
    assert.deepEqual(factsOf(graph, "1"), { text: "", seed: null, steps: null, width: null, height: null });
  }
});

test("a history becomes a gallery: only saved pictures, newest first", () => {
  const entry = (end, images) => ({
    prompt: [1, "id", GRAPH, {}, ["9"]],
    outputs: { 9: { images } },
    status: { messages: [["execution_start", { timestamp: end - 2500 }], ["execution_success", { timestamp: end }]] },
  });
  const saved = (filename) => ({ filename, subfolder: "", type: "output" });
  const history = { a: entry(10000, [saved("a.png")]), b: entry(20000, [saved("b.png"), { ...saved("p.png"), type: "temp" }]) };
  const items = galleryOf(history);
  assert.deepEqual(items.map(({ filename, seed, seconds }) => [filename, seed, seconds]), [["b.png", 42, 2.5], ["a.png", 42, 2.5]]);
});

test("a history of failed and foreign runs does no harm", () => {
  assert.deepEqual(galleryOf({ a: {}, b: { outputs: null, prompt: null }, c: { outputs: { 1: {} } } }), []);
});

test("the filter wants every word, in any case, in prompt, file name or seed", () => {
  const pictures = [{ text: "A red Cube", seed: 42 }, { text: "a red ball", seed: 420 }, { text: "", filename: "cube.png", seed: 1 }];
  const found = (text) => filtered(pictures, text).map(({ seed }) => seed);
  assert.deepEqual(["", "red", "cube RED", "cube", "42", "green"].map(found), [[42, 420, 1], [42, 420], [42], [42, 1], [42, 420], []]);
});

test("pictures are told in one line, with their place in a batch", () => {
  const picture = { seed: 7, batch: [2, 4], steps: 12, width: 128, height: 64, seconds: 1.5, peak_vram: null, peak_ram: 2 ** 30 };
  assert.equal(factsLine(picture), "seed 7 · 2 of 4 · 12 steps · 128 × 64 · 1.50 s · peak 1 GiB");
  assert.equal(factsLine({ seed: null, batch: null, seconds: null }), "");
});

test("the order of pictures", () => {
  const pictures = [["b", 3, null], ["a", 2, 9], ["c", 1, 1]].map(([filename, time, seed]) => ({ filename, time, seed, width: time, height: 1 }));
  const names = (order) => sorted(pictures, order).map(({ filename }) => filename).join("");
  assert.deepEqual(["newest", "oldest", "name", "seed", "largest"].map(names), ["bac", "cab", "abc", "cab", "bac"]);
  assert.equal(pictures[0].filename, "b");
});

test("how alike an image and its exact twin are", () => {
  assert.equal(likeness({ psnr: 52.84, ssim: 0.9978 }), "PSNR 52.8 dB · SSIM 0.998");
  assert.equal(likeness({ psnr: 40, ssim: null }), "PSNR 40.0 dB", "an image smaller than the window of SSIM");
  assert.equal(likeness({ psnr: null, ssim: 1 }), "The two images are equal.");
  assert.equal(likeness({ psnr: null, ssim: null }), "The two images have different sizes.");
});
