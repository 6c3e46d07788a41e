// The gallery with many pictures of several kinds: see test_faults.py.
//   node gallery.mjs

import assert from "node:assert/strict";
import { openEditor, scene } from "./page.mjs";

await scene("gallery", await openEditor(), async (editor) => {
  const { page } = editor;
  const ended = (message) => message.type === "executing" && message.data.node === null;
  const thumbs = page.locator(".sluice-thumb"), box = page.locator(".sluice-lightbox");
  const nodes = () => page.evaluate(() => window.app.rootGraph.nodes.length);

  // Two images of one batch are distinguished.
  await editor.setValue("EmptySD3LatentImage", "batch_size", 2);
  await editor.setValue("RandomNoise", "noise_seed", 41);
  await editor.setValue("SaveImage", "filename_prefix", "days\\picture"); // as workflows from Windows write folders
  await editor.hear(ended, await editor.run());
  await editor.inWindows(async () => {
    await editor.opened("sluice-gallery");
    await page.getByText(/^seed 41 · 2 of 2 · /).first().waitFor();
    await page.getByText(/^seed 41 · 1 of 2 · /).first().waitFor();
    await page.waitForFunction(() => [...document.querySelectorAll(".sluice-thumb img")].slice(0, 2).every((image) => image.src.includes("subfolder=days") && image.naturalWidth > 0));
    const columns = await page.locator(".sluice-gallery").evaluate((list) => getComputedStyle(list).gridTemplateColumns.split(" ").length);
    assert.equal(columns, editor.small ? 1 : 2, "columns at the sidebar's own width");
    await editor.shot("images");

    // Images keep their positions while a person scrolls.
    const body = page.locator(".sluice-body");
    const heights = () => page.locator(".sluice-gallery li").evaluateAll((items) => items.map((item) => item.offsetTop));
    const before = await heights();
    for (let at = 0; at < 3000; at += 500) await body.evaluate((element, top) => element.scrollTo(0, top), at);
    await page.waitForTimeout(500);
    assert.deepEqual(await heights(), before);
    await body.evaluate((element) => element.scrollTo(0, 0));

    // A click enlarges; keys go on; Escape closes.
    const total = await nodes();
    await thumbs.nth(0).click();
    await box.waitFor();
    await page.keyboard.press("ArrowRight");
    await box.getByText(/seed 41 · 1 of 2/).waitFor();
    await editor.shot("enlarged");
    await page.keyboard.press("Escape");
    await box.waitFor({ state: "detached" });

    // An image without a workflow does not change the open workflow; a JPEG is listed too.
    const filter = page.getByRole("searchbox");
    await filter.fill("plain.png");
    await page.getByText("1 image", { exact: true }).waitFor();
    await thumbs.nth(0).click();
    assert.ok(await box.getByRole("button", { name: "Open workflow" }).isDisabled());
    await page.keyboard.press("Escape");
    assert.equal(await nodes(), total);
    await filter.fill("photo.jpg");
    await page.getByText("1 image", { exact: true }).waitFor();

    // Copy, star, sort.
    const exact = editor.small ? 2 : 0; // the batch that the first window asked for, made exactly
    await filter.fill("41 star");
    await page.getByText(`${2 + exact} images`, { exact: true }).waitFor();
    await thumbs.nth(exact).click();
    await box.getByRole("button", { name: "Copy prompt" }).click();
    await box.getByText("Prompt copied").waitFor();
    await box.getByRole("button", { name: "Copy seed" }).click();
    await box.getByText("Seed copied").waitFor();
    await box.getByRole("button", { name: "Star", exact: true }).click();
    await box.getByRole("button", { name: "Starred" }).waitFor();
    const [download] = await Promise.all([page.waitForEvent("download"), box.getByRole("link", { name: "Download" }).click()]);
    assert.match(download.suggestedFilename(), /\.png$/);

    // Beside the exact image of the same workflow, which this server makes anyway: both are equal.
    await box.getByRole("button", { name: "Compare with exact" }).click();
    const beside = page.getByRole("dialog", { name: "Comparison of two images" });
    await beside.getByText("The two images are equal.").waitFor();
    await editor.shot("exact");
    await page.keyboard.press("Escape");
    await beside.waitFor({ state: "detached" });
    await page.keyboard.press("Escape");
    await filter.fill("");
    await page.getByRole("button", { name: "Starred" }).click();
    await page.getByText("1 image", { exact: true }).waitFor();
    await page.getByRole("button", { name: "Starred" }).click();
    await page.getByLabel("Order of the images").selectOption("name");
    await page.waitForFunction(() => document.querySelector(".sluice-prompt")?.textContent === "copy_00.png");

    // By keyboard alone: select the next image, delete it, and restore it.
    await thumbs.nth(0).focus();
    await page.keyboard.press("ArrowRight");
    await page.keyboard.press("Delete");
    await page.getByText("copy_01.png is in the trash folder.").waitFor();
    await page.waitForFunction(() => ![...document.querySelectorAll(".sluice-prompt")].some((one) => one.textContent === "copy_01.png"));
    await page.getByRole("button", { name: "Undo" }).click();
    await page.waitForFunction(() => [...document.querySelectorAll(".sluice-prompt")].some((one) => one.textContent === "copy_01.png"));

    // As it was before, for the next window.
    await page.getByLabel("Order of the images").selectOption("newest");
    await filter.fill("41 star");
    await page.getByText("4 images", { exact: true }).waitFor(); // with the exact ones
    await thumbs.nth(2).click();
    await box.getByRole("button", { name: "Starred" }).click();
    await box.getByRole("button", { name: "Star", exact: true }).waitFor();
    await page.keyboard.press("Escape");
    await filter.fill("");
    await editor.opened("sluice-gallery", false);
  });
  return {};
});
