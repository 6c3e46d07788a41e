"""Is there room at all? Asked before something large is allocated, so that the answer is a sentence and not a kill."""

from __future__ import annotations

from .errors import InputError

GiB = 2**30


def check_room(what: str, needed_bytes: int) -> None:
    """Raise InputError if `needed_bytes` exceed this machine's whole memory. `what` begins the sentence."""
    import psutil

    there = psutil.virtual_memory().total
    if needed_bytes > there:
        raise InputError(
            f"{what} needs {needed_bytes / GiB:,.0f} GiB and this machine has {there / GiB:,.0f} GiB of memory. "
            "Choose a smaller size or a smaller batch."
        )
