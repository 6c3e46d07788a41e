"""Checkpoints of a training: two generations, each written completely or not at all, so that a kill at any moment loses
only the steps since the last one.

    state/step-000250/   lora.safetensors (float32), moments.safetensors (float32), state.json (written last)
    state/step-000500/

A generation is written under a temporary name, flushed, and renamed when it is complete. Older ones are deleted
afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...checkpoint.whole_files import read_tensors, whole_file
from ...errors import SluiceError
from ...io.paths import WINDOWS
from ...io.saving import TEMPORARY_PREFIX, replace, write_whole
from .cache import digest_in_parts

GENERATIONS = 2
PREFIX = "step-"
CHUNK = 1 << 22  # bytes read at once
LORA, MOMENTS, STATE = "lora.safetensors", "moments.safetensors", "state.json"


@dataclass(frozen=True)
class Saved:
    """The state from which a run continues. step: how many are done. facts: values that must be the same in the next
    run.
    """

    step: int
    lora: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    others: Mapping[str, Any]
    facts: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, saved: Saved) -> None:
        """Raises SluiceError if the disk cannot be written; existing checkpoints are kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clear()
        fresh = self.folder / f"{TEMPORARY_PREFIX}{PREFIX}{saved.step:06}"
        try:
            fresh.mkdir()
            files = {LORA: whole_file(saved.lora, {}), MOMENTS: whole_file(saved.moments, {})}
            for name, data in files.items():
                write_whole(fresh / name, data)
            state = {
                "step": saved.step, "facts": dict(saved.facts), "others": dict(saved.others),
                "digests": {name: digest_in_parts(data.nbytes, data) for name, data in files.items()},
            }  # fmt: skip
            write_whole(fresh / STATE, json.dumps(state).encode())
            _flush(fresh)
            final = self.folder / f"{PREFIX}{saved.step:06}"
            if final.exists():
                shutil.rmtree(final)
            replace(fresh, final)
            _flush(self.folder)
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            before = self.steps()
            there = f"That of step {before} is whole" if before else "There is none before it"
            raise SluiceError(
                f"The checkpoint of step {saved.step} could not be written to {self.folder}: {error.strerror}. {there}."
                " Make room, and give the same command again."
            ) from error
        for old in self.generations()[:-GENERATIONS]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> Saved | None:
        """The last complete checkpoint; None if there is none."""
        for folder in reversed(self.generations()):
            with suppress(OSError, ValueError, KeyError):
                state = json.loads((folder / STATE).read_text("utf-8"))
                found = all(_digest_of(folder / name) == wanted for name, wanted in state["digests"].items())
                if found:
                    lora, moments = read_tensors(folder / LORA), read_tensors(folder / MOMENTS)
                    return Saved(state["step"], lora, moments, state["others"], state["facts"])
        return None

    def steps(self) -> int:
        """The steps of the last checkpoint, by its name; 0 if there is none."""
        generations = self.generations()
        return int(generations[-1].name[len(PREFIX) :]) if generations else 0

    def generations(self) -> list[Path]:
        """All complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.name.startswith(PREFIX))

    def _clear(self) -> None:
        """Remove the incomplete files of a killed run."""
        for path in self.folder.iterdir():
            if path.name.startswith(TEMPORARY_PREFIX):
                shutil.rmtree(path, ignore_errors=True)


def _digest_of(path: Path) -> str:
    return digest_in_parts(path.stat().st_size, _chunks(path))


def _chunks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        while data := stream.read(CHUNK):
            yield data


def _flush(folder: Path) -> None:
    """File names are on disk only after their folder has been flushed."""
    if WINDOWS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
