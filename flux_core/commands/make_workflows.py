"""Draws the shipped workflows anew: python -m sluice.flux_core.commands.make_workflows [folder]

Each is laid out here, run by `sluice run`, and kept three times: the PNG that our own SaveImage made (ComfyUI's ids,
both the prompt and the canvas inside), the canvas as JSON with our prefixed ids, for ComfyUI's template browser, and a
thumbnail for the same.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ...nodes.host import pack_host
from ..errors import SluiceError
from ..graph.app_form import OFFERED
from ..training.drawing import SIDE
from ..training.export import FILES
from ..worker.registry import PREFIX, comfyui_tables, standalone_tables

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
THUMBNAIL = 384
TITLE, GAP = 30, 16  # of a node's title bar, which lies above its position; between two nodes
GREEN, BLUE, PALE = ("#232", "#353"), ("#223", "#335"), ("#432", "#653")  # node colours of ComfyUI's palette
MODEL, T5, CLIP, VAE = (FILES[part].partition("/")[2] for part in ("transformer", "t5", "clip", "codec"))


@dataclass(frozen=True)
class Output:
    """One output of a node on the canvas."""

    node: int
    slot: int


@dataclass
class Canvas:
    """A workflow in the editor's format, version 0.4, built node by node."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        kind: str,
        at: tuple[int, int],
        *,
        size: tuple[int, int] | None = None,
        title: str = "",
        colours: tuple[str, str] | None = None,
        collapsed: bool = False,
        **values: Any,
    ) -> list[Output]:
        """A node with its inputs linked (values that are outputs) or set. Returns its outputs."""
        node_class = standalone_tables(pack_host())[0][kind]
        number = len(self.nodes) + 1
        inputs, widgets = self._inputs(number, node_class.INPUT_TYPES(), dict(values))
        outputs = [
            {"name": name, "type": wire, "links": [], "slot_index": slot}
            for slot, (wire, name) in enumerate(zip(node_class.RETURN_TYPES, _output_names(node_class), strict=True))
        ]
        height = 40 + 22 * max(len(inputs), len(outputs)) + 26 * len(widgets)
        node = {
            "id": number, "type": kind, "pos": list(at), "size": list(size or (220 if collapsed else 290, height)),
            "flags": {"collapsed": True} if collapsed else {},
            "order": number - 1, "mode": 0, "inputs": inputs, "outputs": outputs,
            "properties": {"Node name for S&R": kind}, "widgets_values": widgets,
        }  # fmt: skip
        self._finish(node, title, colours)
        return [Output(number, slot) for slot in range(len(outputs))]

    def note(self, at: tuple[int, int], size: tuple[int, int], text: str) -> None:
        """A note, in Markdown."""
        node = {
            "id": len(self.nodes) + 1, "type": "MarkdownNote", "pos": list(at), "size": list(size), "flags": {},
            "order": len(self.nodes), "mode": 0, "inputs": [], "outputs": [], "properties": {},
            "widgets_values": [text],
        }  # fmt: skip
        self._finish(node, "", PALE)

    def group(self, title: str, bounds: tuple[int, int, int, int], colour: str = "#3f789e") -> None:
        """A titled frame: left, top, width, height."""
        self.groups.append({"title": title, "bounding": list(bounds), "color": colour, "font_size": 24, "flags": {}})

    def json(self) -> dict[str, Any]:
        """The whole canvas, with a view that shows all of it in a window between the editor's own bars."""
        self._part()
        return {
            "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes, "links": self.links,
            "groups": self.groups, "config": {}, "version": 0.4,
            "extra": {"ds": {"scale": 0.7, "offset": [80, 130]}, "linearData": self._app()},
        }  # fmt: skip

    def _app(self) -> dict[str, Any]:
        """The contents of the editor's app mode: the values to change, most important first, and the results."""
        inputs = [[node["id"], name] for kind, name in OFFERED for node in self.nodes if node["type"] == kind]
        return {"inputs": inputs, "outputs": [node["id"] for node in self.nodes if node["type"] == "SaveImage"]}

    def _part(self) -> None:
        """Move nodes down until none covers another."""
        placed: list[dict[str, Any]] = []
        for node in sorted(self.nodes, key=lambda one: one["pos"][1]):
            left, right = node["pos"][0], node["pos"][0] + node["size"][0]
            above = [o for o in placed if o["pos"][0] < right and left < o["pos"][0] + o["size"][0]]
            node["pos"][1] = max([node["pos"][1], *(o["pos"][1] + _shown(o) + TITLE + GAP for o in above)])
            placed.append(node)

    def _inputs(
        self, number: int, declared: dict[str, Any], values: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], list[Any]]:
        """Sockets with their links, and widget values in order, with those that the editor adds after some of them."""
        sockets: list[dict[str, Any]] = []
        widgets: list[Any] = []
        upload = False
        for name, (kind, *rest) in {**declared["required"], **declared.get("optional", {})}.items():
            options: dict[str, Any] = rest[0] if rest else {}
            slot = len(sockets)
            value = values.pop(name, options.get("default", next(iter(kind), None) if isinstance(kind, list) else None))
            upload |= bool(options.get("image_upload"))
            if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN"):
                widgets.append(value)
                if options.get("control_after_generate"):
                    widgets.append("fixed")
            else:
                sockets.append({"name": name, "type": kind, "link": self._link(value, number, slot, kind)})
        if values:
            raise SluiceError(f"This node has no input {sorted(values)}; it has {sorted(declared['required'])}.")
        return sockets, widgets + (["image"] if upload else [])

    def _link(self, source: Any, number: int, slot: int, kind: str) -> int | None:
        if not isinstance(source, Output):
            return None
        link = len(self.links) + 1
        self.links.append([link, source.node, source.slot, number, slot, kind])
        self.nodes[source.node - 1]["outputs"][source.slot]["links"].append(link)
        return link

    def _finish(self, node: dict[str, Any], title: str, colours: tuple[str, str] | None) -> None:
        if title:
            node["title"] = title
        if colours:
            node["color"], node["bgcolor"] = colours
        self.nodes.append(node)


@dataclass(frozen=True)
class Loaded:
    """The first nodes of every workflow."""

    model: Output
    clip: Output
    vae: Output


def text_to_image(canvas: Canvas) -> None:
    """A prompt, twelve steps, a picture."""
    canvas.note(
        (40, 520), (290, 330),
        "## The first picture\nThe small model knows one digit or shape at a time:\n\n"
        "**what** 0 to 9, zero to nine, circle, square, triangle, diamond, star, heart, cross, ring\n\n"
        "**colour** red, orange, yellow, green, cyan, blue, purple, pink\n\n"
        "**where** left, right, top, bottom, centre\n\n**background** white, black, grey, navy\n\n"
        "Without a place it is the middle; what else you leave out is left to the seed. "
        "For FLUX.1 itself choose its files in the three loaders and 1024 x 1024.",
    )  # fmt: skip
    loaded = _loaders(canvas)
    prompt = _prompt(canvas, loaded, "a yellow star in the middle on a navy background", (380, 40))
    latent = _denoise(canvas, loaded.model, prompt, seed=7, steps=12)
    _save(canvas, loaded, latent, "text_to_image", (1480, 40))


def four_steps(canvas: Canvas) -> None:
    """A workflow for FLUX.1 schnell: four steps, no guidance node, no shift."""
    canvas.note(
        (40, 520), (290, 230),
        "## Four steps\nThe graph that FLUX.1 schnell is used with: no guidance and no shift, four steps of Euler. "
        "For schnell itself choose `flux1-schnell.safetensors` in the first loader and 1024 x 1024.",
    )  # fmt: skip
    loaded = _loaders(canvas)
    [text] = canvas.add("CLIPTextEncode", (380, 40), size=(330, 130), title="Prompt", colours=GREEN,
                        clip=loaded.clip, text="a red 5 on the left, white background")  # fmt: skip
    latent = _denoise(canvas, loaded.model, text, seed=3, steps=4, shift=False)
    _save(canvas, loaded, latent, "four_steps", (1480, 40))


def image_to_image(canvas: Canvas) -> None:
    """An encoded picture instead of an empty latent, and only the last part of the steps."""
    canvas.note(
        (40, 520), (290, 370),
        "## From picture to picture\nThe sketch is encoded and partly covered with noise; the prompt says what is to "
        "come out of it. The colours, which it does not mention, are the sketch's. With little **denoise** (Schedule) "
        "more of the sketch shows through, with 1.0 nothing of it is left.\n\nIn ComfyUI, drop a picture of 128x128 "
        "pixels on **Sketch** first: ours is `flux_core/tiny/input/sketch.png` in this pack's folder.",
    )  # fmt: skip
    loaded = _loaders(canvas)
    prompt = _prompt(canvas, loaded, "a heart on the right", (380, 40))
    picture, _ = canvas.add("LoadImage", (380, 380), size=(330, 330), title="Sketch", image="sketch.png")
    [start] = canvas.add("VAEEncode", (380, 760), pixels=picture, vae=loaded.vae)
    latent = _denoise(canvas, loaded.model, prompt, seed=3, steps=16, denoise=0.8, start=start)
    _save(canvas, loaded, latent, "image_to_image", (1480, 40))


def two_prompts(canvas: Canvas) -> None:
    """CLIP and T5 read different texts."""
    canvas.note(
        (40, 520), (290, 230),
        "## Two readers\nFLUX.1 has two text encoders. CLIP sums a text up in one vector, T5 hands over every word. "
        "Here only CLIP is told the figure, and only T5 its colour, place and background.",
    )  # fmt: skip
    loaded = _loaders(canvas)
    [prompt] = canvas.add(
        "CLIPTextEncodeFlux", (380, 40), size=(330, 250), title="Two prompts", colours=GREEN, clip=loaded.clip,
        clip_l="a square", t5xxl="a pink object on the left, black background", guidance=3.5,
    )  # fmt: skip
    latent = _denoise(canvas, loaded.model, prompt, seed=5, steps=12)
    _save(canvas, loaded, latent, "two_prompts", (1480, 40))


def seeds_and_guidance(canvas: Canvas) -> None:
    """Four strengths of guidance from left to right, two seeds from top to bottom, on one sheet."""
    strengths, seeds = (1.0, 2.0, 3.5, 6.0), (1, 2)
    canvas.note(
        (40, 520), (290, 260),
        "## Seeds and guidance\nThe prompt leaves the background open, so it depends on the seed (one row each). From "
        "left to right the guidance is 1, 2, 3.5 and 6: the more of it, the closer to the prompt and the less "
        "surprise.",
    )  # fmt: skip
    loaded = _loaders(canvas)
    [text] = canvas.add("CLIPTextEncode", (380, 40), size=(330, 130), title="Prompt", colours=GREEN,
                        clip=loaded.clip, text="a green 8")  # fmt: skip
    model, solver, sigmas, empty = _schedule(canvas, loaded.model, steps=12, at=(380, 220))
    noises = [canvas.add("RandomNoise", (40, 800 + 110 * row), title=f"Seed {row + 1}", noise_seed=seed)[0]
              for row, seed in enumerate(seeds)]  # fmt: skip
    [sheet] = canvas.add("EmptyImage", (380, 900), title="Sheet", collapsed=True,
                         width=SIDE * 4, height=SIDE * 2, color=0x303030)  # fmt: skip
    for column, strength in enumerate(strengths):
        left = 780 + 280 * column
        [prompt] = canvas.add("FluxGuidance", (left, 40), size=(250, 60), colours=BLUE,
                            conditioning=text, guidance=strength)  # fmt: skip
        [guider] = canvas.add("BasicGuider", (left, 150), collapsed=True, model=model, conditioning=prompt)
        for row, noise in enumerate(noises):
            latent, _ = canvas.add("SamplerCustomAdvanced", (left, 200 + 270 * row), size=(250, 110), noise=noise,
                                   guider=guider, sampler=solver, sigmas=sigmas, latent_image=empty)  # fmt: skip
            [pixels] = canvas.add("VAEDecode", (left, 360 + 270 * row), collapsed=True,
                                  samples=latent, vae=loaded.vae)  # fmt: skip
            [sheet] = canvas.add("ImageCompositeMasked", (left, 410 + 270 * row), collapsed=True, destination=sheet,
                                 source=pixels, x=column * SIDE, y=row * SIDE, resize_source=False)  # fmt: skip
    canvas.add("SaveImage", (780, 740), size=(720, 300), images=sheet, filename_prefix="seeds_and_guidance")


def _loaders(canvas: Canvas) -> Loaded:
    [model] = canvas.add("UNETLoader", (40, 40), unet_name=MODEL, weight_dtype="default")
    [clip] = canvas.add("DualCLIPLoader", (40, 170), clip_name1=T5, clip_name2=CLIP, type="flux")
    [vae] = canvas.add("VAELoader", (40, 370), vae_name=VAE)
    return Loaded(model, clip, vae)


def _prompt(canvas: Canvas, loaded: Loaded, text: str, at: tuple[int, int]) -> Output:
    left, top = at
    [plain] = canvas.add("CLIPTextEncode", at, size=(330, 130), title="Prompt", colours=GREEN,
                         clip=loaded.clip, text=text)  # fmt: skip
    return canvas.add("FluxGuidance", (left, top + 180), colours=BLUE, conditioning=plain, guidance=3.5)[0]


def _schedule(
    canvas: Canvas, model: Output, *, steps: int, at: tuple[int, int], denoise: float = 1.0, shift: bool = True,
    start: Output | None = None,
) -> tuple[Output, Output, Output, Output]:  # fmt: skip
    """The model with its shift, the solver, the steps' sigmas, and the latent to start from."""
    left, top = at
    if shift:
        [model] = canvas.add("ModelSamplingFlux", (left, top), model=model, max_shift=1.15, base_shift=0.5,
                             width=SIDE, height=SIDE)  # fmt: skip
    [solver] = canvas.add("KSamplerSelect", (left, top + 180), sampler_name="euler")
    [sigmas] = canvas.add("BasicScheduler", (left, top + 260), title="Schedule", model=model, scheduler="simple",
                          steps=steps, denoise=denoise)  # fmt: skip
    if start is None:
        [start] = canvas.add("EmptySD3LatentImage", (left, top + 410), title="Size",
                             width=SIDE, height=SIDE, batch_size=1)  # fmt: skip
    return model, solver, sigmas, start


def _denoise(
    canvas: Canvas, model: Output, prompt: Output, *, seed: int, steps: int, denoise: float = 1.0, shift: bool = True,
    start: Output | None = None,
) -> Output:  # fmt: skip
    """Everything between a prompt and a finished latent."""
    [noise] = canvas.add("RandomNoise", (780, 40), title="Seed", noise_seed=seed)
    model, solver, sigmas, start = _schedule(
        canvas, model, steps=steps, at=(780, 160), denoise=denoise, shift=shift, start=start
    )
    [guider] = canvas.add("BasicGuider", (1130, 40), model=model, conditioning=prompt)
    return canvas.add("SamplerCustomAdvanced", (1130, 160), noise=noise, guider=guider, sampler=solver, sigmas=sigmas,
                      latent_image=start)[0]  # fmt: skip


def _save(canvas: Canvas, loaded: Loaded, latent: Output, name: str, at: tuple[int, int]) -> None:
    left, top = at
    [pixels] = canvas.add("VAEDecode", at, size=(210, 60), samples=latent, vae=loaded.vae)
    canvas.add("SaveImage", (left, top + 110), size=(400, 440), images=pixels, filename_prefix=name)


def _shown(node: dict[str, Any]) -> int:
    """The height of a node below its title bar."""
    return 0 if node["flags"].get("collapsed") else int(node["size"][1])


def _output_names(node_class: type[Any]) -> Iterable[str]:
    names: Iterable[str] = getattr(node_class, "RETURN_NAMES", None) or node_class.RETURN_TYPES
    return names


ALL = {
    "text_to_image": text_to_image, "four_steps": four_steps, "image_to_image": image_to_image,
    "two_prompts": two_prompts, "seeds_and_guidance": seeds_and_guidance,
}  # fmt: skip


def for_comfyui(canvas: dict[str, Any]) -> dict[str, Any]:
    """The same canvas with our prefixed ids and sockets, wherever ComfyUI offers a node of ours."""
    ours = comfyui_tables(pack_host())[0]
    copy = json.loads(json.dumps(canvas))
    for node in copy["nodes"]:
        if PREFIX + node["type"] in ours:
            node["type"] = PREFIX + node["type"]
            node["properties"] = {"Node name for S&R": node["type"]}
    return dict(copy)


def make(name: str, folder: Path) -> None:
    """Lay one out, run it, and keep picture, canvas and thumbnail in `folder`."""
    from .cli import main

    canvas = Canvas()
    ALL[name](canvas)
    with tempfile.TemporaryDirectory() as scratch:
        file, out = Path(scratch) / f"{name}.json", Path(scratch) / "out"
        file.write_text(json.dumps(canvas.json()), "utf-8")
        if main(["run", str(file), "--out", str(out), "--device", "cpu", "--dtype", "fp32"]) != 0:
            raise SluiceError(f"The workflow {name} could not be run; the reason is above.")
        [picture] = out.rglob("*.png")
        shutil.copyfile(picture, folder / f"{name}.png")
    text = json.dumps(for_comfyui(canvas.json()), indent=1)
    (folder / f"{name}.json").write_text(text + "\n", "utf-8")
    small = Image.open(folder / f"{name}.png").convert("RGB")
    width = max(THUMBNAIL, small.width)
    small.resize((width, small.height * width // small.width), Image.Resampling.LANCZOS).save(
        folder / f"{name}.jpg", quality=90
    )


if __name__ == "__main__":
    for each in ALL:
        make(each, Path(sys.argv[1]) if len(sys.argv) > 1 else WORKFLOWS)
