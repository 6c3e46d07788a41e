"""The names and shapes a header is checked for are those of the models' own parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sluice.flux_core.checkpoint.complete import missing
from sluice.flux_core.checkpoint.shapes import misshapen
from sluice.flux_core.models.clip_text import ClipConfig, ClipTextModel
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig, axes_of
from sluice.flux_core.models.t5 import T5Config, T5Encoder
from torch import nn


def flux(guidance: bool) -> Flux:
    return Flux(FluxConfig(16, 16, 32, 1, 32, 64, 3, 2, 32, 32, guidance, axes_of(32)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "flux": lambda: flux(True),
    "flux without guidance": lambda: flux(False),
    "clip_l": lambda: ClipTextModel(ClipConfig(50, 77, 48, 64, 3, 3)),
    "t5": lambda: T5Encoder(T5Config(50, 32, 32, 2, 64, 3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_asked_for_and_nothing_else(name: str) -> None:
    with torch.device("meta"):
        names = {key for key, _ in MODELS[name]().named_parameters()}
    kind = name.partition(" ")[0]
    assert missing(kind, names) == []
    deepest = {"flux": "single_blocks.1.", "clip_l": ".layers.2.", "t5": "encoder.block.2."}[kind]
    kept = next(key for key in sorted(names) if deepest in key) if kind != "flux" else "single_blocks.1.linear1.weight"
    block = "double_blocks.2.img_mod.lin.weight"
    there = {kept, block, "guidance_in.in_layer.weight"} & names
    assert set(missing(kind, there)) == names - there


@pytest.mark.parametrize("name", MODELS)
def test_every_shape_is_that_of_the_parameter(name: str) -> None:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in MODELS[name]().named_parameters()}
    kind = name.partition(" ")[0]
    assert misshapen(kind, shapes) is None
    sizes = {"img_in.weight", "txt_in.weight", "vector_in.in_layer.weight", "final_layer.linear.weight"}
    sizes |= {"text_model.embeddings.token_embedding.weight", "text_model.embeddings.position_embedding.weight"}
    stated = {key for key in shapes if key in sizes or key == "shared.weight" or "relative_attention_bias" in key}
    for key in shapes.keys() - stated:
        found = misshapen(kind, shapes | {key: (*shapes[key], 1)})
        assert found is not None, key
