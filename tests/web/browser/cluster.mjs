// What the page of a server with several workers shows: its workers in the Memory tab, and how its jobs ended.
//   node cluster.mjs TOKEN NAME

import { openWindow, scene } from "./page.mjs";

const [token, name] = process.argv.slice(2);

await scene(`cluster_${name}`, await openWindow("1440x900"), async (editor) => {
  const { page } = editor;
  await editor.visit(`${process.env.SLUICE_URL}/?token=${token}`);
  await editor.tab("sluice-memory");
  await page.locator(".sluice-worker").first().waitFor();
  const workers = await page.locator(".sluice-worker").evaluateAll((all) => all.map((one) => one.getAttribute("aria-label")));
  await editor.shot("workers");
  const ended = await page.evaluate(async () => {
    const jobs = await window.comfyAPI.api.api.getHistory(100_000);
    return jobs.map((job) => job.status);
  });
  const count = (wanted) => ended.filter((status) => status === wanted).length;
  return { workers, completed: count("completed"), failed: count("failed") };
});
