"""Which node classes are offered under which ids: all of them standalone; inside ComfyUI those that use our models."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ...nodes import NODE_CLASSES
from ...nodes.binding import bound_to
from ...nodes.sockets import OWN

if TYPE_CHECKING:
    from ...nodes.host import Host

PREFIX = "Sluice"

Tables = tuple[dict[str, type[Any]], dict[str, str]]  # id -> class, id -> title


def standalone_tables(host: Host) -> Tables:
    """All classes, under ComfyUI's own ids, so that its workflows run unchanged, and under our prefixed ids.

    Substitutes for nodes of other packs are offered under those packs' ids only. All classes are bound to `host`, the
    program that offers them.
    """
    from ...nodes.other_packs.table import OTHER_CLASSES  # unused inside ComfyUI

    classes: dict[str, type[Any]] = {}
    titles: dict[str, str] = {}
    for prefixed, node_class in NODE_CLASSES.items():
        plain = prefixed.removeprefix(PREFIX)
        classes[plain] = classes[prefixed] = node_class
        titles[plain] = _title(plain, node_class)
        titles[prefixed] = f"{titles[plain]} (Sluice)"
    for name, node_class in OTHER_CLASSES.items():
        classes[name], titles[name] = node_class, _title(name, node_class)
    return bound_to(host, classes), titles


def second_ids(classes: Collection[str]) -> set[str]:
    """The prefixed ids of classes that also have ComfyUI's own ids."""
    return {name for name in classes if name.startswith(PREFIX) and name.removeprefix(PREFIX) in classes}


def comfyui_tables(host: Host) -> Tables:
    """The classes that use our models, under prefixed ids, bound to `host`. ComfyUI's own nodes do the rest."""
    all_ = bound_to(host, NODE_CLASSES)
    classes = {name: node_class for name, node_class in all_.items() if _touches_our_models(node_class)}
    titles = {name: f"{_title(name.removeprefix(PREFIX), cls)} (Sluice)" for name, cls in classes.items()}
    return classes, titles


def _title(plain: str, node_class: type[Any]) -> str:
    return str(getattr(node_class, "TITLE", plain))


def _touches_our_models(node_class: type[Any]) -> bool:
    if not OWN.isdisjoint(node_class.RETURN_TYPES):  # tested first, because loaders' inputs list folders
        return True
    if not getattr(node_class, "MODELS", True):
        return False
    inputs = node_class.INPUT_TYPES()
    types = [declared[0] for section in ("required", "optional") for declared in inputs.get(section, {}).values()]
    return any(isinstance(kind, str) and kind in OWN for kind in types)
