"""Files about our nodes for the editor: a help page for each, and the table for swapping workflows.

Made from the nodes' declarations by `python -m sluice.flux_core.commands.help_pages`; a test compares them.
"""

from __future__ import annotations

import json
from typing import Any

from ...nodes.host import pack_host
from ...nodes.sockets import OWN
from ..graph.translate import KINDS, TABLE
from ..worker.registry import PREFIX, comfyui_tables

DOCS = TABLE.parent / "docs"
COMFYUIS = {own: kind for kind in KINDS for own in (kind, KINDS[kind]) if own in OWN}  # our socket -> ComfyUI's


def help_pages() -> dict[str, str]:
    """File name -> Markdown, for all nodes that are offered inside ComfyUI."""
    classes, titles = comfyui_tables(pack_host())
    return {f"{name}.md": _page(name, titles[name], node_class) for name, node_class in classes.items()}


def swap_rows() -> dict[str, dict[str, Any]]:
    """Core id -> its sockets for models, for all nodes of ours that have a counterpart."""
    rows = {}
    for name, node_class in comfyui_tables(pack_host())[0].items():
        if getattr(node_class, "ALONE", False):
            continue
        row: dict[str, Any] = {
            "inputs": {key: COMFYUIS[kind] for key, kind, _ in _inputs(node_class) if _is_own(kind)},
            "outputs": [COMFYUIS.get(kind) for kind in node_class.RETURN_TYPES],
        }
        for position, (key, kind, _) in enumerate(_inputs(node_class)):
            if key == "type" and "flux" in kind:  # chooses the model family; only widgets precede it
                row["only"] = {"input": key, "position": position, "value": "flux"}
        rows[name.removeprefix(PREFIX)] = row
    return rows


def swap_table() -> str:
    rows = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in swap_rows().items()]
    return "{\n" + ",\n".join(rows) + "\n}\n"


def write() -> None:
    """Write the files."""
    pages = help_pages()
    DOCS.mkdir(parents=True, exist_ok=True)
    for stale in {path.name for path in DOCS.glob("*.md")} - pages.keys():
        (DOCS / stale).unlink()
    for name, text in pages.items():
        (DOCS / name).write_text(text, encoding="utf-8")
    TABLE.write_text(swap_table(), encoding="utf-8")


def _page(name: str, title: str, node_class: type[Any]) -> str:
    parts = [f"# {title}", node_class.DESCRIPTION]
    plain = name.removeprefix(PREFIX)
    if not getattr(node_class, "ALONE", False):
        parts.append(f"Replaces `{plain}`: same inputs, same values.")
    if getattr(node_class, "EXPERIMENTAL", False):
        parts.append("Experimental.")
    inputs = [
        f"| `{key}` | {_kind(kind)} | {_shown(options)} | {options.get('tooltip', '')} |"
        for key, kind, options in _inputs(node_class)
    ]
    if inputs:
        parts.append("\n".join(["## Inputs", "", "| Name | Kind | Default | |", "|---|---|---|---|", *inputs]))
    kinds = node_class.RETURN_TYPES
    names = getattr(node_class, "RETURN_NAMES", [_kind(kind) for kind in kinds])
    outputs = [f"| `{key}` | {tip} |" for key, tip in zip(names, node_class.OUTPUT_TOOLTIPS, strict=True)]
    if outputs:
        parts.append("\n".join(["## Outputs", "", "| Name | |", "|---|---|", *outputs]))
    return "\n\n".join(parts) + "\n"


def _inputs(node_class: type[Any]) -> list[tuple[str, Any, dict[str, Any]]]:
    sections = node_class.INPUT_TYPES()
    return [
        (name, declared[0], declared[1] if len(declared) > 1 else {})
        for section in ("required", "optional") for name, declared in sections.get(section, {}).items()
    ]  # fmt: skip


def _is_own(kind: Any) -> bool:
    return isinstance(kind, str) and kind in COMFYUIS


def _kind(kind: Any) -> str:
    """The name of a type inside ComfyUI."""
    return "choice" if isinstance(kind, list) else KINDS[COMFYUIS[kind]] if _is_own(kind) else str(kind)


def _shown(options: dict[str, Any]) -> str:
    default = options.get("default", "")
    return f"`{default}`" if default != "" else ""


if __name__ == "__main__":
    write()
