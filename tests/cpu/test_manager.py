"""Whole models under a budget: the same bits as without one, within the budget, and nothing read twice for nothing."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from doubles.budgets import CPU, budget, no_budget
from doubles.sampling_cases import Conditioning
from doubles.seeded import Fill, Seeded
from doubles.typed import linear_at, present
from safetensors.torch import save_file
from sluice.flux_core.adapters.apply import adapted
from sluice.flux_core.adapters.branches import LowRank, Reweighing
from sluice.flux_core.adapters.lora import Lora, LoraUse
from sluice.flux_core.checkpoint.detect import detect
from sluice.flux_core.checkpoint.files import open_weights
from sluice.flux_core.checkpoint.integers import as_integers
from sluice.flux_core.convert.convert import steps_of, write
from sluice.flux_core.convert.targets import target
from sluice.flux_core.errors import BudgetTooSmall
from sluice.flux_core.memory import manager, meter, report, running
from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.memory.managed_model import ManagedModel
from sluice.flux_core.memory.workload import GiB, Location, MiB
from sluice.flux_core.models.autoencoder import Autoencoder, AutoencoderConfig
from sluice.flux_core.models.clip_text import ClipConfig, ClipTextModel
from sluice.flux_core.models.denoiser_inputs import DenoiserInputs
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.models.t5 import T5Config, T5Encoder
from sluice.flux_core.runtime import autoencoder, handles, model_weights, modulation, streamed_flux
from sluice.flux_core.runtime.handles import FluxModel
from sluice.flux_core.runtime.integer_products import block_matrices, integers_for, within_ram
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import INT8, SIXTEEN_BIT, Settings
from sluice.flux_core.runtime.streamed_flux import ManagedFlux
from sluice.flux_core.sampling.guider import BasicGuider, CFGGuider
from sluice.flux_core.sampling.sample import Sampler, sample
from sluice.flux_core.sampling.step_cache import StepCache
from torch import Tensor

SMALL = FluxConfig(
    in_channels=16, out_channels=16, hidden=256, heads=2, head_dim=128, mlp=1024, depth=2, depth_single=4,
    context_dim=32, vec_dim=32, guidance=True, axes_dim=(16, 56, 56),
)  # fmt: skip
CLIP = ClipConfig(vocabulary=60, positions=77, width=64, mlp=128, layers=3, heads=2, eos_token_id=59)
T5 = T5Config(vocabulary=64, width=64, inner=64, heads=2, mlp=128, layers=3)
CODER = AutoencoderConfig(channels=3, ch=32, ch_mult=(1, 2, 2, 4), num_res_blocks=1, z_channels=16)


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    yield Runtime(Settings("cpu", "fp32"))
    assert not [thread for thread in threading.enumerate() if thread.name == "sluice-feeder"]


@pytest.fixture
def flux_file(fill: Fill, tmp_path: Path) -> Path:
    path = tmp_path / "flux.safetensors"
    save_file({name: value.bfloat16() for name, value in fill(Flux(SMALL)).state_dict().items()}, path)
    return path


def conditioning(name: str, seeded: Seeded, guidance: float | None = 3.5, **more: Any) -> Conditioning:
    values = {"pooled_output": seeded(name + "y", (1, 32)), **({} if guidance is None else {"guidance": guidance})}
    values |= more
    return [[seeded(name, (1, 9, 32)), values]]


def picture(
    model: FluxModel,
    seeded: Seeded,
    solver: str = "euler",
    cfg: float = 1.0,
    batch: int = 1,
    seed: int = 1,
    width: int = 6,
    **more: Any,
) -> Tensor:
    positive, negative = conditioning("positive", seeded, **more), conditioning("negative", seeded)
    guider = BasicGuider(model, positive) if cfg == 1 else CFGGuider(model, positive, negative, cfg)
    noise = torch.randn(batch, 16, 8, width, generator=torch.Generator().manual_seed(seed))
    levels = torch.tensor([1.0, 0.8, 0.4, 0.0])
    return sample(guider, Sampler(solver), levels, torch.zeros_like(noise), noise, seed=seed)[0]


def loras(seeded: Seeded) -> tuple[LoraUse, ...]:
    changes = {
        "single_blocks.0.linear1": (LowRank(seeded("a", (4, 256)), seeded("b", (1792, 4)), 0.01),),
        "double_blocks.0.img_mod.lin": (LowRank(seeded("c", (4, 256)), seeded("d", (1536, 4)), 0.01),),
    }
    return (LoraUse(Lora("lora", changes, {}), 0.8),)


@pytest.mark.parametrize("weight_dtype", ("default", "fp8_e4m3fn"))
@pytest.mark.parametrize(
    ("solver", "cfg", "batch", "with_lora", "dtype"),
    [("euler", 1.0, 1, False, "fp32"), ("heun", 3.0, 2, True, "fp32"), ("dpm_2_ancestral", 1.0, 1, True, "bf16"),
     ("res_multistep_cfg_pp", 2.0, 1, False, "bf16")],
)  # fmt: skip
def test_a_picture_is_the_same_under_any_budget(
    flux_file: Path,
    seeded: Seeded,
    solver: str,
    cfg: float,
    batch: int,
    with_lora: bool,
    dtype: str,
    weight_dtype: str,
) -> None:
    runtime = Runtime(Settings("cpu", dtype))
    model = handles.load_flux(runtime, flux_file, weight_dtype)
    if with_lora:
        model = replace(model, loras=loras(seeded))
    no_budget(runtime)
    expected = picture(model, seeded, solver, cfg, batch)
    weights = 4 * sum(stored.numel for stored in model.weights.tensors.values())
    for nbytes in (3 * weights, weights // 3, weights // 5):
        budget(runtime, nbytes)
        assert torch.equal(picture(model, seeded, solver, cfg, batch), expected)
        homes = model.weights.managed(runtime.managers[CPU], model.dtype).report.plan.locations
        stays, mixed = {Location.DEVICE}, {Location.DEVICE, Location.DISK}
        assert set(homes) == (stays if nbytes > weights else mixed if nbytes == weights // 3 else set(homes))


@pytest.mark.parametrize("words", ["int8 --rotate", "fp8", "Q4_K"])
def test_quantised_files_give_the_same_picture_expanded_packed_and_streamed(
    flux_file: Path,
    seeded: Seeded,
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: str,
) -> None:
    """Codes and their scales are streamed together."""
    runtime.compute = SIXTEEN_BIT
    name, rotated, path = words.split()[0], "--rotate" in words, tmp_path / "quantised"
    wanted, file = target(name, rotated), open_weights(flux_file)
    write(path, "flux", steps_of("flux", detect(file).parts["flux"], wanted), wanted, {})
    no_budget(runtime)
    expected = picture(handles.load_flux(runtime, path), seeded)
    monkeypatch.setattr(model_weights, "FILLED", 0.0)
    gc.collect()
    model = handles.load_flux(runtime, path)
    assert torch.equal(picture(model, seeded), expected)
    assert linear_at(model.weights.module(model.device, model.dtype), "single_blocks.0.linear2").weight is None
    stored = sum(one.nbytes for one in model.weights.tensors.values())
    budget(runtime, stored // 2)
    assert torch.equal(picture(model, seeded), expected)
    plan = model.weights.managed(runtime.managers[CPU], model.dtype).report.plan
    assert plan.slots and Location.DISK in plan.locations, "it streams"


def test_integers_stream_as_the_operands_they_are(
    flux_file: Path, seeded: Seeded, runtime: Runtime, tmp_path: Path
) -> None:
    """One image resident and streamed, with a LoRA; nothing is decoded, and the plan includes integer products."""
    path, wanted, file = tmp_path / "int8.safetensors", target("int8", True), open_weights(flux_file)
    write(path, "flux", steps_of("flux", detect(file).parts["flux"], wanted), wanted, {})
    model = replace(handles.load_flux(runtime, path), loras=loras(seeded), own_compute=INT8)
    no_budget(runtime)

    def image(compute: str = INT8) -> Tensor:
        """Of enough tokens of text and image to be multiplied in integers."""
        return picture(replace(model, own_compute=compute), seeded, batch=2, width=16)

    expected = image()
    assert not torch.equal(image(SIXTEEN_BIT), expected)
    stored = sum(one.nbytes for one in model.weights.tensors.values())
    for nbytes in (3 * stored, stored // 2):
        budget(runtime, nbytes)
        assert torch.equal(image(), expected)
        managed = model.weights.managed(runtime.managers[CPU], model.dtype, INT8)
        report = managed.report
        assert bool(report.plan.slots) == (nbytes < stored)
        uses = report.plan.workload.schedule
        assert all(use.integers and not use.traffic for use in uses) and report.plan.machine.integers
        assert not any(managed.blocks.decoded(name) for name in managed.blocks.stored)
        assert report.note == "int8 products (PyTorch) for 24 matrices"


def test_a_file_is_quantised_while_it_is_loaded_whole_or_streamed(
    flux_file: Path, seeded: Seeded, runtime: Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nearly as the converted file computes, whose adaLN is int8 too; not where memory does not suffice for it."""
    path, wanted, file = tmp_path / "int8.safetensors", target("int8", True), open_weights(flux_file)
    write(path, "flux", steps_of("flux", detect(file).parts["flux"], wanted), wanted, {})

    def image(file: Path) -> Tensor:
        model = replace(handles.load_flux(runtime, file), own_compute=INT8)
        return picture(model, seeded, batch=2, width=16)

    no_budget(runtime)
    expected = image(flux_file)
    assert 0 < (image(path) - expected).norm() < 0.02 * expected.norm()
    model = handles.load_flux(runtime, flux_file)
    integers = sum(as_integers(model.weights.tensors[name]).nbytes for name in block_matrices(model.weights.tensors))
    working = 120 * MiB
    for share in (1.0, 0.6):
        budget(runtime, working + int(share * integers))
        assert torch.equal(image(flux_file), expected)
        report = model.weights.managed(runtime.managers[CPU], model.dtype, INT8).report
        assert bool(report.plan.slots) == (share < 1) and report.note.startswith("int8 products")
        working = sum(report.plan.workload.fixed.values()) - report.plan.workload.fixed["workspace"]
        assert working > report.plan.workload.fixed["quantising"] > 0
    quantising, small = integers_for(CPU, torch.float32, INT8), budget(runtime, integers - 1 - 128 * MiB)
    with caplog.at_level("WARNING"):
        without = within_ram(quantising, small, model.weights.tensors)
    assert quantising is not None and quantising.quantises and without is not None and not without.quantises
    assert "`sluice convert flux.safetensors --to int8 --rotate` makes a file that streams" in caplog.text


def test_skipped_evaluations_stream_nothing(flux_file: Path, seeded: Seeded, runtime: Runtime) -> None:
    """With a step cache the managed model runs for the computed evaluations alone, and the image is the same."""
    steps = torch.linspace(1, 0, 21)
    noise = torch.randn(1, 16, 8, 6, generator=torch.Generator().manual_seed(1))
    plain = handles.load_flux(runtime, flux_file)
    cached = replace(plain, own_step_cache=StepCache(1.0))
    told: list[dict[str, Any]] = []
    runtime.events.listen(told.append)

    def image(model: FluxModel) -> Tensor:
        guider = BasicGuider(model, conditioning("positive", seeded))
        return sample(guider, Sampler("euler"), steps, torch.zeros_like(noise), noise, seed=1)[0]

    no_budget(runtime)
    expected = image(cached)
    budget(runtime, 12 * MiB)
    assert torch.equal(image(cached), expected)
    reused = [event for event in told if event["type"] == "steps.reused"][-1]
    assert reused["computed"] + reused["reused"] == 20 and 0 < reused["reused"] < 20
    report = plain.weights.managed(runtime.managers[CPU], plain.dtype).report
    assert report.plan.slots and len(report.steps) == reused["computed"]


def test_a_control_lora_widens_a_managed_model_as_any_other(flux_file: Path, seeded: Seeded, runtime: Runtime) -> None:
    """FLUX.1-Depth-lora and Canny-lora: a plan is made for the model as it will run, which takes 32 channels then."""
    wide = LowRank(seeded("wide", (4, 128)), seeded("up", (256, 4)), 0.1, widens=True)
    changes = {"img_in": (wide,), "single_blocks.2.linear1": (LowRank(seeded("a", (4, 256)), seeded("b", (1792, 4))),)}
    scales = {"single_blocks.0.norm.key_norm.scale": seeded("scale", (128,))}
    model = replace(handles.load_flux(runtime, flux_file), loras=(LoraUse(Lora("depth", changes, scales), 0.9),))
    plain = replace(model, loras=())
    no_budget(runtime)
    expected = picture(model, seeded, concat_latent_image=seeded("depth", (1, 16, 8, 6)))
    assert not torch.equal(picture(model, seeded), expected), "the control picture counts"
    for nbytes in (1 << 40, 12 * MiB):
        budget(runtime, nbytes)
        assert torch.equal(picture(model, seeded, concat_latent_image=seeded("depth", (1, 16, 8, 6))), expected)
        picture(plain, seeded)


def test_another_seed_reads_only_what_streams_and_another_prompt_only_its_rows(
    flux_file: Path, seeded: Seeded, runtime: Runtime
) -> None:
    model = handles.load_flux(runtime, flux_file)
    held = budget(runtime, 2 * flux_file.stat().st_size)
    picture(model, seeded)
    managed = model.weights.managed(held, model.dtype)
    assert managed.report.plan.streamed_bytes == 0 and managed.modulation.source.bytes_read > 0
    before = managed.blocks.source.bytes_read, managed.modulation.source.bytes_read
    picture(model, seeded, seed=2)
    assert (managed.blocks.source.bytes_read, managed.modulation.source.bytes_read) == before
    picture(model, seeded, solver="dpmpp_2m")
    assert managed.modulation.source.bytes_read == before[1]
    picture(model, seeded, cfg=2.0)
    assert managed.blocks.source.bytes_read == before[0]
    assert managed.modulation.source.bytes_read == 2 * before[1]  # the negative's rows, by one more pass


def test_neither_another_lora_nor_another_strength_reads_a_modulation_matrix(
    flux_file: Path, seeded: Seeded, runtime: Runtime
) -> None:
    """The values of LoRAs are added to the rows; all other rows are computed again; both are right."""
    model, (on_rows,) = handles.load_flux(runtime, flux_file), loras(seeded)
    low_rank = LowRank(seeded("e", (4, 256)), seeded("f", (1536, 4)), 0.01)
    rows = LowRank(seeded("g", (4, 256)), seeded("h", (256, 4)), 0.1, rows=(256, 512))
    beside = {"double_blocks.1.txt_mod.lin": (low_rank, rows), "final_layer.adaLN_modulation.1": (rows,)}
    dora = Reweighing(low_rank, seeded("m", (1536, 1)).abs(), 1.0)
    before_all = {"vector_in.out_layer": (LowRank(seeded("i", (4, 256)), seeded("j", (256, 4)), 0.1),)}
    weightless = replace(on_rows, strength=0.0)
    cases = [
        ((), 1), ((on_rows,), 0), ((replace(on_rows, strength=-0.3),), 0), ((weightless,), 0),
        ((on_rows, LoraUse(Lora("beside", beside, {}), 0.5)), 0), ((), 0),
        ((LoraUse(Lora("dora", {"double_blocks.0.txt_mod.lin": (dora,)}, {}), 1.0),), 1),
        ((LoraUse(Lora("vector", before_all, {}), 1.0), on_rows), 1),
    ]  # fmt: skip
    no_budget(runtime)
    expected = [picture(replace(model, loras=uses), seeded) for uses, _ in cases]
    managed = model.weights.managed(budget(runtime, 2 * flux_file.stat().st_size), model.dtype)
    source, all_of_it = managed.modulation.source, managed.modulation.total_bytes
    for (uses, passes), same in zip(cases, expected, strict=True):
        before = source.bytes_read
        assert torch.equal(picture(replace(model, loras=uses), seeded), same)
        assert source.bytes_read - before == passes * all_of_it


def test_the_table_keeps_a_run_and_little_of_those_before_it(
    flux_file: Path, seeded: Seeded, monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    model, held = handles.load_flux(runtime, flux_file), budget(runtime, 2 * flux_file.stat().st_size)
    managed = model.weights.managed(held, model.dtype)
    picture(model, seeded, cfg=2.0)
    a_run = managed.table.nbytes
    monkeypatch.setattr(modulation, "KEPT_BYTES", a_run // 4)
    for solver in ("euler", "heun", "dpm_2"):
        read = managed.modulation.source.bytes_read
        picture(model, seeded, solver, cfg=2.0)
        assert managed.table.nbytes <= 2 * a_run
        assert managed.modulation.source.bytes_read - read <= managed.modulation.total_bytes, "one pass at the most"
    picture(model, seeded, batch=2)  # rows of its own, as many bytes as the first run's
    assert managed.table.nbytes <= a_run


def test_a_lora_that_nobody_holds_is_gone_though_rows_and_prompts_were_computed_with_it(
    flux_file: Path, seeded: Seeded, runtime: Runtime
) -> None:
    model, held = handles.load_flux(runtime, flux_file), budget(runtime, 2 * flux_file.stat().st_size)
    uses = loras(seeded)
    changed = {"vector_in.out_layer": (LowRank(seeded("i", (4, 256)), seeded("j", (256, 4)), 0.1),)}
    uses += (LoraUse(Lora("vector", changed, {}), 1.0),)
    picture(replace(model, loras=uses), seeded)
    assert model.weights.managed(held, model.dtype).table.nbytes
    loras_of = [weakref.ref(use.lora) for use in uses]
    del uses, changed
    gc.collect()
    assert not any(lora() for lora in loras_of)


def test_what_stays_gives_way_to_a_lora_before_it_is_there(
    flux_file: Path, seeded: Seeded, monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    model = handles.load_flux(runtime, flux_file)
    held = budget(runtime, 12 * MiB)
    expected = picture(model, seeded)
    blocks = model.weights.managed(held, model.dtype).blocks
    before = blocks.held_bytes
    down, up = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((1536, 256), (1792, 1536)))
    use = LoraUse(Lora("large", {"single_blocks.0.linear1": (LowRank(down, up),)}, {}), 1.0)
    taken = use.lora.copied_bytes(CPU, torch.float32)
    assert taken == 2 * (down.nbytes + up.nbytes) > 12 * MiB - before
    there: list[int] = []

    def adapt(*args: Any) -> Flux:
        there.append(blocks.held_bytes)
        made: Flux = adapted(*args)
        return made

    monkeypatch.setattr(streamed_flux, "adapted", adapt)
    assert torch.equal(picture(replace(model, loras=(use,)), seeded), expected)
    assert taken + there[0] <= 12 * MiB
    held.memory.budget = 128 * MiB + taken - 1
    with pytest.raises(BudgetTooSmall, match="large needs at least .* fewer or smaller LoRAs"):
        picture(replace(model, loras=(use,)), seeded)


def test_without_a_budget_of_ones_own_all_parts_of_flux_are_managed_and_small_models_are_not(runtime: Runtime) -> None:
    clip_l, autoencoder, of_the_tiny_model = 246_144_152, 167_666_902, 10_500_832
    assert runtime.manager(CPU, of_the_tiny_model) is None
    assert runtime.manager(CPU, clip_l) is runtime.manager(CPU, autoencoder) is not None


@pytest.mark.parametrize("solver", ("heun", "dpm_2", "dpmpp_sde", "res_multistep", "uni_pc", "ddim"))
def test_the_levels_a_solver_will_look_at_are_known_before_it_starts(
    flux_file: Path, seeded: Seeded, solver: str, runtime: Runtime
) -> None:
    model = handles.load_flux(runtime, flux_file)
    held = budget(runtime, 2 * flux_file.stat().st_size)
    managed = model.weights.managed(held, model.dtype)
    filled: list[int] = []
    fill = managed.table.fill

    def noted(flux: Flux, vectors: Sequence[Tensor]) -> None:
        filled.append(len(vectors))
        fill(flux, vectors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(managed.table, "fill", noted)
        picture(model, seeded, solver)
    assert len(filled) == 1


def test_text_encoders_stream_through_what_the_transformer_leaves(
    flux_file: Path,
    fill: Fill,
    seeded: Seeded,
    tmp_path: Path,
    runtime: Runtime,
) -> None:
    save_file(fill(T5Encoder(T5)).state_dict(), tmp_path / "t5.safetensors")
    save_file(fill(ClipTextModel(CLIP)).state_dict(), tmp_path / "clip.safetensors")
    text = handles.load_text(runtime, [tmp_path / "t5.safetensors", tmp_path / "clip.safetensors"])
    model = handles.load_flux(runtime, flux_file)
    ids = torch.randint(0, 60, (1, 12), generator=torch.Generator().manual_seed(0))
    no_budget(runtime)
    with torch.no_grad():
        expected = text.t5()(ids), text.clip()(text.clip().embed(ids), torch.tensor([11]))
    held = budget(runtime, 16 * MiB)
    picture(model, seeded)
    flux = model.weights.managed(held, model.dtype)
    stays = flux.blocks.held_bytes
    assert stays > 0
    with torch.no_grad():
        assert torch.equal(text.t5()(ids), expected[0])
        hidden, pooled = text.clip()(text.clip().embed(ids), torch.tensor([11]))
    assert torch.equal(hidden, expected[1][0]) and torch.equal(pooled, expected[1][1])
    assert flux.blocks.held_bytes == stays
    read = flux.blocks.source.bytes_read
    picture(model, seeded, seed=3)
    assert flux.blocks.source.bytes_read - read == 3 * flux.report.plan.streamed_bytes


def test_the_autoencoder_makes_the_transformer_give_way_and_takes_tiles_if_it_must(
    flux_file: Path,
    fill: Fill,
    seeded: Seeded,
    tmp_path: Path,
    runtime: Runtime,
) -> None:
    save_file(fill(Autoencoder(CODER)).state_dict(), tmp_path / "ae.safetensors")
    coder, model = handles.load_autoencoder(runtime, tmp_path / "ae.safetensors"), handles.load_flux(runtime, flux_file)
    latent, image = seeded("latent", (2, 16, 20, 24)), seeded("image", (1, 96, 80, 3)).sigmoid()
    no_budget(runtime)
    whole, encoded = coder.decode_image(latent), coder.encode_image(image)
    tiled = coder.decode_image_tiled(latent, 128, 16)
    held = budget(runtime, 1 << 40)
    expected = picture(model, seeded)
    assert torch.equal(coder.decode_image(latent), whole) and torch.equal(coder.encode_image(image), encoded)
    flux = model.weights.managed(held, model.dtype)
    before = flux.blocks.held_bytes
    held.memory.budget = 280 * MiB
    assert torch.equal(coder.decode_image(latent), whole) and flux.blocks.held_bytes == before > 0
    held.memory.budget = 235 * MiB  # room for a tile of 128 pixels, and not for all that stays beside it
    assert torch.equal(coder.decode_image(latent), tiled) and flux.blocks.held_bytes < before
    assert torch.equal(picture(model, seeded), expected)
    held.memory.budget = 10 * MiB
    with pytest.raises(BudgetTooSmall, match="smaller image"):
        coder.decode_image(latent)


def test_an_autoencoder_out_of_memory_takes_smaller_and_smaller_tiles(
    fill: Fill,
    seeded: Seeded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: Runtime,
) -> None:
    save_file(fill(Autoencoder(CODER)).state_dict(), tmp_path / "ae.safetensors")
    coder, latent = handles.load_autoencoder(runtime, tmp_path / "ae.safetensors"), seeded("latent", (1, 16, 40, 40))
    no_budget(runtime)
    tiled = coder.decode_image_tiled(latent, 128, 16)
    budget(runtime, 1 << 40)
    monkeypatch.setattr(autoencoder, "TILES", (256, 192, 128))
    sizes: list[int] = []
    decode = Autoencoder._decode

    def failing(self: Autoencoder, x: Tensor) -> Tensor:
        if x.device == CPU:  # and no dry run
            sizes.append(x.shape[-1] * x.shape[-2])
            if sizes[-1] > 16 * 16:
                raise torch.OutOfMemoryError("injected")
        return decode(self, x)

    monkeypatch.setattr(Autoencoder, "_decode", failing)
    assert torch.equal(coder.decode_image(latent), tiled)
    assert sizes[:3] == [40 * 40, 32 * 32, 24 * 24] and max(sizes[3:]) == 16 * 16


def test_a_budget_that_shrinks_before_the_autoencoder_has_its_room_costs_a_size_of_tiles(
    fill: Fill,
    seeded: Seeded,
    tmp_path: Path,
    runtime: Runtime,
) -> None:
    save_file(fill(Autoencoder(CODER)).state_dict(), tmp_path / "ae.safetensors")
    coder, latent = handles.load_autoencoder(runtime, tmp_path / "ae.safetensors"), seeded("latent", (1, 16, 20, 24))
    no_budget(runtime)
    tiled = coder.decode_image_tiled(latent, 128, 16)
    held = budget(runtime, 1 << 40)
    asked: list[int] = []

    def request_external(nbytes: int) -> None:
        asked.append(nbytes)
        if len(asked) == 2:  # after it was decided that the whole picture fits
            held.memory.budget = 235 * MiB

    vars(held)["request_external"] = request_external
    assert torch.equal(coder.decode_image(latent), tiled)


def test_a_budget_that_is_too_small_says_what_would_do_and_that_does(
    flux_file: Path, seeded: Seeded, runtime: Runtime
) -> None:
    model = handles.load_flux(runtime, flux_file)
    no_budget(runtime)
    expected = picture(model, seeded)
    held = budget(runtime, 0)
    with pytest.raises(BudgetTooSmall) as refused:
        picture(model, seeded)
    needed = int(str(refused.value).split("at least ")[1].split(" MiB")[0]) + 1
    held.memory.budget = needed * MiB
    assert torch.equal(picture(model, seeded), expected)


@contextmanager
def before_each_step(runtime: Runtime, flux: ManagedFlux, act: Callable[[int], None]) -> Iterator[list[int]]:
    """Call act with the number of the step; yields the bytes that each plan of the transformer streams."""
    streamed: list[int] = []
    forward, steps = Flux.forward, count()

    def acting(module: Flux, inputs: DenoiserInputs, **more: Any) -> Tensor:
        if inputs.x.device == CPU:  # and no dry run
            act(next(steps))
        return forward(module, inputs, **more)

    def listen(event: dict[str, Any]) -> None:
        if event["type"] == "memory.plan" and event["model"] == flux.blocks.label:
            streamed.append(event["plan"]["streamed_bytes_per_step"])

    stop = runtime.events.listen(listen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flux, "forward", acting)
        yield streamed
    stop()


def test_a_budget_changed_between_steps_is_followed_at_once(flux_file: Path, seeded: Seeded, runtime: Runtime) -> None:
    model = handles.load_flux(runtime, flux_file)
    no_budget(runtime)
    expected = picture(model, seeded)
    held = budget(runtime, 1 << 40)

    def change(step: int) -> None:
        if step == 0:
            held.memory.budget = 128 * MiB + 12 * MiB
            runtime.budget = Allowed(ram=1)

    with before_each_step(runtime, model.weights.managed(held, model.dtype), change) as streamed:
        assert torch.equal(picture(model, seeded), expected)
    assert streamed[0] == 0 < streamed[-1]


def test_room_that_others_take_in_mid_run_is_given_and_taken_again_when_they_leave(
    flux_file: Path, seeded: Seeded, monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    model = handles.load_flux(runtime, flux_file)
    no_budget(runtime)
    expected = picture(model, seeded)
    monkeypatch.setattr(manager, "DRIFT", MiB)
    held = budget(runtime, 1 << 40)
    flux = model.weights.managed(held, model.dtype)
    with before_each_step(runtime, flux, lambda step: None) as streamed:
        picture(model, seeded)  # from now on it is known what a step takes
    plenty = present(flux.report.plan).peak_bytes + MiB // 2
    kept: list[int] = []
    held.memory.budget = plenty

    def others(step: int) -> None:
        held.memory.budget = (plenty - 6 * MiB, 2 * plenty, 0)[step]
        kept.append(flux.blocks.held_bytes)

    with before_each_step(runtime, flux, others) as streamed:
        assert torch.equal(picture(model, seeded), expected)
    assert [nbytes > 0 for nbytes in streamed] == [False, True, False]
    assert kept[0] - 12 * MiB < kept[1] <= kept[0] - 5 * MiB and kept[2] == kept[0]


def test_room_that_a_step_did_not_take_goes_to_weights(
    flux_file: Path, seeded: Seeded, monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    model = handles.load_flux(runtime, flux_file)
    no_budget(runtime)
    expected = picture(model, seeded)
    held = budget(runtime, 16 * MiB)
    monkeypatch.setattr(held.memory, "taken_bytes", lambda nbytes: nbytes + 4 * MiB)
    monkeypatch.setattr(running, "DRIFT", MiB)
    with before_each_step(runtime, model.weights.managed(held, model.dtype), lambda step: None) as streamed:
        assert torch.equal(picture(model, seeded), expected)
    estimated, measured = streamed
    assert estimated > measured + 3 * MiB


def test_what_another_model_holds_is_not_taken_for_activations(
    flux_file: Path,
    fill: Fill,
    seeded: Seeded,
    tmp_path: Path,
    runtime: Runtime,
) -> None:
    save_file(fill(T5Encoder(T5)).state_dict(), tmp_path / "t5.safetensors")
    save_file(fill(ClipTextModel(CLIP)).state_dict(), tmp_path / "clip.safetensors")
    text = handles.load_text(runtime, [tmp_path / "t5.safetensors", tmp_path / "clip.safetensors"])
    model, held = handles.load_flux(runtime, flux_file), budget(runtime, 1 << 40)
    with torch.no_grad():
        text.t5()(torch.randint(0, 60, (1, 12)))
    flux = model.weights.managed(held, model.dtype)
    others = held.held_by_others(flux.blocks)
    vars(held.memory)["peak_bytes"] = lambda: others + (flux.blocks.plan.peak_bytes if flux.blocks.plan else 0)
    picture(model, seeded)
    (measured,) = flux.activations.values()
    assert others > 0 and measured == sum(flux.report.plan.workload.fixed.values())


def test_out_of_memory_in_the_middle_of_a_step_costs_residents_and_not_the_picture(
    flux_file: Path, seeded: Seeded, runtime: Runtime
) -> None:
    model = handles.load_flux(runtime, flux_file)
    no_budget(runtime)
    expected = picture(model, seeded)
    held = budget(runtime, 300 * MiB)
    flux = model.weights.managed(held, model.dtype)
    picture(model, seeded)  # from now on it is known what a step takes
    blocks = list(flux.module.blocks())
    for number in (0, 3, 5):
        block, forward, failures = blocks[number], blocks[number].forward, iter([False, True, True])

        def failing(*args: Any, forward: Callable[..., Any] = forward, failures: Iterator[bool] = failures) -> Any:
            forward(*args)
            if next(failures, False):
                raise torch.OutOfMemoryError("injected")
            return forward(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(block, "forward", failing)
            assert torch.equal(picture(model, seeded), expected)


def test_out_of_memory_between_blocks_costs_residents_and_not_the_picture(
    flux_file: Path, seeded: Seeded, runtime: Runtime
) -> None:
    model = handles.load_flux(runtime, flux_file)
    no_budget(runtime)
    expected = picture(model, seeded)
    held = budget(runtime, 300 * MiB)
    picture(model, seeded)
    last, failures = model.weights.managed(held, model.dtype).module.final_layer, iter([False, True, True])
    forward = last.forward

    def failing(*args: Any) -> Any:
        if next(failures, False):
            raise torch.OutOfMemoryError("injected")
        return forward(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(last, "forward", failing)
        assert torch.equal(picture(model, seeded), expected)


@pytest.mark.parametrize("failures", (1, 2))
def test_out_of_memory_in_a_text_encoder_costs_residents_and_not_the_prompt(
    flux_file: Path,
    fill: Fill,
    seeded: Seeded,
    tmp_path: Path,
    failures: int,
    runtime: Runtime,
) -> None:
    """The bytes of the transformer, if they are fewer than those of a ring."""
    save_file(fill(T5Encoder(T5)).state_dict(), tmp_path / "t5.safetensors")
    save_file(fill(ClipTextModel(CLIP)).state_dict(), tmp_path / "clip.safetensors")
    text = handles.load_text(runtime, [tmp_path / "t5.safetensors", tmp_path / "clip.safetensors"])
    model, ids = handles.load_flux(runtime, flux_file), torch.randint(0, 60, (1, 12))
    no_budget(runtime)
    with torch.no_grad():
        expected = text.t5()(ids)
    held = budget(runtime, 300 * MiB)
    picture(model, seeded)
    with torch.no_grad():
        text.t5()(ids)  # from now on it is known what they take
    flux, t5 = model.weights.managed(held, model.dtype), text.t5_weights.managed(held, torch.float32)
    last = list(t5.module.encoder.block)[-1]
    forward, left = last.forward, iter([True] * failures)

    def failing(*args: Any) -> Any:
        if next(left, False):
            raise torch.OutOfMemoryError("injected")
        return forward(*args)

    stays = flux.blocks.held_bytes
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(last, "forward", failing)
        assert torch.equal(text.t5()(ids), expected)
    assert flux.blocks.held_bytes < stays


def test_weights_a_model_has_in_ram_are_room_for_it_in_its_next_run(
    monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    """And not taken from it because they are in use: else every second run would read from disk."""
    held, ram = budget(runtime, 0), {"resident": 6, "available": 30}
    held.device, held.allowed = torch.device("cuda"), Allowed(ram=20 * GiB)
    monkeypatch.setattr(meter, "resident_bytes", lambda: ram["resident"] * GiB)
    monkeypatch.setattr(meter, "available_ram", lambda: ram["available"] * GiB)
    monkeypatch.setattr(meter, "total_ram", lambda: 40 * GiB)

    def in_ram(nbytes: int) -> ManagedModel:
        return cast(ManagedModel, SimpleNamespace(ram_bytes=nbytes))

    assert held._host_room(in_ram(0)) == (14 * GiB, 14 * GiB)
    ram |= {"resident": 18, "available": 18}  # twelve of them are its own
    assert held._host_room(in_ram(12 * GiB)) == (14 * GiB, 14 * GiB)
    assert held._host_room(in_ram(0)) == (2 * GiB, 2 * GiB)


def test_one_line_tells_a_run_and_listeners_hear_each_step(
    flux_file: Path, seeded: Seeded, caplog: pytest.LogCaptureFixture, runtime: Runtime
) -> None:
    model = handles.load_flux(runtime, flux_file)
    events: list[dict[str, Any]] = []
    budget(runtime, 8 * MiB)
    stop = runtime.events.listen(events.append)
    with caplog.at_level(logging.INFO):
        picture(model, seeded)
    stop()
    line = next(record.message for record in caplog.records if record.message.startswith("transformer: "))
    for word in ("resident ", "stream ", "ring ", "disk ", "predicted ", "actual ", "stall ", "peak "):
        assert word in line
    assert [event["type"] for event in events].count("memory.step") == 3
    job = next(event for event in events if event["type"] == "memory.job" and event["model"] == "transformer")
    assert job["plan"]["bound"] in ("compute", "disk") and len(job["plan"]["units"]) >= 8


def test_while_a_model_runs_listeners_receive_which_groups_are_in_its_ring(
    flux_file: Path, seeded: Seeded, monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    monkeypatch.setattr(report, "RING_SECONDS", 0.0)
    model = handles.load_flux(runtime, flux_file)
    events: list[dict[str, Any]] = []
    budget(runtime, 8 * MiB)
    stop = runtime.events.listen(events.append)
    picture(model, seeded)
    stop()
    plan = next(event["plan"] for event in events if event["type"] == "memory.plan" and event["model"] == "transformer")
    seen = [event["units"] for event in events if event["type"] == "memory.at"]
    streamed = {number for number, unit in enumerate(plan["units"]) if unit["class"] != "V"}
    assert any(seen) and set().union(*seen) <= streamed
    assert max(map(len, seen)) <= plan["ring"]["slots"]


def test_nothing_is_left_of_a_model_that_nobody_holds(flux_file: Path, seeded: Seeded, runtime: Runtime) -> None:
    held = budget(runtime, 1 << 40)
    model = handles.load_flux(runtime, flux_file)
    picture(model, seeded)
    assert held.allocator.used > 0
    del model
    gc.collect()
    assert held.allocator.used == 0 and not list(held.models)
