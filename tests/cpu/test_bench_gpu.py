"""`sluice bench gpu`: the whole of it, small and on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sluice.flux_core.bench.gpu_table import markdown, targets
from sluice.flux_core.bench.quality import SETTINGS

SCRIPT = Path(__file__).resolve().parents[1] / "gpu" / "evaluate.py"
# Its parts, which are processes, are forked from one that has imported PyTorch: each is spared two seconds of imports.
FORKED = """
import multiprocessing, runpy, sys
rooms = ("gpu_parts", "gpu_devices", "gpu_products", "gpu_pictures", "gpu_training", "peers")
multiprocessing.set_forkserver_preload(["__main__", *(f"sluice.flux_core.bench.{room}" for room in rooms)])
context = multiprocessing.get_context("forkserver")
multiprocessing.get_context = lambda method: context
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SMALL = ("--device", "cpu", "--depth", "1", "2", "--hidden", "128", "--size", "32x32", "--peer-size", "32x32")


def test_one_command_measures_compares_and_writes_down_everything(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Times on a CPU meet no target of a GPU, but bits do."""
    packages = tmp_path_factory.mktemp("packages")  # so that the parts run this checkout and not an installed package
    (packages / "sluice").symlink_to(SCRIPT.parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", FORKED, SCRIPT, *SMALL, "--format", "bf16", "--steps", "3", "--cap", "2G"],
        env={**os.environ, "OUT": str(tmp_path / "out"), "PYTHONPATH": str(packages)},
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    told = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert "error" not in [key for each in told["records"] for key in each], ran.stdout
    cases = [each for each in told["records"] if each["part"] == "correctness"]
    assert {each["file"] for each in cases} == {"small-bf16", "small-fp8", "small-Q8_0"}
    assert len(cases) == 21 and all(each["equal"] for each in cases)
    trained = [each for each in told["records"] if "training_case" in each]
    assert len(trained) == 6 and all(each["equal"] for each in trained)
    assert any(each["streamed_bytes"] for each in trained), "weights came twice a step"
    assert [each["finite"] for each in told["records"] if "training_seconds" in each] == [True]
    together = [each for each in told["records"] if "device_case" in each]
    assert len(together) == 3 and all(each["near"] and each["within"] for each in together)
    ways = [each for each in told["records"] if each["part"] == "products" and "way" in each]
    by_torch, by_sage = (each for each in told["records"] if "attention" in each)
    assert by_torch["difference"] < 0.02 and ("refused" in by_sage or by_sage["difference"] < 0.15)
    assert len(ways) == 18 and {each["way"] for each in ways} == {"numbers", "few passes", "few passes, rotated"}
    assert all(each["difference"] < (0.01 if each["way"] == "numbers" else 0.2) for each in ways)
    shown = {each["setting"]: each["psnr"] for each in told["records"] if each["part"] == "pictures"}
    assert list(shown) == [*SETTINGS] and shown["off"] is None
    assert all(decibels > 20 for decibels in [shown[each] for each in SETTINGS if each != "off"])
    assert len(list((tmp_path / "out" / "pictures").glob("*.png"))) == len(SETTINGS)
    steps = [each for each in told["records"] if each["part"] in ("fraction", "resident", "ballast")]
    assert len({each["picture"] for each in steps}) == 1 and len(steps) == 3
    assert ran.returncode == (0 if all(each["met"] for each in told["targets"]) else 1)
    assert json.loads(ran.stdout.splitlines()[-1])["gpu"]["records"] == told["records"]
    assert (tmp_path / "out" / "gpu.md").read_text() == markdown(told)
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("*.gguf"))


def record(part: str, seconds: float, **more: object) -> dict[str, object]:
    """Link 10 GB/s, 5 GB a step, arithmetic of 0.4 s."""
    return {
        "part": part, "file": "flux-bf16", "width": 64, "height": 32, "step_seconds": seconds, "peak_bytes": 100,
        "streamed_bytes": 0 if part == "resident" else 5_000_000_000, "link_bytes_per_second": 1e10, "picture": "p",
        "rates": {"compute_seconds": 0.4, "link_bytes_per_second": 0.0, "disk_bytes_per_second": 1e9},
    } | more  # fmt: skip


def met(*records: dict[str, object]) -> list[bool]:
    facts = {
        "parts": ["fraction", "peers"], "formats": ["bf16"], "sizes": ["64x32"], "peer_size": "64x32",
        "cap_bytes": 100, "groups": "group",
    }  # fmt: skip
    return [target["met"] for target in targets(facts, records)]


def test_a_target_is_met_by_what_was_measured_and_by_nothing_else() -> None:
    whole = record("resident", 0.4)
    peers = [{"part": "peers", "peer": name, "step_seconds": took} for name, took in (("group a", 1.1), ("other", 0.1))]
    assert met(record("fraction", 0.54), whole, *peers) == [True, True, True, True]
    assert met(record("fraction", 0.56, peak_bytes=101, picture="q"), whole, *peers) == [False, False, False, False]
    assert met(whole) == [False, False]  # peak and time not measured, no peer
    slow = record("resident", 0.6)
    assert met(record("fraction", 0.65), slow)[:2] == [True, True]  # arithmetic takes longer than the link
