// Clients that other people publish for Node.js, each through a whole job of a running `sluice serve`.
//
//     node tests/clients/npm_clients.mjs ADDRESS FOLDER PROMPT
//
// FOLDER is where they are installed (npm install --prefix FOLDER @saintno/comfyui-sdk @stable-canvas/comfyui-client
// comfy-ui-client ws); PROMPT is a file with an API prompt whose node 8 saves an image and whose node 6 has a seed.
// Prints a line for each client, and ends with 1 if one of them failed. npm_clients.py does all of it.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";

const [address, folder, file] = process.argv.slice(2);
const installed = createRequire(path.resolve(folder, "index.js"));
const host = new URL(address).host;
const PNG = Buffer.from([0x89, 0x50, 0x4e, 0x47]);

async function prompt() {
  const graph = JSON.parse(await readFile(file, "utf8"));
  graph["6"].inputs.seed = Math.floor(Math.random() * 2 ** 32);
  return graph;
}

async function fetched(url) {
  return Buffer.from(await (await fetch(url)).arrayBuffer());
}

const clients = {
  async "@saintno/comfyui-sdk"() {
    const { ComfyApi, CallWrapper, PromptBuilder } = installed("@saintno/comfyui-sdk");
    const api = await new ComfyApi(address).init().waitForReady();
    const builder = new PromptBuilder(await prompt(), ["text"], ["images"])
      .setInputNode("text", "4.inputs.text")
      .setOutputNode("images", "8")
      .input("text", "a blue circle");
    const url = await new Promise((resolve, reject) => {
      new CallWrapper(api, builder)
        .onFinished((data) => resolve(api.getPathImage(data.images.images[0])))
        .onFailed(reject)
        .run()
        .catch(reject);
    });
    return fetched(url);
  },

  async "@stable-canvas/comfyui-client"() {
    const { Client } = installed("@stable-canvas/comfyui-client");
    const client = new Client({ api_host: host, WebSocket: installed("ws"), fetch });
    await client.connect();
    try {
      const result = await client.enqueue(await prompt());
      const [image] = result.images;
      return image.type === "buff" ? Buffer.from(image.data) : await fetched(image.data);
    } finally {
      client.close();
    }
  },

  async "comfy-ui-client"() {
    const { ComfyUIClient } = installed("comfy-ui-client");
    const client = new ComfyUIClient(host, "sluice-test-client");
    await client.connect();
    try {
      const images = await client.getImages(await prompt());
      return Buffer.from(await images["8"][0].blob.arrayBuffer());
    } finally {
      await client.disconnect();
    }
  },
};

let failed = 0;
for (const [name, job] of Object.entries(clients)) {
  try {
    const limit = new Promise((_, reject) => setTimeout(reject, 120_000, new Error("no image within two minutes")));
    const data = await Promise.race([job(), limit]);
    const good = data.subarray(0, 4).equals(PNG);
    failed += good ? 0 : 1;
    console.log(`${name}: ${good ? "an image" : "no image"}`);
  } catch (error) {
    failed += 1;
    console.log(`${name}: ${error?.name ?? ""}: ${error?.message ?? error}`);
  }
}
process.exit(failed ? 1 : 0);
