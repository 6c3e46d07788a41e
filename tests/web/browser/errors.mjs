// Errors are shown on the page with their own texts: see test_faults.py.
//   node errors.mjs SIZE PALETTE

import assert from "node:assert/strict";
import { openEditor, scene } from "./page.mjs";

const [size, palette] = process.argv.slice(2);
const small = Number(size.split("x")[0]) < 600;

await scene(`errors_${size}_${palette}`, await openEditor(size, palette), async (editor) => {
  const { page } = editor;
  const toast = editor.notice;

  // A budget that is too small (the server was started with it): a notice, and a card in the Memory tab.
  await editor.setValue("CLIPTextEncode", "text", `a red circle ${size}`); // nothing of it is cached
  let start = await editor.run();
  await editor.hear((message) => message.type === "execution_error", start);
  await toast.getByText("and there are 100 MiB of RAM for it").waitFor();
  assert.match(await toast.innerText(), /The node ".+" failed/);
  await editor.shot(`errors_notice_${size}_${palette}`);
  if (small) await toast.getByRole("button", { name: "Close" }).click(); // it lies over the buttons of a small window
  await editor.tab("sluice-memory");
  await page.locator(".sluice-problem").getByText("and there are 100 MiB of RAM for it").waitFor();
  await editor.shot(`errors_${size}_${palette}`);

  // With enough memory both are removed.
  await editor.post("/sluice/budget", { ram: "auto" });
  if (small) await editor.tab("sluice-memory");
  await page.evaluate(() => Object.defineProperty(document, "hidden", { get: () => true, configurable: true }));
  start = await editor.run();
  await editor.hear((message) => message.type === "execution_success", start);
  await page.waitForFunction(() => /^✓ .*Sluice$/.test(document.title)); // the job ended in the background
  await page.evaluate(() => {
    delete document.hidden;
    document.dispatchEvent(new Event("visibilitychange"));
  });
  await page.waitForFunction(() => /^[^✓]*Sluice$/.test(document.title));
  if (small) await editor.tab("sluice-memory");
  await page.locator(".sluice-problem").waitFor({ state: "detached" });
  await toast.waitFor({ state: "detached" });

  // A prompt that cannot be queued is reported in full as well.
  await editor.setValue("KSamplerSelect", "sampler_name", "nonsense");
  await editor.run();
  await toast.getByText("'nonsense' is not available").waitFor();

  // A warning of the log is shown as a notice, once a job.
  const warn = () => page.evaluate(() => window.comfyAPI.api.api.dispatchEvent(new CustomEvent("sluice.warning", { detail: { text: "2 of 3 tensors were not used." } })));
  await warn();
  await warn();
  await toast.getByText("2 of 3 tensors were not used.").first().waitFor();
  assert.equal(await toast.getByText("2 of 3 tensors were not used.").count(), 1);

  const logs = await page.evaluate(async () => (await window.comfyAPI.api.api.fetchApi("/internal/logs")).json());
  return { logs };
});
