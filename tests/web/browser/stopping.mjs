// A job that is being stopped is shown so until it has ended: see test_faults.py.
//   node stopping.mjs

import { openEditor, scene } from "./page.mjs";

await scene("stopping", await openEditor(), async (editor) => {
  const { page } = editor;
  const tell = (event, detail) =>
    page.evaluate(([name, data]) => window.comfyAPI.api.api.dispatchEvent(new CustomEvent(name, { detail: data })), [event, detail]);

  await editor.setValue("BasicScheduler", "steps", 400);
  await editor.inWindows(async () => {
    // A long job, cancelled by the editor's own button.
    const start = await editor.run();
    await editor.hear((message) => message.type === "progress", start);
    await page.getByRole("button", { name: /^(Cancel|Interrupt)/ }).first().click();
    await editor.hear((message) => message.type === "sluice.stopping", start);
    await editor.hear((message) => message.type === "execution_interrupted", start);
    await editor.notice.getByText("Stopping").waitFor({ state: "detached" });

    // A slow one, from the server's messages.
    await tell("sluice.stopping", { prompt_id: "slow" });
    await editor.notice.getByText("The job ends after the block").waitFor();
    if (!editor.small) {
      await editor.tab("sluice-memory");
      await page.locator(".sluice-card").getByText("stopping", { exact: true }).waitFor();
    }
    await editor.shot("stopping");
    await tell("execution_interrupted", { prompt_id: "slow", node_id: "1", node_type: "", executed: [] });
    await editor.notice.getByText("Stopping").waitFor({ state: "detached" });
    await editor.opened("sluice-memory", false);
  });
  return {};
});
