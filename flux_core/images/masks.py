"""Masks: [B, H, W] with values 0..1, where 1 means "paint here". Grown, feathered, resized, combined."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ARITHMETIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "multiply": operator.mul, "add": operator.add, "subtract": operator.sub,
}  # fmt: skip
LOGIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


def layers(mask: Tensor) -> Tensor:
    """Any mask as [B, 1, H, W]."""
    return mask.reshape(-1, 1, *mask.shape[-2:])


def resize(mask: Tensor, height: int, width: int) -> Tensor:
    """Any mask -> [B, 1, height, width], bilinear."""
    return F.interpolate(layers(mask), size=(height, width), mode="bilinear")


def grow(mask: Tensor, steps: int, tapered: bool) -> Tensor:
    """Grow by `steps` pixels (shrink if negative), to the four neighbours, or to all eight if not `tapered`."""
    sign = 1 if steps >= 0 else -1
    grown = layers(mask) * sign
    for _ in range(abs(steps)):
        if tapered:
            upright = F.max_pool2d(grown, (3, 1), stride=1, padding=(1, 0))
            wider = upright.maximum(F.max_pool2d(grown, (1, 3), stride=1, padding=(0, 1)))
        else:
            wider = F.max_pool2d(grown, 3, stride=1, padding=1)
        if wider.equal(grown):
            break
        grown = wider
    return (grown * sign).squeeze(1)


def thicken(mask: Tensor, size: int) -> Tensor:
    """Cover all that a `size` x `size` square touches when moved over the rounded mask [B, 1, H, W]."""
    if size == 0:
        return mask
    square = mask.new_ones(1, 1, size, size)
    height, width = mask.shape[-2:]
    spread = F.conv2d(mask.round(), square, padding=math.ceil((size - 1) / 2))
    return spread.clamp(0, 1)[..., :height, :width]


def feather(mask: Tensor, left: int, top: int, right: int, bottom: int) -> Tensor:
    """Fade linearly towards the sides, over the given numbers of pixels.

    On the right and at the bottom the ramp starts with the *first* column or row, then comes inwards from the last:
    ComfyUI's rule, kept because saved workflows are tuned to its pixels.
    """
    faded = mask.reshape(-1, *mask.shape[-2:]).clone()
    height, width = faded.shape[-2:]
    left, right, top, bottom = min(left, width), min(right, width), min(top, height), min(bottom, height)
    for x in range(left):
        faded[:, :, x] *= (x + 1) / left
    for x in range(right):
        faded[:, :, -x] *= (x + 1) / right
    for y in range(top):
        faded[:, y] *= (y + 1) / top
    for y in range(bottom):
        faded[:, -y] *= (y + 1) / bottom
    return faded


def combine(target: Tensor, source: Tensor, x: int, y: int, operation: str) -> Tensor:
    """Lay `source` over `target` with its corner at (x, y): multiply, add, subtract, and, or, xor. Cut to 0..1."""
    out, source = layers(target).squeeze(1).clone(), layers(source).squeeze(1)
    there = out[:, y : y + source.shape[1], x : x + source.shape[2]]
    part = source[:, : there.shape[1], : there.shape[2]]
    if operation in LOGIC:
        there.copy_(LOGIC[operation](there.round().bool(), part.round().bool()))
    else:
        there.copy_(ARITHMETIC[operation](there, part))
    return out.clamp(0, 1)


def of_colour(image: Tensor, colour: int) -> Tensor:
    """[B, H, W]: 1 where an image has exactly this colour, 0xRRGGBB, in 8 bits."""
    wanted = torch.tensor([colour >> 16, colour >> 8 & 255, colour & 255], device=image.device)
    return ((image[..., :3].clamp(0, 1) * 255).round() == wanted).all(-1).float()
