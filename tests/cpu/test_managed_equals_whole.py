"""Every kind of adapter, of conditioning and of stored format: streamed under a budget as loaded whole, to the bit.

The files are as people have them (doubles/adapter_files.py, stored_formats.py), the runs those that ComfyUI's numbers
are recorded of (doubles/sampling_cases.py). The budget is so small that matrices pass through a ring of slots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import adapter_files, stored_formats
from doubles.budgets import CPU, SimulatedManager, budget, no_budget
from doubles.sampling_cases import CASES, Case, draw, prompt, with_values
from doubles.sampling_runs import run_case
from doubles.seeded import fill_module
from safetensors.torch import load_file, save_file
from sluice.flux_core.memory import workload
from sluice.flux_core.memory.plan import smallest_budget
from sluice.flux_core.memory.workload import Location
from sluice.flux_core.models.clip_text import ClipConfig, ClipTextModel
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.models.linear import Linear
from sluice.flux_core.models.t5 import T5Config, T5Encoder
from sluice.flux_core.quant.formats import FORMATS
from sluice.flux_core.runtime import model_weights
from sluice.flux_core.runtime.handles import FluxModel, load_flux, load_text
from sluice.flux_core.runtime.lora_files import read_lora
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.sampling.inpaint import DifferentialDiffusion
from torch import Tensor

SMALL = FluxConfig(**adapter_files.SIZES)
# GGUF blocks and rotations need columns in multiples of 256, and every format a matrix
OF_BLOCKS = replace(SMALL, hidden=256, heads=2, mlp=1024, depth_single=SMALL.depth_single + 1)


Change = Callable[[FluxModel], FluxModel]  # of a handle


@dataclass(frozen=True)
class Twice:
    """One transformer in two runtimes: without a memory manager, and with one that streams it."""

    whole: FluxModel
    managed: FluxModel

    def latents(self, case: Case, change: Change) -> list[Tensor]:
        """What comes of a case, with `change` made to both handles: whole, managed with room for all, and streamed.

        Streamed: half-way between the smallest budget that will do and one that has room for all.
        """
        expected, manager = run_case(case, change(self.whole))[0], self.managed.runtime.managers[CPU]
        assert isinstance(manager, SimulatedManager)
        manager.memory.budget = 1 << 40
        model = change(self.managed)
        resident, _ = run_case(case, model)
        managed = model.weights.managed(manager, model.dtype, model.compute)
        plan = managed.report.plan
        assert {*plan.locations} == {Location.DEVICE}
        manager.memory.budget = (smallest_budget(plan.workload, plan.machine) + plan.peak_bytes) // 2
        streamed, _ = run_case(case, model)
        plan = managed.report.plan
        assert plan.slots and Location.DISK in plan.locations, "it streams"
        return [expected, resident, streamed]


def twice(path: Path) -> Twice:
    plain, managed = (Runtime(Settings("cpu", "fp32", compute="16bit")) for _ in range(2))
    no_budget(plain)
    budget(managed, 0).memory.disturbed = True  # nothing is measured: activations stay as estimated
    return Twice(load_flux(plain, path), load_flux(managed, path))


Models = Callable[[FluxConfig], Twice]


def state_of(config: FluxConfig) -> dict[str, Tensor]:
    return {name: value.bfloat16() for name, value in fill_module(Flux(config)).state_dict().items()}


def saved(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """models(config): a transformer of these sizes."""
    folder = tmp_path_factory.mktemp("models")

    @cache
    def made(config: FluxConfig) -> Twice:
        return twice(saved(folder / f"{hash(config)}.safetensors", state_of(config)))

    return made


def with_files(*files: tuple[Path, float]) -> Change:
    """Adds adapter files at these strengths to a handle."""

    def change(model: FluxModel) -> FluxModel:
        for path, strength in files:
            lora = read_lora(model, None, path)
            assert lora.flux.unmatched == ()
            model, _ = lora.added_to(model, None, strength)
        return model

    return change


def changed(before: Tensor, after: Tensor) -> bool:
    """Whether two images differ by more than rounding."""
    return bool((after - before).norm() > 1e-3 * before.norm())


# -- adapters --------------------------------------------------------------------------------------------------------

PLAIN = Case(steps=2)
KOHYA = (".lora_up.weight", ".lora_down.weight")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(Path(__file__).parents[1] / "fixtures" / "adapters.safetensors")


@pytest.mark.parametrize("name", adapter_files.CASES)
def test_with_adapters(name: str, models: Models, recorded: dict[str, Tensor], tmp_path: Path) -> None:
    """Equal to ComfyUI's numbers too, if it reads such files."""
    model, state = models(SMALL), state_of(SMALL)
    files = [
        (saved(tmp_path / f"{kind}.safetensors", adapter_files.KINDS[kind](state)), strength)
        for kind, strength in adapter_files.CASES[name]
    ]
    case = adapter_files.sampling_case(name)
    expected, *managed = model.latents(case, with_files(*files))
    assert all(torch.equal(latent, expected) for latent in managed)
    assert changed(run_case(case, model.whole)[0], expected)
    if name in adapter_files.OURS_ALONE:
        assert name not in recorded
    else:
        assert (expected - recorded[name]).abs().max() <= 2e-5 * recorded[name].abs().max()


CLIP = ClipConfig(vocabulary=60, positions=77, width=64, mlp=128, layers=4, heads=2, eos_token_id=59)
T5 = T5Config(vocabulary=64, width=64, inner=64, heads=2, mlp=128, layers=4)


def test_with_adapters_of_text_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA and DoRA, of both encoders in one file."""
    monkeypatch.setattr(workload, "SLOT_BYTES", 64 << 10)
    files = [
        saved(tmp_path / "t5.safetensors", fill_module(T5Encoder(T5)).state_dict()),
        saved(tmp_path / "clip.safetensors", fill_module(ClipTextModel(CLIP)).state_dict()),
    ]
    flux = saved(tmp_path / "flux.safetensors", state_of(SMALL))
    clip = "lora_te1_text_model_encoder_layers_1_self_attn_q_proj"
    t5 = ("lora_te3_encoder_block_0_layer_0_SelfAttention_v", "lora_te3_encoder_block_2_layer_1_DenseReluDense_wo")
    tensors = adapter_files.factors(clip, 64, 64, KOHYA) | adapter_files.factors(t5[0], 64, 64, KOHYA)
    tensors |= adapter_files.factors(t5[1], 64, 128, KOHYA) | {f"{t5[1]}.dora_scale": torch.ones(64, 1)}
    path = saved(tmp_path / "lora.safetensors", tensors)
    ids = torch.randint(0, 59, (1, 12), generator=torch.Generator().manual_seed(0))

    def encoded(runtime: Runtime, strength: float) -> tuple[Tensor, ...]:
        model, text = load_flux(runtime, flux), load_text(runtime, files)
        _, changed = read_lora(model, text, path).added_to(model, text, 1.0, strength)
        assert changed is not None
        with torch.no_grad():
            clip = changed.clip()
            return changed.t5()(ids), *clip(clip.embed(ids), torch.tensor([11]))

    whole, managed = (Runtime(Settings("cpu", "fp32")) for _ in range(2))
    no_budget(whole)
    budget(managed, 600_000)
    told: list[dict[str, Any]] = []
    managed.events.listen(told.append)
    plain, expected = (encoded(whole, strength) for strength in (0.0, 0.8))
    assert all(changed(*pair) for pair in zip(plain, expected, strict=True))
    assert all(torch.equal(*pair) for pair in zip(encoded(managed, 0.8), expected, strict=True))
    streamed = {event["model"]: event["plan"]["ring"]["slots"] for event in told if event["type"] == "memory.plan"}
    assert streamed["T5"] and streamed["CLIP-L"], streamed


# -- conditionings ---------------------------------------------------------------------------------------------------

# The mask that ComfyUI's toy is given there is for eight tokens of text, whatever the prompt has.
MASKED = with_values(prompt("a", length=8), attention_mask=draw("attn", 9, 9), attention_mask_img_shape=(1, 1))
OF_MODELS = CASES | {"attention_mask": replace(CASES["attention_mask"], positive=MASKED)}


@pytest.mark.parametrize("name", OF_MODELS)
def test_with_conditionings(name: str, models: Models) -> None:
    case = OF_MODELS[name]
    model = models(replace(SMALL, in_channels=case.channels, guidance=not case.schnell))

    def change(model: FluxModel) -> FluxModel:
        differs = None if case.differential is None else DifferentialDiffusion(case.differential)
        return replace(model, mask_function=differs)

    expected, *managed = model.latents(case, change)
    assert all(torch.equal(latent, expected) for latent in managed)


@pytest.mark.parametrize("case", (PLAIN, OF_MODELS["attention_mask"]), ids=("plain", "attention_mask"))
def test_with_style_references(case: Case, models: Models) -> None:
    model = models(SMALL)
    first, second = (draw(name, 6, SMALL.hidden)[None] for name in ("style", "another style"))

    def styled(model: FluxModel) -> FluxModel:
        return model.styled(first).styled(second)

    handle = styled(model.whole)
    assert handle.style is not None and torch.equal(handle.style, torch.cat((second, first), dim=1))
    plain, _ = run_case(case, model.whole)
    expected, *managed = model.latents(case, styled)
    assert changed(plain, expected)
    assert all(torch.equal(latent, expected) for latent in managed)


# -- stored formats --------------------------------------------------------------------------------------------------

FILES = [*stored_formats.FILES, "GGUF"]


def test_every_format_that_matrices_are_stored_in_is_among_the_files() -> None:
    integers = {"I64", "I32", "I16", "I8", "U8", "BOOL"}
    elsewhere = {"SVDQ_INT4", "SVDQ_FP4"}  # of nunchaku's files, in test_nunchaku.py
    assert set[str]().union(*map(stored_formats.formats_of, FILES)) == FORMATS.keys() - integers - elsewhere


@pytest.mark.parametrize(("file", "diffusers"), [*((file, False) for file in FILES), ("ComfyUI", True)])
def test_with_weights_stored_as(file: str, diffusers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And packed: in memory as the file stores them, decoded at each use. With a LoRA and a DoRA."""
    state = state_of(OF_BLOCKS)
    path = stored_formats.write(tmp_path, state, OF_BLOCKS, file, diffusers)
    lora = saved(tmp_path / "lora.safetensors", adapter_files.plain(state) | adapter_files.dora(state))
    model, case, change = twice(path), replace(PLAIN, cfg=2.0), with_files((lora, 0.6))
    if not diffusers:
        stored = {name: one for name, one in model.whole.weights.tensors.items() if stored_formats.in_block(name, one)}
        assert {one.format for one in stored.values()} == stored_formats.formats_of(file)
    expected, *managed = model.latents(case, change)
    assert expected.abs().max() < 100, "numbers as weights are"
    assert all(torch.equal(latent, expected) for latent in managed)
    monkeypatch.setattr(model_weights, "FILLED", 0.0)
    packed = twice(path).whole
    assert torch.equal(run_case(case, change(packed))[0], expected)
    module = packed.weights.module(packed.device, packed.dtype)
    assert any(part.held is not None for part in module.modules() if isinstance(part, Linear))
