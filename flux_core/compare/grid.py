"""The images of a grid in one image for each prompt and seed, which carries the workflow that makes it again.

That workflow is the compared one with an X/Y Grid node between its image and the node that saves it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..api.files import save
from ..graph.axes import NOTHING, Axis
from ..graph.prompt import is_link
from ..images.labelled_grid import labelled_grid
from .results import Results

NODE = "xy"  # its id


def write_grids(results: Results, folder: Path, across: Axis, down: Axis) -> Iterator[Path]:
    """grid-PROMPT-SEED.png for each prompt and seed of which all cells are there."""
    from PIL import Image

    for prompt in range(len(results.prompts)):
        for seed in results.seeds:
            made = [results.find(cell, prompt, seed) for cell in range(len(results.settings))]
            if not all(made):
                continue
            images = []
            for one in made:
                assert one is not None
                with Image.open(folder / one.file) as image:
                    image.load()
                    images.append(image)
            grid = labelled_grid(images, across.labels, down.labels)
            carried = images[0].info.get("prompt")
            if isinstance(carried, str):
                grid.info["prompt"] = json.dumps(with_grid_node(json.loads(carried), across, down))
            yield save(grid, folder / f"grid-{prompt:03}-{seed}.png")


def with_grid_node(prompt: dict[str, Any], across: Axis, down: Axis) -> dict[str, Any]:
    """The prompt of a cell with the grid before the nodes that show its image."""
    for node in prompt.values():
        link = node["inputs"].get("images")
        if is_link(link) and not node["class_type"].endswith("XYGrid"):
            texts = {"x": _text(across), "y": _text(down)}
            grid = {"class_type": "SluiceXYGrid", "inputs": {"image": link, **texts}, "_meta": {"title": "X/Y Grid"}}
            shown = {**node, "inputs": {**node["inputs"], "images": [NODE, 0]}}
            others = {name: each for name, each in prompt.items() if each is not node}
            saved = next(name for name, each in prompt.items() if each is node)
            return {**others, NODE: grid, saved: shown}
    return prompt


def _text(axis: Axis) -> str:
    if axis is NOTHING:
        return ""
    return f"{axis.target}={(';' if any(',' in value for value in axis.values) else ',').join(axis.values)}"
