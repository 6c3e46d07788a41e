// One image as large as the window allows, with its actions, in a dialog of its own.

import * as server from "./api.mjs";
import { element } from "./dom.mjs";
import { factsLine } from "./facts.mjs";

/**
 * Show `pictures[at]`; arrow keys show the others. `acts`: {open, star, remove, exact, copy}, each called with the image; star,
 * remove and exact are null where images cannot be changed. Returns the dialog.
 */
export function lightbox(pictures, at, acts) {
  const image = element("img", { class: "sluice-large" });
  const about = element("div", { class: "sluice-large-about" });
  const said = element("p", { class: "sluice-quiet", role: "status" });
  const box = element(
    "dialog",
    { class: "sluice-lightbox", "aria-label": "Image", onclose: () => box.remove(), onkeydown: key, onclick: outside },
    element(
      "div",
      { class: "sluice-large-bar" },
      button("Previous image", "pi-chevron-left", () => move(-1)),
      button("Next image", "pi-chevron-right", () => move(1)),
      element("span", { class: "sluice-grow" }),
      button("Close", "pi-times", () => box.close()),
    ),
    image,
    about,
    said,
  );

  function show() {
    const picture = pictures[at];
    image.src = server.pictureUrl(picture);
    image.alt = picture.text || picture.filename;
    const hasWorkflow = picture.has_workflow !== false;
    about.replaceChildren(
      element("p", { class: "sluice-large-text" }, picture.text || picture.filename),
      element("p", { class: "sluice-quiet" }, factsLine(picture)),
      element(
        "div",
        { class: "sluice-acts" },
        element(
          "button",
          { class: "sluice-button", disabled: !hasWorkflow, title: hasWorkflow ? null : "This image has no workflow", onclick: () => (box.close(), acts.open(picture)) },
          "Open workflow",
        ),
        element("a", { class: "sluice-button", href: server.pictureUrl(picture), download: picture.filename }, "Download"),
        picture.text && element("button", { class: "sluice-button", onclick: () => tell(acts.copy(picture.text), "Prompt copied") }, "Copy prompt"),
        Number.isFinite(picture.seed) &&
          element("button", { class: "sluice-button", onclick: () => tell(acts.copy(String(picture.seed)), "Seed copied") }, "Copy seed"),
        acts.star && element("button", { class: "sluice-button", "aria-pressed": String(Boolean(picture.starred)), onclick: () => acts.star(picture).then(show) }, picture.starred ? "Starred" : "Star"),
        acts.exact &&
          hasWorkflow &&
          element(
            "button",
            { class: "sluice-button", title: "Make it again without step cache and integer products, and compare", onclick: () => acts.exact(picture, say) },
            "Compare with exact",
          ),
        acts.remove && element("button", { class: "sluice-button", onclick: () => (box.close(), acts.remove(picture)) }, "Delete"),
      ),
    );
    said.textContent = "";
  }

  async function tell(done, text) {
    said.textContent = (await done) ? text : "The browser does not allow copying on this page.";
  }

  function say(text) {
    said.textContent = text;
  }

  function move(by) {
    at = (at + by + pictures.length) % pictures.length;
    show();
  }

  function key(event) {
    if (event.key === "ArrowRight") move(1);
    else if (event.key === "ArrowLeft") move(-1);
    else if (event.key === "Delete" && acts.remove) box.close(), acts.remove(pictures[at]);
    else return event.stopPropagation(); // these keys must not reach the editor
    event.preventDefault();
    event.stopPropagation();
  }

  function outside(event) {
    if (event.target === box) box.close();
  }

  show();
  document.body.append(box);
  box.showModal();
  return box;
}

const button = (label, icon, onclick) =>
  element("button", { type: "button", class: "sluice-button", "aria-label": label, title: label, onclick }, element("i", { class: `pi ${icon}`, "aria-hidden": "true" }));

/** Copy a text to the clipboard. Returns whether that was possible. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = element("textarea", { style: "position:fixed;opacity:0" });
    field.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(field);
    field.select();
    const done = document.execCommand("copy"); // the only way on pages without https
    field.remove();
    return done;
  }
}
