// Errors are shown on the page with their own texts: see test_faults.py.
//   node errors.mjs      tells {logs}

import assert from "node:assert/strict";
import { openEditor, scene } from "./page.mjs";

await scene("errors", await openEditor(), async (editor) => {
  const { page } = editor;
  const toast = editor.notice;
  const problem = page.locator(".sluice-problem");
  const closeNotice = () => editor.small && toast.getByRole("button", { name: "Close" }).first().click(); // it lies over the buttons of a small window

  // A budget that is too small (the server was started with it): a notice, and a card in the Memory tab.
  let start = await editor.run();
  await editor.hear((message) => message.type === "execution_error", start);
  await editor.inWindows(async () => {
    await toast.getByText("and there are 100 MiB of RAM for it").waitFor();
    assert.match(await toast.innerText(), /The node ".+" failed/);
    await editor.shot("notice");
    await closeNotice();
    await editor.opened("sluice-memory");
    await problem.getByText("and there are 100 MiB of RAM for it").waitFor();
    await editor.shot("card");
    await editor.opened("sluice-memory", false);
  });

  // With enough memory both are removed.
  await editor.post("/sluice/budget", { ram: "auto" });
  await page.evaluate(() => Object.defineProperty(document, "hidden", { get: () => true, configurable: true }));
  start = await editor.run();
  await editor.hear((message) => message.type === "execution_success", start);
  await page.waitForFunction(() => /^✓ .*Sluice$/.test(document.title)); // the job ended in the background
  await page.evaluate(() => {
    delete document.hidden;
    document.dispatchEvent(new Event("visibilitychange"));
  });
  await page.waitForFunction(() => /^[^✓]*Sluice$/.test(document.title));
  await editor.inWindows(async () => {
    await editor.opened("sluice-memory");
    await problem.waitFor({ state: "detached" });
    await toast.waitFor({ state: "detached" });
    await editor.opened("sluice-memory", false);
  });

  // A prompt that cannot be queued is reported in full as well; a warning of the log is shown as a notice, once a job.
  await editor.setValue("KSamplerSelect", "sampler_name", "nonsense");
  await editor.run();
  const warn = () => page.evaluate(() => window.comfyAPI.api.api.dispatchEvent(new CustomEvent("sluice.warning", { detail: { text: "2 of 3 tensors were not used." } })));
  await warn();
  await warn();
  await editor.inWindows(async () => {
    await toast.getByText("'nonsense' is not available").waitFor();
    await toast.getByText("2 of 3 tensors were not used.").first().waitFor();
    assert.equal(await toast.getByText("2 of 3 tensors were not used.").count(), 1);
    await editor.shot("not_queued");
  });

  const logs = await page.evaluate(async () => (await window.comfyAPI.api.api.fetchApi("/internal/logs")).json());
  return { logs };
});
