// The only file that calls the server. Routes that only the standalone server has return null inside ComfyUI, so that
// all other files are the same for both.

import { api } from "../../scripts/api.js";
import { filtered, galleryOf, sorted } from "./facts.mjs";

const HISTORY = 200; // jobs requested from ComfyUI's history

/** The server refused a request. The message can be shown. */
export class Refused extends Error {}

/** Call `handler(data, event)` for these websocket events. Returns a function that ends this. */
export function listen(events, handler) {
  const calls = events.map((event) => [event, ({ detail }) => handler(detail, event)]);
  for (const [event, call] of calls) api.addEventListener(event, call);
  return () => calls.forEach(([event, call]) => api.removeEventListener(event, call));
}

/** The workers, each with its job and the newest event of each kind, {name: data}; null inside ComfyUI. */
export const workers = () => ours("/sluice/workers");

/**
 * Change budgets of a worker, {vram, ram}: "8G", "900M", "auto". Returns those in force of all workers, {name: {vram,
 * ram}}, or null inside ComfyUI.
 */
export const setBudget = (worker, changes) => posted("/sluice/budget", worker ? { ...changes, worker } : changes, true);

/** Whether the server's machine is ready: [{subject, text, advice, good}]; null inside ComfyUI. */
export const doctor = () => ours("/sluice/doctor");

/** The paused jobs: [{prompt_id, number, created, stopping}]; null inside ComfyUI. */
export const pausedJobs = () => ours("/sluice/paused");

/** Pause a running job, or resume a paused one. */
export const pauseJob = (prompt_id) => posted("/sluice/pause", { prompt_id });
export const resumeJob = (prompt_id) => posted("/sluice/resume", { prompt_id });

/** The programs that have the card: [{by, seconds}]; null inside ComfyUI. */
export const leases = () => ours("/sluice/yield");

/** Remove a job that waits or is paused. */
export const dropJob = async (prompt_id) => {
  const headers = { "Content-Type": "application/json" };
  await api.fetchApi("/queue", { method: "POST", headers, body: JSON.stringify({ delete: [prompt_id] }) });
};

/** The workflow of a first visit, or null inside ComfyUI. */
export const defaultWorkflow = () => ours("/sluice/default_workflow");

/** Model files that a prompt names and that were not found: [{name, folder, source, message}]. */
export async function missingFiles(prompt) {
  const answer = await posted("/sluice/missing", prompt, true);
  return answer ?? [];
}

/**
 * Finished images whose facts contain the words of `text`: {pictures, total, editable}. Images that are not `editable`
 * belong to ComfyUI and can be neither starred nor deleted.
 */
export async function gallery({ text, limit, sort, starred }) {
  const answer = await ours(`/sluice/gallery?${new URLSearchParams({ text, limit, sort, starred })}`);
  if (answer) return { pictures: answer.pictures, total: answer.pagination.total, editable: true };
  const history = await json(await api.fetchApi(`/history?max_items=${HISTORY}`));
  const found = sorted(filtered(galleryOf(history), text), sort);
  return { pictures: found.slice(0, limit), total: found.length, editable: false };
}

/** Add or remove an image's star. */
export const star = ({ filename, subfolder }, starred) => posted("/sluice/gallery/star", { filename, subfolder, starred });

/**
 * An image beside the exact one of the same workflow, without step cache and integer products. `makeExact` queues the job
 * that makes it; `exactOf` returns its state: {state, prompt_id, picture: {filename, subfolder, seconds, psnr, ssim} or null}.
 */
export const makeExact = ({ filename, subfolder }) =>
  posted("/sluice/gallery/exact", { filename, subfolder, client_id: api.clientId });
export const exactOf = ({ filename, subfolder }) => ours(`/sluice/gallery/exact?${new URLSearchParams({ filename, subfolder })}`);

/** Move images to the trash folder: {trashed, folder}; `restore(trashed)` restores them. */
export const throwAway = (pictures) =>
  posted("/sluice/gallery/delete", { pictures: pictures.map(({ filename, subfolder }) => ({ filename, subfolder })) });
export const restore = (trashed) => posted("/sluice/gallery/restore", { trashed });

/** LoRA files with family, rank, trigger words and whether they fit `model`, {category, name} or null; null inside ComfyUI. */
export const loras = (model) => ours(`/sluice/loras?${new URLSearchParams(model ? { category: model.category, model: model.name } : {})}`);

/**
 * The files that an image (a File) was made with, compared with those of this server: [{category, name, state, text}];
 * [] for an image that names none, null inside ComfyUI.
 */
export async function usedFiles(file) {
  const headers = { "Content-Type": file.type || "application/octet-stream" };
  const response = await api.fetchApi("/sluice/used_files", { method: "POST", headers, body: file });
  return response.status === 404 || response.status === 405 ? null : json(response);
}

/** The address of an image; `preview`: of a smaller copy. */
export function pictureUrl({ filename, subfolder, type }, preview = false) {
  const query = new URLSearchParams({ filename, subfolder: subfolder ?? "", type: type ?? "output" });
  if (preview) query.set("preview", "webp;80");
  return api.apiURL(`/view?${query}`);
}

/** The file of an image, with its workflow. */
export async function pictureFile(picture) {
  const response = await fetch(pictureUrl(picture));
  if (!response.ok) throw new Refused(`${picture.filename} does not exist any more.`);
  const data = await response.blob();
  return new File([data], picture.filename, { type: data.type });
}

async function ours(route) {
  const response = await api.fetchApi(route);
  return response.status === 404 || response.status === 405 ? null : json(response);
}

async function posted(route, body, optional = false) {
  const headers = { "Content-Type": "application/json" };
  const response = await api.fetchApi(route, { method: "POST", headers, body: JSON.stringify(body) });
  return optional && (response.status === 404 || response.status === 405) ? null : json(response);
}

async function json(response) {
  const answer = await response.json().catch(() => null);
  if (response.ok) return answer;
  throw new Refused(answer?.error?.message ?? `The server answered ${response.status} ${response.statusText}.`);
}
