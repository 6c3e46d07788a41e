"""A grid of one workflow with other values of two of its inputs."""

from __future__ import annotations

from typing import Any

from .sockets import IMAGE, STRING, Inputs

AXIS_TIP = (
    "NODE.INPUT=VALUE,VALUE,...: the node by its number, title or class; without NODE. if one alone has the input. "
    "Values that hold commas: use semicolons."
)


class XYGrid:
    """Becomes a graph with a copy of the nodes before it for each cell."""

    TITLE = "X/Y Grid"
    DESCRIPTION = (
        "Runs what leads to this image with other values of two inputs, and places the images in a labelled grid."
    )
    CATEGORY = "image"
    FUNCTION = "grow"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The grid.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        image = {"tooltip": "The image of the workflow to repeat.", "rawLink": True, "lazy": True}
        return {
            "required": {
                "image": (IMAGE, image),
                "x": (STRING, {"default": "steps=4,8,20", "tooltip": f"Columns. {AXIS_TIP}"}),
                "y": (STRING, {"default": "", "tooltip": f"Rows. {AXIS_TIP}"}),
            },
            "hidden": {"dynprompt": "DYNPROMPT", "unique_id": "UNIQUE_ID"},
        }

    def grow(self, image: Any, x: str, y: str, dynprompt: Any = None, unique_id: str = "") -> dict[str, Any]:
        from ..flux_core.graph.axes import cells, grown_cells, parse_axes

        across, down = parse_axes(x, y)
        prompt = {node_id: dynprompt.get_node(node_id) for node_id in dynprompt.all_node_ids()}
        made, ends = grown_cells(
            prompt, image, cells(across, down), lambda number, node_id: f"{unique_id}.{number}.{node_id}"
        )
        inputs: dict[str, Any] = {"across": "\n".join(across.labels), "down": "\n".join(down.labels)}
        inputs |= {f"image{number}": end for number, end in enumerate(ends)}
        last = f"{unique_id}.grid"
        made[last] = {"class_type": "SluiceLabelledImageGrid", "inputs": inputs}
        return {"result": ([last, 0],), "expand": made}


class LabelledImageGrid:
    """Images in rows and columns."""

    TITLE = "Labelled Image Grid"
    DESCRIPTION = "Places images in rows and columns, with labels. An X/Y Grid ends in one; images come by links."
    CATEGORY = "image"
    FUNCTION = "place"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The grid.",)
    ACCEPT_ALL_INPUTS = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "across": (
                    STRING,
                    {"default": "", "multiline": True, "tooltip": "A label for each column, one on a line."},
                ),
                "down": (STRING, {"default": "", "multiline": True, "tooltip": "A label for each row, one on a line."}),
                "image0": (IMAGE, {"tooltip": "The images, row by row: image0, image1, ... Of a batch, the first."}),
            }
        }

    def place(self, across: str, down: str, image0: Any, **images: Any) -> tuple[Any]:
        import numpy as np
        import torch

        from ..flux_core.images.files import to_pil
        from ..flux_core.images.labelled_grid import labelled_grid

        given = [image0, *(images[f"image{number}"] for number in range(1, len(images) + 1))]
        grid = labelled_grid([to_pil(image[0]) for image in given], across.split("\n"), down.split("\n"))
        numbers = torch.from_numpy(np.asarray(grid).copy()).float()[None]
        return (((numbers + 0.5) / 255).clamp(max=1),)  # in the middle of a step, since saving cuts off
