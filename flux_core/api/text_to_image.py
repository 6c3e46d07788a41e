"""The workflow of a pipeline: one prompt, one FLUX.1 model, as an API prompt that the editor opens too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..graph.prompt import JsonPrompt


@dataclass(frozen=True)
class Files:
    """The model files as their loaders list them. `checkpoint` holds all parts, or the three others are given."""

    checkpoint: str | None = None
    transformer: str = ""
    text_encoders: tuple[str, str] = ("", "")
    vae: str = ""


@dataclass(frozen=True)
class Request:
    """The values of one call of a pipeline. width, height: in pixels. loras: (listed file, strength)."""

    text: str
    seed: int
    steps: int
    width: int
    height: int
    count: int
    guidance: float | None
    sampler: str
    scheduler: str
    loras: Sequence[tuple[str, float]] = ()


def text_to_image(files: Files, request: Request) -> JsonPrompt:
    """Node id -> {"class_type", "inputs", "_meta"}, under ComfyUI's ids."""
    nodes: dict[str, Any] = {}

    def add(title: str, class_type: str, **inputs: Any) -> str:
        node_id = str(len(nodes) + 1)
        nodes[node_id] = {"class_type": class_type, "inputs": inputs, "_meta": {"title": title}}
        return node_id

    model: list[Any]
    if files.checkpoint:
        loader = add("Load Checkpoint", "CheckpointLoaderSimple", ckpt_name=files.checkpoint)
        model, clip, vae = [loader, 0], [loader, 1], [loader, 2]
    else:
        first, second = files.text_encoders
        model = [add("Load Model", "UNETLoader", unet_name=files.transformer, weight_dtype="default"), 0]
        clip = [add("Text Encoders", "DualCLIPLoader", clip_name1=first, clip_name2=second, type="flux"), 0]
        vae = [add("Load VAE", "VAELoader", vae_name=files.vae), 0]
    for name, strength in request.loras:
        model = [add("LoRA", "LoraLoaderModelOnly", lora_name=name, strength_model=strength, model=model), 0]
    conditioning = [add("Prompt", "CLIPTextEncode", text=request.text, clip=clip), 0]
    if request.guidance is not None:
        conditioning = [add("Guidance", "FluxGuidance", guidance=request.guidance, conditioning=conditioning), 0]
        size = {"width": request.width, "height": request.height}
        model = [add("Shift", "ModelSamplingFlux", max_shift=1.15, base_shift=0.5, model=model, **size), 0]
    latent = add("Size", "EmptySD3LatentImage", width=request.width, height=request.height, batch_size=request.count)
    sigmas = add("Steps", "BasicScheduler", scheduler=request.scheduler, steps=request.steps, denoise=1.0, model=model)
    sampled = add(
        "Denoise",
        "SamplerCustomAdvanced",
        noise=[add("Seed", "RandomNoise", noise_seed=request.seed), 0],
        guider=[add("Guider", "BasicGuider", model=model, conditioning=conditioning), 0],
        sampler=[add("Sampler", "KSamplerSelect", sampler_name=request.sampler), 0],
        sigmas=[sigmas, 0],
        latent_image=[latent, 0],
    )
    decoded = add("Decode", "VAEDecode", samples=[sampled, 0], vae=vae)
    add("Save", "SaveImage", filename_prefix="sluice", images=[decoded, 0])
    return nodes
