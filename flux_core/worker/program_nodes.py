"""The nodes of the standalone program: those of the table, and those that the node pack inside ComfyUI does not
have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...nodes.binding import bound_to
from ..training.lora.comfyui_nodes import CLASSES
from ..training.lora.node import TrainLora
from .registry import PREFIX, Tables, standalone_tables

if TYPE_CHECKING:
    from ...nodes.host import Host


def program_tables(host: Host) -> Tables:
    """As `standalone_tables`, with the training of LoRAs: a node of our own, and ComfyUI's under their ids."""
    classes, titles = standalone_tables(host)
    more = bound_to(host, {f"{PREFIX}TrainLora": TrainLora, **CLASSES})
    return classes | more, titles | {name: node.TITLE for name, node in more.items()}
