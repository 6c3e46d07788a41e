"""A side branch gives what a patched matrix would give, for every family and key layout."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from doubles.typed import linear_at, matrix_of
from sluice.flux_core.adapters.apply import adapted
from sluice.flux_core.adapters.few_steps import strength_hint
from sluice.flux_core.adapters.lora import Lora, LoraUse
from sluice.flux_core.adapters.lora import parse as parse_for
from sluice.flux_core.adapters.lora_names import Targets, encoder_targets, flux_targets
from sluice.flux_core.checkpoint.lora_keys import CLIP, FLUX, T5
from sluice.flux_core.errors import InputError
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from torch import Tensor

CONFIG = FluxConfig(16, 16, 64, 2, 32, 256, 2, 2, 24, 16, True, (4, 14, 14))
D = CONFIG.hidden
CPU = torch.device("cpu")


def values(name: str, *shape: int, scale: float = 0.2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))) * scale


@pytest.fixture(scope="module")
def model() -> Flux:
    flux = Flux(CONFIG)
    flux.load_state_dict({name: values(name, *p.shape) for name, p in flux.state_dict().items()})
    return flux.requires_grad_(False)


@pytest.fixture(scope="module")
def targets(model: Flux) -> Targets:
    return flux_targets({name: tuple(p.shape) for name, p in model.state_dict().items()})


def parse(name: str, tensors: Mapping[str, Tensor], targets: Targets) -> Lora:
    """For a transformer alone."""
    return parse_for(name, tensors, {FLUX: targets})[FLUX]


def effective(model: Flux, module: str) -> Tensor:
    """The matrix a module behaves as, found by feeding it the identity."""
    linear = linear_at(model, module)
    width = max([linear.in_features, *(b.down.shape[1] for b in linear.branches if hasattr(b, "down"))])
    difference: Tensor = linear(torch.eye(width)) - linear(torch.zeros(1, width))
    return difference.T


def delta(model: Flux, targets: Targets, tensors: Mapping[str, Tensor], module: str, strength: float = 1.0) -> Tensor:
    before = effective(model, module)
    during = effective(adapted(model, [LoraUse(parse("a", tensors, targets), strength)], CPU, torch.float32), module)
    assert torch.equal(effective(model, module), before), "the base is as it was"
    return during - before


UP, DOWN = values("up", D, 4), values("down", 4, D)

LAYOUTS = {
    "kohya with diffusers' names": (
        "lora_unet_transformer_blocks_0_attn_to_out_0",
        ".lora_up.weight",
        ".lora_down.weight",
    ),
    "kohya with a stray underscore": (
        "lora_unet_transformer_blocks_0_attn_to_out_0_",
        ".lora_up.weight",
        ".lora_down.weight",
    ),
    "diffusers, bare": ("transformer_blocks.0.attn.to_out.0", ".lora_B.weight", ".lora_A.weight"),
    "bfl, bare": ("double_blocks.0.img_attn.proj", ".lora_B.weight", ".lora_A.weight"),
    "unet": ("unet.transformer_blocks.0.attn.to_out.0", ".lora_B.weight", ".lora_A.weight"),
    "base_model": ("base_model.model.transformer_blocks.0.attn.to_out.0", ".lora_B.weight", ".lora_A.weight"),
    "base_model in bfl": ("base_model.model.double_blocks.0.img_attn.proj", ".lora_B.weight", ".lora_A.weight"),
    "base_model with adapter": (
        "base_model.model.transformer_blocks.0.attn.to_out.0",
        ".lora_B.default.weight",
        ".lora_A.default.weight",
    ),
    "SimpleTuner": (
        "transformer.base_model.model.transformer_blocks.0.attn.to_out.0",
        ".lora_B.weight",
        ".lora_A.weight",
    ),
    "all in one": ("model.diffusion_model.double_blocks.0.img_attn.proj", ".lora_up.weight", ".lora_down.weight"),
    "another adapter": (
        "transformer.transformer_blocks.0.attn.to_out.0",
        ".lora_B.my-style_1.weight",
        ".lora_A.my-style_1.weight",
    ),
    "older diffusers": ("transformer.transformer_blocks.0.attn.to_out.0", ".lora.up.weight", ".lora.down.weight"),
    "kohya": ("lora_unet_double_blocks_0_img_attn_proj", ".lora_up.weight", ".lora_down.weight"),
    "bfl": ("diffusion_model.double_blocks.0.img_attn.proj", ".lora_B.weight", ".lora_A.weight"),
    "peft": ("transformer.transformer_blocks.0.attn.to_out.0", ".lora_B.weight", ".lora_A.weight"),
    "adapter": ("transformer.transformer_blocks.0.attn.to_out.0", ".lora_B.default.weight", ".lora_A.default.weight"),
    "onetrainer": ("lora_transformer_transformer_blocks_0_attn_to_out_0", ".lora_up.weight", ".lora_down.weight"),
    "lycoris": ("lycoris_transformer_blocks_0_attn_to_out_0", ".lora_up.weight", ".lora_down.weight"),
    "xlabs": ("double_blocks.0.processor.proj_lora1", ".up.weight", ".down.weight"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_every_layout_adds_strength_times_alpha_over_rank_times_the_product(
    model: Flux, targets: Targets, layout: str, alpha: float | None
) -> None:
    prefix, up, down = LAYOUTS[layout]
    tensors = {prefix + up: UP, prefix + down: DOWN} | (
        {} if alpha is None else {prefix + ".alpha": torch.tensor(alpha)}
    )
    expected = 0.6 * (1 if alpha is None else alpha / 4) * UP @ DOWN
    torch.testing.assert_close(delta(model, targets, tensors, "double_blocks.0.img_attn.proj", 0.6), expected)


@pytest.mark.parametrize(
    "prefix, module, start",
    [
        ("transformer.transformer_blocks.1.attn.to_k", "double_blocks.1.img_attn.qkv", D),
        ("transformer.transformer_blocks.1.attn.add_v_proj", "double_blocks.1.txt_attn.qkv", 2 * D),
        ("lora_transformer_single_transformer_blocks_0_attn_to_q", "single_blocks.0.linear1", 0),
    ],
)
def test_parts_of_fused_matrices_change_only_their_rows(
    model: Flux, targets: Targets, prefix: str, module: str, start: int
) -> None:
    tensors = {prefix + ".lora_up.weight": UP, prefix + ".lora_down.weight": DOWN}
    change = delta(model, targets, tensors, module)
    torch.testing.assert_close(change[start : start + D], UP @ DOWN)
    change[start : start + D] = 0
    assert torch.equal(change, torch.zeros_like(change))


def test_the_final_modulation_of_diffusers_has_its_halves_exchanged(model: Flux, targets: Targets) -> None:
    up = values("wide", 2 * D, 4)
    tensors = {"transformer.norm_out.linear.lora_A.weight": DOWN, "transformer.norm_out.linear.lora_B.weight": up}
    expected = (up @ DOWN).roll(D, 0)
    torch.testing.assert_close(delta(model, targets, tensors, "final_layer.adaLN_modulation.1"), expected)


def test_what_a_lora_for_dev_says_of_guidance_is_left_out_on_schnell(model: Flux) -> None:
    schnell = flux_targets({n: tuple(p.shape) for n, p in model.state_dict().items() if "guidance" not in n})
    name = "transformer.time_text_embed.guidance_embedder.linear_2"
    tensors = {name + ".lora_A.weight": DOWN, name + ".lora_B.weight": UP}
    lora = parse("dev", tensors, schnell)
    assert not lora.changes and set(lora.unmatched) == tensors.keys()


def test_hadamard_and_kronecker_products_and_full_differences(model: Flux, targets: Targets) -> None:
    module, prefix = "double_blocks.0.txt_attn.proj", "lora_unet_double_blocks_0_txt_attn_proj"
    a, b, c, d = values("a", D, 3), values("b", 3, D), values("c", D, 3), values("d", 3, D)
    loha = dict(zip((".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b"), (a, b, c, d), strict=True))
    change = delta(model, targets, {prefix + k: v for k, v in loha.items()}, module)
    torch.testing.assert_close(change, (a @ b) * (c @ d), atol=1e-6, rtol=1e-4)
    w1, w2 = values("w1", 4, 4), values("w2", D // 4, D // 4)
    change = delta(model, targets, {prefix + ".lokr_w1": w1, prefix + ".lokr_w2": w2}, module)
    torch.testing.assert_close(change, torch.kron(w1, w2), atol=1e-6, rtol=1e-4)
    b, c = values("w2a", D // 4, 3), values("w2b", 3, D // 4)
    lokr = {".lokr_w1": w1, ".lokr_w2_a": b, ".lokr_w2_b": c, ".alpha": torch.tensor(6.0)}
    change = delta(model, targets, {prefix + k: v for k, v in lokr.items()}, module)
    torch.testing.assert_close(change, 2 * torch.kron(w1, b @ c), atol=1e-5, rtol=1e-4)
    full = values("full", D, D)
    torch.testing.assert_close(delta(model, targets, {prefix + ".diff": full}, module, 0.5), 0.5 * full)


@pytest.mark.parametrize("shape", [(D, 1), (1, D)])
def test_dora_rescales_towards_the_trained_magnitude(model: Flux, targets: Targets, shape: tuple[int, int]) -> None:
    module, prefix = "double_blocks.0.img_attn.proj", "lora_unet_double_blocks_0_img_attn_proj"
    w, m = matrix_of(linear_at(model, module)), values("m", *shape).abs()
    v = w + UP @ DOWN
    v = v * m / (w.norm(dim=1, keepdim=True) if shape[1] == 1 else v.norm(dim=0, keepdim=True))
    tensors = {prefix + ".lora_up.weight": UP, prefix + ".lora_down.weight": DOWN, prefix + ".dora_scale": m}
    torch.testing.assert_close(delta(model, targets, tensors, module, 0.7), 0.7 * (v - w), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dora_first", [True, False])
def test_a_dora_sees_what_came_before_it_and_not_what_comes_after(
    model: Flux, targets: Targets, dora_first: bool
) -> None:
    module, prefix = "double_blocks.0.img_attn.proj", "lora_unet_double_blocks_0_img_attn_proj"
    up, full, magnitude = values("u2", D, 3), values("full", D, D), values("m", 1, D).abs()
    dora = {prefix + ".lora_up.weight": UP, prefix + ".lora_down.weight": DOWN, prefix + ".dora_scale": magnitude}
    plain = {prefix + ".lora_up.weight": up, prefix + ".lora_down.weight": values("d2", 3, D), prefix + ".diff": full}
    uses = [LoraUse(parse("dora", dora, targets), 0.7), LoraUse(parse("plain", plain, targets), 0.4)]
    w = matrix_of(linear_at(model, module))
    added = 0.4 * (up @ plain[prefix + ".lora_down.weight"] + full)

    def reweighed(w: Tensor) -> Tensor:
        v = w + UP @ DOWN
        changed: Tensor = w + 0.7 * (v * magnitude / v.norm(dim=0, keepdim=True) - w)
        return changed

    got = effective(adapted(model, uses if dora_first else uses[::-1], CPU, torch.float32), module)
    expected = reweighed(w) + added if dora_first else reweighed(w + added)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_changes_that_do_not_fit_are_told_and_left_out(
    model: Flux, targets: Targets, caplog: pytest.LogCaptureFixture
) -> None:
    good, wide = "lora_unet_double_blocks_0_img_attn_proj", "lora_unet_img_in"
    tensors = {
        good + ".lora_up.weight": UP,
        good + ".lora_down.weight": DOWN,
        good + ".diff_b": values("bias", D + 1),
        wide + ".lora_up.weight": UP,
        wide + ".lora_down.weight": values("narrow", 4, 32),
        "diffusion_model.single_blocks.0.norm.key_norm.scale": values("scale", 31),
    }
    before = effective(model, "img_in")
    changed = adapted(model, [LoraUse(parse("other", tensors, targets), 1.0)], CPU, torch.float32)
    assert torch.equal(effective(changed, "img_in"), before)
    assert changed.get_parameter("single_blocks.0.norm.key_norm.scale").shape == (32,)
    assert [type(b).__name__ for b in linear_at(changed, "double_blocks.0.img_attn.proj").branches] == ["LowRank"]
    assert len(caplog.records) == 3 and "does not fit" in caplog.text


def test_a_lora_after_a_control_lora_has_to_be_as_wide(model: Flux, targets: Targets) -> None:
    control = {
        "img_in.lora_A.weight": values("wide in", 4, 128),
        "img_in.lora_B.weight": UP,
        "single_blocks.0.norm.key_norm.scale": values("scale", 32),
    }
    plain = {"lora_unet_img_in.lora_up.weight": UP, "lora_unet_img_in.lora_down.weight": values("narrow", 4, 64)}
    uses = [LoraUse(parse("control", control, targets), 1.0), LoraUse(parse("plain", plain, targets), 1.0)]
    for order, count in ((uses, 1), (uses[::-1], 2)):
        assert len(adapted(model, order, CPU, torch.float32).img_in.branches) == count


def test_a_control_lora_widens_the_input_shifts_biases_and_replaces_norm_scales(model: Flux, targets: Targets) -> None:
    wide, scale = values("wide in", 4, 128), values("scale", 32)
    tensors = {
        "img_in.lora_A.weight": wide,
        "img_in.lora_B.weight": UP,
        "img_in.lora_B.bias": values("bias", D),
        "single_blocks.0.norm.key_norm.scale": scale,
    }
    lora = parse("control", tensors, targets)
    assert lora.input_width("img_in", 64) == 128 and lora.unmatched == ()
    x = values("x", 3, 128)
    changed = adapted(model, [LoraUse(lora, 0.5)], CPU, torch.float32)
    got = changed.img_in(x)
    assert torch.equal(changed.get_parameter("single_blocks.0.norm.key_norm.scale"), scale), "whatever the strength"
    w = torch.cat((matrix_of(model.img_in), torch.zeros(D, 64)), dim=1) + 0.5 * UP @ wide
    expected = F.linear(x, w, model.get_parameter("img_in.bias") + 0.5 * tensors["img_in.lora_B.bias"])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert not torch.equal(model.get_parameter("single_blocks.0.norm.key_norm.scale"), scale)


def test_many_loras_add_up_and_strength_zero_adds_nothing(model: Flux, targets: Targets) -> None:
    prefix = "lora_unet_single_blocks_1_linear2"
    one = {prefix + ".lora_up.weight": UP, prefix + ".lora_down.weight": values("d1", 4, D * 5)}
    two = {prefix + ".lora_up.weight": values("u2", D, 7), prefix + ".lora_down.weight": values("d2", 7, D * 5)}
    uses = [LoraUse(parse("one", one, targets), 0.5), LoraUse(parse("two", two, targets), -1.5)]
    before = effective(model, "single_blocks.1.linear2")
    changed = adapted(model, [*uses, LoraUse(parse("off", one, targets), 0.0)], CPU, torch.float32)
    assert len(linear_at(changed, "single_blocks.1.linear2").branches) == 1, "one pair of products"
    during = effective(changed, "single_blocks.1.linear2")
    products = [t[prefix + ".lora_up.weight"] @ t[prefix + ".lora_down.weight"] for t in (one, two)]
    torch.testing.assert_close(during - before, 0.5 * products[0] - 1.5 * products[1], atol=1e-5, rtol=1e-4)
    assert adapted(model, [LoraUse(uses[0].lora, 0.0)], CPU, torch.float32) is model


def test_a_model_with_loras_shares_everything_with_the_model_but_what_changes(model: Flux, targets: Targets) -> None:
    prefix, scale = "lora_unet_single_blocks_1_linear2", values("scale", 32)
    tensors = {
        prefix + ".lora_up.weight": UP,
        prefix + ".lora_down.weight": values("d1", 4, D * 5),
        "diffusion_model.single_blocks.0.norm.key_norm.scale": scale,
    }
    before = {name: (module, dict(vars(module))) for name, module in model.named_modules()}
    changed = adapted(model, [LoraUse(parse("a", tensors, targets), 1.0)], CPU, torch.float32)
    for name, module in model.named_modules():
        assert module is before[name][0] and vars(module) == before[name][1], "the model itself is as it was"
    copies = {name for name, module in changed.named_modules() if module is not before[name][0]}
    ways = ("single_blocks.1.linear2", "single_blocks.0.norm.key_norm")
    assert copies == {way.rsplit(".", up)[0] for way in ways for up in range(4)} | {""}
    others = {name for name, value in changed.named_parameters() if value is not model.get_parameter(name)}
    assert others == {"single_blocks.0.norm.key_norm.scale"}


CLIP_PATH, T5_PATH = "text_model.encoder.layers.0.self_attn.q_proj", "encoder.block.0.layer.0.SelfAttention.q"
ENCODER_NAMES = {
    "kohya": ("lora_te1_", CLIP_PATH.replace(".", "_")),
    "kohya, one encoder": ("lora_te_", CLIP_PATH.replace(".", "_")),
    "kohya with dots": ("lora_te1.", CLIP_PATH),
    "diffusers": ("text_encoder.", CLIP_PATH),
    "peft": ("text_encoder.base_model.model.", CLIP_PATH),
    "ComfyUI": ("text_encoders.clip_l.transformer.", CLIP_PATH),
    "kohya, T5": ("lora_te3_", T5_PATH.replace(".", "_")),
    "OneTrainer, T5": ("lora_te2_", T5_PATH.replace(".", "_")),
    "diffusers, T5": ("text_encoder_2.", T5_PATH),
    "ComfyUI, T5": ("text_encoders.t5xxl.transformer.", T5_PATH),
}


ENCODERS = {CLIP: encoder_targets([f"{CLIP_PATH}.weight"]), T5: encoder_targets([f"{T5_PATH}.weight"])}


@pytest.mark.parametrize("trainer", ENCODER_NAMES)
def test_text_encoders_are_found_by_all_their_names(targets: Targets, trainer: str) -> None:
    prefix, path = ENCODER_NAMES[trainer]
    tensors = {f"{prefix}{path}.lora_up.weight": UP, f"{prefix}{path}.lora_down.weight": DOWN}
    found = parse_for("a", tensors, {FLUX: targets} | ENCODERS)
    changed = {model: set(lora.changes) for model, lora in found.items()}
    is_clip = "T5" not in trainer
    assert changed == {FLUX: set(), CLIP: {CLIP_PATH} if is_clip else set(), T5: set() if is_clip else {T5_PATH}}
    assert not any(lora.unmatched for lora in found.values())
    assert set(parse("a", tensors, targets).unmatched) == tensors.keys()


def test_clip_g_is_no_t5() -> None:
    tensors = {f"lora_te2_text_model_encoder_layers_31_mlp_fc1.lora_{part}.weight": UP for part in ("up", "down")}
    assert not any(lora.changes for lora in parse_for("sdxl", tensors, ENCODERS).values())


def test_what_cannot_be_used_is_refused_with_its_reason(targets: Targets) -> None:
    with pytest.raises(InputError, match="not supported"):
        parse("glora", {"lora_unet_img_in.a1.weight": UP}, targets)
    with pytest.raises(InputError, match="square blocks"):
        parse("oft", {"lora_unet_img_in.oft_blocks": UP}, targets)
    with pytest.raises(InputError, match="dora_scale is beside it"):
        parse(
            "oft",
            {"transformer.proj_out.oft_R.weight": values("t", 4, 6), "transformer.proj_out.dora_scale": UP},
            targets,
        )
    stranger = parse("sdxl", {"lora_unet_down_blocks_0.lora_up.weight": UP}, targets)
    assert not stranger.changes and stranger.unmatched == ("lora_unet_down_blocks_0.lora_up.weight",)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", ["lora_up.weight", "lora_down.weight", "alpha"])
def test_a_number_that_is_none_is_told_with_its_tensor(targets: Targets, number: float, which: str) -> None:
    prefix = "lora_unet_double_blocks_0_img_attn_proj."
    tensors = {f"{prefix}lora_up.weight": UP.clone(), f"{prefix}lora_down.weight": DOWN.clone()}
    tensors |= {f"{prefix}alpha": torch.tensor(4.0)}
    tensors[prefix + which].view(-1)[0] = number
    with pytest.raises(InputError, match=f"broken: {prefix}{which} holds numbers that are not finite"):
        parse("broken", tensors, targets)


# -- orthogonal adapters ---------------------------------------------------------------------------------------------


def turned(blocks: Tensor, most: float = 0.0) -> Tensor:
    """B of Q = blocks - blocks^T, one block at a time."""
    skew = blocks - blocks.transpose(-1, -2)
    if most and skew.norm() > most:
        skew = skew * most / skew.norm()
    one = torch.eye(blocks.shape[-1])
    return torch.stack([(one + q) @ torch.linalg.inv(one - q) for q in skew.flatten(0, -3)]).view(blocks.shape)


def towards(blocks: Tensor, strength: float) -> Tensor:
    return strength * blocks + (1 - strength) * torch.eye(blocks.shape[-1])


PROJ = "double_blocks.0.img_attn.proj"


@pytest.mark.parametrize("strength", [1.0, 0.4, -0.5])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.01])
def test_an_oft_turns_blocks_of_rows(model: Flux, targets: Targets, strength: float, alpha: float | None) -> None:
    blocks, rescale = values("blocks", 8, D // 8, D // 8), 1 + values("rescale", D, 1)
    tensors = {
        f"lycoris_{PROJ.replace('.', '_')}.oft_blocks": blocks,
        f"lycoris_{PROJ.replace('.', '_')}.rescale": rescale,
    }
    if alpha is not None:
        tensors[f"lycoris_{PROJ.replace('.', '_')}.alpha"] = torch.tensor(alpha)
    weight = matrix_of(linear_at(model, PROJ))
    whole = torch.block_diag(*towards(turned(blocks, (alpha or 0) * D), strength))
    expected = (1 + strength * (rescale - 1)) * (whole.T @ weight)
    assert torch.allclose(weight + delta(model, targets, tensors, PROJ, strength), expected, atol=1e-4)


def test_an_oft_of_kohya_has_blocks_for_each_joined_matrix(model: Flux, targets: Targets) -> None:
    sizes, parts = (D, D, D, 256), []
    prefix, module = "oft_unet_single_blocks_1_linear1", "single_blocks.1.linear1"
    tensors = {f"{prefix}.alpha": torch.tensor(0.001)}
    for number, size in enumerate(sizes):
        blocks = values(f"part {number}", 4, size // 4, size // 4)
        tensors[f"{prefix}.oft_blocks.{number}"] = blocks
        parts.append(torch.block_diag(*turned(blocks, 0.001 * size)))
    weight = matrix_of(linear_at(model, module))
    expected = torch.block_diag(*parts).T @ weight
    assert torch.allclose(weight + delta(model, targets, tensors, module), expected, atol=1e-4)
    assert not parse("a", tensors, targets).unmatched


def test_a_boft_turns_pairs_of_rows_ever_further_apart(model: Flux, targets: Targets) -> None:
    levels, size = 3, 8
    blocks = values("boft", levels, D // size, size, size)
    weight = matrix_of(linear_at(model, PROJ))
    expected = weight.clone()
    for level, factors in enumerate(turned(blocks)):
        apart = 2**level * size // 2
        order = [
            2 * apart * g + apart * half + k for g in range(D // (2 * apart)) for k in range(apart) for half in (0, 1)
        ]
        expected[order] = torch.block_diag(*factors) @ expected[order]
    tensors = {f"lora_unet_{PROJ.replace('.', '_')}.oft_blocks": blocks}
    assert torch.allclose(weight + delta(model, targets, tensors, PROJ), expected, atol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_an_oft_of_peft_turns_the_inputs(model: Flux, targets: Targets, shared: bool, scaled: bool) -> None:
    size = 8
    upper = values("upper", 1 if shared else D // size, size * (size - 1) // 2, scale=0.05)
    used = upper / upper.shape[1] ** 0.5 if scaled else upper
    rows = []
    for numbers in used.expand(D // size, -1):
        q = torch.zeros(size, size)
        q[torch.triu_indices(size, size, 1).unbind()] = numbers
        q = q - q.T
        rows.append(torch.eye(size) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q)
    weight = matrix_of(linear_at(model, PROJ))
    expected = weight @ torch.block_diag(*rows).T  # x B W^T
    name = "transformer.transformer_blocks.0.attn.to_out.0.oft_R"
    tensors = {f"{name}.weight": upper} | ({f"{name}.scaled_oft": torch.tensor(1)} if scaled else {})
    assert torch.allclose(weight + delta(model, targets, tensors, PROJ), expected, atol=1e-4)
    assert not parse("a", tensors, targets).unmatched


def test_an_oft_of_another_size_is_told_and_left_out(
    model: Flux, targets: Targets, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = {f"lora_unet_{PROJ.replace('.', '_')}.oft_blocks": values("small", 4, 4, 4)}
    assert not delta(model, targets, tensors, PROJ).any()
    assert "does not fit and is left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "strength", "wanted"),
    [
        ("Hyper-FLUX.1-dev-8steps-lora.safetensors", 1.0, "0.125"),
        ("FLUX.1-Turbo-Alpha.safetensors", 0.125, "1;"),
        ("Hyper-FLUX.1-dev-8steps-lora.safetensors", 0.125, None),
        ("Hyper-FLUX.1-dev-16steps-lora.safetensors", 0.13, None),
        ("FLUX.1-Turbo-Alpha.safetensors", 0.9, None),
        ("hyperrealism-flux.safetensors", 1.0, None),
        ("a-style.safetensors", 1.0, None),
        ("Hyper-FLUX.1-dev-8steps-lora.safetensors", 0.0, None),
    ],
)
def test_a_wrong_strength_is_hinted_at_by_the_name_of_the_file(name: str, strength: float, wanted: str | None) -> None:
    hint = strength_hint(name, strength)
    assert hint is None if wanted is None else hint is not None and f"for strength {wanted}" in hint
