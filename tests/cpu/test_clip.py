"""CLIP's text encoder equals transformers' with the same weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from doubles.seeded import Fill
from doubles.typed import present
from sluice.flux_core.errors import FileFormatError
from sluice.flux_core.models.clip_text import ClipConfig, ClipTextModel
from torch import Tensor
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

SIZES = ClipConfig(vocabulary=60, positions=20, width=64, mlp=96, layers=3, heads=1, eos_token_id=59)
IDS = torch.tensor([[58, 5, 7, 9, 59, 59, 59, 59], [58, 59, 3, 4, 5, 6, 59, 1]])


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.fixture
def model(fill: Fill) -> ClipTextModel:
    return fill(ClipTextModel(SIZES))


@pytest.fixture
def reference(model: ClipTextModel) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=60, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=1,
        max_position_embeddings=20, hidden_act="quick_gelu", bos_token_id=58, eos_token_id=59, pad_token_id=59,
    )  # fmt: skip
    reference = CLIPTextModel(config)
    reference.eval()
    prefix = "" if any(name.startswith("text_model.") for name in reference.state_dict()) else "text_model."
    weights = {name.removeprefix(prefix): value for name, value in model.state_dict().items()}
    reference.load_state_dict(weights, strict=True)
    return reference


@torch.no_grad()
def test_hidden_states_and_pooled_vector_equal_transformers(model: ClipTextModel, reference: CLIPTextModel) -> None:
    expected = reference(input_ids=IDS)
    hidden, pooled = model(IDS)
    assert_close(hidden, expected.last_hidden_state)
    assert_close(pooled, expected.pooler_output)


@torch.no_grad()
def test_pooled_is_the_state_at_the_first_end_token_whatever_follows(model: ClipTextModel) -> None:
    changed = IDS.clone()
    changed[0, 5:] = torch.tensor([3, 59, 8])
    assert torch.equal(model(IDS)[1][0], model(changed)[1][0])
    hidden, pooled = model(IDS)
    assert torch.equal(pooled, torch.stack([hidden[0, 4], hidden[1, 1]]))


@torch.no_grad()
def test_embeddings_go_in_where_ids_do(model: ClipTextModel) -> None:
    hidden, pooled = model(model.embed(IDS), torch.tensor([4, 1]))
    assert torch.equal(hidden, model(IDS)[0]) and torch.equal(pooled, model(IDS)[1])
    with pytest.raises(ValueError, match="ends"):
        model(model.embed(IDS))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_change_nothing(model: ClipTextModel, layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    for ids in (IDS, IDS[:1]):
        embedded, ends = model.embed(ids, dtype), torch.full(ids.shape[:1], 4)
        for expected, got in zip(model(embedded, ends), model(layout(embedded), layout(ends)), strict=True):
            assert torch.equal(got, expected)
        assert torch.equal(model(layout(ids))[1], model(ids)[1])


@torch.no_grad()
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_weights_stored_small_are_computed_in_float32(model: ClipTextModel, stored: torch.dtype) -> None:
    small = model.to(stored)
    hidden = small(IDS)[0]
    assert hidden.dtype == torch.float32 and torch.equal(hidden, small.float()(IDS)[0])


def test_sizes_are_read_off_the_shapes(model: ClipTextModel) -> None:
    assert ClipConfig.from_shapes(shapes(model), eos_token_id=59) == SIZES
    assert ClipConfig.from_shapes(shapes(model), heads=4).heads == 4
    with torch.device("meta"):
        large = ClipTextModel(ClipConfig(49408, 77, 768, 3072, 12, 12))
        small = ClipTextModel(ClipConfig(100, 77, 32, 64, 1, 2))
    assert ClipConfig.from_shapes(shapes(large)) == large.config
    assert ClipConfig.from_shapes(shapes(small)) == small.config
    with pytest.raises(FileFormatError, match="token_embedding"):
        ClipConfig.from_shapes({})


def test_a_new_model_starts_at_a_scale_that_trains() -> None:
    model = ClipTextModel(SIZES)
    model.init_weights()
    hidden, pooled = model(IDS)
    (hidden.square().mean() + pooled.sum()).backward()
    assert 0.5 < hidden.std() < 2
    assert all(present(parameter.grad).isfinite().all() for parameter in model.parameters())
