// Files that the open workflow needs and that were not found, models and tokenizers, with where to get them.

import * as server from "./api.mjs";
import { element } from "./dom.mjs";
import { plural } from "./format.mjs";
import { missing } from "./live.mjs";

/** Request the missing files of a prompt and store them. Returns them; none if the request fails. */
export async function look(prompt) {
  const found = await server.missingFiles(prompt).catch(() => []);
  missing.set(found);
  return found;
}

/**
 * The section that shows them; [] without missing files.
 * told: the files of the image that was opened last, of which some may be here under another name, or null.
 * use: called with (name, other name) to put the one in the place of the other; without it there is no button.
 */
export function missingList(files, told = null, use = null) {
  if (!files.length) return [];
  const here = new Map((told?.files ?? []).filter((one) => one.here).map((one) => [one.name, one.here]));
  const absent = files.filter(({ name }) => !here.has(name)).length;
  const title = absent ? `${plural(absent, "file")} missing` : `${plural(files.length, "file")} here under another name`;
  const items = files.map((file) => element("li", {}, ...(here.has(file.name) ? renamed(file.name, here.get(file.name), use) : absentFile(file))));
  return [element("section", { class: "sluice-card sluice-missing", role: "alert" }, element("h3", {}, title), element("ul", {}, items))];
}

const absentFile = (file) => [
  element("strong", {}, file.size ? `${file.name} (${file.size})` : file.name),
  file.source ? element("a", { href: file.source, target: "_blank", rel: "noreferrer noopener" }, shortly(file.source)) : null,
  element("p", {}, file.source && file.folder ? `Put it in ${file.folder}` : file.message),
  file.smaller ? element("p", {}, `Smaller forms: ${file.smaller}`) : null,
];

const renamed = (name, other, use) => [
  element("strong", {}, name),
  element("p", {}, `The same file is here, named ${other}: its size and SHA-256 are equal.`),
  use ? element("button", { class: "sluice-button", type: "button", onclick: () => use(name, other) }, `Use ${other}`) : null,
];

const shortly = (address) => address.replace(/^https:\/\//, "");
