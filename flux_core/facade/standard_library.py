"""`sys`, `importlib` and `__main__` for packs: the same modules, with ComfyUI's modules added.

    sys.modules["folder_paths"]           exists, as in ComfyUI
    del sys.modules["torchvision"]        has no effect: some packs remove all modules imported after them, which
                                          in ComfyUI were imported before. Modules of packs can be removed.
    importlib.import_module("comfy.utils")
    importlib.reload(comfy.samplers)      has no effect
    __main__.__file__                     ComfyUI's main.py, beside which packs look for web/extensions

Everything else is read from, and written to, the real modules.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, MutableMapping
from types import ModuleType
from typing import Any

from .module_names import TOP

Offered = Callable[[str], "ModuleType | None"]


class Front(ModuleType):
    """A module of the standard library with some names replaced by ours."""

    def __init__(self, real: ModuleType, **own: Any) -> None:
        super().__init__(real.__name__, real.__doc__)
        self.__dict__.update(own, _real=real, __spec__=real.__spec__, __path__=getattr(real, "__path__", None))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_real"], name, value)

    def __dir__(self) -> list[str]:
        return dir(self.__dict__["_real"])


class Main(Front):
    """`__main__` with the path of ComfyUI's main.py. file: returns it when a pack reads it."""

    def __init__(self, real: ModuleType, file: Callable[[], str]) -> None:
        super().__init__(real, _file=file)

    def __getattr__(self, name: str) -> Any:
        return self.__dict__["_file"]() if name == "__file__" else super().__getattr__(name)


def fronts(offered: Offered, pack_of: Callable[[str], str | None], main: Callable[[], str]) -> dict[str, ModuleType]:
    """Name -> module, for packs. offered: returns the module of one of ComfyUI's names; pack_of: the pack of a file;
    main: returns the path that `__main__` has for packs.
    """

    def import_module(name: str, package: str | None = None) -> ModuleType:
        found = offered(name) if _is_comfyuis(name) else None
        return importlib.import_module(name, package) if found is None else found

    def reload(module: ModuleType) -> ModuleType:
        is_real = sys.modules.get(getattr(module, "__name__", "")) is module
        return importlib.reload(module) if is_real else module

    return {
        "sys": Front(sys, modules=Modules(offered, pack_of)),
        "importlib": Front(importlib, import_module=import_module, reload=reload),
        "__main__": Main(sys.modules["__main__"], main),
    }


def _is_comfyuis(name: str) -> bool:
    return name.partition(".")[0] in TOP


class Modules(MutableMapping[str, Any]):
    """sys.modules, with ComfyUI's modules added."""

    def __init__(self, offered: Offered, pack_of: Callable[[str], str | None]) -> None:
        self._offered, self._pack_of = offered, pack_of

    def __getitem__(self, name: str) -> Any:
        if name in sys.modules:
            return sys.modules[name]
        found = self._offered(name) if isinstance(name, str) and _is_comfyuis(name) else None
        if found is None:
            raise KeyError(name)
        return found

    def __setitem__(self, name: str, module: Any) -> None:
        sys.modules[name] = module

    def __delitem__(self, name: str) -> None:
        file = getattr(sys.modules.get(name), "__file__", None)
        if name in sys.modules and (file is None or self._pack_of(file) is not None):
            del sys.modules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(list(sys.modules))

    def __len__(self) -> int:
        return len(sys.modules)

    def copy(self) -> dict[str, Any]:
        return dict(sys.modules)
