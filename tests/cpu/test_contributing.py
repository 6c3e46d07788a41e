"""The four walks of CONTRIBUTING.md, as written there, in a copy of the program: their code runs, their tests pass."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAPER = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "output", "build", "*.egg-info", "fixtures", "web", "docs")


def blocks(title: str) -> list[str]:
    """The code of one walk, block by block."""
    text = PAPER[PAPER.index(f"## Your first {title}") :].split("\n## ")[0]
    return [re.sub(r"(?m)^ {3}", "", block) for block in re.findall(r"(?ms)^   ```\w+\n(.*?)^   ```", text)]


def says(*words: str) -> None:
    """The walks use the table rows that this test adds."""
    for word in words:
        assert word in PAPER


class Copy:
    """A copy of the program that is changed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, file: str, text: str) -> None:
        path = self.root / file
        before = path.read_text("utf-8").rstrip() + "\n\n\n" if path.exists() else ""
        path.write_text(before + text, "utf-8")

    def insert(self, file: str, text: str, before: str) -> None:
        """Put a text before the only place of another one."""
        path = self.root / file
        content = path.read_text("utf-8")
        assert content.count(before) == 1, f"{before!r} in {file}"
        path.write_text(content.replace(before, text + before), "utf-8")

    def test(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    for name in ("flux_core", "nodes", "tests"):
        shutil.copytree(ROOT / name, tmp_path / "sluice" / name, ignore=NOT_COPIED)
    (tmp_path / "sluice" / "tests" / "fixtures").symlink_to(ROOT / "tests" / "fixtures", target_is_directory=True)
    for name in ("__init__.py", "__main__.py", "pyproject.toml"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path / "sluice" / name)
    return Copy(tmp_path / "sluice")


def test_all_walks_lead_to_their_ends(copy: Copy) -> None:
    node, node_test, _ = blocks("node")
    copy.add("nodes/image_filter.py", node)
    copy.insert("nodes/__init__.py", "ImageGamma, ", before="ImageSharpen\n")
    copy.insert("nodes/__init__.py", '"SluiceImageGamma": ImageGamma,\n    ', before='"SluiceImageSharpen"')
    copy.insert("tests/cpu/test_nodes.py", '"ImageGamma",\n        ', before='"FluxToModel",')
    copy.add("tests/cpu/test_image_gamma.py", node_test)
    says('`"SluiceImageGamma": ImageGamma`', 'add `"ImageGamma"` there')

    (sampler,) = blocks("sampler")
    copy.add("flux_core/sampling/one_step.py", sampler)
    row = '"ralston": Method(one_step.ralston, levels=one_step.ralston_levels)'
    copy.insert("flux_core/sampling/solvers.py", f"{row},\n    ", before='"heun": Method')
    copy.insert("tests/cpu/test_solvers.py", '("ralston", 2), ', before='("heun", 2), ')
    says(f"`{row}`", '`("ralston", 2)`')

    (format,) = blocks("stored format")
    copy.insert("flux_core/quant/sizes.py", '"TQ2_0": (256, 66), ', before='"NVFP4_GGUF": (64, 36)')
    copy.insert("flux_core/quant/gguf_blocks.py", format + "\n\n", before="BLOCKS: dict")
    row = '"TQ2_0": BlockFormat(scales_tq2_0, codes_tq2_0, zero=1)'
    copy.insert("flux_core/quant/gguf_blocks.py", f"{row},\n    ", before='"Q8_0": BlockFormat')
    copy.insert("tests/cpu/test_formats.py", '"TQ2_0": [64], ', before='"Q8_0": [0], "Q4_0"')
    says('`"TQ2_0": (256, 66)`', f"`{row}`", '`35: "TQ2_0"`', '`"TQ2_0": [64]`')

    network, recognised, model_test = blocks("model")
    copy.add("flux_core/models/latent_rgb.py", network)
    row = '"latent_rgb": Kind("a latent preview", None, "vae_approx")'
    copy.insert("flux_core/checkpoint/kinds.py", f"{row},\n    ", before='"flux": Kind(')
    copy.insert("flux_core/checkpoint/detect.py", recognised + "\n\n", before="_COMPONENTS = {")
    copy.insert("flux_core/checkpoint/detect.py", '"latent_rgb": _latent_rgb, ', before='"clip_l": _clip')
    copy.add("tests/cpu/test_latent_rgb.py", model_test)
    says(f"`{row}`", '`"latent_rgb": _latent_rgb`')

    folder = "tests/cpu/"
    files = ("test_image_gamma", "test_latent_rgb", "test_nodes", "test_solvers", "test_formats")
    chosen = "gamma or Gamma or every_node or latent or ralston or TQ2_0"
    copy.test(*(f"{folder}{name}.py" for name in files), "-k", chosen)
