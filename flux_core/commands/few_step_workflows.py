"""Draws the workflows of FLUX.1-dev with LoRAs for few steps: python -m sluice.flux_core.commands.few_step_workflows

    turbo_8_steps    FLUX.1-Turbo-Alpha (alimama-creative) at strength 1
    hyper_8_steps    Hyper-FLUX.1-dev (ByteDance/Hyper-SD) at strength 0.125: at 1 it makes noise

Canvases with ComfyUI's ids and without images, because they need FLUX.1-dev itself.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from .make_workflows import BLUE, GREEN, WORKFLOWS, Canvas

SIDE, STEPS, GUIDANCE = 1024, 8, 3.5
FOLDER = WORKFLOWS / "flux1"


@dataclass(frozen=True)
class Kind:
    """A LoRA for few steps: its file, its strength, what its authors call it and where it is."""

    file: str
    strength: float
    title: str
    source: str


KINDS = {
    "turbo_8_steps": Kind(
        "FLUX.1-Turbo-Alpha.safetensors", 1.0, "Turbo", "alimama-creative/FLUX.1-Turbo-Alpha, saved under this name"
    ),
    "hyper_8_steps": Kind("Hyper-FLUX.1-dev-8steps-lora.safetensors", 0.125, "Hyper", "ByteDance/Hyper-SD"),
}


def few_steps(kind: Kind, name: str) -> Canvas:
    """Eight steps of Euler with dev's own shift and guidance."""
    canvas = Canvas()
    canvas.note(
        (40, 620), (290, 230),
        f"## Eight steps with {kind.title}\nThe LoRA is `{kind.file}` (from {kind.source}) in `models/loras`, at "
        f"strength {kind.strength:g}. Schedule, shift and guidance are dev's own. A step cache finds little to skip in "
        "eight steps.",
    )  # fmt: skip
    [model] = canvas.add("UNETLoader", (40, 40), unet_name="flux1-dev.safetensors", weight_dtype="default")
    [model] = canvas.add("LoraLoaderModelOnly", (40, 170), colours=BLUE, model=model, lora_name=kind.file,
                         strength_model=kind.strength)  # fmt: skip
    [clip] = canvas.add("DualCLIPLoader", (40, 320), clip_name1="t5xxl_fp16.safetensors",
                        clip_name2="clip_l.safetensors", type="flux")  # fmt: skip
    [vae] = canvas.add("VAELoader", (40, 520), vae_name="ae.safetensors")
    [plain] = canvas.add("CLIPTextEncode", (380, 40), size=(330, 130), title="Prompt", colours=GREEN, clip=clip,
                         text="a lighthouse on a rock in the evening, waves, film photograph")  # fmt: skip
    [told] = canvas.add("FluxGuidance", (380, 220), colours=BLUE, conditioning=plain, guidance=GUIDANCE)
    [model] = canvas.add("ModelSamplingFlux", (780, 160), model=model, max_shift=1.15, base_shift=0.5,
                         width=SIDE, height=SIDE)  # fmt: skip
    [noise] = canvas.add("RandomNoise", (780, 40), title="Seed", noise_seed=1)
    [solver] = canvas.add("KSamplerSelect", (780, 340), sampler_name="euler")
    [sigmas] = canvas.add("BasicScheduler", (780, 420), title="Schedule", model=model, scheduler="simple",
                          steps=STEPS, denoise=1.0)  # fmt: skip
    [empty] = canvas.add("EmptySD3LatentImage", (780, 570), title="Size", width=SIDE, height=SIDE, batch_size=1)
    [guider] = canvas.add("BasicGuider", (1130, 40), model=model, conditioning=told)
    latent = canvas.add("SamplerCustomAdvanced", (1130, 160), noise=noise, guider=guider, sampler=solver,
                        sigmas=sigmas, latent_image=empty)[0]  # fmt: skip
    [pixels] = canvas.add("VAEDecode", (1480, 40), size=(210, 60), samples=latent, vae=vae)
    canvas.add("SaveImage", (1480, 150), size=(400, 440), images=pixels, filename_prefix=name)
    return canvas


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for each, lora in KINDS.items():
        (folder / f"{each}.json").write_text(json.dumps(few_steps(lora, each).json(), indent=1) + "\n", "utf-8")
