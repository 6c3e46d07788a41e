"""The FLUX transformer: equal to ComfyUI's and diffusers', and open to an executor that owns the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from doubles.diffusers_names import diffusers_weights
from doubles.seeded import Fill, Seeded
from doubles.typed import linear_at, matrix_of, present
from safetensors.torch import load_file
from sluice.flux_core.errors import FileFormatError, InputError
from sluice.flux_core.models import attention, flux_blocks, latents
from sluice.flux_core.models.attention import rotate, rotations
from sluice.flux_core.models.denoiser_inputs import ControlResiduals, DenoiserInputs
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_blocks import finite, sinusoids
from sluice.flux_core.models.flux_config import FluxConfig, axes_of
from sluice.flux_core.models.linear import Linear
from sluice.flux_core.models.tensor_trees import map_tensors
from torch import Tensor, nn
from torch.testing import assert_close

SMALL = FluxConfig(
    in_channels=16, out_channels=16, hidden=128, heads=1, head_dim=128, mlp=512, depth=1, depth_single=2,
    context_dim=24, vec_dim=16, guidance=True, axes_dim=(16, 56, 56),
)  # fmt: skip
REFERENCE = load_file(Path(__file__).parents[1] / "fixtures" / "transformer.safetensors")
TIME, GUIDANCE = torch.tensor([0.73, 0.2]), torch.tensor([3.5, 2.7])
DOUBLE = ("img_attn.qkv", "txt_attn.qkv", "img_attn.proj", "img_mlp.0", "img_mlp.2", "txt_attn.proj", "txt_mlp.0",
          "txt_mlp.2")  # fmt: skip


def resized(**changes: Any) -> FluxConfig:
    return FluxConfig(**{**vars(SMALL), **changes})


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.fixture
def flux(fill: Fill) -> Flux:
    return fill(Flux(SMALL))


@pytest.fixture
def inputs(seeded: Seeded) -> DenoiserInputs:
    """Those of two pictures."""
    x, context, pooled = seeded("x", (2, 16, 8, 6)), seeded("context", (2, 5, 24)), seeded("y", (2, 16))
    return DenoiserInputs(x, TIME, context, pooled, GUIDANCE)


@pytest.fixture
def extras(seeded: Seeded) -> dict[str, dict[str, Any]]:
    residuals = (seeded("control.input.0", (2, 12, 128)),), (None, seeded("control.output.1", (2, 12, 128)))
    return {
        "refs": {"references": (seeded("ref1", (2, 16, 4, 6)), seeded("ref2", (2, 16, 5, 3)))},
        "mask": {"attention_mask": seeded("mask", (2, 17, 17))},
        "control": {"control": ControlResiduals(*residuals)},
    }


@torch.no_grad()
@pytest.mark.parametrize("case", ["plain", "mask", "control", "refs_offset", "refs_index", "refs_uxo"])
def test_velocity_equals_that_of_comfyui(
    flux: Flux, inputs: DenoiserInputs, extras: dict[str, dict[str, Any]], case: str
) -> None:
    kind, _, method = case.partition("_")
    options = extras.get(kind, {}) | ({"reference_method": method} if method else {})
    assert_close(flux(replace(inputs, **options)), REFERENCE[case], rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_no_guidance_odd_sizes_and_other_families_equal_comfyui(
    flux: Flux,
    fill: Fill,
    inputs: DenoiserInputs,
    seeded: Seeded,
) -> None:
    same: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}
    assert_close(flux(replace(inputs, guidance=None)), REFERENCE["no_guidance"], **same)
    one = map_tensors(inputs, lambda part: part[:1])
    assert_close(flux(replace(one, x=seeded("odd", (1, 16, 7, 5)))), REFERENCE["odd"], **same)
    assert_close(fill(Flux(resized(guidance=False)))(inputs), REFERENCE["schnell"], **same)
    filled = replace(inputs, x=seeded("filled", (2, 96, 8, 6)))
    assert_close(fill(Flux(resized(in_channels=96)))(filled), REFERENCE["fill"], **same)


@torch.no_grad()
def test_bfloat16_differs_from_comfyuis_by_rounding_only(flux: Flux, inputs: DenoiserInputs) -> None:
    """float32 is 80 % off here: bf16 guidance 3.5 means 3504, and that rule must hold for pictures to be the same."""
    velocity = flux.to(torch.bfloat16)(replace(inputs, x=inputs.x.bfloat16())).float()
    error = (velocity - REFERENCE["bf16"]).norm() / REFERENCE["bf16"].norm()
    assert error < 0.02


def test_guidance_is_rounded_before_it_is_multiplied_and_the_time_is_not() -> None:
    exact = sinusoids(torch.tensor([3.504], dtype=torch.float64))
    assert_close(sinusoids(torch.tensor([3.5]).bfloat16()).float(), exact.float(), rtol=0, atol=4e-3)
    assert not torch.allclose(sinusoids(torch.tensor([3.5])), exact.float(), atol=0.1)


@torch.no_grad()
@pytest.mark.parametrize("head_dim", [32, 64])
def test_velocity_equals_that_of_diffusers(fill: Fill, seeded: Seeded, head_dim: int) -> None:
    hidden = head_dim * 3
    config = resized(hidden=hidden, heads=3, head_dim=head_dim, mlp=hidden * 4, depth=2, axes_dim=axes_of(head_dim))
    flux = fill(Flux(config))
    reference = FluxTransformer2DModel(
        num_layers=2, num_single_layers=2, attention_head_dim=head_dim, num_attention_heads=3, joint_attention_dim=24,
        pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=axes_of(head_dim),
    ).eval()  # fmt: skip
    reference.load_state_dict(diffusers_weights(flux.state_dict(), config), strict=True)
    x, context, y = seeded("x", (2, 16, 8, 6)), seeded("context", (2, 5, 24)), seeded("y", (2, 16))
    tokens = reference(
        hidden_states=latents.pack(x), encoder_hidden_states=context, pooled_projections=y, timestep=TIME,
        guidance=GUIDANCE, img_ids=latents.image_ids(8, 6), txt_ids=torch.zeros(5, 3), return_dict=False,
    )[0]  # fmt: skip
    velocity = flux(DenoiserInputs(x, TIME, context, y, GUIDANCE))
    assert_close(velocity, latents.unpack(tokens, 8, 6), rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_pictures_of_a_batch_do_not_know_each_other(flux: Flux, inputs: DenoiserInputs) -> None:
    for item, velocity in enumerate(flux(inputs)):
        alone = flux(map_tensors(inputs, itemgetter(slice(item, item + 1))))
        assert_close(alone[0], velocity, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_modulation_table_takes_the_place_of_its_matrices(flux: Flux, inputs: DenoiserInputs) -> None:
    expected = flux(inputs)
    table = flux.modulations(flux.vector(inputs.timesteps, inputs.pooled, inputs.guidance, inputs.x.dtype))
    assert [tuple(rows.shape) for rows in table] == [(2, 12, 128), (2, 3, 128), (2, 3, 128), (2, 2, 128)]
    for module in (flux.time_in, flux.vector_in, flux.guidance_in, *(m for n, m in flux.named_modules() if "mod" in n)):
        for layer in module.modules():
            if isinstance(layer, Linear):
                layer.weight = None
    assert torch.equal(flux(inputs, modulation=table), expected)


@torch.no_grad()
def test_an_executor_may_own_the_loop_and_run_a_block_again(
    flux: Flux, inputs: DenoiserInputs, extras: dict[str, dict[str, Any]]
) -> None:
    """Without gradients blocks save memory, and still leave their inputs as they were: a block can be repeated."""
    seen = []

    def twice(block: nn.Module, *args: Any) -> Any:
        before = [part.clone() for part in args if isinstance(part, Tensor)]
        first, again = block(*args), block(*args)
        seen.append(block)
        assert all(map(torch.equal, before, (part for part in args if isinstance(part, Tensor))))
        assert all(map(torch.equal, first, again)) if isinstance(first, tuple) else torch.equal(first, again)
        return again

    options = extras["refs"] | extras["control"]
    whole = replace(inputs, **options)
    assert torch.equal(flux(whole, run_block=twice), flux(whole))
    assert seen == list(flux.blocks()) == [*flux.double_blocks, *flux.single_blocks]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_change_nothing(
    flux: Flux,
    inputs: DenoiserInputs,
    extras: dict[str, dict[str, Any]],
    seeded: Seeded,
    layout: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
) -> None:
    whole = replace(inputs, **extras["refs"], **extras["control"], attention_mask=seeded("mask", (2, 29, 29)))
    flux.to(dtype)
    for batch in (2, 1):
        given = map_tensors(whole, itemgetter(slice(batch)))
        given = replace(given, x=given.x.to(dtype), context=given.context.to(dtype))
        other = map_tensors(given, layout)
        expected = flux(given)
        assert expected.isfinite().all() and torch.equal(flux(other), expected)
        rows = flux.modulations(flux.vector(given.timesteps, given.pooled, given.guidance, dtype))
        assert torch.equal(flux(other, modulation=map_tensors(rows, layout)), expected)


@torch.no_grad()
def test_blocks_use_their_matrices_in_the_documented_order(flux: Flux, inputs: DenoiserInputs) -> None:
    used = []
    for name, module in flux.named_modules():
        if isinstance(module, Linear):
            module.register_forward_pre_hook(lambda *_, name=name: used.append(name))
    table = flux.modulations(flux.vector(inputs.timesteps, inputs.pooled, inputs.guidance, torch.float32))
    used.clear()
    flux(inputs, modulation=table)
    double = [f"double_blocks.0.{name}" for name in DOUBLE]
    single = [f"single_blocks.{number}.linear{layer}" for number in (0, 1) for layer in (1, 2)]
    assert used == ["img_in", "txt_in", *double, *single, "final_layer.linear"]


def test_gradients_change_the_memory_used_and_not_the_numbers(
    flux: Flux, inputs: DenoiserInputs, extras: dict[str, dict[str, Any]]
) -> None:
    options = extras["refs"] | extras["control"]
    trained = flux.train()(replace(inputs, **options))
    with torch.inference_mode():
        assert_close(flux.eval()(replace(inputs, **options)), trained.detach(), rtol=1e-5, atol=1e-5)
    trained.square().mean().backward()
    assert all(present(parameter.grad).count_nonzero() for parameter in flux.parameters())


def test_a_model_made_for_inference_refuses_gradients(flux: Flux, inputs: DenoiserInputs) -> None:
    """It overwrites its own results: that is an error, and never a wrong gradient."""
    with pytest.raises(RuntimeError, match="differentiation"):
        flux(replace(inputs, x=inputs.x.requires_grad_())).sum().backward()


@pytest.fixture(params=["cpu", "accelerator"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How pairs are turned: as on a CPU or as on an accelerator, here on the CPU."""
    if request.param == "accelerator":
        monkeypatch.setattr(attention, "_turn_on_cpu", attention._turn)
    return str(request.param)


@pytest.mark.parametrize("heads", [1, 3])
def test_pairs_of_channels_turn_by_position_times_frequency(seeded: Seeded, form: str, heads: int) -> None:
    """In place or not, and with gradients: as multiplying by complex numbers does."""
    ids, axes = torch.tensor([[0, 0, 0], [0, 1, 2], [1, 30, 7], [2, 255, 4000]]), (4, 14, 14)
    x = seeded("heads", (2, 4, heads, 32)).requires_grad_()
    angles = [ids[:, n, None].double() * 10_000.0 ** -(torch.arange(0, d, 2).double() / d) for n, d in enumerate(axes)]
    angle = torch.cat(angles, dim=1)
    turns = torch.complex(angle.cos().float(), angle.sin().float())[:, None]
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)
    direction = seeded("direction", expected.shape)
    (slope,) = torch.autograd.grad((expected * direction).sum(), x)
    rope = rotations(ids, axes, 10_000.0)
    near: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}
    turned = rotate(x, rope)
    assert_close(turned, expected, **near)
    assert_close(torch.autograd.grad((turned * direction).sum(), x)[0], slope, **near)
    for dtype in (torch.float32, torch.bfloat16):
        wide = torch.zeros(2, 4, 3, heads, 32, dtype=dtype)
        into = wide[:, :, 1]
        with torch.no_grad():
            assert rotate(x, rope, into) is into
        assert torch.equal(into, turned.to(dtype)) and not wide[:, :, ::2].any()


@torch.no_grad()
def test_training_and_inference_turn_queries_and_keys_alike(flux: Flux, inputs: DenoiserInputs, form: str) -> None:
    assert_close(flux(inputs), REFERENCE["plain"], rtol=1e-4, atol=2e-5)
    assert torch.equal(flux.train()(inputs), flux.eval()(inputs))


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
def test_blocks_compile_whole(
    fill: Fill,
    inputs: DenoiserInputs,
    extras: dict[str, dict[str, Any]],
    seeded: Seeded,
    train: bool,
) -> None:
    """One graph each, with nothing left to the interpreter, and the same numbers."""
    given = replace(inputs, **extras["refs"], attention_mask=seeded("mask", (2, 29, 29)))
    compiled: dict[nn.Module, Callable[..., Any]] = {}

    def run(block: nn.Module, *args: Any) -> Any:
        if block not in compiled:
            compiled[block] = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=False)
        return compiled[block](*args)

    flux = fill(Flux(resized(depth_single=1))).train(train).requires_grad_(False)
    given.x.requires_grad_(train)
    with torch.set_grad_enabled(train):
        expected, got = flux(given), flux(given, run_block=run)
        assert_close(got, expected, rtol=1e-5, atol=1e-5)
        if train:
            slopes = [torch.autograd.grad(out.square().mean(), given.x)[0] for out in (expected, got)]
            assert_close(*slopes, rtol=1e-4, atol=1e-6)
    assert len(compiled) == 2


def test_gradients_are_right(fill: Fill, seeded: Seeded) -> None:
    flux = fill(Flux(resized(hidden=32, head_dim=32, mlp=48, depth_single=1, axes_dim=axes_of(32)))).double().train()
    x, context, y = (seeded(*of).double() for of in (("x", (1, 16, 2, 2)), ("c", (1, 2, 24)), ("y", (1, 16))))
    asked = DenoiserInputs(x, torch.tensor([0.5]), context, y, torch.tensor([3.5]))
    for part in (x, context, y):
        part.requires_grad_()
    direction = [seeded(f"direction {n}", part.shape).double() for n, part in enumerate((x, context, y))]
    grads = torch.autograd.grad(flux(asked).sum(), (x, context, y))
    slope = sum((grad * along).sum() for grad, along in zip(grads, direction, strict=True))
    step = 1e-2
    with torch.no_grad():
        ahead, behind = (
            flux(
                replace(asked, x=x + s * direction[0], context=context + s * direction[1], pooled=y + s * direction[2])
            ).sum()
            for s in (step, -step)
        )
    assert_close((ahead - behind) / (2 * step), slope, rtol=2e-3, atol=2e-3)


def test_a_new_model_predicts_zero_and_learns_from_the_first_steps(inputs: DenoiserInputs, seeded: Seeded) -> None:
    torch.manual_seed(0)
    flux = Flux(SMALL).train()
    flux.init_weights()
    target = seeded("target", (2, 16, 8, 6))
    optimiser = torch.optim.Adam(flux.parameters(), 1e-2)
    losses = []
    for _ in range(6):
        velocity = flux(inputs)
        losses.append((velocity - target).square().mean())
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[0] == target.square().mean() and losses[-1] < 0.9 * losses[0]


def test_float16_overflow_of_some_tokens_is_brought_back_into_range() -> None:
    numbers = torch.linspace(-6, 6, 2 * 5 * 4).view(2, 5, 4).half()
    assert finite(numbers.float()).dtype == torch.float32 and torch.equal(finite(numbers), numbers)
    numbers[0, :4, 1], numbers[1, 2, 1:] = torch.inf, torch.nan
    numbers[1, 0, 0] = -torch.inf
    expected = torch.nan_to_num(numbers, nan=0.0, posinf=65504, neginf=-65504)
    for infinite in (True, False):
        assert torch.equal(finite(numbers, infinite), expected)
    numbers[0, 4, 1] = -torch.inf  # of every token of one image
    assert finite(numbers).isnan().all() and finite(numbers, infinite=False).isfinite().all()
    numbers[0, :, 1] = torch.nan
    assert finite(numbers, infinite=False).isnan().all()


@pytest.mark.parametrize(
    ("number", "name"), [(60000.0, "single_blocks.0.linear2"), (torch.nan, "double_blocks.0.txt_mlp.2")]
)
def test_a_damaged_matrix_in_float16_gives_no_image(
    flux: Flux, inputs: DenoiserInputs, number: float, name: str
) -> None:
    """What is not finite is replaced for some tokens; if it is so for all, the velocity says it, and the run ends."""
    half = flux.half()
    given = replace(inputs, x=inputs.x.half())
    with torch.no_grad():
        assert half(given).isfinite().all()
        matrix_of(linear_at(half, name)).data[1] = number
        assert half(given).isnan().all()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"guidance": False, "depth_single": 0},
        {"hidden": 192, "heads": 3, "head_dim": 64, "mlp": 768, "depth": 3, "axes_dim": (8, 28, 28)},
        {"in_channels": 96, "depth": 12, "depth_single": 11},
    ],
)
def test_sizes_are_read_off_the_shapes(changes: dict[str, Any]) -> None:
    with torch.device("meta"):
        flux = Flux(resized(**changes))
    assert FluxConfig.from_shapes(shapes(flux)) == flux.config


def test_dev_has_the_tensors_of_the_released_checkpoint() -> None:
    with torch.device("meta"):
        dev = Flux(FluxConfig(16, 16, 3072, 24, 128, 12288, 19, 38, 4096, 768, True, (16, 56, 56)))
    assert len(dev.state_dict()) == 780
    assert sum(parameter.numel() for parameter in dev.parameters()) == 11_901_408_320
    matrices = shapes(dev)
    assert matrices["double_blocks.18.txt_mod.lin.weight"] == (18432, 3072)
    assert matrices["single_blocks.37.linear1.weight"] == (21504, 3072)
    assert matrices["final_layer.adaLN_modulation.1.weight"] == (6144, 3072)


def test_what_is_not_flux_is_said_to_be_something_else(flux: Flux, inputs: DenoiserInputs) -> None:
    with pytest.raises(FileFormatError, match="img_in.weight"):
        FluxConfig.from_shapes({"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)})
    with pytest.raises(InputError, match="16 channels and was given one of 4"):
        flux(replace(inputs, x=torch.zeros(2, 4, 8, 6)))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_queries_and_keys_some_tokens_at_a_time_are_the_same_numbers(
    fill: Fill, seeded: Seeded, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    norm, rope = fill(flux_blocks.QKNorm(32)), rotations(seeded("ids", (11, 3)), (8, 12, 12), 10_000)
    given = seeded("qkv", (2, 11, 3 * 4 * 32)).to(dtype)
    expected = [each.clone() for each in norm(given.clone(), 4, rope)]
    monkeypatch.setattr(flux_blocks, "IN_CACHE", 2 * 3 * 4 * 32)  # three tokens, with one thread
    assert all(torch.equal(*pair) for pair in zip(norm(given.clone(), 4, rope), expected, strict=True))
