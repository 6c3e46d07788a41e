"""Writes the LoRA as a file that other programs read.

    kohya   lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight, .lora_up.weight, .alpha
    peft    transformer.transformer_blocks.0.attn.to_q.lora_A.weight, .lora_B.weight; alpha is in B

Kohya's names are supported by ComfyUI, Forge, diffusers and nunchaku, and keep fused matrices whole. PEFT's are those
of diffusers: the pair of a fused matrix becomes one pair for each part, with the same A and its rows of B, which is
exact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...adapters.lora_names import diffusers_targets
from ...checkpoint.whole_files import whole_file
from ...io.saving import write_whole
from .folder import TrainingFolder, tag_frequency
from .settings import KOHYA, LoraSettings


def lora_tensors(
    masters: Mapping[str, Tensor], alpha: float, keys: str, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
) -> dict[str, Tensor]:
    """masters: `<layer>.down` and `<layer>.up`. shapes: of all parameters of the transformer, by BFL's names."""
    pairs = {name.removesuffix(".down"): (value, masters[name[:-4] + "up"]) for name, value in masters.items()
             if name.endswith(".down")}  # fmt: skip
    tensors: dict[str, Tensor] = {}
    if keys == KOHYA:
        for path, (down, up) in pairs.items():
            prefix = "lora_unet_" + path.replace(".", "_")
            tensors[f"{prefix}.lora_down.weight"] = down.to(dtype)
            tensors[f"{prefix}.lora_up.weight"] = up.to(dtype)
            tensors[f"{prefix}.alpha"] = torch.tensor(alpha, dtype=dtype)
        return tensors
    for theirs, target in diffusers_targets(shapes):
        if target.module not in pairs or not target.parameter.endswith(".weight"):
            continue
        down, up = pairs[target.module]
        start, end = target.rows or (0, up.shape[0])
        scaled = up[start:end] * (alpha / down.shape[0])
        if target.swap:
            scaled = torch.cat(scaled.chunk(2)[::-1])
        tensors[f"transformer.{theirs}.lora_A.weight"] = down.to(dtype)
        tensors[f"transformer.{theirs}.lora_B.weight"] = scaled.to(dtype)
    return tensors


def write_lora(
    path: Path, masters: Mapping[str, Tensor], settings: LoraSettings, shapes: Mapping[str, tuple[int, ...]],
    metadata: Mapping[str, str], keys: str | None = None,
) -> None:  # fmt: skip
    """Write the file in bfloat16, completely or not at all."""
    tensors = lora_tensors(masters, settings.scale_alpha, keys or settings.keys, shapes, torch.bfloat16)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, whole_file(tensors, metadata))


def metadata_of(
    settings: LoraSettings, folder: TrainingFolder, model: str, guidance: bool, buckets: Mapping[str, int], step: int
) -> dict[str, str]:
    """The metadata that other programs show for a LoRA. It contains no times: the same training gives the same bytes.

    model: the file's name; guidance: whether the model has a guidance input like dev; buckets: images by size,
    "512x512".
    """
    kind = "flux-1-dev" if guidance else "flux-1-schnell"
    values: dict[str, Any] = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{kind}/lora",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        "modelspec.title": settings.name,
        "modelspec.resolution": f"{settings.size}x{settings.size}",
        "modelspec.prediction_type": "flow",
        **({"modelspec.trigger_phrase": settings.trigger} if settings.trigger else {}),
        "ss_base_model_version": "flux1",
        "ss_sd_model_name": model,
        "ss_network_module": "networks.lora_flux",
        "ss_network_dim": settings.rank,
        "ss_network_alpha": settings.scale_alpha,
        "ss_network_args": {"layers": settings.layers},
        "ss_learning_rate": settings.rate,
        "ss_unet_lr": settings.rate,
        "ss_optimizer": settings.optimiser,
        "ss_lr_scheduler": settings.schedule,
        "ss_steps": step,
        "ss_max_train_steps": settings.steps,
        "ss_total_batch_size": settings.batch * settings.accumulate,
        "ss_gradient_accumulation_steps": settings.accumulate,
        "ss_guidance_scale": settings.guidance,
        "ss_num_train_images": sum(picture.repeats for picture in folder.pictures),
        "ss_seed": settings.seed,
        "ss_resolution": f"({settings.size}, {settings.size})",
        "ss_bucket_info": {"buckets": {str(n): {"resolution": size, "count": count}
                                       for n, (size, count) in enumerate(buckets.items())}},
        "ss_tag_frequency": {folder.path.name: tag_frequency(folder.pictures, settings.trigger)},
        "ss_output_name": settings.name,
        "software": "Sluice",
    }  # fmt: skip
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
