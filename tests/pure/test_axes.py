"""Axes of an X/Y grid, and the graph that makes its cells."""

from __future__ import annotations

from typing import Any

import pytest
from sluice.flux_core.errors import InputError
from sluice.flux_core.graph.axes import Axis, cells, grown_cells, parse_axes, parse_axis

PROMPT: dict[str, Any] = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox"}, "_meta": {"title": "Prompt"}},
    "3": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "positive": ["2", 0], "steps": 20, "cfg": 1.0}},
    "4": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0]}},
    "5": {"class_type": "KSampler", "inputs": {"steps": 7}},  # leads elsewhere
    "9": {"class_type": "XYGrid", "inputs": {"image": ["4", 0], "x": "", "y": ""}},
}


def test_an_axis_is_an_input_and_its_values() -> None:
    assert parse_axis(" KSampler.steps = 4, 8 ,20") == Axis("KSampler.steps", ("4", "8", "20"))
    assert parse_axis("text=a fox, red;a wolf").values == ("a fox, red", "a wolf")
    across, down = parse_axes("3.steps=4,8", "cfg=1,2")
    assert across.labels == ("steps 4", "steps 8") and down.labels == ("cfg 1", "cfg 2")
    assert cells(across, down) == [
        ("3.steps=4", "cfg=1"), ("3.steps=8", "cfg=1"), ("3.steps=4", "cfg=2"), ("3.steps=8", "cfg=2"),
    ]  # fmt: skip
    across, down = parse_axes("", "cfg=1,2")
    assert cells(across, down) == [("cfg=1",), ("cfg=2",)] and down.labels == ("cfg 1", "cfg 2")


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        ("steps", "", "Write NODE.INPUT=VALUE,VALUE"),
        ("steps=", "", "Write NODE.INPUT=VALUE,VALUE"),
        ("", " ", "needs an axis"),
        ("steps=4,4", "", "a value twice"),
        ("steps=4", "steps=5", "Both axes"),
        ("steps=" + ",".join(map(str, range(30))), "cfg=" + ",".join(map(str, range(30))), "900 cells; 400"),
    ],
)
def test_what_is_no_axis_is_explained(x: str, y: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_axes(x, y)


def grown(*settings: tuple[str, ...]) -> tuple[dict[str, Any], list[list[Any]]]:
    return grown_cells(PROMPT, ["4", 0], settings, lambda number, node_id: f"{number}:{node_id}")


def test_a_cell_copies_what_it_changes_and_what_follows() -> None:
    made, ends = grown(("KSampler.steps=4", "cfg=2.5"), ("Prompt.text=12",))
    assert set(made) == {"0:3", "0:4", "1:2", "1:3", "1:4"} and ends == [["0:4", 0], ["1:4", 0]]
    assert made["0:3"]["inputs"] == {"model": ["1", 0], "positive": ["2", 0], "steps": 4, "cfg": 2.5}
    assert made["1:2"]["inputs"] == {"text": "12"} and made["1:3"]["inputs"]["positive"] == ["1:2", 0]
    assert made["1:3"]["inputs"]["steps"] == 20 and made["1:4"]["inputs"] == {"samples": ["1:3", 0]}


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("KSampler.depth=4", "is no value of a node before the grid. None has 'depth'"),
        ("5.steps=4", "is no value of a node before the grid. 'steps' is one of node 3.*: write 3.steps="),
        ("3.model=4", "is no value"),
        ("3.steps=many", "a number, true or false is needed, not 'many'"),
    ],
)
def test_what_fits_nowhere_is_explained(setting: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        grown((setting,))
