"""The shipped model: it is small, it draws what the prompt says, and the shipped workflows run on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sluice.flux_core.commands.cli import main
from sluice.flux_core.commands.make_workflows import ALL, WORKFLOWS, Canvas, for_comfyui
from sluice.flux_core.io.folders import TINY_INPUT, TINY_MODELS
from sluice.flux_core.runtime.handles import load_autoencoder
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.training.drawing import Scene, collage, draw, loose_scene
from sluice.flux_core.training.evaluate import Prompt, make, measure, prompts
from sluice.flux_core.training.recognise import recognise

Run = Callable[[Path], list[Path]]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the shipped models and images."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run(workflow file): its images."""
    numbers = iter(range(100))

    def made(file: Path) -> list[Path]:
        out = tmp_path / f"out{next(numbers)}"
        assert main(["run", str(file), "--out", str(out), "--device", "cpu", "--dtype", "fp32"]) == 0
        return sorted(out.rglob("*.png"))

    return made


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"), np.float32) / 255


def test_all_of_it_is_smaller_than_16_megabytes() -> None:
    files = [file for folder in (TINY_MODELS, TINY_INPUT) for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 16_000_000


def test_prompts_give_the_figure_and_the_colour_they_name(tmp_path: Path) -> None:
    asked = prompts(20)
    table = measure(asked, make(main, asked, tmp_path, steps=6, models=None, device="cpu"))
    for part in ("digit", "shape", "colour", "position", "background"):
        right, of = table[part]
        assert right >= 0.85 * of, (part, table)


def test_words_it_has_never_seen_do_no_harm(tmp_path: Path) -> None:
    scene, said = Scene("heart", "red", "left", "white"), frozenset({"figure", "colour", "position", "background"})
    texts = ["a red heart on the left, white background", "A marvellous RED heart, on the left! White background."]
    asked = [Prompt(text, scene, said, seed=3) for text in texts]
    table = measure(asked, make(main, asked, tmp_path, steps=12, models=None, device="cpu"))
    assert table["all"] == (2, 2)


@pytest.mark.parametrize("name", ALL)
def test_a_shipped_workflow_runs_and_its_picture_runs_again_to_the_same_pixels(name: str, run: Run) -> None:
    shipped = WORKFLOWS / f"{name}.png"
    [once] = run(shipped)
    [again] = run(once)
    assert np.array_equal(pixels(once), pixels(again))
    assert np.abs(pixels(once) - pixels(shipped)).mean() < 0.02  # other processors round differently


@pytest.mark.parametrize("name", ALL)
def test_the_twin_for_comfyui_is_the_same_workflow_with_our_ids(name: str, run: Run) -> None:
    canvas = Canvas()
    ALL[name](canvas)
    twin = json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))
    assert twin == for_comfyui(canvas.json())
    assert any(node["type"].startswith("Sluice") for node in twin["nodes"])
    assert Image.open(WORKFLOWS / f"{name}.jpg").format == "JPEG"
    [picture] = run(WORKFLOWS / f"{name}.json")
    assert np.abs(pixels(picture) - pixels(WORKFLOWS / f"{name}.png")).mean() < 0.02


def test_the_first_workflow_shows_what_its_prompt_says() -> None:
    seen = recognise(pixels(WORKFLOWS / "text_to_image.png"))
    assert (seen.figure, seen.colour, seen.position, seen.background) == ("star", "yellow", "centre", "navy")


def test_the_autoencoder_gives_pictures_back() -> None:
    rng = np.random.default_rng(0)
    pictures = np.concatenate([draw([loose_scene(rng) for _ in range(8)]), *(collage(rng)[None] for _ in range(4))])
    codec = load_autoencoder(Runtime(), TINY_MODELS / "vae" / "sluice-tiny-ae.safetensors")
    with torch.inference_mode():
        back = codec.decode_image(codec.encode_image(torch.from_numpy(pictures)))
    error = (back - torch.from_numpy(pictures)).square()
    assert error[:8].mean() < 10**-2.8 and error.mean() < 10**-2.6  # 28 and 26 dB
