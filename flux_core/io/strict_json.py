"""JSON as both Python and JavaScript read it: bounded in size and depth, without NaN, in plain ASCII.

`loads` reads everything from images and from the network, `dumps` writes everything for them.
Uses no images, workflows or nodes.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ..errors import WorkflowError

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 100
UTF16 = (b"\xff\xfe", b"\xfe\xff")  # the byte-order mark of text redirected into a file by Windows PowerShell

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def loads(text: str | bytes, what: str = "the JSON text") -> Any:
    """Parse untrusted JSON; `what` names it in the error.

    NaN, Infinity and numbers beyond a double become None, as the browser makes them; half surrogate pairs become
    U+FFFD, so that every string can be printed and saved. Bytes are read as `decode` does.
    Raises WorkflowError: over 16 MiB, nested deeper than 100, or not JSON.
    """
    if len(text) > MAX_BYTES:
        raise WorkflowError(f"{what} is {len(text) / 2**20:.0f} MiB long; a workflow may be {MAX_BYTES >> 20} MiB.")
    if isinstance(text, bytes):
        text = decode(text)
    try:
        value = json.loads(text.removeprefix("\ufeff"), parse_constant=lambda _: None)
    except RecursionError:
        raise WorkflowError(f"{what} is nested too deep; at most {MAX_DEPTH} levels are read.") from None
    except json.JSONDecodeError as error:
        raise WorkflowError(f"{what} is not valid JSON: {error.msg} in line {error.lineno}.") from error
    except ValueError as error:  # an integer of thousands of digits
        raise WorkflowError(f"{what} is not valid JSON: {error}") from error
    return plain(value, what)


def dumps(value: Any, indent: int | None = None) -> str:
    """Strict ASCII JSON; what `plain` would change is changed, anything that is not JSON raises TypeError."""
    return json.dumps(plain(value), allow_nan=False, indent=indent)


def plain(value: Any, what: str = "the value", depth: int = 0) -> Any:
    """A deep copy, with None for numbers JSON cannot hold and U+FFFD for half surrogates. WorkflowError if too deep."""
    if depth > MAX_DEPTH:
        raise WorkflowError(f"{what} is nested too deep; at most {MAX_DEPTH} levels are read.")
    if isinstance(value, dict):
        return {plain(key): plain(item, what, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, what, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value)
    return value


def decode(raw: bytes) -> str:
    """UTF-8 if valid (many programs write it in place of Latin-1), else Latin-1; UTF-16 after its byte-order mark."""
    if raw.startswith(UTF16):
        return raw.decode("utf-16", errors="replace")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
