"""Attention of another library: chosen by the user, compared first, and a matter of one run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from doubles.budgets import budget, no_budget
from doubles.sampling_cases import Conditioning
from doubles.seeded import Fill, Seeded
from safetensors.torch import save_file
from sluice.flux_core.errors import InputError
from sluice.flux_core.memory.workload import MiB
from sluice.flux_core.models import attention_library
from sluice.flux_core.models.attention import attention
from sluice.flux_core.models.attention_library import LibraryAttention, RunAttention, SageAttention
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.runtime import handles
from sluice.flux_core.runtime.evaluation_log import EvaluationLog
from sluice.flux_core.runtime.handles import FluxModel
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import PYTORCH, SAGE, Settings
from sluice.flux_core.sampling.guider import BasicGuider
from sluice.flux_core.sampling.sample import Sampler, sample
from torch import Tensor

Heads = Callable[[Tensor, Tensor, Tensor], Tensor]
CPU = torch.device("cpu")
SMALL = FluxConfig(
    in_channels=16, out_channels=16, hidden=256, heads=2, head_dim=128, mlp=1024, depth=2, depth_single=4,
    context_dim=32, vec_dim=32, guidance=True, axes_dim=(16, 56, 56),
)  # fmt: skip


class Counted:
    """A library whose attention is this function, on a CPU."""

    name, version, device = "some attention", "1.0", "cpu"
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    sizes: tuple[int, ...] = (32, 128)

    def __init__(self, attend: Heads) -> None:
        self.function, self.calls = attend, 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.calls += 1
        return self.function(q, k, v)


def rounded(x: Tensor, levels: int = 127) -> Tensor:
    """[B, H, L, d] in integers of eight bits with a scale for each token."""
    scale = x.abs().amax(-1, keepdim=True) / levels
    return (x / scale).round() * scale


def in_eight_bits(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(rounded(q), rounded(k), v)


def of_another_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=1 / q.shape[-1])


def of_another_order(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def fails(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raise RuntimeError("no kernel image is available")


def not_finite(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.full_like(q, float("nan"))


def inputs(seeded: Seeded, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (seeded(name, (1, 40, 2, 32)).to(dtype) for name in "qkv")
    return 3 * q, 3 * k, v


class TestTheComparison:
    def test_the_first_of_each_kind_is_compared_and_all_are_the_librarys(self, seeded: Seeded) -> None:
        library = Counted(in_eight_bits)
        run = RunAttention(LibraryAttention(library), library.name)
        for count, dtype in enumerate((torch.float32, torch.bfloat16), 1):
            q, k, v = inputs(seeded, dtype)
            parts = (each.transpose(1, 2) for each in (q, k, v))
            expected = in_eight_bits(*parts).transpose(1, 2).flatten(2)
            for _ in range(2):
                assert torch.equal(run(q, k, v), expected)
            assert library.calls == 2 * count and not torch.equal(expected, attention(q, k, v))
        assert run.note == "attention by some attention 4 times" and run.identity == "some attention 1.0"

    @pytest.mark.parametrize(
        ("attend", "told"),
        [
            (of_another_scale, "off by 0."),
            (of_another_order, "[1, 2, 1280] in place of"),
            (fails, "RuntimeError: no kernel image"),
            (not_finite, "off by nan"),
            (lambda q, k, v: in_eight_bits(q, k, v).double(), "torch.float64"),
        ],
    )
    def test_one_that_does_not_agree_is_not_asked_again(
        self, attend: Heads, told: str, seeded: Seeded, caplog: pytest.LogCaptureFixture
    ) -> None:
        library = Counted(attend)
        source = LibraryAttention(library)
        for _ in range(2):
            run = RunAttention(source, library.name, source.refused(CPU, torch.float32, 32))
            q, k, v = inputs(seeded)
            for _ in range(2):
                assert torch.equal(run(q, k, v), attention(q, k, v))
            assert run.note.startswith("attention by PyTorch (some attention is not used: ") and told in run.note
            assert run.identity == "" and run.by_library == 0
        assert library.calls == 1 and len(caplog.records) == 1 and told in caplog.text

    def test_a_mask_or_a_gradient_is_for_pytorch(self, seeded: Seeded) -> None:
        library = Counted(in_eight_bits)
        run = RunAttention(LibraryAttention(library), library.name)
        q, k, v = inputs(seeded)
        mask = torch.zeros(1, 40, 40)
        assert torch.equal(run(q, k, v, mask), attention(q, k, v, mask))
        run(q.requires_grad_(), k, v).sum().backward()
        assert library.calls == 0 and q.grad is not None and run.by_torch == 2

    def test_lack_of_memory_is_no_disagreement(self, seeded: Seeded) -> None:
        def full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("full")

        source = LibraryAttention(Counted(full))
        with pytest.raises(torch.OutOfMemoryError):
            source.attend(*inputs(seeded))
        assert source.problem == ""

    def test_what_it_is_not_for(self, seeded: Seeded) -> None:
        source = LibraryAttention(SageAttention(ModuleType("sageattention")))
        cuda = torch.device("cuda")
        assert source.refused(CPU, torch.bfloat16, 128) == "it is for cuda devices, and this is cpu"
        assert source.refused(cuda, torch.float32, 128).startswith(
            "it computes in float16 and bfloat16, and this model"
        )
        assert source.refused(cuda, torch.float16, 32) == "it has no kernel for heads of 32 numbers"
        assert source.refused(cuda, torch.bfloat16, 128) == ""
        assert source.attend(*inputs(seeded)) is None, "on a CPU"


class TestThePackage:
    def test_it_is_asked_in_its_own_words(self, seeded: Seeded, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[dict[str, Any]] = []

        def sageattn(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
            asked.append({"shape": tuple(q.shape), "last": q.stride(-1), **more})
            return torch.zeros_like(q)

        monkeypatch.setitem(sys.modules, "sageattention", SimpleNamespace(sageattn=sageattn, __version__="2.2.0"))
        found = LibraryAttention.installed()
        assert isinstance(found.library, SageAttention) and found.library.version == "2.2.0" and not found.problem
        q, k, v = (each.transpose(1, 2) for each in inputs(seeded))
        assert found.library.attend(q, k, v).shape == (1, 2, 40, 32)
        assert asked == [{"shape": (1, 2, 40, 32), "last": 1, "tensor_layout": "HND", "is_causal": False}]

    def test_one_that_is_not_there_or_cannot_be_imported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sageattention", None)
        assert LibraryAttention.installed().problem == "it is not installed (pip install sageattention)"
        for error, told in (
            (ImportError("DLL load failed"), "import failed: DLL load failed"),
            (AttributeError("no such operator"), "import failed: AttributeError: no such operator"),
        ):

            def broken(name: str, error: Exception = error) -> ModuleType:
                raise error

            monkeypatch.setattr(attention_library, "import_module", broken)
            found = LibraryAttention.installed()
            assert found.problem == told and found.library is None
            assert found.refused(CPU, torch.bfloat16, 128) == told


@pytest.fixture
def model(fill: Fill, tmp_path: Path) -> FluxModel:
    path = tmp_path / "flux.safetensors"
    save_file({name: value.bfloat16() for name, value in fill(Flux(SMALL)).state_dict().items()}, path)
    return handles.load_flux(Runtime(Settings("cpu", "fp32")), path)


def image(model: FluxModel, seeded: Seeded, **more: Any) -> Tensor:
    values = {"pooled_output": seeded("y", (1, 32)), "guidance": 3.5, **more}
    conditioning: Conditioning = [[seeded("c", (1, 9, 32)), values]]
    noise = seeded("noise", (1, 16, 8, 6))
    guider = BasicGuider(model, conditioning)
    return sample(guider, Sampler("euler"), torch.tensor([1.0, 0.5, 0.0]), torch.zeros_like(noise), noise, seed=1)[0]


class TestARun:
    @pytest.mark.parametrize("nbytes", [None, 1 << 40, 12 * MiB])
    def test_runs_with_and_without_it_share_a_model(self, nbytes: int | None, model: FluxModel, seeded: Seeded) -> None:
        """Whole, managed and streamed; the report names it, and `exact` and other runs are PyTorch's to the bit."""
        library, runtime = Counted(in_eight_bits), model.runtime
        no_budget(runtime)
        expected = image(model, seeded)
        runtime.library_attention = LibraryAttention(library)
        chosen = replace(model, own_attention=SAGE)
        once = image(chosen, seeded)
        if nbytes is not None:
            budget(runtime, nbytes)
        jobs: list[dict[str, Any]] = []
        runtime.events.listen(lambda event: jobs.append(event) if event["type"] == "memory.job" else None)
        calls = library.calls
        assert torch.equal(image(model, seeded), expected) and library.calls == calls
        assert torch.equal(image(chosen, seeded), once) and library.calls == calls + 2 * 6
        assert not torch.equal(once, expected) and torch.allclose(once, expected, atol=0.2)
        assert torch.equal(image(model, seeded), expected)
        runtime.exact = True
        assert torch.equal(image(chosen, seeded), expected) and library.calls == calls + 2 * 6
        about = [job["line"].partition("attention by ")[2] for job in jobs]
        assert about == ["", "sageattention 12 times", "", ""]
        assert nbytes != 12 * MiB or jobs[1]["plan"]["ring"]["slots"]

    def test_the_program_can_choose_it_for_all_models(self, model: FluxModel, seeded: Seeded) -> None:
        runtime = Runtime(Settings.parse("cpu", "fp32", attention=SAGE))
        library = Counted(in_eight_bits)
        runtime.library_attention = LibraryAttention(library)
        other = handles.load_flux(runtime, model.weights.path)
        assert other.attention == SAGE and replace(other, own_attention=PYTORCH).attention == PYTORCH
        image(other, seeded)
        assert library.calls == 2 * 6
        with pytest.raises(InputError, match="There is no attention 'xformers'; choose pytorch, sage"):
            Settings.parse(attention="xformers")

    def test_a_choice_that_cannot_be_followed_is_said_at_each_run(
        self, model: FluxModel, seeded: Seeded, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "sageattention", None)
        told: list[str] = []
        model.runtime.events.listen(lambda event: told.append(event.get("line", "")))
        chosen = replace(model, own_attention=SAGE)
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert torch.equal(image(chosen, seeded), image(model, seeded))
        assert [record.getMessage() for record in caplog.records] == 2 * [
            "sageattention is not used for attention: it is not installed (pip install sageattention). PyTorch's "
            "attention is used."
        ]
        assert any("attention by PyTorch (sageattention is not used: it is not installed" in line for line in told)

    def test_evaluations_of_a_paused_run_are_used_for_the_same_attention_only(
        self, model: FluxModel, seeded: Seeded, tmp_path: Path
    ) -> None:
        runtime = model.runtime
        runtime.library_attention = LibraryAttention(Counted(in_eight_bits))
        chosen = replace(model, own_attention=SAGE)
        replayed = []
        for one in (chosen, chosen, model, chosen):
            runtime.evaluations = EvaluationLog(tmp_path / "log", lambda: "here")
            image(one, seeded)
            replayed.append(runtime.evaluations.replayed)
        assert replayed == [0, 2, 0, 0]
