// The gallery: finished images with their facts. They can be filtered, sorted, enlarged, opened, starred and compared.

import * as server from "./api.mjs";
import { compare } from "./compare.mjs";
import { element } from "./dom.mjs";
import { showExact } from "./exact_image.mjs";
import { factsLine } from "./facts.mjs";
import { plural } from "./format.mjs";
import { card, same } from "./gallery_card.mjs";
import { copyText, lightbox } from "./lightbox.mjs";
import { heading } from "./memory_panel.mjs";

const PAGE = 60; // images requested at once
const SETTLED = 250; // ms after the last key or the last finished job
const SORTS = { newest: "Newest first", oldest: "Oldest first", name: "By name", seed: "By seed", largest: "Largest first" };

/** Draw into `root`; `open(file)` opens an image's workflow in the editor. Returns a function that removes the panel. */
export function galleryPanel(root, open) {
  let pictures = [], cards = [], total = 0, editable = false, chosen = [], trashed = null, timer = 0, asked = 0;
  const count = element("span", { class: "sluice-quiet", role: "status" });
  const list = element("ul", { class: "sluice-gallery", "aria-label": "Finished pictures", onkeydown: key });
  const filter = element("input", {
    type: "search",
    class: "sluice-filter",
    placeholder: "Prompt, seed or name",
    "aria-label": "Filter images by words of the prompt, seed or file name",
    oninput: () => soon(),
  });
  const sort = element(
    "select",
    { class: "sluice-filter", "aria-label": "Order of the images", onchange: () => load(PAGE) },
    Object.entries(SORTS).map(([value, text]) => element("option", { value }, text)),
  );
  const onlyStarred = element("button", { type: "button", class: "sluice-button", "aria-pressed": "false", title: "Show starred images only", onclick: toggleStarred }, "Starred");
  const comparing = element("button", { type: "button", class: "sluice-button", onclick: compareChosen }, "Compare");
  const more = element("button", { type: "button", class: "sluice-button", onclick: () => load(pictures.length + PAGE) }, "Show more");
  const said = element("p", { class: "sluice-empty", role: "status" });
  const undo = element("p", { class: "sluice-undo", hidden: true });

  async function load(wanted) {
    const question = ++asked, starred = onlyStarred.getAttribute("aria-pressed") === "true";
    try {
      const answer = await server.gallery({ text: filter.value, limit: wanted, sort: sort.value, starred });
      if (question !== asked) return; // a newer request has been sent
      said.textContent = answer.pictures.length ? "" : emptyText(filter.value, starred);
      show(answer);
    } catch (error) {
      said.textContent = error.message;
    }
  }

  /** Cards that are shown already stay, with their focus; new images are inserted between them. */
  function show(answer) {
    ({ total, editable } = answer);
    const known = cards;
    pictures = answer.pictures;
    cards = pictures.map((picture) => {
      const kept = known.find((one) => one.is(picture)); // the same image with the same facts
      return kept ?? card(picture, { editable, choose, enlarge, star });
    });
    const wanted = new Set(cards.map(({ item }) => item));
    for (const item of [...list.children]) if (!wanted.has(item)) item.remove();
    cards.forEach(({ item }, place) => list.children[place] !== item && list.insertBefore(item, list.children[place] ?? null));
    count.textContent = plural(total, "image");
    more.hidden = pictures.length >= total;
    onlyStarred.hidden = !editable;
    mark();
  }

  function mark() {
    for (const one of cards) one.mark(chosen.some((other) => same(other, one.picture)));
    comparing.disabled = chosen.length !== 2;
    comparing.title = chosen.length === 2 ? "Compare the two images" : "Select two images to compare";
  }

  /** At most two: a third one replaces the one that was selected first. */
  function choose(picture) {
    const others = chosen.filter((one) => !same(one, picture));
    chosen = others.length < chosen.length ? others : [...chosen, picture].slice(-2);
    mark();
  }

  function compareChosen() {
    const [left, right] = [...chosen].sort((a, b) => a.time - b.time);
    compare(described(left), described(right));
  }

  function enlarge(picture) {
    lightbox(pictures, pictures.findIndex((one) => same(one, picture)), {
      open: openWorkflow,
      copy: copyText,
      star: editable ? star : null,
      remove: editable ? remove : null,
      exact: editable ? exactly : null,
    });
  }

  async function exactly(picture, say) {
    await showExact(picture, say).catch((error) => say(error.message));
  }

  async function openWorkflow(picture) {
    await trying(async () => open(await server.pictureFile(picture)));
  }

  async function star(picture) {
    await trying(async () => {
      picture.starred = (await server.star(picture, !picture.starred)).starred;
      cards.find((one) => same(one.picture, picture))?.star(picture.starred);
    });
  }

  async function remove(picture) {
    await trying(async () => {
      const { trashed: gone, folder } = await server.throwAway([picture]);
      trashed = gone;
      chosen = chosen.filter((one) => !same(one, picture));
      undo.replaceChildren(
        element("span", { class: "sluice-grow", title: folder }, `${picture.filename} is in the trash folder.`),
        element("button", { type: "button", class: "sluice-button", onclick: takeBack }, "Undo"),
      );
      undo.hidden = false;
      await load(Math.max(pictures.length, PAGE));
    });
  }

  async function takeBack() {
    await trying(async () => {
      await server.restore(trashed);
      undo.hidden = true;
      await load(Math.max(pictures.length, PAGE));
    });
  }

  async function trying(act) {
    try {
      await act();
    } catch (error) {
      said.textContent = error.message;
    }
  }

  function toggleStarred() {
    onlyStarred.setAttribute("aria-pressed", String(onlyStarred.getAttribute("aria-pressed") !== "true"));
    load(PAGE);
  }

  /** Arrow keys move between images by their positions; Delete moves an image to the trash. */
  function key(event) {
    const thumbs = cards.map(({ thumb }) => thumb), at = thumbs.indexOf(document.activeElement);
    if (at < 0) return;
    const columns = getComputedStyle(list).gridTemplateColumns.split(" ").length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (step) thumbs[at + step]?.focus();
    else if (event.key === "Delete" && editable) remove(cards[at].picture);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  function soon() {
    clearTimeout(timer);
    timer = setTimeout(() => load(Math.max(pictures.length, PAGE)), SETTLED);
  }

  root.classList.add("sluice-panel");
  root.replaceChildren(
    heading("Gallery", count),
    element("div", { class: "sluice-tools" }, filter, sort, onlyStarred, comparing),
    element("div", { class: "sluice-body", tabindex: "-1" }, undo, said, list, more),
  );
  const end = server.listen(["status", "execution_success", "sluice.gallery"], soon);
  load(PAGE);
  return () => {
    end();
    clearTimeout(timer);
    asked += 1;
    root.replaceChildren();
  };
}

function emptyText(filter, starred) {
  if (filter.trim()) return "No image has all these words.";
  return starred ? "No image is starred." : "Finished images appear here. Press Run to make the first one.";
}

const described = (picture) => ({ url: server.pictureUrl(picture), title: picture.text || picture.filename, facts: factsLine(picture) });
