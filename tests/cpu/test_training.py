"""`sluice train`: the loss falls, it can be stopped at any step, and the program reads the files that it writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sluice.flux_core.commands.cli import main
from sluice.flux_core.commands.train import Training
from sluice.flux_core.conditioning.tokenizer_files import find_clip, find_t5
from sluice.flux_core.errors import InputError
from sluice.flux_core.io.folders import TINY_MODELS
from sluice.flux_core.models.autoencoder import Autoencoder, AutoencoderConfig
from sluice.flux_core.models.clip_text import ClipConfig, ClipTextModel
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.models.t5 import T5Config, T5Encoder
from sluice.flux_core.training.export import FILES, write_safetensors
from sluice.flux_core.training.flow import FlowStage
from sluice.flux_core.training.optimise import orthogonal, rate_at
from sluice.flux_core.training.recipe import Phase, Recipe, changed, quick
from sluice.flux_core.training.trainer import train
from torch import Tensor

CPU = torch.device("cpu")


def training(folder: Path, recipe: Recipe) -> Training:
    return Training(recipe, folder, folder / "work", CPU, quiet=True)


def test_the_loss_of_every_stage_falls(tmp_path: Path) -> None:
    recipe = changed(quick(), ["flow.steps=30", "guidance.steps=6", "codec.steps=12", "save_every=1000"])
    run = training(tmp_path, recipe)
    vars(run).update(_sheet=lambda *args, **options: None, _codec_sheet=lambda *args: None)  # half of the time
    losses = run.run(["flow", "guidance", "codec"])
    for stage in ("flow", "codec"):
        first, last = losses[stage][:5], losses[stage][-5:]
        assert sum(last) < 0.9 * sum(first), stage
    assert all(torch.isfinite(torch.tensor(values)).all() for values in losses.values())


class Stopped(Exception):
    pass


def test_a_stopped_training_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    recipe = replace(quick(), save_every=5)
    weights = []
    for folder, stop in ((tmp_path / "whole", None), (tmp_path / "halved", 8)):
        while True:
            torch.manual_seed(0)
            run = training(folder, recipe)
            system = run.new_system()
            stage = FlowStage(run.pictures, system, torch.float32)
            if stop is not None:
                vars(stage)["loss"] = _stopping(stage.loss, stop)
                stop = None
            try:
                train(stage, recipe, run.work, quiet=True)
            except Stopped:
                continue
            break
        weights.append(system.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def _stopping(loss: Callable[[int], Tensor], at: int) -> Callable[[int], Tensor]:
    def stopped(step: int) -> Tensor:
        if step == at:
            raise Stopped
        return loss(step)

    return stopped


def test_the_command_writes_files_that_the_product_loads(tmp_path: Path) -> None:
    assert main(["train", "--quick", "--out", str(tmp_path), "--device", "cpu"]) == 0
    tensors = {part: load_file(tmp_path / path) for part, path in FILES.items()}
    shapes = {part: {name: tuple(value.shape) for name, value in held.items()} for part, held in tensors.items()}

    flux = FluxConfig.from_shapes(shapes["transformer"])
    assert (flux.in_channels, flux.guidance, flux.hidden) == (16, True, 64)
    Flux(flux).load_state_dict(tensors["transformer"], strict=True)
    autoencoder = Autoencoder(AutoencoderConfig.from_shapes(shapes["codec"]))
    autoencoder.load_state_dict(tensors["codec"], strict=True)
    assert autoencoder.compression == 8
    T5Encoder(T5Config.from_shapes(shapes["t5"])).load_state_dict(tensors["t5"], strict=True)
    clip = ClipConfig.from_shapes(shapes["clip"])
    ClipTextModel(clip).load_state_dict(tensors["clip"], strict=True)

    words = find_clip(tmp_path / FILES["clip"], [], vocabulary=clip.vocabulary)
    assert words.end == clip.vocabulary - 1
    assert find_t5(tmp_path / FILES["t5"], [], vocabulary=shapes["t5"]["shared.weight"][0]).length == 18


def test_models_for_fewer_steps_begin_at_the_shipped_one_and_keep_its_encoders(tmp_path: Path) -> None:
    recipe = changed(Recipe(), ["windows.steps=1", "windows.batch=2", "code_pictures=32", "pair_steps=1"])
    run = training(tmp_path, recipe)
    vars(run)["_sheet"] = lambda *args, **options: None
    with pytest.raises(InputError, match="stage reflow has not been trained"):
        run.run(["one_step"])
    assert len(run.run(["windows"])["windows"]) == 1
    made = load_file(tmp_path / "diffusion_models" / "sluice-tiny-windows.safetensors")
    shipped = load_file(TINY_MODELS / FILES["transformer"])
    config = FluxConfig.from_shapes({name: tuple(value.shape) for name, value in made.items()})
    assert not config.guidance and config.hidden == 192
    assert {name for name in shipped if name not in made} == {name for name in shipped if "guidance_in" in name}
    assert not (tmp_path / FILES["clip"]).exists()


def test_a_sample_sheet_and_a_checkpoint_lie_in_the_work_folder(tmp_path: Path) -> None:
    run = training(tmp_path, quick())
    run.run(["flow"])
    assert {file.suffix for file in (tmp_path / "work").iterdir()} == {".pt", ".png"}


def test_written_weights_are_read_back_bit_by_bit(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 5).bfloat16(), "a": torch.randn(7).bfloat16(), "empty": torch.zeros(0).bfloat16()}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    back = load_file(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("shape", [(24, 64), (64, 24), (32, 32)])
def test_muon_moves_every_direction_by_about_the_same_length(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrix).float())
    assert 0.5 < values.min() and values.max() < 1.3


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    phase = Phase(steps=100, batch=1, rate=1.0, warm_up=10, cool_down=0.2)
    rates = [rate_at(step, phase) for step in range(101)]
    assert rates[9] == rates[79] == 1.0 and rates[100] == 0.0
    assert rates[:10] == sorted(rates[:10]) and rates[80:] == sorted(rates[80:], reverse=True)


def test_settings_change_the_recipe_and_mistakes_in_them_are_named() -> None:
    recipe = changed(Recipe(), ["seed=7", "flow.steps=3", "sizes.codec_factors=1,2", "guidance_range=2,3"])
    assert (recipe.seed, recipe.flow.steps, recipe.sizes.codec_factors, recipe.guidance_range) == (7, 3, (1, 2), (2, 3))
    for wrong, said in (("flow.stepz=3", "stepz"), ("flow=3", "one single value"), ("seed=x", "expected int")):
        with pytest.raises(InputError, match=said):
            changed(Recipe(), [wrong])
