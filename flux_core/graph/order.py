"""The order of execution: a topological sort of the required nodes, which may change during the run.

A node comes after its inputs. Among the nodes that are ready, the one nearest to an output runs first: an output node,
else one that feeds an output, else one that feeds such a node, else the one added first. Nothing is run here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import PromptError
from .dynamic import find
from .interface import Interfaces
from .live import LivePrompt


class DependencyCycle(PromptError):
    """`nodes` wait for each other; some of them may have been added by an expansion."""

    def __init__(self, nodes: Sequence[str]) -> None:
        super().__init__([f"Nodes wait for each other in a circle: {' -> '.join(nodes)}."])
        self.nodes = nodes


class Waiting:
    """The nodes that have yet to run. `is_done` tells whether a node's result exists."""

    def __init__(self, live: LivePrompt, interfaces: Interfaces, is_done: Callable[[str], bool]) -> None:
        self._live = live
        self._interfaces = interfaces
        self._is_done = is_done
        self._blockers: dict[str, set[str]] = {}  # node -> the nodes it waits for
        self._feeds: dict[str, dict[str, None]] = {}  # node -> the nodes that wait for it
        self._noticed: dict[str, int] = {}  # node -> the order in which it was added
        self._ready: set[str] = set()
        self._held: set[str] = set()  # nodes that run asynchronously

    def __bool__(self) -> bool:
        return bool(self._blockers)

    def __contains__(self, node_id: object) -> bool:
        """Whether a node is to run or has begun."""
        return node_id in self._blockers

    def add(self, node_id: str) -> None:
        """Add a node that has to run, and all nodes that its non-lazy inputs need."""
        stack = [node_id]
        links = []
        while stack:
            current = stack.pop()
            if current in self._blockers:
                continue
            self._noticed[current] = len(self._noticed)
            self._blockers[current] = set()
            self._feeds[current] = {}
            self._ready.add(current)
            if self._is_done(current):
                continue
            for source in self._sources(current):
                if not self._is_done(source):
                    stack.append(source)
                    links.append((source, current))
        for source, target in links:
            self._link(source, target)

    def need(self, source: str, node_id: str) -> None:
        """Record that `node_id` needs `source` first (a lazy input)."""
        if not self._live.has_node(source):
            raise PromptError([f"Node {node_id} needs node {source}, which is not in the workflow."])
        if not self._is_done(source):
            self.add(source)
            self._link(source, node_id)

    def remove(self, node_id: str) -> None:
        """Remove a node that has run."""
        del self._blockers[node_id]
        self._ready.discard(node_id)
        for target in self._feeds.pop(node_id):
            self._blockers[target].discard(node_id)
            if not self._blockers[target]:
                self._ready.add(target)

    def hold(self, node_id: str) -> None:
        """Mark a node as running asynchronously: `pick` does not return it until it is released."""
        self._held.add(node_id)
        self._ready.discard(node_id)

    def release(self, node_id: str) -> None:
        self._held.discard(node_id)
        self._ready.add(node_id)

    def pick(self) -> str | None:
        """The node to run next; None while every one is held. Raises DependencyCycle if nodes wait for each other."""
        if self._ready:
            return self._best(sorted(self._ready, key=self._noticed.__getitem__))
        if self._held:
            return None
        raise DependencyCycle(self._cycle())

    def _cycle(self) -> list[str]:
        """One cycle among the waiting nodes, each fed by the one before it; the first node is repeated at the end."""
        node_id = next(iter(self._blockers))
        path: dict[str, None] = {}
        while node_id not in path:
            path[node_id] = None
            node_id = min(self._blockers[node_id])
        circle = [*path][[*path].index(node_id) :]
        return [node_id, *reversed(circle)]

    def _sources(self, node_id: str) -> list[str]:
        node = self._live.nodes[node_id]
        interface = self._interfaces[node.class_type]
        sources = []
        for name, link in node.links():
            declared = find(interface, name)
            if declared is not None and declared.lazy:
                continue
            if not self._live.has_node(link.node_id):
                raise PromptError([f"Node {node_id}, input {name}: node {link.node_id} is not in the workflow."])
            sources.append(link.node_id)
        return sources

    def _link(self, source: str, target: str) -> None:
        self._ready.discard(target)
        self._blockers[target].add(source)
        self._feeds[source][target] = None

    def _best(self, ready: list[str]) -> str:
        for node_id in ready:
            if self._is_output(node_id):
                return node_id
        for node_id in ready:
            if any(map(self._is_output, self._feeds[node_id])):
                return node_id
        for node_id in ready:
            if any(self._is_output(second) for first in self._feeds[node_id] for second in self._feeds[first]):
                return node_id
        return ready[0]

    def _is_output(self, node_id: str) -> bool:
        return self._interfaces[self._live.nodes[node_id].class_type].is_output
