"""Where the evaluations of jobs that have not ended are kept: one folder for each job, below the user folder.

The worker writes them (runtime/evaluation_log.py); the server removes those that belong to no job of its queue.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path


def unfinished(user: Path, prompt_id: str) -> Path:
    """The folder of one job. Clients choose the ids of prompts, so ids are not used as file names."""
    return _folder(user) / _name(prompt_id)


def forget(user: Path, prompt_id: str) -> None:
    """Remove the folder of a job that has ended. What cannot be removed now is removed when the server starts again."""
    shutil.rmtree(unfinished(user, prompt_id), ignore_errors=True)


def forget_others(user: Path, prompt_ids: Iterable[str]) -> None:
    """Remove the folders of all jobs but these."""
    kept = {_name(prompt_id) for prompt_id in prompt_ids}
    folder = _folder(user)
    for place in folder.iterdir() if folder.is_dir() else ():
        if place.name not in kept:
            shutil.rmtree(place, ignore_errors=True)


def _folder(user: Path) -> Path:
    return user / "sluice" / "unfinished"


def _name(prompt_id: str) -> str:
    return hashlib.sha256(prompt_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
