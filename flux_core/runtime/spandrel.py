"""Imports the library spandrel, an optional extra with the networks of upscale models.

It needs torchvision for two of its forty architectures, in three functions that upscaling never calls. A machine with
its own PyTorch may have no torchvision that fits. If torchvision is missing or was built for another PyTorch, those
functions are replaced while spandrel is imported; calling one raises an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

from ..errors import InputError

INSTALL = (
    "Upscale models need the package spandrel: pip install spandrel, or pip install 'sluice[upscale]'. If pip would "
    "replace your PyTorch because of torchvision: pip install --no-deps spandrel einops safetensors."
)
_PLACE = "torchvision.transforms.functional"


@cache
def spandrel() -> Any:
    """The module, with the architectures of spandrel_extra_arches if those are installed too.

    Raises InputError that says how to install what is missing.
    """
    try:
        with _torchvision():
            import spandrel as found
    except ImportError as error:
        raise InputError(f"{INSTALL} ({error})") from error
    if find_spec("spandrel_extra_arches") is not None:
        with _torchvision():
            from spandrel_extra_arches import EXTRA_REGISTRY
        found.MAIN_REGISTRY.add(*EXTRA_REGISTRY)
    return found


@contextmanager
def _torchvision() -> Iterator[None]:
    """Within this context the names that spandrel imports from torchvision exist, whether it is installed or not."""
    if _usable():
        yield
        return
    made = {name: ModuleType(name) for name in ("torchvision", "torchvision.transforms", _PLACE)}
    for name in ("InterpolationMode", "rotate", "normalize"):
        setattr(made[_PLACE], name, _missing)
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            sys.modules.pop(name, None)


def _usable() -> bool:
    """Whether torchvision is installed and was built for this PyTorch; remains of a failed import are removed."""
    try:
        import_module(_PLACE)
        return True
    except Exception:  # RuntimeError, OSError or ImportError, depending on what does not fit
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        return False


def _missing(*args: Any, **named: Any) -> NoReturn:
    raise InputError("This model needs the package torchvision, in the build for this PyTorch: install both together.")
