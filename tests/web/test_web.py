"""The browser's side: plain functions under node, and the whole first day in a real Chromium on a real server.

Needs node; the browser also Chromium and the npm package playwright-core, found through the environment:
    CHROMIUM=/usr/bin/chromium  PLAYWRIGHT=/folder/node_modules/playwright-core
Where they are missing these tests are left out, but not if SLUICE_BROWSER=required, as `.ci/run` sets it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OUTPUT = ROOT / "tests" / "output"
REQUIRED = os.environ.get("SLUICE_BROWSER") == "required"

PROGRAM = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("sluice", {sys.modules["sluice"].__file__!r})
sys.modules["sluice"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["sluice"])
from sluice.flux_core.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def needed(there: object, what: str) -> None:
    if not there:
        assert not REQUIRED, f"{what} is required here and missing"
        pytest.skip(f"{what} is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(address, base directory) of a server as a newcomer starts it."""
    base = tmp_path_factory.mktemp("base")
    command = [sys.executable, "-c", PROGRAM, "serve", "--port", "0", "--base-directory", str(base)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    line = next((line for line in process.stdout if "http://" in line), "")
    assert line, "the server told its address"
    try:
        yield line[line.index("http://") :].split()[0].rstrip("/"), base
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def test_functions_of_the_panels_under_node() -> None:
    needed(shutil.which("node"), "node")
    files = sorted(str(file) for file in HERE.glob("*.test.mjs"))
    run = subprocess.run(["node", "--test", *files], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_first_day_in_a_browser(server: tuple[str, Path]) -> None:
    chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    playwright = os.environ.get("PLAYWRIGHT", "")
    needed(shutil.which("node"), "node")
    needed(Path(chromium).exists(), "Chromium")
    needed(playwright and Path(playwright).is_dir(), "playwright-core")
    address, base = server
    OUTPUT.mkdir(exist_ok=True)
    environment = {
        **os.environ, "SLUICE_URL": address, "PLAYWRIGHT": playwright, "CHROMIUM": chromium, "SCREENSHOTS": str(OUTPUT)
    }  # fmt: skip
    story = ["node", str(HERE / "browser" / "story.mjs"), str(ROOT / "workflows" / "text_to_image.png")]
    run = subprocess.run([*story, str(base / "output")], env=environment, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stdout + run.stderr
    seen = json.loads(run.stdout.splitlines()[-1])
    assert seen["progress"] >= 12 and seen["previews"] >= 1 and seen["shown"] == 1
    assert {"UNETLoader", "DualCLIPLoader", "VAELoader", "CLIPTextEncode"} <= set(seen["cached"])
    assert seen["gallery"] and seen["interrupted"] and seen["managed"]
    assert seen["elsewhere"] == [], "nobody but the server is contacted"
