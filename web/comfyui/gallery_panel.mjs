// The gallery: finished pictures newest first with what they were made with; filtered, opened in the editor, compared.

import * as server from "./api.mjs";
import { compare } from "./compare.mjs";
import { element } from "./dom.mjs";
import { bytes, plural, seconds } from "./format.mjs";
import { heading } from "./memory_panel.mjs";

const PAGE = 60; // pictures asked for at once
const SETTLED = 250; // ms after the last key or the last sign of a finished job

/** Draw into `root`; `open(file)` opens a picture's workflow in the editor. Returns the function that undoes it. */
export function galleryPanel(root, open) {
  let pictures = [], entries = [], total = 0, chosen = [], timer = 0, asked = 0;
  const count = element("span", { class: "sluice-quiet", role: "status" });
  const list = element("ul", { class: "sluice-gallery", "aria-label": "Finished pictures" });
  const filter = element("input", {
    type: "search",
    class: "sluice-filter",
    placeholder: "Prompt, seed or name",
    "aria-label": "Filter pictures by words of the prompt, seed or file name",
    oninput: () => soon(),
  });
  const comparing = element("button", { type: "button", class: "sluice-button", onclick: compareChosen }, "Compare");
  const more = element("button", { type: "button", class: "sluice-button", onclick: () => load(pictures.length + PAGE) }, "Show older ones");
  const said = element("p", { class: "sluice-empty" });

  async function load(wanted) {
    const question = ++asked;
    try {
      const answer = await server.gallery(filter.value, wanted);
      if (question !== asked) return; // a newer question is on its way
      said.textContent = answer.pictures.length ? "" : emptyText(filter.value);
      show(answer);
    } catch (error) {
      said.textContent = error.message;
    }
  }

  /** What is already shown stays as it is, with its focus. */
  function show(answer) {
    total = answer.total;
    if (JSON.stringify(answer.pictures) !== JSON.stringify(pictures)) {
      pictures = answer.pictures;
      entries = pictures.map((picture) => entry(picture, () => choose(picture), () => act(picture)));
      list.replaceChildren(...entries.map(({ item }) => item));
    }
    count.textContent = plural(total, "picture");
    more.hidden = pictures.length >= total;
    mark();
  }

  function mark() {
    for (const { picture, item, box } of entries) {
      box.checked = chosen.some((one) => same(one, picture));
      item.classList.toggle("sluice-chosen", box.checked);
    }
    comparing.disabled = chosen.length !== 2;
    comparing.title = chosen.length === 2 ? "Compare the two pictures" : "Choose two pictures to compare";
  }

  /** Two at most: a third takes the place of the one chosen first. */
  function choose(picture) {
    const others = chosen.filter((one) => !same(one, picture));
    chosen = others.length < chosen.length ? others : [...chosen, picture].slice(-2);
    mark();
  }

  function compareChosen() {
    const [left, right] = [...chosen].sort((a, b) => a.time - b.time);
    compare(described(left), described(right));
  }

  async function act(picture) {
    try {
      await open(await server.pictureFile(picture));
    } catch (error) {
      said.textContent = error.message;
    }
  }

  function soon() {
    clearTimeout(timer);
    timer = setTimeout(() => load(Math.max(pictures.length, PAGE)), SETTLED);
  }

  root.classList.add("sluice-panel");
  root.replaceChildren(
    heading("Gallery", count),
    element("div", { class: "sluice-tools" }, filter, comparing),
    element("div", { class: "sluice-body" }, said, list, more),
  );
  const end = server.listen(["status", "execution_success"], soon);
  load(PAGE);
  return () => {
    end();
    clearTimeout(timer);
    asked += 1;
    root.replaceChildren();
  };
}

/** One picture of the list: {picture, item, box}. */
function entry(picture, choose, act) {
  const label = picture.text || picture.filename;
  const box = element("input", { type: "checkbox", onchange: choose, "aria-label": `Choose for comparison: ${label}` });
  const item = element(
    "li",
    {},
    element(
      "button",
      { type: "button", class: "sluice-thumb", title: "Open in the editor with its workflow", onclick: act },
      element("img", { src: server.pictureUrl(picture, true), alt: label, loading: "lazy" }),
    ),
    element(
      "div",
      { class: "sluice-about" },
      element("p", { class: "sluice-prompt", title: label }, label),
      element("p", { class: "sluice-quiet" }, facts(picture)),
      element("label", { class: "sluice-pick" }, box, "compare"),
    ),
  );
  return { picture, item, box };
}

const same = (one, other) =>
  one.filename === other.filename && one.subfolder === other.subfolder && one.time === other.time;

const emptyText = (filter) => (filter.trim() ? "No picture has all these words." : "Finished pictures appear here. Press Run to make the first.");

const described = (picture) => ({ url: server.pictureUrl(picture), title: picture.text || picture.filename, facts: facts(picture) });

/** "seed 42 · 20 steps · 1024 × 1024 · 31.2 s · 7.4 GiB" */
function facts({ seed, steps, width, height, seconds: time, peak_vram: vram, peak_ram: ram }) {
  const known = [
    seed === null || seed === undefined ? null : `seed ${seed}`,
    steps ? plural(steps, "step") : null,
    width && height ? `${width} × ${height}` : null,
    Number.isFinite(time) ? seconds(time) : null,
    vram || ram ? `peak ${bytes(vram || ram)}` : null,
  ];
  return known.filter(Boolean).join(" · ");
}
