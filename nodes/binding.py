"""How a node class gets the host it runs in: the program around it, with its folders, progress and models.

ComfyUI and our own engine make instances of node classes and call class methods of them (INPUT_TYPES, IS_CHANGED),
and give neither of them anything to know the program by. So each door binds the classes to its host before it offers
them: a bound class is a subclass with `host` set. Two programs in one process have two sets of classes.

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
    """A node that needs its host: `self.host` when it runs, `cls.host` in class methods."""

    host: ClassVar[Host]


def bound_to(host: Host, classes: Mapping[str, type[Any]]) -> dict[str, type[Any]]:
    """The table with every hosted class bound to `host`. One class under two ids stays one class."""
    bound: dict[type[Any], type[Any]] = {}
    for node_class in classes.values():
        if node_class not in bound:
            bound[node_class] = _bound(node_class, host) if issubclass(node_class, HostedNode) else node_class
    return {name: bound[node_class] for name, node_class in classes.items()}


def _bound(node_class: type[HostedNode], host: Host) -> type[HostedNode]:
    same = {name: getattr(node_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(node_class.__name__, (node_class,), {"host": host, **same})
