"""The declaration of a node class according to ComfyUI's V1 contract.

INPUT_TYPES() = {"required": {name: (type, options)}, "optional": {...}, "hidden": {name: "UNIQUE_ID" ...}}, and the
class attributes RETURN_TYPES, FUNCTION, OUTPUT_NODE, INPUT_IS_LIST, OUTPUT_IS_LIST. A type is a name ("INT", "IMAGE",
"A,B", "*") or the list of a combo's options. Uses no particular class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Classes = Mapping[str, type[Any]]


@dataclass(frozen=True)
class Input:
    """One declared input."""

    name: str
    type: Any
    category: str  # "required", "optional" or "hidden"
    options: Mapping[str, Any]

    @property
    def lazy(self) -> bool:
        """Whether the node requests this input itself, in check_lazy_status."""
        return bool(self.options.get("lazy"))

    @property
    def raw_link(self) -> bool:
        """Whether the node receives the link [id, slot] instead of its value."""
        return bool(self.options.get("rawLink"))


class Interface:
    """A class's declaration, read once: INPUT_TYPES may scan folders."""

    def __init__(self, node_class: type[Any]) -> None:
        declared = node_class.INPUT_TYPES()
        self.node_class = node_class
        self.sections: dict[str, Any] = {key: declared.get(key, {}) for key in ("required", "optional", "hidden")}
        self.outputs: tuple[Any, ...] = tuple(map(plain_type, node_class.RETURN_TYPES))
        self.is_output = bool(getattr(node_class, "OUTPUT_NODE", False))
        self.function = str(node_class.FUNCTION)

    def input(self, name: str) -> Input | None:
        """The declaration of one input. A section may support only `in` and `[]`, where a class accepts any name."""
        for category, section in self.sections.items():
            if name in section:
                return read_input(name, category, section[name])
        return None

    def inputs(self) -> tuple[Input, ...]:
        """The visible inputs, in the order of declaration."""
        return tuple(
            read_input(name, category, declared)
            for category in ("required", "optional")
            for name, declared in self.sections[category].items()
        )

    @property
    def takes_anything(self) -> bool:
        """Whether the node also receives values whose names are not declared."""
        return bool(getattr(self.node_class, "ACCEPT_ALL_INPUTS", False))

    @property
    def takes_unique_id(self) -> bool:
        """Whether results depend on the node's id, so that two equal nodes may have different results."""
        return "UNIQUE_ID" in self.sections["hidden"].values()


class Interfaces:
    """The interfaces of a class table, each read at first use."""

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self._read: dict[str, Interface] = {}

    def __contains__(self, class_type: str) -> bool:
        return class_type in self.classes

    def __getitem__(self, class_type: str) -> Interface:
        if class_type not in self._read:
            self._read[class_type] = Interface(self.classes[class_type])
        return self._read[class_type]


def read_input(name: str, category: str, declared: Any) -> Input:
    """One declaration. `declared` is (type,), (type, options), or for hidden inputs the name of the hidden value."""
    if isinstance(declared, str):
        return Input(name, declared, category, {})
    options = declared[1] if len(declared) > 1 else {}
    return Input(name, plain_type(declared[0]), category, options)


def plain_type(declared: Any) -> Any:
    """A declared type without behaviour of its own.

    Node packs declare sockets for every type by a subclass of str that differs from nothing; often it also equals
    everything, so that it would be taken for a combo or an INT, and has no hash. Those become "*".
    """
    if not isinstance(declared, str) or type(declared) is str:
        return declared
    differs_from_nothing = not (declared != "a type that nobody declares")
    return "*" if differs_from_nothing else str.__str__(declared)
