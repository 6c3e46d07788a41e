"""Checkpoints of a training: two generations, each whole or not there, so that a kill at any moment loses no more than
the steps since the last.

    state/step-000250/   lora.safetensors (float32), moments.safetensors (float32), state.json (written last)
    state/step-000500/

A generation is written beside the others, flushed, and gets its name when it is whole. The older ones go after that.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...checkpoint.whole_files import read_tensors, safetensors
from ...errors import SluiceError
from ...io.paths import WINDOWS
from ...io.saving import TEMPORARY_PREFIX, replace, write_whole
from .cache import digest

GENERATIONS = 2
LORA, MOMENTS, STATE = "lora.safetensors", "moments.safetensors", "state.json"


@dataclass(frozen=True)
class Saved:
    """What a run goes on with. step: how many are done. facts: what the next run must agree with."""

    step: int
    lora: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    others: Mapping[str, Any]
    facts: Mapping[str, Any]


class Checkpoints:
    """Those of one training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, saved: Saved) -> None:
        """Raises SluiceError if the disk refuses; the checkpoints that are there stay."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clear()
        fresh = self.folder / f"{TEMPORARY_PREFIX}step-{saved.step:06}"
        try:
            fresh.mkdir()
            files = {LORA: safetensors(saved.lora, {}), MOMENTS: safetensors(saved.moments, {})}
            for name, data in files.items():
                write_whole(fresh / name, data)
            state = {
                "step": saved.step, "facts": dict(saved.facts), "others": dict(saved.others),
                "digests": {name: digest(data) for name, data in files.items()},
            }  # fmt: skip
            write_whole(fresh / STATE, json.dumps(state).encode())
            _flush(fresh)
            final = self.folder / f"step-{saved.step:06}"
            if final.exists():
                shutil.rmtree(final)
            replace(fresh, final)
            _flush(self.folder)
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            raise SluiceError(
                f"The checkpoint of step {saved.step} could not be written to {self.folder}: {error.strerror}. The one "
                "before it is whole. Make room, and start the same command again."
            ) from error
        for old in self.generations()[:-GENERATIONS]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> Saved | None:
        """The last one that is whole; None if there is none."""
        for folder in reversed(self.generations()):
            with suppress(OSError, ValueError, KeyError):
                state = json.loads((folder / STATE).read_text("utf-8"))
                found = all(digest((folder / name).read_bytes()) == wanted for name, wanted in state["digests"].items())
                if found:
                    lora, moments = read_tensors(folder / LORA), read_tensors(folder / MOMENTS)
                    return Saved(state["step"], lora, moments, state["others"], state["facts"])
        return None

    def generations(self) -> list[Path]:
        """From the oldest to the newest."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.name.startswith("step-"))

    def _clear(self) -> None:
        """What a kill has left half written."""
        for path in self.folder.iterdir():
            if path.name.startswith(TEMPORARY_PREFIX):
                shutil.rmtree(path, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Names of files are on disk only when their folder is."""
    if WINDOWS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
