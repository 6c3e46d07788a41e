"""Checks made before a large allocation, so that too large a request ends in an error message and not in a killed
process; and the advice for allocations that failed without a check.
"""

from __future__ import annotations

from .errors import InputError, SluiceError

GiB = 2**30
SMALLER = "Choose a smaller size or a smaller batch."
# What PyTorch says on a GPU, and on a CPU of each kind.
_REFUSED = ("out of memory", "can't allocate memory", "not enough memory")


def check_room(what: str, needed_bytes: int, there_bytes: int | None = None, advice: str = SMALLER) -> None:
    """Raise InputError if `needed_bytes` exceed the whole memory, by default this machine's. `what` needs them."""
    import psutil

    there = there_bytes or psutil.virtual_memory().total
    if needed_bytes > there:
        raise InputError(
            f"{what} needs {needed_bytes / GiB:,.0f} GiB or more of memory, and there are {there / GiB:,.0f} GiB. "
            f"{advice}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: by the type of the error, or by PyTorch's words. Errors of ours are none."""
    if isinstance(error, SluiceError):
        return False
    return isinstance(error, MemoryError) or any(part in str(error).lower() for part in _REFUSED)


def advice_after(error: BaseException) -> str:
    """The advice after this error; empty if it was not about memory."""
    if not is_out_of_memory(error):
        return ""
    return "The memory did not suffice. Lower --vram or --ram, or choose a smaller image, batch or model file."
