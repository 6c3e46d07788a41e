"""The memory and work of one run of a text encoder, observed on the meta device without its weights.

The same dry run as that of a loaded encoder (encoder.py), for plans that are made from a file's header or for a
published file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from ..checkpoint.stored import Stored
from ..memory.workload import Workload, decode_traffic, grouped, observed_workload
from ..models.clip_text import ClipConfig, ClipTextModel
from ..models.t5 import T5Config, T5Encoder
from ..quant.formats import PLAIN
from .device import TEXT_DTYPE
from .dry_run import DryRun, dry_run
from .meta_results import META

TABLE_BYTES = 2  # of a number of an embedding table, whatever the file has


@dataclass(frozen=True)
class EncoderNeeds:
    """One run of an encoder. small: bytes of everything that is not streamed, such as embeddings; it stays loaded
    until the encoder is unloaded. scratch: bytes into which matrices are decoded.
    """

    label: str
    run: DryRun
    sizes: Mapping[str, int]  # stored bytes of each streamed matrix
    shapes: Mapping[str, tuple[int, ...]]
    decoded: Callable[[str], bool]
    small: int

    @property
    def scratch(self) -> int:
        return max((prod(self.shapes[name]) for name in self.sizes if self.decoded(name)), default=0) * ITEM

    def workload(self, fixed: Mapping[str, int]) -> Workload:
        """One run. fixed: bytes for other purposes."""

        def traffic(name: str) -> int:
            return decode_traffic(self.sizes[name], prod(self.shapes[name]), ITEM) if self.decoded(name) else 0

        return observed_workload(self.label, grouped(self.sizes), self.run.uses, traffic, fixed)


ITEM = TEXT_DTYPE.itemsize


def encoder_needs(
    config: ClipConfig | T5Config,
    nbytes: Callable[[str, tuple[int, ...]], int],
    decoded: Callable[[str], bool],
    tokens: int,
    rows: int = 1,
) -> EncoderNeeds:
    """The needs of encoding `rows` rows of `tokens` tokens; CLIP always has rows of its own length.

    nbytes: stored bytes of a matrix, by name and shape. decoded: whether it is decoded before its product.
    """
    with torch.device(META):
        if isinstance(config, ClipConfig):
            label, module, args = "CLIP-L", _clip(config), _clip_args(config)
        else:
            label, module, args = "T5", T5Encoder(config), (torch.empty(rows, tokens, config.width),)
    run = dry_run(module, lambda copy: copy(*args))
    shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
    streamed = {name: nbytes(name, shapes[name]) for name in run.order}
    small = sum(prod(shape) for name, shape in shapes.items() if name not in streamed) * TABLE_BYTES
    return EncoderNeeds(label, run, streamed, shapes, decoded, small)


def needs_of_file(
    config: ClipConfig | T5Config, tensors: Mapping[str, Stored], tokens: int, rows: int = 1
) -> EncoderNeeds:
    """`encoder_needs` for the tensors of a file's header."""

    def decoded(name: str) -> bool:
        return PLAIN.get(tensors[name].format) != TEXT_DTYPE or not tensors[name].encoding.as_is

    return encoder_needs(config, lambda name, _: tensors[name].nbytes, decoded, tokens, rows)


def _clip(config: ClipConfig) -> nn.Module:
    return ClipTextModel(config)


def _clip_args(config: ClipConfig) -> tuple[torch.Tensor, ...]:
    return torch.empty(1, config.positions, config.width), torch.zeros(1, dtype=torch.int64)
