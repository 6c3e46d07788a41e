"""The functions that the host program gives to nodes, standalone and inside ComfyUI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sluice
from PIL import Image
from sluice.flux_core.errors import InputError, Interrupted, MissingFileError
from sluice.flux_core.io.folders import standard_folders
from sluice.nodes import host

ROOT = Path(sluice.__file__).parent


@pytest.fixture
def around(tmp_path: Path) -> host.Host:
    (tmp_path / "input").mkdir()
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / "input" / name).touch()
    (tmp_path / "output").mkdir()
    (tmp_path / "output/made.png").touch()
    return host.Host(standard_folders(tmp_path))


def test_pictures_are_those_of_the_input_folder(around: host.Host) -> None:
    ours = [name for name in around.images() if (around.input / name).exists()]
    assert ours == ["a.JPG", "b.png"]
    assert around.file("b.png") == around.input / "b.png"
    assert around.file("made.png [output]") == around.output / "made.png"


def test_a_picture_that_is_elsewhere_or_nowhere_is_refused(around: host.Host) -> None:
    with pytest.raises(MissingFileError, match=r"'c\.png' is not in the input folder"):
        around.file("c.png")
    with pytest.raises(InputError, match="leads out"):
        around.file("../output/made.png")


def test_steps_are_reported_until_the_run_is_stopped(tmp_path: Path) -> None:
    heard: list[Any] = []
    stopped = [False]
    around = host.Host(standard_folders(tmp_path), lambda *step: heard.append(step), lambda: stopped[0])
    around.step(1, 4)
    stopped[0] = True
    with pytest.raises(Interrupted):
        around.step(2, 4)
    assert heard == [(1, 4, None)]


def test_sampling_reports_each_step_with_a_look_at_the_picture(tmp_path: Path) -> None:
    import torch
    from sluice.nodes.sampling import report

    heard: list[Any] = []
    report(host.Host(standard_folders(tmp_path), lambda *step: heard.append(step)))(
        0, torch.zeros(2, 16, 3, 5), torch.zeros(2, 16, 3, 5), 4
    )
    ((done, total, preview),) = heard
    assert (done, total) == (1, 4)
    assert isinstance(preview(), Image.Image) and preview().size == (5, 3)


INSIDE = """
import sys, types
from pathlib import Path
sys.path.insert(0, {tests!r})

def module(name, **contents):
    made = sys.modules[name] = types.ModuleType(name)
    made.__dict__.update(contents)
    return made

class Stop(Exception): pass
class Bar:
    def __init__(self, total): pass
    def update_absolute(self, done, total, preview): print("bar", done, total, preview)
class Methods:
    NoPreviews = "none"

def maybe_stop():
    if stop: raise Stop
stop = []
store = Path({store!r})
places = {{"vae": ([str(store / "vae")], set()), "diffusion_models": ([str(store / "unet")], set())}}
comfy = module("comfy")
comfy.model_management = module("comfy.model_management", throw_exception_if_processing_interrupted=maybe_stop)
comfy.utils = module("comfy.utils", ProgressBar=Bar)
args = types.SimpleNamespace(preview_method="auto", preview_size=512)
module("comfy.cli_args", args=args, LatentPreviewMethod=Methods)
module(
    "folder_paths", folder_names_and_paths=places, models_dir=str(store),
    **{{f"get_{{k}}_directory": (lambda k=k: str(store / k)) for k in ("input", "output", "temp", "user")}},
)
import conftest
from sluice.nodes.host import ComfyUI, pack_host

around = pack_host()
print(type(around) is ComfyUI, around.output == store / "output")
print([name for name in around.filenames("vae") if name.startswith("mine")])
places["vae"][0].append(str(store / "more"))
print([name for name in around.filenames("vae") if name.startswith("mine")])
print(around.full_path("vae", "mine2.sft") == store / "more" / "mine2.sft")
around.step(1, 4, lambda: "look")
args.preview_method = "none"
around.step(2, 4, lambda: "look")
stop.append(1)
try:
    around.step(3, 4)
except Stop:
    print("stopped")
"""


def test_inside_comfyui_its_folders_progress_and_interrupt_are_used(tmp_path: Path) -> None:
    for file in ("vae/mine1.sft", "more/mine2.sft"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    code = INSIDE.format(tests=str(ROOT / "tests"), store=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "True True",
        "['mine1.sft']",
        "['mine1.sft', 'mine2.sft']",
        "True",
        "bar 1 4 ('JPEG', 'look', 512)",
        "bar 2 4 None",
        "stopped",
    ], done.stderr
