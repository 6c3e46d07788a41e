"""Makes ComfyUI's modules importable for node packs, and for no other code of this process.

A loader of ours loads the files below the folders of packs. It gives each file separate builtins whose `__import__`
finds ComfyUI's names. No name is in sys.modules, so our own code, libraries and tests for ComfyUI do not find them.

    sys.path_hooks                          one hook, only for folders below packs
    importlib.util.spec_from_file_location  uses the same loader for files below packs, which load their modules with it

Independent of: what the modules offer.
"""

from __future__ import annotations

import builtins
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from .module_names import TOP
from .standard_library import fronts


class Isolation:
    """The folders of packs, and the imports of their code. modules: returns the module of one of ComfyUI's names; main:
    the path of ComfyUI's main.py.
    """

    def __init__(self, modules: Callable[[str], ModuleType | None], main: Callable[[], str]) -> None:
        self._modules = modules
        self._fronts = fronts(modules, self.pack_of, main)
        self._roots: dict[str, str] = {}  # folder with a separator at its end -> name of the pack
        self.builtins = {**vars(builtins), "__import__": self._import}
        self._plain_spec = importlib.util.spec_from_file_location

    def install(self) -> None:
        """Start. Packs that are added later are included."""
        sys.path_hooks.insert(0, self._finder)
        importlib.util.spec_from_file_location = self._spec

    def remove(self) -> None:
        """Stop. Modules of packs that are loaded keep their imports."""
        sys.path_hooks.remove(self._finder)
        importlib.util.spec_from_file_location = self._plain_spec
        self._forget_finders()

    def add(self, path: Path, name: str) -> None:
        """Add a pack: its folder, or its only file."""
        for place in {os.path.abspath(path), os.path.realpath(path)}:
            self._roots[place + os.sep if os.path.isdir(place) else place] = name
        self._forget_finders()

    def pack_of(self, path: str) -> str | None:
        """The pack to which a file or folder belongs."""
        place = os.path.abspath(path)
        return next((name for root, name in self._roots.items() if (place + os.sep).startswith(root)), None)

    def calling_pack(self, frame: FrameType | None) -> str:
        """The pack of the innermost frame that belongs to a pack; "" if there is none."""
        while frame is not None:
            if frame.f_builtins is self.builtins:
                return self.pack_of(frame.f_code.co_filename) or ""
            frame = frame.f_back
        return ""

    def load(self, name: str, path: Path) -> ModuleType:
        """Import a pack under a module name of its own. Raises what the pack raises."""
        file = path / "__init__.py" if path.is_dir() else path
        below = [str(path)] if path.is_dir() else None
        loader = _PackLoader(name, str(file), self.builtins)
        spec = self._plain_spec(name, file, loader=loader, submodule_search_locations=below)
        assert spec is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        return module

    def _forget_finders(self) -> None:
        for place in [place for place in sys.path_importer_cache if self.pack_of(place)]:
            del sys.path_importer_cache[place]

    def _finder(self, place: str) -> FileFinder:
        if self.pack_of(place or os.getcwd()) is None or not os.path.isdir(place):
            raise ImportError(f"{place} belongs to no node pack")
        return FileFinder(
            place,
            (ExtensionFileLoader, EXTENSION_SUFFIXES),
            (self._source_loader, SOURCE_SUFFIXES),  # type: ignore[arg-type]
            (SourcelessFileLoader, BYTECODE_SUFFIXES),
        )

    def _source_loader(self, name: str, path: str) -> SourceFileLoader:
        return _PackLoader(name, path, self.builtins)

    def _spec(self, name: str, location: Any = None, **more: Any) -> ModuleSpec | None:
        is_source = location is not None and str(location).endswith(tuple(SOURCE_SUFFIXES))
        if is_source and more.get("loader") is None and self.pack_of(os.fspath(location)) is not None:
            more["loader"] = _PackLoader(name, os.path.abspath(location), self.builtins)
        return self._plain_spec(name, location, **more)

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """The implementation of `import` in files of packs."""
        top = name.partition(".")[0]
        if level or top not in TOP:
            found = builtins.__import__(name, globals, locals, fromlist or (), level)
            front = None if level else self._fronts.get(name if fromlist else top)
            return found if front is None else front
        module = self._modules(name)
        if module is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if fromlist:
            return module
        first = self._modules(top)
        assert first is not None
        return first


class _PackLoader(SourceFileLoader):
    """Loads a file of a pack with the imports of `Isolation`."""

    def __init__(self, name: str, path: str, its_builtins: dict[str, Any]) -> None:
        super().__init__(name, path)
        self._builtins = its_builtins

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = self._builtins
        super().exec_module(module)
