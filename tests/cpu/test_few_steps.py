"""Stages for fewer steps: their data, their results, and the straightness of paths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sluice.flux_core.commands.cli import main
from sluice.flux_core.errors import InputError
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.training.digits.data import draw
from sluice.flux_core.training.digits.lesson import Lesson
from sluice.flux_core.training.digits.recipe import DigitRecipe, checked
from sluice.flux_core.training.few_steps import Pairs, Teacher, straightness, without_guidance
from sluice.flux_core.training.recipe import changed
from sluice.flux_core.training.system import Tokens
from torch import Tensor

SETTINGS = (
    *("sizes.hidden=32", "sizes.heads=1", "sizes.depth_single=1", "sample_steps=1", "pairs=100", "pair_steps=4"),
    *(f"{stage}.steps=3" for stage in ("flow", "guidance", "reflow", "one_step", "windows")),
    *(f"{stage}.batch=4" for stage in ("flow", "guidance", "reflow", "one_step", "windows")),
)


@pytest.fixture
def lesson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lesson:
    """Three steps of each stage, on drawn digits."""
    monkeypatch.setattr("sluice.flux_core.training.digits.data.draw", lambda seed: draw(seed, 40))
    monkeypatch.setattr("sluice.flux_core.training.digits.lesson.SHEET", 2)
    recipe = checked(changed(DigitRecipe(), SETTINGS))
    return Lesson(recipe, tmp_path, tmp_path / "work", torch.device("cpu"), quiet=True)


def test_every_stage_is_trained_and_its_file_has_the_form_of_schnell(lesson: Lesson, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stage flow of digits has not been trained"):
        lesson.run(["windows"])
    losses = lesson.run(["flow", "guidance", "windows", "reflow", "one_step"])
    assert list(losses) == ["flow", "guidance", "reflow", "one_step", "windows"]
    assert all(len(values) == 3 for values in losses.values())
    for name in ("reflow", "one-step", "windows"):
        tensors = load_file(tmp_path / "diffusion_models" / f"digits-{name}.safetensors")
        config = FluxConfig.from_shapes({key: value.shape for key, value in tensors.items()})
        assert not config.guidance and config.in_channels == 16
        Flux(config).load_state_dict(tensors, strict=True)
    before = (tmp_path / "work" / "pairs.pt").stat().st_mtime_ns
    again = Pairs.of(lesson.teacher(), lesson.recipe, tmp_path / "work" / "pairs.pt", quiet=True)
    assert (tmp_path / "work" / "pairs.pt").stat().st_mtime_ns == before and len(again.prompts) == 100
    assert again.noise.shape == again.made.shape == (100, 16, 8, 8)


def test_a_constant_guidance_in_a_bias_is_the_same_network(lesson: Lesson) -> None:
    system = lesson.new_system()
    flux = system.transformer
    with torch.no_grad():  # adaLN-zero would hide every difference
        for number, weight in enumerate(flux.parameters()):
            weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    weights = without_guidance(flux, 2.5)
    plain = Flux(FluxConfig.from_shapes({name: value.shape for name, value in weights.items()}))
    plain.load_state_dict(weights, strict=True)
    t, pooled = torch.tensor([0.3, 0.9]), torch.randn(2, 64)
    expected = flux.vector(t, pooled, torch.full((2,), 2.5), torch.float32)
    torch.testing.assert_close(plain.vector(t, pooled, None, torch.float32), expected)
    assert not torch.allclose(flux.vector(t, pooled, torch.full((2,), 1.0), torch.float32), expected)


class Curved(Teacher):
    """All numbers change by 1 in all, at a speed that rises with t by `bend` of it."""

    bend = 0.0

    def velocity(self, x: Tensor, t: Tensor, tokens: Tokens) -> Tensor:
        return (1 + self.bend * (2 * t[:, None, None, None] - 1)) * torch.ones_like(x)


@pytest.mark.parametrize("bend", [0.0, 0.5])
def test_straightness_is_the_mean_squared_deviation_from_the_chord(lesson: Lesson, bend: float) -> None:
    flow = Curved(lesson.new_system(), lesson.pictures, 1.0, True, torch.float32)
    object.__setattr__(flow, "bend", bend)
    found = straightness(flow, torch.randn(3, 2, 4, 4), lesson.pictures.tokens(["1"] * 3), steps=200)
    assert found.total == pytest.approx(32 * bend**2 / 3, rel=0.02, abs=1e-8), "32 numbers, mean of (bend (2t - 1))²"
    assert found.share == pytest.approx(bend**2 / 3, rel=0.05, abs=1e-8)


def test_a_teacher_in_two_passes_is_guided(lesson: Lesson) -> None:
    system = lesson.new_system()
    with torch.no_grad():
        for number, weight in enumerate(system.parameters()):
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    x, t = torch.randn(2, 16, 8, 8), torch.full((2,), 0.5)
    tokens = lesson.pictures.tokens(["3", "six"])

    def velocity(strength: float) -> Tensor:
        with torch.no_grad():
            return Teacher(system, lesson.pictures, strength, False, torch.float32).velocity(x, t, tokens)

    free, told = velocity(0.0), velocity(1.0)
    torch.testing.assert_close(velocity(3.0), free + 3 * (told - free))
    assert not torch.allclose(free, told)


def test_one_stage_is_looked_at_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "digits", "digits-tiny", "--out", str(tmp_path), "--device", "cpu"]
    assert main([*words, "--num-samples", "2", "--stages", "flow", "reflow"]) == 1
    assert "One stage is sampled or judged at a time" in capsys.readouterr().err
    assert main([*words, "--stages", "one-stop"]) == 1
    assert "has flow, guidance, reflow, one_step, windows, and no one_stop" in capsys.readouterr().err
