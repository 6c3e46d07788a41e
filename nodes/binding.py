"""Binds node classes to a host, which gives them folders, progress and models.

ComfyUI and our own engine create instances of node classes and call their class methods (INPUT_TYPES, IS_CHANGED)
without passing the program on. So each front door binds the classes to its host before it offers them: a bound class is
a subclass with `host` set. Two programs in one process have two sets of classes.

    class MyNode(HostedNode):
        @classmethod
        def INPUT_TYPES(cls): return {"required": {"name": (cls.host.filenames("loras"),)}}
        def run(self, name): path = self.host.full_path("loras", name)

Nodes that need nothing from the program are plain classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from .host import Host


class HostedNode:
    """A node that uses its host: `self.host` when it runs, `cls.host` in class methods."""

    host: ClassVar[Host]


def bound_to(host: Host, classes: Mapping[str, type[Any]]) -> dict[str, type[Any]]:
    """The table with each hosted class bound to `host`. A class with two ids stays one class."""
    bound: dict[type[Any], type[Any]] = {}
    for node_class in classes.values():
        if node_class not in bound:
            bound[node_class] = _bound(node_class, host) if issubclass(node_class, HostedNode) else node_class
    return {name: bound[node_class] for name, node_class in classes.items()}


def _bound(node_class: type[HostedNode], host: Host) -> type[HostedNode]:
    same = {name: getattr(node_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(node_class.__name__, (node_class,), {"host": host, **same})
