"""The temporary folders of measurements are removed, also where a signal ends the program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sluice.flux_core.bench.scratch import PREFIX, remove_left, scratch_folder

WAITS = """
import time
from sluice.flux_core.bench.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "server.log").write_text("begun")
    print(folder, flush=True)
    time.sleep(60)
"""


def started(prologue: str, place: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that holds a folder in `place`, and the folder."""
    command = [sys.executable, "-c", prologue + WAITS]
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(place)}, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_measurement_that_sigterm_ends_leaves_no_folder_and_one_that_was_killed_none_after_the_next(
    prologue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other = tmp_path / f"{PREFIX}of-somebody"
    other.mkdir()
    ended, its = started(prologue, tmp_path)
    killed, left = started(prologue, tmp_path)
    try:
        assert its.parent == left.parent == tmp_path and (left / "server.log").exists()
        ended.send_signal(signal.SIGTERM)
        assert ended.wait(30) == 143 and not its.exists()
        with scratch_folder() as mine:
            assert left.is_dir() and mine.is_dir(), "folders of running processes stay"
            remove_left()
            assert left.is_dir() and mine.is_dir()
    finally:
        for process in (ended, killed):
            process.kill()
            process.wait()
    assert left.is_dir() and not mine.exists()
    with scratch_folder():
        assert not left.exists()
    assert list(tmp_path.iterdir()) == [other]
