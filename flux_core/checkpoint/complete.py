"""The tensors that a model needs, by the number of its blocks, so that missing ones show in the header.

Names are those of the model (BFL's and Hugging Face's). The autoencoder is not listed: its shapes determine its blocks.
Uses no torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

_BOTH = ("weight", "bias")
_FLUX_TOP = (
    "img_in", "txt_in", "time_in.in_layer", "time_in.out_layer", "vector_in.in_layer", "vector_in.out_layer",
    "final_layer.linear", "final_layer.adaLN_modulation.1",
)  # fmt: skip
_FLUX_DOUBLE = tuple(
    f"{stream}_{module}"
    for stream in ("img", "txt")
    for module in ("mod.lin", "attn.qkv", "attn.proj", "mlp.0", "mlp.2")
)
_FLUX_SINGLE = ("modulation.lin", "linear1", "linear2")
_CLIP_LAYER = (
    "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2",
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
)  # fmt: skip
_T5_BLOCK = (
    "layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v", "layer.0.SelfAttention.o",
    "layer.0.layer_norm", "layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1", "layer.1.DenseReluDense.wo",
    "layer.1.layer_norm",
)  # fmt: skip


def missing(kind: str, names: Collection[str]) -> list[str]:
    """The tensors that a "flux", "clip_l" or "t5" lacks, in the model's order. `names` determine the number of
    blocks.
    """
    there = set(names)
    return [name for name in _NEEDED[kind](there) if name not in there] if kind in _NEEDED else []


def _flux(names: Collection[str]) -> Iterator[str]:
    guidance = ("guidance_in.in_layer", "guidance_in.out_layer") if _any(names, "guidance_in.") else ()
    yield from (f"{module}.{kind}" for module in (*_FLUX_TOP, *guidance) for kind in _BOTH)
    for block in range(_count(names, "double_blocks.")):
        yield from (f"double_blocks.{block}.{module}.{kind}" for module in _FLUX_DOUBLE for kind in _BOTH)
        for stream in ("img", "txt"):
            yield from (f"double_blocks.{block}.{stream}_attn.norm.{of}_norm.scale" for of in ("query", "key"))
    for block in range(_count(names, "single_blocks.")):
        yield from (f"single_blocks.{block}.{module}.{kind}" for module in _FLUX_SINGLE for kind in _BOTH)
        yield from (f"single_blocks.{block}.norm.{of}_norm.scale" for of in ("query", "key"))


def _clip(names: Collection[str]) -> Iterator[str]:
    yield from (f"text_model.embeddings.{of}_embedding.weight" for of in ("token", "position"))
    for layer in range(_count(names, "text_model.encoder.layers.")):
        yield from (f"text_model.encoder.layers.{layer}.{module}.{kind}" for module in _CLIP_LAYER for kind in _BOTH)
    yield from (f"text_model.final_layer_norm.{kind}" for kind in _BOTH)


def _t5(names: Collection[str]) -> Iterator[str]:
    yield "shared.weight"
    yield "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    for block in range(_count(names, "encoder.block.")):
        yield from (f"encoder.block.{block}.{module}.weight" for module in _T5_BLOCK)
    yield "encoder.final_layer_norm.weight"


def _count(names: Collection[str], prefix: str) -> int:
    """One more than the highest number after `prefix`."""
    numbers = (re.match(r"\d{1,4}(?=\.)", name[len(prefix) :]) for name in names if name.startswith(prefix))
    return max((int(found[0]) + 1 for found in numbers if found), default=0)


def _any(names: Collection[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


_NEEDED = {"flux": _flux, "clip_l": _clip, "t5": _t5}
