"""The program on a system without the calls that Windows lacks: real workflows, reads, the worker's life, saving.

Each process is started with tests/doubles/without_posix on its path, and so are those that it starts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

TESTS = Path(__file__).parents[1]
WORKFLOWS = TESTS.parent / "workflows"
HIDDEN = str(TESTS / "doubles" / "without_posix")


@pytest.fixture
def without_posix(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started from now on lacks the calls."""
    monkeypatch.setenv("PYTHONPATH", HIDDEN)


def test_the_calls_are_hidden(without_posix: None, prologue: str) -> None:
    code = (
        prologue + "import os, signal, sys\n"
        "from sluice.flux_core.io import descriptors\n"
        "from sluice.flux_core.memory import source\n"
        "from sluice.flux_core.workers import process_tree\n"
        "there = [name for name in ('preadv', 'posix_fadvise', 'killpg', 'getpgrp', 'sysconf') if hasattr(os, name)]\n"
        "print(there, hasattr(signal, 'SIGKILL'), descriptors.POSITIONAL, source.DIRECT, process_tree.GROUPS)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "[] False False 0 False\n"


def test_a_shipped_workflow_gives_the_same_pixels(
    sluice: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(folder: str) -> bytes:
        options = ("--dtype", "fp32", "--device", "cpu", "--out", str(tmp_path / folder))
        process = sluice("run", str(WORKFLOWS / "image_to_image.json"), *options, cwd=tmp_path)
        told, _ = process.communicate()
        assert process.returncode == 0, told
        (file,) = (tmp_path / folder).rglob("*.png")
        return Image.open(file).tobytes()

    expected = made("with")
    monkeypatch.setenv("PYTHONPATH", HIDDEN)
    assert made("without") == expected


def test_pictures_and_prompts_are_the_same_when_weights_are_streamed(without_posix: None) -> None:
    """Tests of the memory manager, which compare bit for bit, run there."""
    chosen = (
        "test_a_picture_is_the_same_under_any_budget[euler-1.0-1-False-fp32-default]",
        "test_text_encoders_stream_through_what_the_transformer_leaves",
    )
    tests = [f"{TESTS / 'cpu' / 'test_manager.py'}::{name}" for name in chosen]
    options = ["-q", "-p", "no:cacheprovider", "-c", str(TESTS.parent / "pyproject.toml")]
    done = subprocess.run([sys.executable, "-m", "pytest", *options, *tests], capture_output=True, text=True)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_with_the_server_ends_its_worker_and_all_that_a_node_has_started(
    without_posix: None, start: Callable[..., Any], end: str
) -> None:
    server = start()
    entry, _ = server.made(
        server.prompt_of(("Number", {"value": 1})) | {"f": {"class_type": "Family", "inputs": {"value": 1}}}
    )
    processes = [psutil.Process(pid) for pid in (*server.workers, *entry["outputs"]["f"]["value"])]
    assert len(processes) == 5  # the worker, both of the node, and these two again: they are of the worker's tree
    listener = server.listen()
    server.queue(server.prompt_of(("Stuck", {"value": 1})), listener.client_id)
    listener.until("executing")
    if end == "stop":
        assert server.stop(signal.SIGINT) == 0
    else:
        server.kill()
    server.until(lambda: not any(process.is_running() for process in processes), "the end of all processes")


def test_a_worker_that_was_killed_is_replaced_and_files_are_written_and_replaced(
    without_posix: None, start: Callable[..., Any], tmp_path: Path
) -> None:
    server = start()
    number = server.prompt_of(("Number", {"value": 1}))
    assert server.made(number)[0]["status"]["completed"]
    (worker,) = server.workers
    psutil.Process(worker).kill()
    server.until(lambda: worker not in server.workers)
    assert server.made(number)[0]["status"]["completed"]
    for value in (1, 2):
        assert server.post("/settings/some.setting", value).status == 200
    assert server.get("/settings/some.setting").json == 2
    for words in (b"old", b"new"):
        assert server.post("/userdata/workflows%2Fone.json?overwrite=true", data=words).status == 200
    assert (tmp_path / "user/default/workflows/one.json").read_bytes() == b"new"
    names = [
        server.made({"p": {"class_type": "Paint", "inputs": {"value": n, "text": "x", "steps": 1}}})[0]["outputs"]["p"][
            "images"
        ][0]
        for n in (1, 2)
    ]
    assert [name["filename"] for name in names] == ["picture_00001_.png", "picture_00002_.png"]


# -- consoles ----------------------------------------------------------------------------------------------------------


def test_a_console_without_the_letters_gets_question_marks(
    sluice: Callable[..., subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = json.loads((WORKFLOWS / "text_to_image.json").read_text(encoding="utf-8"))
    text = json.dumps(prompt).replace("a yellow star", "\\u0447\\u0430\\u0439 \\u8336 a star")
    (tmp_path / "tea.json").write_text(text, encoding="utf-8")
    assert text != json.dumps(prompt)
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    process = sluice("inspect", str(tmp_path / "tea.json"), text=False)
    told, _ = process.communicate()
    assert process.returncode == 0 and b"??? ? a star" in told, told
    process = sluice("run", str(tmp_path / "\u8336.json"), text=False)
    told, _ = process.communicate()
    assert process.returncode == 1 and b"Traceback" not in told and b"?.json" in told


def test_a_pack_that_prints_any_letters_is_loaded(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "packs").mkdir()
    code = "print('\u2713 \u8336')\nclass Tea:\n    FUNCTION, RETURN_TYPES, INPUT_TYPES = 'x', (), dict\n"
    code += "NODE_CLASS_MAPPINGS = {'Tea': Tea}\n"
    (tmp_path / "packs" / "tea.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    server = start(packs=tmp_path / "packs")
    assert "Tea" in server.get("/object_info").json
    assert os.environ["PYTHONIOENCODING"] == "cp1252" and "? ?" in server.lines
