"""The lines of Python in the README, run as they are printed; and the progress bar that a notebook shows."""

from __future__ import annotations

import os
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import tqdm.auto
from PIL import Image
from sluice.flux_core.io.folders import TINY_MODELS

ROOT = Path(__file__).parents[2]


def lines_of_the_readme() -> str:
    (found,) = re.findall(r"(?ms)^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"))
    return str(found)


def test_the_script_whose_types_are_checked_is_what_the_readme_prints() -> None:
    assert (ROOT / "tests/clients/first_steps.py").read_text("utf-8").endswith(f'"""\n\n{lines_of_the_readme()}')


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The progress bars that are drawn, by what stands for tqdm's: it chooses between a terminal and a notebook."""
    drawn: list[Any] = []

    class Bar:
        def __init__(self, total: int, desc: str, unit: str) -> None:
            self.total, self.desc, self.unit, self.n, self.closed = total, desc, unit, 0, False
            drawn.append(self)

        def update(self, steps: int) -> None:
            self.n += steps

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    return drawn


def test_the_lines_of_the_readme_run_as_they_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bars: list[Any]
) -> None:
    """The small model stands for FLUX.1-dev in fp8, in a ./models folder, and makes images of its own size."""
    shutil.copytree(TINY_MODELS, tmp_path / "models", copy_function=os.link if _linkable(tmp_path) else shutil.copy)
    folder = tmp_path / "models/diffusion_models"
    (folder / "sluice-tiny.safetensors").rename(folder / "flux1-dev-fp8.safetensors")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first.py").write_text(lines_of_the_readme(), "utf-8")
    made = runpy.run_path(str(tmp_path / "first.py"))
    assert "a step, bound by" in capsys.readouterr().out
    (first,), (second,) = made["images"], made["more"]
    assert first.size == second.size == (128, 128) and first.tobytes() != second.tobytes()
    with Image.open(tmp_path / "fox.png") as saved:
        assert saved.convert("RGB").tobytes() == first.tobytes() and "a red fox" in saved.info["prompt"]
    assert '"steps": 30' in second.info["prompt"] and "a grey wolf" in second.info["prompt"]
    assert [(bar.desc, bar.total, bar.n, bar.closed) for bar in bars] == [
        ("Denoise", 20, 20, True), ("Denoise", 30, 30, True),
    ]  # fmt: skip


def _linkable(folder: Path) -> bool:
    return os.stat(folder).st_dev == os.stat(TINY_MODELS).st_dev
