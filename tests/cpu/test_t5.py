"""T5's encoder equals transformers' with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from doubles.seeded import Fill
from doubles.typed import present
from sluice.flux_core.errors import FileFormatError
from sluice.flux_core.models.t5 import T5Config, T5Encoder
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import T5Config as ReferenceConfig
from transformers import T5EncoderModel

SIZES = T5Config(vocabulary=50, width=32, inner=48, heads=4, mlp=72, layers=3)
IDS = torch.randint(0, 50, (2, 300), generator=torch.Generator().manual_seed(0))  # farther than the last bucket


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.fixture
def model(fill: Fill) -> T5Encoder:
    return fill(T5Encoder(SIZES))


@pytest.fixture
def reference(model: T5Encoder) -> T5EncoderModel:
    config = ReferenceConfig(
        vocab_size=50, d_model=32, d_kv=12, d_ff=72, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )  # fmt: skip
    config.tie_word_embeddings = False
    reference = T5EncoderModel(config)
    reference.eval()
    weights = model.state_dict()
    reference.load_state_dict({**weights, "encoder.embed_tokens.weight": weights["shared.weight"]}, strict=False)
    return reference


@torch.no_grad()
def test_hidden_states_equal_transformers_without_a_padding_mask(model: T5Encoder, reference: T5EncoderModel) -> None:
    assert_close(model(IDS), reference(input_ids=IDS).last_hidden_state, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_earlier_block_gives_its_state_through_the_final_norm(model: T5Encoder, reference: T5EncoderModel) -> None:
    states = reference(input_ids=IDS, output_hidden_states=True).hidden_states
    for layer, state in ((0, states[1]), (-2, states[2])):
        assert_close(model(IDS, layer), reference.encoder.final_layer_norm(state), rtol=1e-4, atol=1e-5)
    assert torch.equal(model(IDS, -1), model(IDS))


@torch.no_grad()
def test_embeddings_go_in_where_ids_do(model: T5Encoder) -> None:
    assert torch.equal(model(model.embed(IDS)), model(IDS))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_change_nothing(model: T5Encoder, layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    for ids in (IDS[:, :9], IDS[:1, :9]):
        embedded = model.embed(ids.contiguous(), dtype)
        assert torch.equal(model(layout(embedded)), model(embedded))
        assert torch.equal(model(layout(ids)), model(ids))


@torch.no_grad()
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_stored_small_are_computed_in_float32(model: T5Encoder, stored: torch.dtype) -> None:
    small = model.to(stored)
    states = small(IDS)
    assert states.dtype == torch.float32 and torch.equal(states, small.float()(IDS))


@torch.no_grad()
def test_an_executor_may_own_the_loop(model: T5Encoder) -> None:
    seen = []

    def run(block: nn.Module, *args: Any) -> Any:
        seen.append(block)
        return block(*args)

    assert torch.equal(model(IDS, run_block=run), model(IDS))
    assert seen == list(model.blocks())


def test_sizes_are_read_off_the_shapes(model: T5Encoder) -> None:
    assert T5Config.from_shapes(shapes(model)) == SIZES
    with torch.device("meta"):
        xxl = T5Encoder(T5Config(32128, 4096, 4096, 64, 10240, 24))
    assert T5Config.from_shapes(shapes(xxl)) == xxl.config
    with pytest.raises(FileFormatError, match="relative_attention_bias"):
        T5Config.from_shapes({k: v for k, v in shapes(model).items() if "relative" not in k})


def test_a_new_model_starts_at_a_scale_that_trains() -> None:
    model = T5Encoder(SIZES)
    model.init_weights()
    states = model(IDS)
    states.square().mean().backward()
    assert 0.5 < states.std() < 2
    assert all(present(parameter.grad).isfinite().all() for parameter in model.parameters())
