// The files that an opened image was made with, compared with those of this server: a notice, and a list in the Memory tab.

import * as server from "./api.mjs";
import { element } from "./dom.mjs";
import { plural } from "./format.mjs";
import { used } from "./live.mjs";
import { notice } from "./notice.mjs";

const IMAGE = /^image\/(png|jpe?g|webp|avif)$/;
const WORDS = { same: "same file", other: "another file of this name", missing: "missing", unknown: "not compared" };
let hide = () => {};

const word = ({ state, here }) => (here ? `here as ${here}` : (WORDS[state] ?? state));

/** Request the files of an image from the server, and show the differences. Other files and errors show nothing. */
export async function tellUsedFiles(file) {
  hide();
  used.set(null);
  if (!IMAGE.test(file.type)) return;
  const files = await server.usedFiles(file).catch(() => null);
  if (!files?.length) return;
  used.set({ title: file.name, files });
  const differing = files.filter(({ state }) => state === "other" || state === "missing");
  if (!differing.length) {
    const compared = files.every(({ state }) => state === "same");
    if (compared) hide = notice("info", "Made with the files that are here", `${file.name}: ${plural(files.length, "file")}, all the same.`, 5000);
    return;
  }
  const lines = differing.map((one) => `${one.name}: ${word(one)}`);
  hide = notice("warn", "This image was made with other files", [...lines, "The Memory tab says what to do."].join("\n"), 20000);
}

/** The section that shows them; [] without an image that names its files. */
export function usedFilesCard(told) {
  if (!told) return [];
  const items = told.files.map((one) =>
    element(
      "li",
      { class: `sluice-file-${one.state}` },
      element("strong", {}, one.name),
      element("span", { class: "sluice-quiet" }, word(one)),
      one.state === "same" ? null : element("p", {}, one.text),
    ),
  );
  return [
    element("section", { class: "sluice-card sluice-used" }, element("h3", {}, `Files of ${told.title}`), element("ul", {}, items)),
  ];
}
