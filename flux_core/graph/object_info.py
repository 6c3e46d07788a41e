"""The answer to GET /object_info: node classes described as ComfyUI's frontend expects them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from ..io import strict_json
from .interface import Classes

log = logging.getLogger(__name__)


def object_info(
    classes: Classes, titles: Mapping[str, str] | None = None, second_ids: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """Class id -> description. A class whose declaration raises is logged and left out; the others are served.

    `second_ids` are further names of classes that are listed under another id: they work but do not appear in a search.
    """
    described = {}
    for class_type, node_class in classes.items():
        try:
            described[class_type] = describe(class_type, node_class, (titles or {}).get(class_type, class_type))
            if class_type in second_ids:
                described[class_type]["dev_only"] = True
        except Exception:
            log.exception("The node class %s cannot be described.", class_type)
    return described


def describe(class_type: str, node_class: type[Any], title: str) -> dict[str, Any]:
    """One class as JSON. Infinite limits become null, which the browser treats as no limit."""
    inputs = node_class.INPUT_TYPES()
    outputs = list(node_class.RETURN_TYPES)
    info: dict[str, Any] = {
        "input": inputs,
        "input_order": {section: list(names) for section, names in inputs.items()},
        "output": outputs,
        "output_is_list": list(getattr(node_class, "OUTPUT_IS_LIST", [False] * len(outputs))),
        "output_name": list(getattr(node_class, "RETURN_NAMES", outputs)),
        "name": class_type,
        "display_name": title,
        "description": getattr(node_class, "DESCRIPTION", ""),
        "python_module": getattr(node_class, "RELATIVE_PYTHON_MODULE", "nodes"),
        "category": getattr(node_class, "CATEGORY", "sd"),
        "output_node": bool(getattr(node_class, "OUTPUT_NODE", False)),
    }
    if hasattr(node_class, "OUTPUT_MATCHTYPES"):
        info["output_matchtypes"] = list(node_class.OUTPUT_MATCHTYPES)
    if hasattr(node_class, "OUTPUT_TOOLTIPS"):
        info["output_tooltips"] = list(node_class.OUTPUT_TOOLTIPS)
    if hasattr(node_class, "SEARCH_ALIASES"):
        info["search_aliases"] = list(node_class.SEARCH_ALIASES)
    info |= {flag.lower(): True for flag in ("DEPRECATED", "EXPERIMENTAL") if getattr(node_class, flag, False)}
    plain: dict[str, Any] = strict_json.plain(info)
    return plain
