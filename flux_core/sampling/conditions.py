"""From CONDITIONING entries to the inputs of the network, fitted to one latent size.

An entry contains what conditions the image (text, guidance, reference images, a concatenated image), where (area, mask,
strength) and when (a range of noise levels). Uses no network and no guidance formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..conditioning.controls import ControlUse
from ..conditioning.entries import Conditioning
from ..errors import InputError
from ..images.masks import layers
from ..images.resize import repeat_to_batch, resize
from ..models.denoiser_inputs import DenoiserInputs
from ..models.latents import CELL, CHANNELS, patches, process_in
from .controls import Control, control_of
from .schedule import Sampling

DEFAULT_GUIDANCE = 3.5  # guidance for a guidance-distilled model if the conditioning has none
FEATHER = 8  # cells over which the inner edges of an area fade

# Values of other nodes in a conditioning that this sampler would otherwise ignore without an error.
UNSUPPORTED = {
    "gligen": "GLIGEN boxes",
    "hooks": "hooks",
    "default": "the mark of a default conditioning",
}


@dataclass(frozen=True)
class Area:
    """A rectangle of latent cells."""

    height: int
    width: int
    top: int
    left: int

    def of(self, x: Tensor) -> Tensor:
        """The part of x [..., h, w] inside the area (a view)."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def inside(self, other: Area) -> bool:
        return (
            self.top >= other.top
            and self.left >= other.left
            and self.top + self.height <= other.top + other.height
            and self.left + self.width <= other.left + other.width
        )


@dataclass(frozen=True)
class Canvas:
    """The target to which entries are fitted: the latent's size, the network's input, the device and number type."""

    batch: int
    height: int
    width: int
    in_channels: int
    device: torch.device
    dtype: torch.dtype
    noise_mask: Tensor | None = None  # [B, 1, h, w], the sampler's own inpainting mask
    channels: int = CHANNELS  # of the latent; what the network reads beyond them is concatenated


@dataclass(frozen=True)
class Condition:
    """One entry, ready for use. Tensors are on the device; those for the network have its dtype."""

    context: Tensor  # [b, L, context_dim]
    pooled: Tensor  # [b, vec_dim], on the CPU
    guidance: float | None
    concat: Tensor | None = None  # [B, in_channels - 16, h, w]
    references: tuple[Tensor, ...] = ()  # scaled latents [b, 16, h', w']
    reference_method: str = "offset"
    attention_mask: Tensor | None = None  # [b, L + Li, L + Li], added to the attention's logits
    area: Area | None = None
    weight: Tensor | float = 1.0  # its weight in each cell; a tensor is [b, 1, h, w], of the area if there is one
    start: float = math.inf  # active while end <= sigma <= start
    end: float = -math.inf
    control: ControlUse | None = None  # before the images are fitted (controls.py), and afterwards in `controls`
    control_for_others: bool = False  # whether conditionings of the same guider without ControlNets get it too
    controls: tuple[Control, ...] = ()
    seen: tuple[tuple[Tensor, ...], ...] = ()  # inputs that the model adds: see `DenoiserInputs`
    shows_none: bool = False
    style: Tensor | None = None

    def active(self, sigma: float) -> bool:
        return self.end <= sigma <= self.start

    @property
    def everywhere(self) -> bool:
        """Whether its weight is 1 in every cell."""
        return self.area is None and isinstance(self.weight, float) and self.weight == 1.0

    def inputs(self, x: Tensor, timestep: float, dtype: torch.dtype, sigma: float | None = None) -> DenoiserInputs:
        """The network's inputs for this condition at a state x [B, 16, h, w], of its area if it has one.

        sigma: the noise level, which determines the active ControlNets; None: all of them.

        x and the tensor concatenated with it are in `dtype`. timesteps, pooled and guidance are on the CPU.
        """
        batch = x.shape[0]
        parts = [x.to(dtype)] if self.concat is None else [x.to(dtype), self.concat]
        parts = parts if self.area is None else [self.area.of(part) for part in parts]
        mask, guidance = self.attention_mask, self.guidance
        return DenoiserInputs(
            x=torch.cat(parts, dim=1),
            timesteps=torch.full((batch,), timestep),
            context=repeat_to_batch(self.context, batch),
            pooled=repeat_to_batch(self.pooled, batch),
            guidance=None if guidance is None else torch.full((batch,), guidance).to(dtype),
            references=tuple(repeat_to_batch(reference, batch) for reference in self.references),
            reference_method=self.reference_method,
            attention_mask=None if mask is None else repeat_to_batch(mask, batch),
            controls=tuple(control.input(batch) for control in self.controls if control.active(sigma)),
            seen=self.seen,
            shows_none=self.shows_none,
            style=self.style,
        )


def prepare(conditioning: Conditioning, canvas: Canvas, sampling: Sampling) -> list[Condition]:
    """Fit every entry [tokens, values]. Raises InputError for an entry that cannot be fitted."""
    return [_condition(tokens, values, canvas, sampling) for tokens, values in conditioning]


def equal_areas(lists: Sequence[list[Condition]]) -> None:
    """Give each area in one list a counterpart in the others, in place, so that guidance can compare two estimates.

    The counterpart is the condition with the smallest area around it (or the whole image), restricted to the area.
    """
    for number, conditions in enumerate(lists):
        for condition in conditions:
            for other in (*lists[:number], *lists[number + 1 :]):
                match = _surrounding(condition.area, other)
                if match is not None and match.area != condition.area:
                    c = condition
                    where = replace(match, area=c.area, weight=c.weight, start=c.start, end=c.end)
                    other.append(replace(where, control=c.control, control_for_others=c.control_for_others))


def _surrounding(area: Area | None, conditions: Sequence[Condition]) -> Condition | None:
    if area is None:
        return None
    around = [c for c in conditions if c.area is None or area.inside(c.area)]
    return min(around, key=lambda c: c.area.height * c.area.width if c.area else math.inf, default=None)


def _condition(tokens: Tensor, values: Mapping[str, Any], canvas: Canvas, sampling: Sampling) -> Condition:
    _check(values)
    mask = _mask(values, canvas)
    area = _area(values, mask, canvas)
    guidance = values.get("guidance", DEFAULT_GUIDANCE)

    def ready(x: Tensor) -> Tensor:
        return x.to(canvas.device, canvas.dtype)

    return Condition(
        context=ready(tokens),
        pooled=values["pooled_output"].to("cpu", canvas.dtype),
        guidance=None if guidance is None else float(guidance),
        concat=_concat(values, canvas),
        references=tuple(ready(process_in(latent)) for latent in values.get("reference_latents") or ()),
        reference_method=values.get("reference_latents_method", "offset"),
        attention_mask=_attention_mask(values, canvas),
        area=area,
        weight=_weight(values, mask, area, canvas),
        start=_level(sampling, values["start_percent"]) if "start_percent" in values else math.inf,
        end=_level(sampling, values["end_percent"]) if "end_percent" in values else -math.inf,
        control=control_of(values),
        control_for_others=bool(values.get("control_apply_to_uncond")),
        shows_none=bool(values.get("shows_none")),
    )


def _check(values: Mapping[str, Any]) -> None:
    for key, what in UNSUPPORTED.items():
        if values.get(key):
            raise InputError(f"The conditioning contains {what}, which this sampler cannot apply. Remove the node.")
    if values.get("pooled_output") is None:
        raise InputError(
            "The conditioning has no pooled CLIP-L vector, which FLUX needs. "
            "Encode the prompt with both text encoders (CLIP-L and T5)."
        )


def _level(sampling: Sampling, percent: float) -> float:
    """In fp32, like the levels with which it is compared."""
    return torch.tensor(sampling.percent_to_sigma(percent)).item()


# Where: masks and areas.


def _mask(values: Mapping[str, Any], canvas: Canvas) -> Tensor | None:
    """The entry's mask as [b, 1, h, w]."""
    if values.get("mask") is None:
        return None
    mask = values["mask"].to(canvas.device, torch.float32)
    return _fit(layers(mask), canvas.height, canvas.width, crop="disabled")


def _area(values: Mapping[str, Any], mask: Tensor | None, canvas: Canvas) -> Area | None:
    size = values.get("area")
    if mask is not None and values.get("set_area_to_bounds"):
        size = _bounds(mask)
    elif size is not None and size[0] == "percentage":
        height, width, top, left = size[1:]
        size = (
            max(1, round(height * canvas.height)),
            max(1, round(width * canvas.width)),
            round(top * canvas.height),
            round(left * canvas.width),
        )
    if size is None:
        return None
    height, width, top, left = size
    if top >= canvas.height or left >= canvas.width:
        raise InputError(
            f"A conditioning area starts at x={left * CELL}, y={top * CELL}, outside the image of "
            f"{canvas.width * CELL}x{canvas.height * CELL}. Move it, or make the image larger."
        )
    return Area(min(height, canvas.height - top), min(width, canvas.width - left), top, left)


def _bounds(mask: Tensor) -> tuple[int, int, int, int]:
    """(height, width, top, left) of the box around all non-zero values, at least 8 x 8 cells."""
    cells = mask.abs().amax(dim=(0, 1)).nonzero()
    if not len(cells):
        return 8, 8, 0, 0
    (top, left), (bottom, right) = cells.amin(dim=0).tolist(), cells.amax(dim=0).tolist()
    return max(8, bottom - top + 1), max(8, right - left + 1), top, left


def _weight(values: Mapping[str, Any], mask: Tensor | None, area: Area | None, canvas: Canvas) -> Tensor | float:
    strength: float = values.get("strength", 1.0)
    if mask is not None:
        seen = mask if area is None else area.of(mask)
        return repeat_to_batch(seen * values.get("mask_strength", 1.0), canvas.batch) * strength
    return strength if area is None else _feathered(area, canvas) * strength


def _feathered(area: Area, canvas: Canvas) -> Tensor:
    """Ones [1, 1, height, width], fading to the edges of the area that are not edges of the image."""
    sides = (
        (area.height, area.top, canvas.height, (1, 1, -1, 1)),
        (area.width, area.left, canvas.width, (1, 1, 1, -1)),
    )
    weight = torch.ones(1, 1, area.height, area.width, device=canvas.device)
    for length, start, whole, shape in sides:
        fade = torch.ones(length, device=canvas.device)
        cells = min(FEATHER, length // 4)
        for cell in range(cells):
            share = (cell + 1) / cells
            if start > 0:
                fade[cell] *= share
            if start + length < whole:
                fade[-1 - cell] *= share
        weight = weight * fade.reshape(shape)
    return weight


# What: images beside the noise, and masks in the attention.


def _concat(values: Mapping[str, Any], canvas: Canvas) -> Tensor | None:
    """Channels that Canny, Depth and Fill networks read besides the noisy latent: [B, in_channels - 16, h, w].

    16 of an image (black outside the sampler's scale where there is none), then for Fill 64 of a mask, one for each
    pixel of a cell.
    """
    if canvas.in_channels <= canvas.channels:
        return None
    picture = values.get("concat_latent_image")
    if picture is None:
        picture = torch.zeros(1, CHANNELS, canvas.height, canvas.width)
    picture = _fit(picture.to(canvas.device, torch.float32), canvas.height, canvas.width, crop="center")
    parts = [process_in(_spread(picture, canvas.batch))]
    if canvas.in_channels > 2 * CHANNELS:
        mask = values.get("concat_mask", canvas.noise_mask)
        if mask is None:
            mask = torch.ones(1, 1, canvas.height, canvas.width)
        mask = layers(mask.to(canvas.device, torch.float32))
        mask = _fit(mask, canvas.height * CELL, canvas.width * CELL, crop="center")
        parts.append(_spread(F.pixel_unshuffle(mask, CELL), canvas.batch))
    return torch.cat(parts, dim=1).to(canvas.dtype)


def _fit(planes: Tensor, height: int, width: int, crop: str) -> Tensor:
    if planes.shape[-2:] == (height, width):
        return planes
    return resize(planes, width, height, "bilinear", crop)


def _spread(x: Tensor, batch: int) -> Tensor:
    """Stretch x along its batch, or select items evenly: the nearest items, with both ends when selecting."""
    have = x.shape[0]
    if have == batch or batch <= 1:
        return x[:batch]
    if batch < have:
        picks = [round(i * (have - 1) / (batch - 1)) for i in range(batch)]
    else:
        picks = [min(int((i + 0.5) * (have / batch)), have - 1) for i in range(batch)]
    return x[picks]


def _attention_mask(values: Mapping[str, Any], canvas: Canvas) -> Tensor | None:
    """A mask made for a grid of image tokens (often 1 x 1), stretched to the grid of this latent."""
    mask = values.get("attention_mask")
    if mask is None:
        return None
    size = values["attention_mask_img_shape"]
    mask = mask.reshape(-1, *mask.shape[-2:]).to(canvas.device, torch.float32)
    mask = mask.clamp(min=torch.finfo(torch.float32).min)  # an interpolation cannot handle minus infinity
    grid = patches(canvas.height), patches(canvas.width)
    mask = _stretch(_stretch(mask, size, grid).mT, size, grid).mT
    return mask.to(canvas.dtype)


def _stretch(mask: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """[b, q, text + size] -> [b, q, text + grid], bilinear over the image tokens of the last dimension."""
    if tuple(size) == grid:
        return mask
    text = mask.shape[-1] - size[0] * size[1]
    image = mask[..., text:].unflatten(-1, size)
    image = F.interpolate(image, size=grid, mode="bilinear").flatten(-2)
    return torch.cat((mask[..., :text], image), dim=-1)
