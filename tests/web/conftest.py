"""A real server and a real Chromium for the tests of the browser's side.

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
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sluice.flux_core.io.embedded import read_workflow

HERE = Path(__file__).parent
OUTPUT = HERE.parent / "output"
REQUIRED = os.environ.get("SLUICE_BROWSER") == "required"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
PLAYWRIGHT = os.environ.get("PLAYWRIGHT", "")

WORKFLOWS = HERE.parents[1] / "workflows"
PUBLISHED = {
    "sluice-tiny.safetensors": "flux1-dev.safetensors", "sluice-tiny-t5xxl.safetensors": "t5xxl_fp16.safetensors",
    "sluice-tiny-clip_l.safetensors": "clip_l.safetensors", "sluice-tiny-ae.safetensors": "ae.safetensors",
}  # fmt: skip

Scene = Callable[..., dict[str, Any]]


def _needed(there: object, what: str) -> None:
    if not there:
        assert not REQUIRED, f"{what} is required here and missing"
        pytest.skip(f"{what} is not installed")


@pytest.fixture(scope="session")
def needed() -> Callable[[object, str], None]:
    """needed(there, what): leave a test out where something is not installed, or fail if it must be."""
    return _needed


class Serving:
    """A server in a process of its own, on a free port, with its output folder and the lines it prints."""

    def __init__(self, command: list[str], base: Path, *arguments: str) -> None:
        self.base = base
        serve = [*command, "serve", "--port", "0", "--base-directory", str(base), *arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(
            serve, env={**os.environ, "HOME": str(base), "HF_HUB_CACHE": str(base)}, **pipes
        )
        self.lines: list[str] = []
        self._announced = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._announced.wait(60) and self.process.poll() is None, "".join(self.lines)
        line = next(line for line in self.lines if "http://" in line)
        self.url = line[line.index("http://") :].split()[0].rstrip("/")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if "http://" in line:
                self._announced.set()
        self._announced.set()

    def stop(self, number: int = signal.SIGINT) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(20)


@pytest.fixture(scope="session")
def serving(command: list[str]) -> Callable[..., Any]:
    """`with serving(base, arguments...) as server`: a server for the length of a block."""

    @contextmanager
    def begun(base: Path, *arguments: str) -> Iterator[Serving]:
        server = Serving(command, base, *arguments)
        try:
            yield server
        finally:
            server.stop()

    return begun


@pytest.fixture(scope="module")
def server(serving: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server as a newcomer starts it, for all tests of a module."""
    with serving(tmp_path_factory.mktemp("base")) as one:
        yield one


@pytest.fixture(scope="session")
def browser() -> Iterator[str]:
    """The address of a Chromium that all scenes share, each with a window and a profile of its own."""
    _needed(shutil.which("node"), "node")
    _needed(Path(CHROMIUM).exists(), "Chromium")
    _needed(PLAYWRIGHT and Path(PLAYWRIGHT).is_dir(), "playwright-core")
    command = ["node", str(HERE / "browser" / "chromium.mjs")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)
    assert process.stdout is not None and process.stdin is not None
    address = process.stdout.readline().strip()
    assert address.startswith("ws://"), "Chromium starts"
    yield address
    process.stdin.close()
    process.wait(20)


@pytest.fixture(scope="session")
def scene(browser: str) -> Scene:
    """scene("story.mjs", address, arguments...): what a script of browser/ saw."""

    def play(script: str, address: str, *arguments: object) -> dict[str, Any]:
        OUTPUT.mkdir(exist_ok=True)
        environment = {
            **os.environ, "SLUICE_URL": address, "PLAYWRIGHT": PLAYWRIGHT, "BROWSER": browser,
            "SCREENSHOTS": str(OUTPUT),
        }  # fmt: skip
        command = ["node", str(HERE / "browser" / script), *map(str, arguments)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert run.returncode == 0, run.stdout + run.stderr
        seen: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
        return seen

    return play


@pytest.fixture
def full_size(tmp_path: Path) -> Path:
    """The first workflow as somebody has it who uses FLUX.1 itself."""
    text = json.dumps(read_workflow(WORKFLOWS / "text_to_image.png").workflow)
    for ours, theirs in PUBLISHED.items():
        assert ours in text
        text = text.replace(ours, theirs)
    file = tmp_path / "flux_dev.json"
    file.write_text(text, "utf-8")
    return file
