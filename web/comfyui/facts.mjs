// The facts of an image, read from its prompt: the same as the standalone server's gallery has, for a ComfyUI that only
// has its history. Pure.

import { bytes, plural, seconds } from "./format.mjs";

const TEXT_INPUTS = ["text", "t5xxl", "clip_l", "prompt", "value"];
const SEED_INPUTS = ["seed", "noise_seed"];
const TRIES = 1000; // most nodes visited: a prompt written by hand may have a cycle

/** The images in ComfyUI's GET /history, newest first, in the form of GET /sluice/gallery. */
export function galleryOf(history) {
  const items = Object.entries(history).flatMap(([promptId, entry]) => picturesOf(promptId, entry));
  return items.sort((a, b) => b.time - a.time);
}

function picturesOf(promptId, { prompt, outputs, status }) {
  const graph = prompt?.[2] ?? {};
  const times = Object.fromEntries((status?.messages ?? []).map(([name, data]) => [name, data.timestamp]));
  const ended = times.execution_success ?? 0;
  const seconds = ended && times.execution_start ? (ended - times.execution_start) / 1000 : null;
  return Object.entries(outputs ?? {}).flatMap(([node, output]) =>
    (output.images ?? [])
      .filter((image) => image.type === "output")
      .map((image, number, all) => ({
        prompt_id: promptId, ...image, ...factsOf(graph, node), seconds, time: ended,
        batch: all.length > 1 ? [number + 1, all.length] : null,
      })),
  );
}

/** {text, seed, steps, width, height} of the output of node `output`; null for unknown values. */
export function factsOf(graph, output) {
  const upstream = upstreamOf(graph, output);
  const size = upstream.find((inputs) => Number.isInteger(inputs.width) && Number.isInteger(inputs.height)) ?? {};
  return {
    text: longest(upstream.flatMap((inputs) => TEXT_INPUTS.map((name) => inputs[name]))),
    seed: first(upstream.flatMap((inputs) => SEED_INPUTS.map((name) => inputs[name]))),
    steps: first(upstream.map((inputs) => inputs.steps)),
    width: size.width ?? null,
    height: size.height ?? null,
  };
}

/** The inputs of all nodes upstream of one, nearest first, without negative prompts. */
function upstreamOf(graph, output) {
  const found = [], seen = new Set();
  let waiting = [output];
  while (waiting.length && seen.size < TRIES) {
    const id = waiting.shift();
    if (seen.has(id) || !graph[id]) continue;
    seen.add(id);
    const inputs = graph[id].inputs ?? {};
    found.push(inputs);
    const wanted = Object.entries(inputs).filter(([name, value]) => name !== "negative" && isLink(value));
    waiting.push(...wanted.map(([, [source]]) => source));
  }
  return found;
}

const isLink = (value) => Array.isArray(value) && value.length === 2 && typeof value[1] === "number";
const first = (values) => values.find((value) => typeof value === "number") ?? null;
const longest = (values) =>
  values.filter((value) => typeof value === "string").reduce((best, text) => (text.length > best.length ? text : best), "");

const ORDERS = {
  oldest: (one, other) => one.time - other.time,
  name: (one, other) => one.filename.localeCompare(other.filename),
  seed: (one, other) => (one.seed ?? Infinity) - (other.seed ?? Infinity),
  largest: (one, other) => other.width * other.height - one.width * one.height,
};

/** Images in an order of the gallery; by default the newest first. */
export const sorted = (pictures, order) => (ORDERS[order] ? [...pictures].sort(ORDERS[order]) : pictures);

/** "seed 42 · 2 of 4 · 20 steps · 1024 × 1024 · 31.2 s · peak 7.4 GiB" */
export function factsLine({ seed, batch, steps, width, height, seconds: time, peak_vram: vram, peak_ram: ram }) {
  const known = [
    seed === null || seed === undefined ? null : `seed ${seed}`,
    batch ? `${batch[0]} of ${batch[1]}` : null,
    steps ? plural(steps, "step") : null,
    width && height ? `${width} × ${height}` : null,
    Number.isFinite(time) ? seconds(time) : null,
    vram || ram ? `peak ${bytes(vram || ram)}` : null,
  ];
  return known.filter(Boolean).join(" · ");
}

/** "PSNR 52.8 dB · SSIM 0.998", or that the two images are equal. */
export function likeness({ psnr, ssim }) {
  if (psnr === null && ssim === 1) return "The two images are equal.";
  if (psnr === null) return "The two images have different sizes.";
  return [`PSNR ${psnr.toFixed(1)} dB`, ssim === null ? null : `SSIM ${ssim.toFixed(3)}`].filter(Boolean).join(" · ");
}

/** Images whose prompt, file name or seed contain each word of `text`, ignoring case. */
export function filtered(pictures, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const known = (picture) => `${picture.text} ${picture.filename} ${picture.seed}`.toLowerCase();
  return pictures.filter((picture) => words.every((word) => known(picture).includes(word)));
}
