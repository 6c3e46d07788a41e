"""Files of 8-bit integers, multiplied as such: near the decoded image, same bits resident and streamed, reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sluice.flux_core.commands import cli
from sluice.flux_core.io.folders import TINY_MODELS

FLUX = TINY_MODELS / "diffusion_models/sluice-tiny.safetensors"
WORKFLOW = Path(__file__).parents[2] / "workflows/text_to_image.json"
Run = Callable[..., tuple[np.ndarray, str]]


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """run(*options): the image of the shipped workflow with the model in int8, and the program's output."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # half a second each on a busy disk
    out = here / "models/diffusion_models/int8.safetensors"
    assert cli.main(["convert", str(FLUX), "--to", "int8", "--rotate", "--out", str(out)]) == 0

    def make(*options: str, unet: str = "int8.safetensors") -> tuple[np.ndarray, str]:
        capsys.readouterr()
        words = ["--set", f"unet_name={unet}", "--set", "steps=4", "--device", "cpu", "--dtype", "bf16"]
        code = cli.main(["run", str(WORKFLOW), *words, *options])
        told = capsys.readouterr()
        assert code == 0, told.err
        return np.asarray(Image.open(here / told.out.splitlines()[-1]).convert("RGB")).astype(float), told.err

    return make


def test_a_run_is_compared_with_its_exact_twin(run: Run, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exact, _ = run("--compute", "16bit")
    capsys.readouterr()
    words = ["--set", "unet_name=int8.safetensors", "--set", "steps=4", "--device", "cpu", "--dtype", "bf16"]
    assert cli.main(["run", str(WORKFLOW), *words, "--compute", "int8", "--compare", "exact"]) == 0
    first, said = capsys.readouterr().out.splitlines()
    twin = said.partition(" is exact: ")[0]
    pixels = [np.asarray(Image.open(here / name).convert("RGB")).astype(float) for name in (first, twin)]
    assert np.array_equal(pixels[1], exact) and f"PSNR {psnr(*pixels):.1f} dB, SSIM 0." in said


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(((one - other) ** 2).mean())
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def test_an_int8_file_is_multiplied_as_integers_resident_and_streamed(run: Run) -> None:
    decoded, of_decoded = run("--compute", "16bit")
    resident, of_resident = run("--compute", "int8")
    streamed, of_streamed = run("--compute", "int8", "--ram", "1500M")
    assert np.array_equal(resident, streamed)
    assert 34 < psnr(resident, decoded) < float("inf")
    assert "int8 products (PyTorch) for" in of_resident and "int8 products (PyTorch) for" in of_streamed
    assert "int8 products" not in of_decoded
