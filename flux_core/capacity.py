"""Is there room at all? Asked before something large is allocated, so that the answer is a sentence and not a kill."""

from __future__ import annotations

from .errors import InputError

GiB = 2**30


def check_room(what: str, needed_bytes: int, there_bytes: int | None = None) -> None:
    """Raise InputError if `needed_bytes` exceed the whole memory, by default this machine's. `what` needs them."""
    import psutil

    there = there_bytes or psutil.virtual_memory().total
    if needed_bytes > there:
        raise InputError(
            f"{what} needs {needed_bytes / GiB:,.0f} GiB or more of memory, and there are {there / GiB:,.0f} GiB. "
            "Choose a smaller size or a smaller batch."
        )
