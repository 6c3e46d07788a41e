"""ComfyUI's layers for networks of packs: FLUX.1's blocks compute what our own compute, casts keep the weights."""

from __future__ import annotations

import pytest
import torch
from sluice.flux_core.facade.offered.comfy import conds, ops, patcher_extension
from sluice.flux_core.facade.offered.comfy import float as eight_bits
from sluice.flux_core.facade.offered.comfy.ldm.common_dit import pad_to_patch_size
from sluice.flux_core.facade.offered.comfy.ldm.flux import layers
from sluice.flux_core.facade.offered.comfy.ldm.flux.math import rope
from sluice.flux_core.facade.offered.comfy.ldm.modules import attention
from sluice.flux_core.models import flux_blocks
from sluice.flux_core.models.attention import rotations
from torch import Tensor, nn

HIDDEN, HEADS, MLP, TEXT, IMAGE = 32, 2, 64, 3, 5


def filled(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def ids() -> Tensor:
    return torch.randint(0, 9, (TEXT + IMAGE, 2)).float()


@torch.no_grad()
def test_a_double_block_is_ours() -> None:
    ours = filled(flux_blocks.DoubleStreamBlock(HIDDEN, HEADS, MLP))
    theirs = layers.DoubleStreamBlock(HIDDEN, HEADS, MLP / HIDDEN, qkv_bias=True).eval()
    theirs.load_state_dict(ours.state_dict())
    img, txt, vec, at = torch.randn(1, IMAGE, HIDDEN), torch.randn(1, TEXT, HIDDEN), torch.randn(1, HIDDEN), ids()
    mods = ours.modulate(nn.functional.silu(vec))  # type: ignore[operator]  # a module's method
    wanted = ours(img, txt, mods, rotations(at, (8, 8), 10000))
    found = theirs(img, txt, vec, layers.EmbedND(16, 10000, [8, 8])(at[None]))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_a_single_block_and_the_last_layer_are_ours() -> None:
    ours, theirs = filled(flux_blocks.SingleStreamBlock(HIDDEN, HEADS, MLP)), layers.SingleStreamBlock(32, 2, 2.0)
    theirs.eval().load_state_dict(ours.state_dict())
    x, vec, at = torch.randn(1, TEXT + IMAGE, HIDDEN), torch.randn(1, HIDDEN), ids()
    active = nn.functional.silu(vec)
    pe = layers.EmbedND(16, 10000, [8, 8])(at[None])
    wanted = ours(x, ours.modulate(active), rotations(at, (8, 8), 10000))  # type: ignore[operator]
    torch.testing.assert_close(theirs(x, vec, pe), wanted, atol=2e-5, rtol=1e-5)
    last, theirs_last = filled(flux_blocks.FinalLayer(HIDDEN, 12)), layers.LastLayer(HIDDEN, 2, 3)
    theirs_last.load_state_dict(last.state_dict())
    torch.testing.assert_close(theirs_last(x, vec), last(x, last.modulate(active)))  # type: ignore[operator]


def test_a_mask_hides_keys_in_every_form_and_an_override_is_called() -> None:
    q, k, v = torch.randn(3, 2, 4, HIDDEN)
    seen = torch.tensor([True, True, False, True]).expand(4, 4)
    added = torch.zeros(4, 4).masked_fill(~seen, float("-inf"))
    plain = attention.optimized_attention(q, k[:, [0, 1, 3]], v[:, [0, 1, 3]], HEADS)
    for mask in (seen, added, added.expand(2, 4, 4), added.expand(2, HEADS, 4, 4)):
        torch.testing.assert_close(attention.optimized_attention(q, k, v, HEADS, mask), plain)
    q_, k_, v_ = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
    whole = attention.optimized_attention(q_, k_, v_, HEADS, skip_reshape=True, skip_output_reshape=True)
    assert whole.shape == (2, HEADS, 4, HIDDEN // HEADS)
    options = {"optimized_attention_override": lambda inner, *given, **more: inner(*given, **more) * 2}
    doubled = attention.optimized_attention(q, k, v, HEADS, seen, transformer_options=options)
    torch.testing.assert_close(doubled, plain * 2)


LAYERS: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [
    ("Linear", (4, 6), (2, 4)),
    ("Conv1d", (4, 6, 3), (2, 4, 8)),
    ("Conv2d", (4, 6, 3), (2, 4, 8, 8)),
    ("Conv3d", (4, 6, 3), (2, 4, 4, 4, 4)),
    ("ConvTranspose1d", (4, 6, 3, 2), (2, 4, 8)),
    ("ConvTranspose2d", (4, 6, 3, 2), (2, 4, 8, 8)),
    ("GroupNorm", (2, 4), (2, 4, 8)),
    ("LayerNorm", (4,), (2, 4)),
    ("RMSNorm", (4,), (2, 4)),
]


@pytest.mark.parametrize(("name", "arguments", "shape"), LAYERS, ids=[name for name, _, _ in LAYERS])
def test_a_layer_computes_in_the_type_of_its_input(
    name: str, arguments: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    casting = getattr(ops.manual_cast, name)(*arguments, dtype=torch.float64)
    plain = getattr(ops.disable_weight_init, name)(*arguments, dtype=torch.float32)
    assert isinstance(casting, getattr(ops.disable_weight_init, name))
    filled(casting)
    plain.load_state_dict(casting.state_dict())
    x = torch.randn(shape)
    assert torch.equal(casting(x), plain(x)) and casting.weight.dtype is torch.float64
    plain.weight_function = [lambda weight: weight * 2]
    doubled = getattr(torch.nn, name)(*arguments)
    doubled.load_state_dict({**plain.state_dict(), "weight": plain.weight * 2})
    torch.testing.assert_close(plain(x), doubled(x))


def test_embeddings_and_choices() -> None:
    table = filled(ops.manual_cast.Embedding(5, 4, dtype=torch.bfloat16))
    assert table(torch.tensor([1]), out_dtype=torch.float32).dtype is torch.float32
    assert ops.pick_operations(torch.bfloat16, torch.bfloat16) is ops.disable_weight_init
    assert ops.pick_operations(torch.bfloat16, torch.float32) is ops.manual_cast
    with pytest.raises(ValueError, match="none over 4"):
        ops.disable_weight_init.conv_nd(4, 1, 1, 1)


def test_patches_are_filled_and_positions_turn() -> None:
    assert pad_to_patch_size(torch.arange(6.0).reshape(1, 1, 2, 3), (2, 2))[0, 0].tolist() == [
        [0, 1, 2, 0],
        [3, 4, 5, 3],
    ]
    turned = rope(torch.tensor([[1.0]]), 2, 10000)[0, 0, 0]
    assert torch.allclose(turned @ turned.T, torch.eye(2)) and turned[1, 0] == torch.sin(torch.tensor(1.0))


def test_conditionings_join() -> None:
    short, long = torch.randn(1, 2, 4), torch.randn(1, 3, 4)
    joined = conds.CONDCrossAttn(short).concat([conds.CONDCrossAttn(long)])
    assert joined.shape == (2, 6, 4) and conds.CONDCrossAttn(short).can_concat(conds.CONDCrossAttn(long))
    area = conds.CONDNoiseShape(torch.arange(16.0).reshape(1, 1, 4, 4)).process_cond(2, "cpu", area=(2, 2, 1, 0))
    assert area.cond[1, 0].tolist() == [[4, 5], [8, 9]]
    assert conds.CONDConstant(3).concat([conds.CONDConstant(3)]) == 3 and conds.CONDList([short, long]).size() == [
        1,
        1,
        20,
    ]


def test_rounding_is_right_on_average() -> None:
    exact = torch.full((4000,), 1.06)
    rounded = eight_bits.stochastic_rounding(exact, torch.float8_e4m3fn, seed=3).float()
    assert set(rounded.tolist()) == {1.0, 1.125} and abs(float(rounded.mean()) - 1.06) < 0.005


def test_tables_of_functions_merge() -> None:
    table: dict[str, object] = {}
    for key in ("a", "b"):
        patcher_extension.add_wrapper_with_key("apply_model", key, len, table)
    merged = patcher_extension.merge_nested_dicts(table, {"wrappers": {"apply_model": {"a": [len]}}})
    assert len(patcher_extension.get_wrappers_with_key("apply_model", "a", merged)) == 2
    assert len(patcher_extension.get_all_wrappers("apply_model", table)) == 2
