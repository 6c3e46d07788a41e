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

/** The section that shows them; [] without missing files. */
export function missingList(files) {
  if (!files.length) return [];
  const items = files.map((file) =>
    element(
      "li",
      {},
      element("strong", {}, file.size ? `${file.name} (${file.size})` : file.name),
      file.source ? element("a", { href: file.source, target: "_blank", rel: "noreferrer noopener" }, shortly(file.source)) : null,
      element("p", {}, file.source && file.folder ? `Put it in ${file.folder}` : file.message),
      file.smaller ? element("p", {}, `Smaller forms: ${file.smaller}`) : null,
    ),
  );
  return [
    element(
      "section",
      { class: "sluice-card sluice-missing", role: "alert" },
      element("h3", {}, `${plural(files.length, "file")} missing`),
      element("ul", {}, items),
    ),
  ];
}

const shortly = (address) => address.replace(/^https:\/\//, "");
