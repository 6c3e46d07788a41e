"""The value of a CONDITIONING link: a list of [tokens [B, L, D], values]; values is a dict with `pooled_output`.

Every function returns a new list with new dicts; tensors are shared. The sampler interprets the values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Conditioning = list[list[Any]]  # of [Tensor, dict[str, Any]]


def with_values(conditioning: Conditioning, **values: Any) -> Conditioning:
    """The same tokens, with these values set on every entry."""
    return [[tokens, {**old, **values}] for tokens, old in conditioning]


def zero_out(conditioning: Conditioning) -> Conditioning:
    """An empty text: tokens and pooled vector become zeros, other values (guidance) are kept."""
    blank = []
    for tokens, values in conditioning:
        pooled = values.get("pooled_output")
        values = values if pooled is None else {**values, "pooled_output": torch.zeros_like(pooled)}
        blank.append([torch.zeros_like(tokens), dict(values)])
    return blank


def concatenate(to: Conditioning, after: Conditioning) -> Conditioning:
    """Append the tokens of the first entry of `after` to every entry of `to`. Pooled vectors stay those of `to`."""
    return [[torch.cat((tokens, after[0][0]), dim=1), dict(values)] for tokens, values in to]


def average(to: Conditioning, other: Conditioning, share: float) -> Conditioning:
    """`share` of every entry of `to` plus the rest of the first entry of `other`, cut or zero-padded to its length."""
    other_tokens, other_values = other[0]
    mixed = []
    for tokens, values in to:
        length = tokens.shape[1]
        missing = tokens.new_zeros(1, max(0, length - other_tokens.shape[1]), tokens.shape[2])
        fitted = torch.cat((other_tokens[:, :length], missing.expand(other_tokens.shape[0], -1, -1)), dim=1)
        pooled = _mix(values.get("pooled_output"), other_values.get("pooled_output"), share)
        values = values if pooled is None else {**values, "pooled_output": pooled}
        mixed.append([tokens * share + fitted * (1 - share), dict(values)])
    return mixed


def append_to(conditioning: Conditioning, key: str, item: Any) -> Conditioning:
    """Append `item` to the list under `key` of every entry."""
    return [[tokens, {**values, key: [*values.get(key, []), item]}] for tokens, values in conditioning]


def _mix(pooled: Tensor | None, other: Tensor | None, share: float) -> Tensor | None:
    if other is None or pooled is None:
        return other if pooled is None else pooled
    return pooled * share + other * (1 - share)
