"""What a dry run observes: which weights are used, how often, in which order, the work between them, the peak."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from doubles.seeded import Fill, Seeded
from doubles.typed import linear_at
from sluice.flux_core.adapters.apply import adapted
from sluice.flux_core.adapters.branches import Dense, LowRank, Reweighing
from sluice.flux_core.adapters.lora import Lora, LoraUse
from sluice.flux_core.adapters.lora_families import Change
from sluice.flux_core.models.autoencoder import Autoencoder, AutoencoderConfig
from sluice.flux_core.models.clip_text import ClipConfig, ClipTextModel
from sluice.flux_core.models.copies import deep
from sluice.flux_core.models.denoiser_inputs import ControlResiduals, DenoiserInputs
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig, flux1
from sluice.flux_core.models.linear import Linear
from sluice.flux_core.models.t5 import T5Config, T5Encoder
from sluice.flux_core.models.tensor_trees import map_tensors
from sluice.flux_core.runtime.dry_run import branch_shapes, dry_run, on_meta, shape_of
from sluice.flux_core.runtime.flux_needs import Job, flux_needs, half_block, observe_blocks, streamed_names
from sluice.flux_core.runtime.meta_results import META
from torch import Tensor, nn

SMALL = FluxConfig(16, 16, 128, 1, 128, 512, 3, 4, 24, 16, True, (16, 56, 56))
DOUBLE = ("img_attn.qkv", "txt_attn.qkv", "img_attn.proj", "img_mlp.0", "img_mlp.2", "txt_attn.proj", "txt_mlp.0",
          "txt_mlp.2")  # fmt: skip
CPU = torch.device("cpu")


def meta_flux(config: FluxConfig = SMALL) -> Flux:
    with META:
        return Flux(config)


def inputs(channels: int = 16, batch: int = 2, **more: Any) -> DenoiserInputs:
    with META:
        x, context, pooled = torch.empty(batch, channels, 8, 6), torch.empty(batch, 5, 24), torch.empty(batch, 16)
        return DenoiserInputs(x, torch.empty(batch), context, pooled, torch.empty(batch), **more)


def lora(seeded: Seeded) -> LoraUse:
    """Branches on some blocks, and a matrix changed in another."""
    low_rank = LowRank(seeded("a", (4, 128)), seeded("b", (896, 4)))
    changes: dict[str, tuple[Change, ...]] = {
        "single_blocks.1.linear1": (low_rank,),
        "single_blocks.3.linear1": (low_rank,),
        "double_blocks.2.img_attn.proj": (Dense(seeded("d", (128, 128))),),
        "double_blocks.0.txt_attn.proj": (
            Reweighing(LowRank(seeded("e", (4, 128)), seeded("f", (128, 4))), seeded("m", (128, 1)).abs()),
        ),
    }
    return LoraUse(Lora("a", changes, {}), 0.5)


def test_weights_are_observed_in_the_order_in_which_blocks_document_them() -> None:
    run = observe_blocks(meta_flux(), inputs())
    double = [f"double_blocks.{n}.{name}.weight" for n in range(3) for name in DOUBLE]
    single = [f"single_blocks.{n}.linear{layer}.weight" for n in range(4) for layer in (1, 2)]
    assert list(run.order) == ["img_in.weight", "txt_in.weight", *double, *single, "final_layer.linear.weight"]
    assert list(streamed_names(run)) == [*double, *single]
    assert dict.fromkeys(map(half_block, double[:8])) == {"double_blocks.0.img": None, "double_blocks.0.txt": None}


def test_the_work_of_a_step_is_counted_by_its_shapes() -> None:
    """24 N D^2 of products for each token and block, 4 N^2 D of attention for each block; small layers beside them."""
    run = flux_needs(flux1(), Job()).run
    tokens, width = 64 * 64 + 512, 3072
    assert sum(use.products for use in run.uses) == pytest.approx(57 * 24 * tokens * width**2, rel=0.001)
    assert sum(use.attention for use in run.uses) == 57 * 4 * tokens**2 * width
    by_name = {use.name: use for use in run.uses}
    assert by_name["single_blocks.3.linear2.weight"].products == 2 * tokens * width * 5 * width
    assert by_name["double_blocks.3.txt_attn.qkv.weight"].attention == 4 * tokens**2 * width


def test_the_peak_of_a_step_is_that_of_a_single_block() -> None:
    """Per token 3 D + mlp out of linear1, the stream twice, and half of the queries and keys in float32 or so."""
    peak, tokens = flux_needs(flux1(), Job()).run.peak, 64 * 64 + 512
    assert 7 + 2 + 2 < peak / (tokens * 3072 * 2) < 7 + 2 + 5
    assert flux_needs(flux1(), Job(batch=2)).run.peak > 1.9 * peak


@pytest.mark.parametrize("case", ["bare", "loras", "references", "control", "masked"])
def test_blocks_of_one_make_are_run_once_and_nothing_else_is_observed(case: str, seeded: Seeded) -> None:
    flux = meta_flux()
    cases: dict[str, dict[str, Any]] = {
        "references": {"references": (torch.empty(2, 16, 5, 3, device=META),)},
        "control": {"control": ControlResiduals(double=(torch.empty(2, 12, 128, device=META),) * 2)},
        "masked": {"attention_mask": torch.empty(2, 17, 17, device=META)},
    }
    more = cases.get(case, {})
    module = adapted(flux, [lora(seeded)], META, torch.float32) if case == "loras" else flux
    asked = inputs(**more)
    ran: list[nn.Module] = []

    def run_block(block: nn.Module, *args: Any) -> Any:
        ran.append(block)
        return block(*args)

    def call(copy: Flux) -> object:
        return copy(asked, run_block=run_block)

    assert dry_run(module, call) == dry_run(module, call, repeat=False)
    assert len(ran) == 14


def test_other_models_are_observed_alike_with_and_without_repetition() -> None:
    t5, clip = T5Config(64, 64, 64, 2, 128, 3), ClipConfig(60, 77, 64, 128, 3, 2)
    coder = AutoencoderConfig(channels=3, ch=32, ch_mult=(1, 2, 2, 4), num_res_blocks=2, z_channels=16)
    with META:
        models = [
            (T5Encoder(t5), lambda m: m(torch.empty(1, 9, 64))),
            (ClipTextModel(clip), lambda m: m(torch.empty(1, 77, 64), torch.zeros(1, dtype=torch.int64))),
            (Autoencoder(coder), lambda m: m.decode_image(torch.empty(1, 16, 8, 8))),
        ]
        for model, call in models:
            assert dry_run(model, call) == dry_run(model, call, repeat=False)


def test_a_dry_run_is_of_the_model_as_it_will_run_and_changes_nothing_of_it(fill: Fill, seeded: Seeded) -> None:
    """A control LoRA: 32 channels go in. The model itself has weights, on the CPU, and keeps them."""
    flux = fill(Flux(SMALL))
    wide = LowRank(seeded("wide", (4, 128)), seeded("up", (128, 4)), widens=True)
    module = adapted(flux, [LoraUse(Lora("depth", {"img_in": (wide,)}, {}), 1.0)], CPU, torch.float32)
    before = {name: dict(vars(part)) for name, part in module.named_modules()}
    run = observe_blocks(module, inputs(channels=32))
    first, bare = run.uses[0], observe_blocks(flux, inputs()).uses[0]
    assert first.name == bare.name == "img_in.weight" and first.products > bare.products
    assert all(vars(part) == before[name] for name, part in module.named_modules())
    assert branch_shapes(flux) == () != branch_shapes(module)
    doubled = adapted(flux, [LoraUse(Lora("depth", {"img_in": (wide,)}, {}), 0.3)], CPU, torch.float32)
    assert branch_shapes(doubled) == branch_shapes(module), "another strength takes no other memory"


def test_going_backward_weights_are_used_again_from_the_last_to_the_first() -> None:
    """What a training step does: recorded by the same dry run, with gradients, for a branch in the first block."""
    flux = deep(meta_flux()).train()
    for parameter in flux.parameters():
        parameter.requires_grad_(False)
    first = linear_at(flux, "double_blocks.0.img_attn.qkv")
    down, up = (torch.empty(shape, device=META, requires_grad=True) for shape in ((4, 128), (384, 4)))
    first.branches = (LowRank(down, up),)
    asked = map_tensors(inputs(), shape_of)

    def step(copy: Flux) -> tuple[Tensor, ...]:
        loss = copy(asked).sum()
        (branch,) = linear_at(copy, "double_blocks.0.img_attn.qkv").branches
        assert isinstance(branch, LowRank)
        return torch.autograd.grad(loss, [branch.down, branch.up])

    uses = [use.name for use in dry_run(flux, step, gradients=True).uses]
    forward = list(streamed_names(observe_blocks(meta_flux(), asked)))
    blocks = [name for name in uses if name in forward]
    backward = blocks[len(forward) :]
    assert blocks[: len(forward)] == forward
    assert backward[0] == "single_blocks.3.linear2.weight" and len(set(backward)) == len(backward)
    order = [name.rpartition(".linear")[0] for name in backward if name.startswith("single")]
    assert order == [f"single_blocks.{n}" for n in (3, 3, 2, 2, 1, 1, 0, 0)]


def test_on_the_meta_device_a_model_has_shapes_and_no_memory(fill: Fill, seeded: Seeded) -> None:
    copy = on_meta(adapted(fill(Flux(SMALL)), [lora(seeded)], CPU, torch.float32))
    assert {tensor.device.type for tensor in copy.state_dict().values()} == {"meta"}
    branches = [
        branch
        for part in copy.modules()
        if isinstance(part, Linear)
        for branch in part.branches
        if isinstance(branch, (Dense, LowRank))
    ]
    assert len(branches) == 3 and {t.device.type for branch in branches for t in branch.tensors} == {"meta"}
