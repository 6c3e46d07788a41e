// One Chromium for all scenes of a test run: prints the address to connect to, and ends when standard input ends.

import { createRequire } from "node:module";
import { QUIET } from "./page.mjs";

const { PLAYWRIGHT = "playwright-core", CHROMIUM = "/usr/bin/chromium" } = process.env;
const { chromium } = createRequire(import.meta.url)(PLAYWRIGHT);
const server = await chromium.launchServer({ executablePath: CHROMIUM, headless: true, args: QUIET });
console.log(server.wsEndpoint());
process.stdin.resume().on("end", async () => {
  await server.close();
  process.exit(0);
});
