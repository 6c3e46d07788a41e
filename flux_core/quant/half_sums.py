"""Products of float16 numbers that are summed in float16: twice the rate of tensor cores of GeForce cards, less exact.

PyTorch has one switch for a whole process (`allow_fp16_accumulation`, from 2.7 on), so it is set for the duration of
one evaluation of our own model and put back. Sums beyond 65504 overflow; the run then ends as for any number that is
not finite.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import InputError

_SWITCH = "allow_fp16_accumulation"
_users: list[bool] = []  # what the switch was before each evaluation that is under way, the oldest first
_lock = threading.Lock()


def check_half_sums(device: torch.device, dtype: torch.dtype) -> None:
    """Raises InputError where sums in float16 have no effect."""
    if device.type != "cuda":
        raise InputError(f"Sums in float16 are for NVIDIA cards, and this is {device}. Choose another --compute.")
    if dtype is not torch.float16:
        word = str(dtype).removeprefix("torch.")
        raise InputError(f"Sums in float16 are for numbers in float16, and {word} is computed in. Add --dtype fp16.")
    try:
        getattr(torch.backends.cuda.matmul, _SWITCH)
    except (AttributeError, RuntimeError):
        raise InputError(f"PyTorch {torch.__version__} cannot sum in float16; 2.7 and later can.") from None


@contextmanager
def half_sums() -> Iterator[None]:
    """Sums in float16 while the context lasts; of several at once, in several threads, the last one puts it back."""
    matmul = torch.backends.cuda.matmul
    with _lock:
        _users.append(getattr(matmul, _SWITCH))
        setattr(matmul, _SWITCH, True)
    try:
        yield
    finally:
        with _lock:
            before = _users.pop(0) if len(_users) == 1 else None
            if before is None:
                _users.pop()
            else:
                setattr(matmul, _SWITCH, before)
