"""Rows of tests/fixtures/nodes_object_info.json, from what a running ComfyUI answers to GET /object_info.

    python tests/comfyui/declarations.py object_info.json SaveLatent RebatchImages ...

Adds the named nodes, or brings them up to date: names, types, options and their order, without prose and file lists.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FIXTURE = Path(__file__).parents[1] / "fixtures" / "nodes_object_info.json"
FILES = {"latent", "model_name", "image", "unet_name", "clip_name", "vae_name", "ckpt_name", "lora_name"}
LEFT_OUT = ("tooltip", "multiselect", "advanced", "display_name")  # prose, and how the editor draws it


def row(told: dict[str, Any]) -> dict[str, Any]:
    """One node as the fixture keeps it."""
    sections = {name: dict(told["input"][name]) for name in ("required", "optional", "hidden") if name in told["input"]}
    for section in sections.keys() - {"hidden"}:
        sections[section] = {name: declared(name, spec) for name, spec in sections[section].items()}
    return {
        "input": sections,
        "output": told["output"],
        "output_name": told["output_name"],
        "category": told["category"],
        "output_node": told["output_node"],
        "title": told["display_name"],
        "experimental": told.get("experimental", False),
    }


def declared(name: str, spec: list[Any]) -> list[Any]:
    """One input: combos in their older form."""
    kind, options = spec[0], dict(spec[1]) if len(spec) > 1 else {}
    if kind == "COMBO" and "options" in options and "remote" not in options:
        kind = options.pop("options")
    if isinstance(kind, list) and name in FILES:
        kind = ["<files>"]
    return [kind, {key: value for key, value in options.items() if key not in LEFT_OUT}]


def main(source: str, *names: str) -> None:
    told, rows = json.loads(Path(source).read_text()), json.loads(FIXTURE.read_text())
    rows |= {name: row(told[name]) for name in names}
    FIXTURE.write_text(json.dumps(rows, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
