"""The disk space that a training needs, checked before it begins, and the sentence when writing fails nevertheless."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import SluiceError
from ...memory.budget import format_size
from ...memory.workload import MiB

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


def check_space(folder: Path, files: int, caches: int, save_every: int) -> None:
    """Raise SluiceError if the folder, which need not exist, cannot be written, or its disk has too little space.

    files: bytes of checkpoints and LoRA files that will be written; caches: of embeddings and latents.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    if not os.access(there, os.W_OK | os.X_OK):
        raise SluiceError(f"{folder} cannot be written: {there} allows no new files. Choose another --out.")
    free, needed = shutil.disk_usage(there).free, files + caches
    if free < needed:
        saved = f"{format_size(files)} for checkpoints and a LoRA every {save_every} steps"
        encoded = f", and {format_size(caches)} for encoded captions and pictures" if caches >= MiB else ""
        raise SluiceError(
            f"The disk of {there} has room for {format_size(free)}, and this training will write "
            f"{format_size(needed)}: {saved}{encoded}. Make room, choose another --out, save more rarely "
            "(--save-every), or choose a smaller --rank."
        )


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """In this context a write that fails raises SluiceError with what to do. folder: of the training."""
    try:
        yield
    except OSError as error:
        if isinstance(error, SluiceError) or error.errno not in CANNOT_WRITE:
            raise
        place = f" ({error.filename})" if error.filename else ""
        raise SluiceError(
            f"The files of the training could not be written to {folder}{place}: {error.strerror}. What was written "
            "before is whole. Make room, or allow writing there, and give the same command again: it goes on at the "
            "last checkpoint."
        ) from error
