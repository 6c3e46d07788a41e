"""The common base of the nodes that stand in for those of other packs, and declarations of their inputs.

A class of this folder makes a workflow work that was made with another pack: it has the inputs and outputs of that
pack's node. Only the standalone program offers it; in ComfyUI the pack itself is used. If the user names the pack's
folder, the pack's own node runs; except for nodes that act on a model, where the pack's own would change ComfyUI's
network or its loading, which are not here (`ActsOnModel`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..sockets import BOOLEAN, FLOAT, IMAGE, INT, MASK, STRING, Declared, choice, socket

LARGEST = 2**63 - 1
PICTURE = socket(IMAGE, "The image.")
COVER = socket(MASK, "The mask.")

log = logging.getLogger(__name__)


class OfAnotherPack:
    """A node with the id of another pack's node. `PACK` is the pack's name in ComfyUI's registry."""

    PACK = ""
    CATEGORY = "other packs"
    STANDS_IN = True  # packs do not see it in their table of nodes
    YIELDS = True  # a loaded pack with this id replaces it

    @classmethod
    def tell(cls, text: str) -> None:
        """Log the difference to the pack's node."""
        log.info("%s: %s", getattr(cls, "TITLE", cls.__name__), text)


class ActsOnModel(OfAnotherPack):
    """A node that loads, patches or samples a model. It stays if its pack is loaded."""

    YIELDS = False


class Numbered(dict[str, Any]):
    """A section of numbered inputs such as lora_1, lora_2, ...: it contains every name with this prefix."""

    def __init__(self, prefix: str, declared: Declared, named: Mapping[str, Any] | None = None) -> None:
        super().__init__(named or {})
        self.prefix, self.declared = prefix, declared

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and name.startswith(self.prefix))

    def __missing__(self, name: str) -> Declared:
        if name.startswith(self.prefix):
            return self.declared
        raise KeyError(name)


def in_order(values: Mapping[str, Any], prefix: str) -> list[Any]:
    """The values of prefix + number, by number."""
    numbered = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    return [numbered[key] for key in sorted((key for key in numbered if key.isdecimal()), key=int)]


def anything(tip: str, **more: Any) -> Declared:
    """A socket for values of every kind."""
    return "*", {**more, "tooltip": tip}


def line(tip: str, default: str = "") -> Declared:
    """A text of one line."""
    return STRING, {"default": default, "multiline": False, "tooltip": tip}


def lines(tip: str, **more: Any) -> Declared:
    """A text of several lines."""
    return STRING, {"default": "", "multiline": True, **more, "tooltip": tip}


def linked_text(tip: str) -> Declared:
    """A text from another node."""
    return STRING, {"default": "", "forceInput": True, "tooltip": tip}


def whole(tip: str, default: int = 0, low: int = -LARGEST, high: int = LARGEST, **more: Any) -> Declared:
    """A whole number."""
    return INT, {"default": default, "min": low, "max": high, **more, "tooltip": tip}


def decimal(
    tip: str, default: float = 0.0, low: float = -LARGEST, high: float = LARGEST, step: float = 0.01
) -> Declared:
    """A number."""
    return FLOAT, {"default": default, "min": low, "max": high, "step": step, "tooltip": tip}


def flag(default: bool, tip: str) -> Declared:
    """On or off."""
    return BOOLEAN, {"default": default, "tooltip": tip}


def unused(declared: Declared) -> Declared:
    """An input without effect here."""
    return declared[0], {**declared[1], "tooltip": "No effect here."}


def one_of(options: tuple[str, ...] | list[str], tip: str, default: str | None = None) -> Declared:
    """One of a list; the first is the default."""
    return choice(options, tip, **({} if default is None else {"default": default}))
