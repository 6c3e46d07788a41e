"""Tensors inside tuples and dataclasses: listed, changed all at once, compared by shape.

Code that passes such a record on (to another device, to a dry run, into a cache) does not depend on its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

Value = TypeVar("Value")


def map_tensors(value: Value, change: Callable[[Tensor], Tensor]) -> Value:
    """A tensor, or a tuple or dataclass with any contents, with every tensor in it changed."""
    changed: Any = value
    if isinstance(value, Tensor):
        changed = change(value)
    elif isinstance(value, tuple):
        changed = tuple(map_tensors(part, change) for part in value)
    elif is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.init]
        changed = replace(value, **{name: map_tensors(getattr(value, name), change) for name in names})
    return changed  # type: ignore[no-any-return]


def tensors_of(value: object) -> Iterator[Tensor]:
    """Every tensor in it, in the order of the fields."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from tensors_of(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))


def shapes_of(value: object) -> Hashable:
    """Equal for values whose tensors have the same shapes and number types in the same places."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, tuple):
        return tuple(shapes_of(part) for part in value)
    if is_dataclass(value):
        return type(value), *(shapes_of(getattr(value, field.name)) for field in fields(value))
    return None
