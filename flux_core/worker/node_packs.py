"""Node packs of other people: plain ComfyUI V1 packs, imported into this process.

    DIR/pack/__init__.py or DIR/pack.py     with NODE_CLASS_MAPPINGS {id: class}, perhaps NODE_DISPLAY_NAME_MAPPINGS,
                                            WEB_DIRECTORY

A pack that cannot be imported is reported and left out; the others work. Ids that are taken stay as they are. A pack's
code runs with all the rights of this process: only what the person named is imported, and nothing is installed.

Does not know: what the nodes do.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

# Parts of ComfyUI that packs import; none of them is here.
COMFYUI_MODULES = (
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "nodes",
    "server",
)


@dataclass(frozen=True)
class Pack:
    """What became of one pack."""

    name: str
    path: str
    nodes: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()  # ids it has, but somebody had before
    web: str | None = None  # folder of its JavaScript
    error: str | None = None


def load_packs(places: Iterable[Path], classes: dict[str, type[Any]], titles: dict[str, str]) -> list[dict[str, Any]]:
    """Import every pack in these folders and add its nodes to both tables. The account of each pack, as JSON."""
    found = [path for place in places for path in candidates(place)]
    packs = [_load(path, classes, titles) for path in found]
    for pack in packs:
        if pack.error:
            log.error("The node pack %s is left out: %s", pack.name, pack.error)
        else:
            log.info("The node pack %s brings %d nodes.", pack.name, len(pack.nodes))
    return [asdict(pack) for pack in packs]


def candidates(place: Path) -> list[Path]:
    """What looks like a pack in a folder; or the folder itself, if it is one."""
    if (place / "__init__.py").is_file():
        return [place]
    if not place.is_dir():
        return [place]  # so that the person hears of it
    entries = sorted(entry for entry in place.iterdir() if not entry.name.startswith((".", "_")))
    return [
        entry
        for entry in entries
        if entry.suffix == ".py" or ((entry / "__init__.py").is_file() and not entry.name.endswith(".disabled"))
    ]


def _load(path: Path, classes: dict[str, type[Any]], titles: dict[str, str]) -> Pack:
    name = path.stem if path.is_file() else path.name
    try:
        module = _imported(path)
        offered = getattr(module, "NODE_CLASS_MAPPINGS", None)
        if not isinstance(offered, Mapping):
            return Pack(name, str(path), error="It has no NODE_CLASS_MAPPINGS, so it is no ComfyUI node pack.")
        free = {str(key): node_class for key, node_class in offered.items() if key not in classes}
        for node_class in free.values():
            node_class.RELATIVE_PYTHON_MODULE = f"custom_nodes.{name}"
        named = dict(getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", None) or {})
        classes.update(free)
        titles.update({key: str(named.get(key) or key) for key in free})
        taken = tuple(str(key) for key in offered if key not in free)
        return Pack(name, str(path), tuple(free), taken, _web(path, module))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a pack may do anything on import, sys.exit included
        traceback.print_exc()
        return Pack(name, str(path), error=_reason(error))


def _imported(path: Path) -> ModuleType:
    """The pack as a module of its own name, which nothing else can have."""
    if not path.exists():
        raise FileNotFoundError(f"There is no folder {path}.")
    name = "sluice_pack_" + re.sub(r"\W", "_", str(path.absolute()))
    file = path / "__init__.py" if path.is_dir() else path
    below = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=below)
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _web(path: Path, module: ModuleType) -> str | None:
    directory = getattr(module, "WEB_DIRECTORY", None)
    if not isinstance(directory, str) or not path.is_dir():
        return None
    web = (path / directory).resolve()
    return str(web) if web.is_dir() and web.is_relative_to(path.resolve()) else None


def _reason(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.partition(".")[0]
        if module in COMFYUI_MODULES:
            return f"It needs ComfyUI itself (it imports {error.name}); only packs that do without work here."
        return f"It needs the Python package {module}, which is not installed."
    return f"{type(error).__name__}: {error}"
