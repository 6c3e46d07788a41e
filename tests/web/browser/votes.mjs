// One person judges all pairs of a comparison without the names of the settings: see test_faults.py.
//   node votes.mjs SIZE PALETTE VOTER
// tells {votes: [[prompt, left colour, right colour, choice]], table, told, found (axe), small (targets)}

import assert from "node:assert/strict";
import { openWindow, scene } from "./page.mjs";

const [size, palette, voter] = process.argv.slice(2);
const phone = Number(size.split("x")[0]) < 600;
const CHOICES = ["left", "left", "right", "same"];

/** The prompt and the colours of both images, once a pair other than `last` is shown, and where the button for `choice` is. */
async function shownPair([last, choice]) {
  const sides = ["left", "right"].map((id) => document.getElementById(id));
  const ready = () => sides.every(({ src, complete, naturalWidth }) => src && complete && naturalWidth) && sides[0].src !== last;
  while (!ready() && !document.getElementById("voting").hidden) await new Promise((go) => setTimeout(go, 2));
  if (document.getElementById("voting").hidden) return null;
  const paint = document.createElement("canvas").getContext("2d");
  const colours = sides.map((image) => {
    paint.drawImage(image, 0, 0);
    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
  });
  const { x, y, width, height } = document.querySelector(`[data-choice=${choice}]`).getBoundingClientRect();
  return { prompt: document.getElementById("prompt").textContent, colours, address: sides[0].src, x: x + width / 2, y: y + height / 2 };
}

await scene("votes", await openWindow(size, { colorScheme: palette, hasTouch: phone, isMobile: phone }), async (editor) => {
  const { page } = editor;
  const press = (button) => (phone ? button.tap() : button.click());
  const found = {};
  await page.goto(process.env.SLUICE_URL + "/sluice/compare");
  await page.getByRole("option", { name: /^dev · four steps · int8/ }).waitFor({ state: "attached" });
  await page.getByLabel("Your name").fill(voter);
  await press(page.getByRole("button", { name: "Begin" }));
  await page.getByRole("region", { name: "Two images" }).waitFor();
  found.voting = await editor.axe("body");
  const small = phone ? await editor.smallTargets("body") : [];
  const blind = await page.locator("#voting").innerHTML();
  assert.ok(CHOICES.every((side) => blind.includes(side)) && !/dev|steps|int8|three/.test(blind), blind);
  await editor.shot("two_images");

  const votes = [];
  const choice = () => CHOICES[votes.length % CHOICES.length];
  for (let pair; (pair = await page.evaluate(shownPair, [pair?.address, choice()])); ) {
    votes.push([pair.prompt, ...pair.colours, choice()]);
    await (phone ? page.touchscreen.tap(pair.x, pair.y) : page.mouse.click(pair.x, pair.y));
  }
  await page.getByText("All pairs are judged: 60 by you. Thank you.").waitFor();
  await press(page.getByRole("button", { name: "Show the votes" }));
  await page.locator("#table").waitFor();
  await page.getByRole("option", { name: phone ? /120 votes/ : /60 votes/ }).waitFor({ state: "attached" });
  const rows = page.locator("#table tr");
  const table = await rows.evaluateAll((all) => all.map((row) => [...row.cells].map((cell) => cell.textContent)));
  found.votes = await editor.axe("body");
  await editor.shot("counted");
  const told = await page.getByRole("status").innerText();
  const wide = await page.evaluate(() => {
    document.querySelector("#comparison").add(new Option("a comparison of many settings ".repeat(20))); // as wide as its longest name
    return document.documentElement.scrollWidth - innerWidth;
  });
  assert.ok(wide <= 0, `the page is ${wide} pixels too wide`);
  return { votes, table, told, found, small };
});
