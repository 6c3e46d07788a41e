"""The type of offered classes that have only a part of what ComfyUI's classes of the same name have.

BaseModel.apply_model            read from the class, as in annotations and before a patch: an `Absent`
BaseModel(...).apply_model       as without this type
"""

from __future__ import annotations

import dis
import sys
from abc import ABCMeta
from functools import cache
from types import CodeType, FrameType
from typing import Any

from .engine import current

_OFFERED = ".offered."
# The bytecode of a plain read of a name; anything else is hasattr, or getattr with a default.
_READS = (
    "LOAD_ATTR",
    "LOAD_METHOD",
    "IMPORT_FROM",
    "IMPORT_STAR",
    "CALL_INTRINSIC_1",
    "LOAD_SUPER_ATTR",
    "DELETE_ATTR",
)


class PartlyOffered(ABCMeta):
    """Names that a class lacks are absent; tests for a name (hasattr) find only those that it has."""

    def __getattr__(cls, name: str) -> Any:
        module = cls.__module__.partition(_OFFERED)[2]
        if not module or name.startswith("__") or is_probe(sys._getframe(1)):
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        return current().absent(f"{module}.{cls.__name__}.{name}")


def is_probe(frame: FrameType) -> bool:
    """Whether the code tests for a name (hasattr, or getattr with a default) instead of reading it."""
    return frame.f_lasti >= 0 and _is_test(frame.f_code, frame.f_lasti)


@cache
def _is_test(code: CodeType, at: int) -> bool:
    """The same for an instruction: a call of getattr with two arguments is a read."""
    called = ""
    for step in dis.get_instructions(code):
        if step.offset == at:
            if step.opname.startswith("CALL") and step.arg == 2 and called == "getattr":
                return False
            return not step.opname.startswith(_READS)
        if step.argval in ("getattr", "hasattr"):
            called = step.argval
    return True
