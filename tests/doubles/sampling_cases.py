"""Sampling runs by name: conditionings of every kind, masks, areas, ranges, batches, guiders.

`sampling.safetensors` has ComfyUI's numbers for them, with `velocity` in the place of the network
(fixtures/record/sampling.py). Whole models run them as well. Knows nothing of our engine, so that the recorder can
import it beside ComfyUI.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Conditioning = list[list[Any]]

SEED = 42
HEIGHT, WIDTH = 8, 6  # latent cells


def velocity(inputs: Any) -> Tensor:
    """A smooth function in place of the network; each of its inputs, their order and the place of a crop change it.

    inputs: what an evaluation is given (models/denoiser_inputs.py), or anything with the same fields.
    """
    image, extra = inputs.x[:, :16], inputs.x[:, 16:]
    v: Tensor = torch.tanh(0.8 * image + 0.3 * image.roll(1, -1) - 0.2 * image.roll(1, -2))
    v = v + 0.5 * _per_item(inputs.timesteps) * image
    v = v + _per_item(inputs.context.mean(dim=(1, 2)) + inputs.pooled.mean(dim=1))
    if inputs.guidance is not None:
        v = v + 0.1 * _per_item(inputs.guidance)
    if extra.shape[1]:
        weights = torch.cos(torch.arange(extra.shape[1])).reshape(1, -1, 1, 1)
        v = v + (extra * weights).mean(dim=1, keepdim=True)
    for number, reference in enumerate(inputs.references, start=1 if inputs.reference_method == "offset" else 3):
        v = v + number * _per_item(reference.mean(dim=(1, 2, 3)))
    if inputs.attention_mask is not None:
        mask = inputs.attention_mask
        places = torch.cos(torch.arange(mask.shape[-1]))
        v = v + _per_item((mask.exp() * places * places.roll(3)[:, None]).mean(dim=(1, 2)))
    return v


def _per_item(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)


def draw(name: str, *shape: int) -> Tensor:
    """The same random tensor for a name everywhere."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def shade(name: str, *shape: int) -> Tensor:
    """The same random mask, 0..1, for a name everywhere."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def prompt(name: str, length: int = 7, batch: int = 1, **values: Any) -> Conditioning:
    return [[draw(name, batch, length, 12), {"pooled_output": draw(name + "/pooled", batch, 9), **values}]]


def picture(name: str, batch: int = 1, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return draw(name, batch, 16, height, width)


def with_values(conditioning: Conditioning, **values: Any) -> Conditioning:
    """The same tokens, with these values set on every entry."""
    return [[tokens, {**old, **values}] for tokens, old in conditioning]


@dataclass(frozen=True)
class Case:
    """One run: by default four steps of euler from zeros."""

    positive: Conditioning = field(default_factory=lambda: prompt("a", guidance=3.5))
    negative: Conditioning = field(default_factory=lambda: prompt("b", length=5))
    third: Conditioning | None = None  # the second prompt of DualCFGGuider
    cfg: float | tuple[float, float, str] | None = 1.0  # None: BasicGuider; a triple: DualCFGGuider
    sampler: str = "euler"
    scheduler: str = "simple"
    steps: int = 4
    denoise: float = 1.0
    latent: dict[str, Any] = field(default_factory=lambda: {"samples": torch.zeros(1, 4, HEIGHT, WIDTH)})
    seed: int = SEED
    channels: int = 16
    schnell: bool = False
    differential: float | None = None


def area(*size: float, strength: float = 1.0, percentage: bool = False) -> dict[str, Any]:
    return {"area": ("percentage", *size) if percentage else size, "strength": strength, "set_area_to_bounds": False}


HALF_MASK = {"samples": picture("latent"), "noise_mask": shade("noise mask", 1, 1, 50, 44)}
BIG = {"samples": torch.zeros(1, 16, 40, 36)}
A, B, C = prompt("a"), prompt("b", length=5), prompt("c")

CASES = {
    "text": Case(),
    "no_guidance": Case(positive=prompt("a", guidance=None)),
    "default_guidance": Case(positive=A, cfg=2.0),
    "cfg": Case(cfg=3.0, scheduler="beta"),
    "cfg_0": Case(cfg=0.0),
    "schnell": Case(schnell=True, sampler="sa_solver", steps=6),
    "from_picture": Case(latent={"samples": picture("latent")}, denoise=0.6, scheduler="normal"),
    "uneven_batch": Case(
        positive=prompt("a", batch=2),
        latent={"samples": torch.zeros(3, 16, HEIGHT, WIDTH), "batch_index": [4, 1, 1]},
        sampler="dpmpp_2m",
    ),
    "masked": Case(latent=HALF_MASK, denoise=0.8, cfg=2.0),
    "masked_batch": Case(latent={"samples": picture("latent", 3), "noise_mask": shade("two masks", 2, 20, 30)}),
    "masked_ddim": Case(latent=HALF_MASK, sampler="ddim"),
    "masked_sde": Case(latent=HALF_MASK, sampler="dpmpp_2m_sde", denoise=0.9),
    "masked_cfg_pp": Case(latent=HALF_MASK, sampler="dpmpp_2m_cfg_pp", cfg=2.5),
    "masked_uni_pc": Case(latent=HALF_MASK, sampler="uni_pc", steps=6),
    "differential": Case(latent=HALF_MASK, differential=1.0, steps=6),
    "differential_half": Case(latent=HALF_MASK, differential=0.5, steps=6, denoise=0.7),
    "cfg_pp_at_cfg_1": Case(sampler="euler_ancestral_cfg_pp"),
    "cfg_pp_without_negative": Case(sampler="euler_cfg_pp", cfg=None),
    "fill": Case(
        channels=96,
        positive=with_values(
            A, concat_latent_image=picture("concat", 2, 5, 9), concat_mask=shade("concat mask", 1, 1, 50, 70)
        ),
        latent={"samples": torch.zeros(3, 16, HEIGHT, WIDTH)},
    ),
    "fill_from_noise_mask": Case(channels=96, latent=HALF_MASK),
    "fill_without_picture": Case(channels=96, cfg=2.0),
    "depth": Case(channels=32, positive=with_values(A, concat_latent_image=picture("depth", 1))),
    "depth_batch": Case(
        channels=32,
        positive=with_values(A, concat_latent_image=picture("depths", 5)),
        latent={"samples": torch.zeros(2, 16, HEIGHT, WIDTH)},
    ),
    "depth_without_picture": Case(channels=32),
    "reference": Case(positive=with_values(A, reference_latents=[picture("ref", 1, 5, 9)]), cfg=2.0),
    "references_index": Case(
        positive=with_values(
            A, reference_latents=[picture("ref", 1, 5, 9), picture("ref 2")], reference_latents_method="index"
        ),
        latent={"samples": torch.zeros(2, 16, HEIGHT, WIDTH)},
    ),
    "attention_mask": Case(
        positive=with_values(A, attention_mask=draw("attn", 9, 9), attention_mask_img_shape=(1, 1)),
    ),
    "attention_mask_grid": Case(
        positive=with_values(A, attention_mask=draw("attn", 1, 13, 13), attention_mask_img_shape=(2, 3)),
        latent={"samples": torch.zeros(2, 16, 7, WIDTH)},
    ),
    "combined": Case(positive=A + C, cfg=2.0),
    "area": Case(positive=A + with_values(C, **area(5, 4, 2, 1)), cfg=2.0),
    "area_alone": Case(positive=with_values(A, **area(5, 4, 2, 1, strength=0.7))),
    "area_percentage": Case(positive=A + with_values(C, **area(0.4, 0.55, 0.3, 0.25, percentage=True)), cfg=2.0),
    "area_beyond_edge": Case(positive=A + with_values(C, **area(20, 20, 4, 3, strength=0.5)), cfg=2.0),
    "area_in_negative": Case(negative=B + with_values(C, **area(4, 4, 2, 2)), cfg=2.0),
    "area_nested": Case(
        positive=with_values(A, **area(7, 6, 0, 0)) + with_values(C, **area(4, 4, 2, 1)),
        negative=B + with_values(A, **area(6, 5, 1, 1)),
        cfg=2.0,
    ),
    "area_big": Case(positive=A + with_values(C, **area(34, 21, 6, 0, strength=2.0)), latent=BIG, steps=2),
    "mask": Case(positive=A + with_values(C, mask=shade("mask", 1, 30, 20), mask_strength=0.6), cfg=2.0),
    "mask_and_strength": Case(
        positive=with_values(A, mask=shade("masks", 2, 16, 12), mask_strength=0.6, strength=0.3) + C,
        latent={"samples": torch.zeros(2, 16, HEIGHT, WIDTH)},
    ),
    "mask_bounds": Case(
        positive=A
        + with_values(
            C,
            mask=torch.nn.functional.pad(shade("small", 1, 9, 12), (6, 18, 20, 11)),
            mask_strength=0.9,
            set_area_to_bounds=True,
        ),
        latent=BIG,
        steps=2,
        cfg=1.5,
    ),
    "mask_empty_bounds": Case(
        positive=A + with_values(C, mask=torch.zeros(1, 40, 36), set_area_to_bounds=True), latent=BIG, steps=2
    ),
    "ranges": Case(
        positive=with_values(A, start_percent=0.0, end_percent=0.3)
        + with_values(C, start_percent=0.3, end_percent=1.0),
        steps=20,
    ),
    "range_ends": Case(positive=with_values(A, start_percent=0.2, end_percent=0.7), steps=5),
    "dual": Case(third=C, cfg=(3.0, 2.0, "regular")),
    "dual_no_negative": Case(third=C, cfg=(3.0, 1.0, "regular")),
    "dual_plain": Case(third=C, cfg=(1.0, 1.0, "regular")),
    "dual_nested": Case(third=C, cfg=(3.0, 2.0, "nested")),
    "dual_cfg_pp": Case(third=C, cfg=(3.0, 1.0, "regular"), sampler="euler_cfg_pp"),
    "dual_nested_cfg_pp": Case(third=C, cfg=(3.0, 2.0, "nested"), sampler="euler_cfg_pp"),
}
