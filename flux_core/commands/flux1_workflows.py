"""Draws the workflows of FLUX.1 itself: python -m sluice.flux_core.commands.flux1_workflows [folder]

Each is a canvas with ComfyUI's ids, a sketch of it for the template browser (sketch.py), and an entry of `index.json`:
title, description, and the model files that it names, with their sizes and where they are published. There are no
images, because those would need the models.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...nodes.host import pack_host
from ..io.published_files import gigabytes, published, size_text, told_forms
from ..worker.registry import standalone_tables
from .make_workflows import BLUE, GREEN, WORKFLOWS, Canvas, Output
from .sketch import sketch

FOLDER = WORKFLOWS / "flux1"
SIDE, STEPS, GUIDANCE = 1024, 20, 3.5
PROMPT = "a lighthouse on a rock in the evening, waves, film photograph"
NOTE, NOTE_SIZE = (40, 640), (640, 400)  # of the note with the files, below the loaders
WITH_PICTURE = ("image_to_image", "fill", "kontext", "canny", "depth")  # have a picture there; the note is right of it
NOTE_BESIDE = (780, 660)


@dataclass(frozen=True)
class Kind:
    """A LoRA for few steps: its file, its strength, what its authors call it."""

    file: str
    strength: float
    title: str


KINDS = {
    "turbo_8_steps": Kind("FLUX.1-Turbo-Alpha.safetensors", 1.0, "Turbo"),
    "hyper_8_steps": Kind("Hyper-FLUX.1-dev-8steps-lora.safetensors", 0.125, "Hyper"),
}


@dataclass(frozen=True)
class Loaded:
    """The first nodes of a workflow."""

    model: Output
    clip: Output
    vae: Output


@dataclass(frozen=True)
class Template:
    """A workflow: its title and description, and the function that draws it."""

    title: str
    description: str
    draw: Callable[[Canvas, str], None]


# -- the workflows -----------------------------------------------------------------------------------------------------


def dev(canvas: Canvas, name: str) -> None:
    loaded = _loaders(canvas)
    _text_to_image(canvas, name, loaded, _prompt(canvas, loaded.clip))


def schnell(canvas: Canvas, name: str) -> None:
    loaded = _loaders(canvas, "flux1-schnell.safetensors")
    _text_to_image(canvas, name, loaded, _prompt(canvas, loaded.clip, guidance=None), steps=4, shift=False)


def all_in_one(canvas: Canvas, name: str) -> None:
    loaded = Loaded(*canvas.add("CheckpointLoaderSimple", (40, 40), ckpt_name="flux1-dev-fp8.safetensors"))
    _text_to_image(canvas, name, loaded, _prompt(canvas, loaded.clip))


def gguf(canvas: Canvas, name: str) -> None:
    [model] = canvas.add("UnetLoaderGGUF", (40, 40), unet_name="flux1-dev-Q4_K_S.gguf")
    [clip] = canvas.add("DualCLIPLoaderGGUF", (40, 150), type="flux", clip_name2="clip_l.safetensors",
                        clip_name1="t5-v1_1-xxl-encoder-Q5_K_M.gguf")  # fmt: skip
    loaded = Loaded(model, clip, canvas.add("VAELoader", (40, 350), vae_name="ae.safetensors")[0])
    _text_to_image(canvas, name, loaded, _prompt(canvas, loaded.clip))


def lora(canvas: Canvas, name: str) -> None:
    loaded = _loaders(canvas, lora=("flux_realism_lora.safetensors", 1.0))
    _text_to_image(canvas, name, loaded, _prompt(canvas, loaded.clip))


def few_steps(canvas: Canvas, name: str) -> None:
    kind = KINDS[name]
    loaded = _loaders(canvas, lora=(kind.file, kind.strength))
    _text_to_image(canvas, name, loaded, _prompt(canvas, loaded.clip), steps=8)


def image_to_image(canvas: Canvas, name: str) -> None:
    loaded = _loaders(canvas)
    picture = _picture(canvas, "Start picture")[0]
    [scaled] = canvas.add("ImageScaleToTotalPixels", (380, 710), image=picture, upscale_method="lanczos",
                          megapixels=1.0, resolution_steps=16)  # fmt: skip
    [start] = canvas.add("VAEEncode", (380, 890), collapsed=True, pixels=scaled, vae=loaded.vae)
    _text_to_image(canvas, name, loaded, _prompt(canvas, loaded.clip), denoise=0.75, start=start)


def fill(canvas: Canvas, name: str) -> None:
    loaded = _loaders(canvas, "flux1-fill-dev.safetensors")
    prompt = _prompt(canvas, loaded.clip, guidance=30.0)
    picture, mask = _picture(canvas, "Picture and mask")
    positive, _, latent = canvas.add(
        "InpaintModelConditioning", (380, 710), positive=prompt, negative=_nothing(canvas, prompt), vae=loaded.vae,
        pixels=picture, mask=mask, noise_mask=False,
    )  # fmt: skip
    _text_to_image(canvas, name, loaded, positive, start=latent)


def kontext(canvas: Canvas, name: str) -> None:
    loaded = _loaders(canvas, "flux1-dev-kontext_fp8_scaled.safetensors")
    prompt = _prompt(canvas, loaded.clip, text="make it a winter evening with snow", guidance=2.5)
    picture, _ = _picture(canvas, "Picture to change")
    [scaled] = canvas.add("FluxKontextImageScale", (380, 710), collapsed=True, image=picture)
    [start] = canvas.add("VAEEncode", (380, 770), collapsed=True, pixels=scaled, vae=loaded.vae)
    [changed] = canvas.add("ReferenceLatent", (380, 830), collapsed=True, conditioning=prompt, latent=start)
    _text_to_image(canvas, name, loaded, changed, start=start)


def canny(canvas: Canvas, name: str) -> None:
    _control(canvas, name, "flux1-canny-dev-lora.safetensors", guidance=30.0, edges=True)


def depth(canvas: Canvas, name: str) -> None:
    _control(canvas, name, "flux1-depth-dev-lora.safetensors", guidance=10.0, edges=False)


def two_guidances(canvas: Canvas, name: str) -> None:
    loaded = _loaders(canvas)
    [text] = canvas.add("CLIPTextEncode", (380, 40), size=(330, 130), title="Prompt", colours=GREEN,
                        clip=loaded.clip, text=PROMPT)  # fmt: skip
    [strong] = canvas.add("FluxGuidance", (380, 220), title="High guidance", colours=BLUE, conditioning=text,
                          guidance=6.0)  # fmt: skip
    [weak] = canvas.add("FluxGuidance", (380, 330), title="Low guidance", colours=BLUE, conditioning=text,
                        guidance=2.0)  # fmt: skip
    model, solver, sigmas, empty = _schedule(canvas, loaded.model, steps=STEPS)
    high, low = canvas.add("SplitSigmas", (780, 720), title="Steps of the first pass", sigmas=sigmas, step=5)
    [noise] = canvas.add("RandomNoise", (780, 40), title="Seed", noise_seed=1)
    [first] = canvas.add("BasicGuider", (1130, 40), collapsed=True, model=model, conditioning=strong)
    latent, _ = canvas.add("SamplerCustomAdvanced", (1130, 90), title="First pass", noise=noise, guider=first,
                           sampler=solver, sigmas=high, latent_image=empty)  # fmt: skip
    [second] = canvas.add("BasicGuider", (1130, 300), collapsed=True, model=model, conditioning=weak)
    [none] = canvas.add("DisableNoise", (1130, 350), collapsed=True)
    done, _ = canvas.add("SamplerCustomAdvanced", (1130, 400), title="Second pass", noise=none, guider=second,
                         sampler=solver, sigmas=low, latent_image=latent)  # fmt: skip
    _save(canvas, loaded, done, name)


# -- their parts -------------------------------------------------------------------------------------------------------


def _loaders(canvas: Canvas, file: str = "flux1-dev.safetensors", lora: tuple[str, float] | None = None) -> Loaded:
    [model] = canvas.add("UNETLoader", (40, 40), unet_name=file, weight_dtype="default")
    if lora:
        model = _with_lora(canvas, model, *lora)
    [clip] = canvas.add("DualCLIPLoader", (40, 320), clip_name1="t5xxl_fp16.safetensors",
                        clip_name2="clip_l.safetensors", type="flux")  # fmt: skip
    [vae] = canvas.add("VAELoader", (40, 520), vae_name="ae.safetensors")
    return Loaded(model, clip, vae)


def _with_lora(canvas: Canvas, model: Output, file: str, strength: float) -> Output:
    return canvas.add("LoraLoaderModelOnly", (40, 170), colours=BLUE, model=model, lora_name=file,
                      strength_model=strength)[0]  # fmt: skip


def _prompt(canvas: Canvas, clip: Output, text: str = PROMPT, guidance: float | None = GUIDANCE) -> Output:
    [plain] = canvas.add("CLIPTextEncode", (380, 40), size=(330, 130), title="Prompt", colours=GREEN, clip=clip,
                         text=text)  # fmt: skip
    if guidance is None:
        return plain
    return canvas.add("FluxGuidance", (380, 220), colours=BLUE, conditioning=plain, guidance=guidance)[0]


def _nothing(canvas: Canvas, prompt: Output) -> Output:
    """A negative prompt for nodes that require one; FLUX.1 uses none."""
    return canvas.add("ConditioningZeroOut", (380, 320), collapsed=True, conditioning=prompt)[0]


def _picture(canvas: Canvas, title: str) -> tuple[Output, Output]:
    picture, mask = canvas.add("LoadImage", (380, 370), size=(330, 290), title=title, colours=GREEN, image="sketch.png")
    return picture, mask


def _control(canvas: Canvas, name: str, file: str, guidance: float, edges: bool) -> None:
    loaded = _loaders(canvas, lora=(file, 1.0))
    prompt = _prompt(canvas, loaded.clip, guidance=guidance)
    picture, _ = _picture(canvas, "Picture" if edges else "Depth map")
    [scaled] = canvas.add("ImageScaleToTotalPixels", (380, 710), collapsed=True, image=picture,
                          upscale_method="lanczos", megapixels=1.0, resolution_steps=16)  # fmt: skip
    if edges:
        [scaled] = canvas.add("Canny", (380, 770), image=scaled, low_threshold=0.15, high_threshold=0.3)
    positive, _, latent = canvas.add(
        "InstructPixToPixConditioning", (380, 900), collapsed=True, positive=prompt, negative=_nothing(canvas, prompt),
        vae=loaded.vae, pixels=scaled,
    )  # fmt: skip
    _text_to_image(canvas, name, loaded, positive, start=latent)


def _schedule(
    canvas: Canvas, model: Output, *, steps: int, denoise: float = 1.0, shift: bool = True, start: Output | None = None
) -> tuple[Output, Output, Output, Output]:
    """The model with its shift, the solver, the steps' sigmas, and the latent to start from."""
    if shift:
        [model] = canvas.add("ModelSamplingFlux", (780, 160), model=model, max_shift=1.15, base_shift=0.5,
                             width=SIDE, height=SIDE)  # fmt: skip
    [solver] = canvas.add("KSamplerSelect", (780, 340), sampler_name="euler")
    [sigmas] = canvas.add("BasicScheduler", (780, 420), title="Schedule", model=model, scheduler="simple",
                          steps=steps, denoise=denoise)  # fmt: skip
    if start is None:
        [start] = canvas.add("EmptySD3LatentImage", (780, 570), title="Size", width=SIDE, height=SIDE, batch_size=1)
    return model, solver, sigmas, start


def _text_to_image(
    canvas: Canvas, name: str, loaded: Loaded, prompt: Output, *, steps: int = STEPS, denoise: float = 1.0,
    shift: bool = True, start: Output | None = None,
) -> None:  # fmt: skip
    """Everything between a prompt and the saved image."""
    [noise] = canvas.add("RandomNoise", (780, 40), title="Seed", noise_seed=1)
    model, solver, sigmas, start = _schedule(
        canvas, loaded.model, steps=steps, denoise=denoise, shift=shift, start=start
    )
    [guider] = canvas.add("BasicGuider", (1130, 40), model=model, conditioning=prompt)
    latent, _ = canvas.add("SamplerCustomAdvanced", (1130, 160), noise=noise, guider=guider, sampler=solver,
                           sigmas=sigmas, latent_image=start)  # fmt: skip
    _save(canvas, loaded, latent, name)


def _save(canvas: Canvas, loaded: Loaded, latent: Output, name: str) -> None:
    [pixels] = canvas.add("VAEDecode", (1480, 40), size=(210, 60), samples=latent, vae=loaded.vae)
    canvas.add("SaveImage", (1480, 150), size=(400, 440), images=pixels, filename_prefix=name)


ALL = {
    "dev": Template(
        "FLUX.1 dev", "The usual workflow: 20 steps with guidance 3.5 at 1024 x 1024. Best quality of the three.", dev
    ),
    "schnell": Template(
        "FLUX.1 schnell", "Four steps, no guidance: an image in a fifth of dev's time. Apache 2.0 licence.", schnell
    ),
    "dev_fp8_all_in_one": Template(
        "FLUX.1 dev, all in one file", "The fp8 checkpoint with text encoders and VAE inside: one download.", all_in_one
    ),
    "dev_gguf": Template(
        "FLUX.1 dev, GGUF", "Q4_K_S and a Q5_K_M text encoder: the smallest download that still looks like dev.", gguf
    ),
    "dev_lora": Template(
        "FLUX.1 dev with a LoRA", "A style LoRA beside the model; choose your own in the LoRA node.", lora
    ),
    "turbo_8_steps": Template(
        "Eight steps with Turbo", "Dev in 8 steps instead of 20 with the Turbo-Alpha LoRA at strength 1.", few_steps
    ),
    "hyper_8_steps": Template(
        "Eight steps with Hyper",
        "Dev in 8 steps with the Hyper LoRA at strength 0.125; at strength 1 it makes noise.",
        few_steps,
    ),
    "image_to_image": Template(
        "Image to image",
        "A picture of yours is partly covered with noise and painted anew. Denoise 0.75 keeps its composition.",
        image_to_image,
    ),
    "fill": Template(
        "Fill: repaint a part",
        "FLUX.1 Fill paints what a mask covers. Right-click the picture and choose Open in MaskEditor.",
        fill,
    ),
    "kontext": Template(
        "Kontext: change a picture by words",
        "Say what is to change; the rest of the picture stays. FLUX.1 Kontext in scaled fp8.",
        kontext,
    ),
    "canny": Template(
        "Canny: follow edges",
        "The edges of a picture are kept, everything else is new. Dev with the Canny LoRA.",
        canny,
    ),
    "depth": Template(
        "Depth: follow a depth map", "Near is white, far is black. Dev with the Depth LoRA and a depth map.", depth
    ),
    "two_guidances": Template(
        "Two passes: high guidance, then low",
        "Five steps at guidance 6 fix the composition, fifteen at guidance 2 paint surfaces with less plastic shine.",
        two_guidances,
    ),
}


def canvas_of(name: str) -> Canvas:
    """The canvas of one of ALL, its note included."""
    canvas = Canvas()
    ALL[name].draw(canvas, name)
    lines = [
        f"| {one['name']} | {one['folder']} | {one['size']} | {one['repository']} |" for one in files_of(canvas.nodes)
    ]
    forms = [f"- {one['name']}: {one['smaller']}" for one in files_of(canvas.nodes) if one["smaller"]]
    text = [f"## {ALL[name].title}", ALL[name].description, "", "| file | models/ | size | Hugging Face |"]
    text += ["|---|---|---|---|", *lines, *(["", "Smaller forms:", "", *forms] if forms else [])]
    canvas.note(NOTE_BESIDE if name in WITH_PICTURE else NOTE, NOTE_SIZE, "\n".join(text))
    return canvas


def files_of(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The model files that the loaders of a canvas name: [{"name", "folder", "size", "gigabytes", "repository",
    "smaller"}]."""
    classes = standalone_tables(pack_host())[0]
    found: dict[str, dict[str, Any]] = {}
    for node in nodes:
        named = getattr(classes.get(node["type"]), "FILES", {})
        for category, name in zip(named.values(), node["widgets_values"], strict=False):
            found[name] = {
                "name": name, "folder": category, "size": size_text(name), "gigabytes": gigabytes(name),
                "repository": published(name), "smaller": told_forms(name),
            }  # fmt: skip
    return list(found.values())


def index() -> list[dict[str, Any]]:
    """The description of each for the template browser."""
    return [
        {"name": name, "title": one.title, "description": one.description, "files": files_of(canvas_of(name).nodes)}
        for name, one in ALL.items()
    ]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ALL:
        drawn = canvas_of(name).json()
        (folder / f"{name}.json").write_text(json.dumps(drawn, indent=1) + "\n", "utf-8")
        (folder / f"{name}.svg").write_text(sketch(drawn, ALL[name].title), "utf-8")
    (folder / "index.json").write_text(json.dumps(index(), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
