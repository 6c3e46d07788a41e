"""comfy.ldm.util: values that may be missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["count_params", "default", "exists"]


def exists(x: Any) -> bool:
    return x is not None


def default(val: Any, d: Any) -> Any:
    """`val`, or `d` (a value, or a function that returns one) in place of None."""
    if val is not None:
        return val
    return d() if isinstance(d, Callable) and not isinstance(d, type) else d  # type: ignore[arg-type]


def count_params(model: Any, verbose: bool = False) -> int:
    """The number of parameters of a network."""
    count: int = sum(part.numel() for part in model.parameters())
    if verbose:
        print(f"{type(model).__name__} has {count:,} parameters.")
    return count
