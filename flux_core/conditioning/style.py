"""Tokens of images beside those of text (FLUX.1 Redux), and how strongly the other tokens attend to them.

Uses no network.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .entries import Conditioning


def with_style(conditioning: Conditioning, tokens: Tensor, strength: float, as_bias: bool) -> Conditioning:
    """Every entry with the tokens [1, n, context_dim] of an image after its own.

    as_bias: ln(strength) is added to the logits of text and image for these tokens; else the tokens are multiplied by
    strength. An attention mask of an entry is kept and enlarged for the new tokens.
    """
    if not as_bias:
        tokens = tokens * strength
    bias = torch.log(torch.tensor(strength if as_bias else 1.0)).item()  # of 0: minus infinity

    def applied(text: Tensor, values: dict[str, Any]) -> list[Any]:
        joined = torch.cat((text, tokens.to(text).expand(text.shape[0], -1, -1)), dim=1)
        if values.get("attention_mask") is None and (not as_bias or strength == 1.0):
            return [joined, dict(values)]
        size = values.get("attention_mask_img_shape", (1, 1))
        mask = _widened(values.get("attention_mask"), text.shape, tokens.shape[1], size[0] * size[1], bias)
        return [joined, {**values, "attention_mask": mask.to(text.device), "attention_mask_img_shape": size}]

    return [applied(text, values) for text, values in conditioning]


def _widened(mask: Tensor | None, text: torch.Size, new: int, image: int, bias: float) -> Tensor:
    """A mask [b, n, n] over text and image tokens, with `new` tokens between them to which the others attend with
    `bias`.

    A boolean mask becomes one that is added to the logits.
    """
    batch, count = text[0], text[1]
    if mask is None:
        mask = torch.zeros(batch, count + image, count + image, dtype=torch.float16)
    if mask.dtype == torch.bool:
        mask = torch.log(mask.to(torch.float16))
    wide = torch.zeros(batch, count + new + image, count + new + image, dtype=torch.float16)
    old = torch.cat((torch.arange(count), torch.arange(count + new, count + new + image)))
    wide[:, old[:, None], old[None, :]] = mask.to(wide)
    wide[:, old, count : count + new] = bias
    return wide


def thinned(tokens: Tensor, size: int, mode: str, weight: float = 1.0) -> Tensor:
    """Tokens [1, n, context_dim] of one image, which form a square, resampled to a square of `size` tokens a side.

    Fewer tokens have less influence beside those of the text. mode: an interpolation of PyTorch.
    """
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        raise InputError(f"{tokens.shape[1]} tokens of an image do not form a square. Give one image at a time.")
    if not 1 <= size < side:
        return tokens * weight
    square = tokens.reshape(1, side, side, -1).movedim(-1, 1)
    return F.interpolate(square, size=(size, size), mode=mode).flatten(2).mT * weight
