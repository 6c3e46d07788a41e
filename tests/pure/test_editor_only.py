"""Nodes that exist only in the editor: switches and notes do not count as missing, and broadcasts are links."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sluice.flux_core.graph.editor_only import NEVER_SENT, without_editor_nodes
from sluice.flux_core.graph.flatten import canvas_to_prompt, to_prompt
from sluice.flux_core.graph.validate import validate
from sluice.flux_core.io.embedded import read_workflow
from sluice.flux_core.worker.registry import standalone_tables
from sluice.nodes.host import pack_host

CLASSES, _ = standalone_tables(pack_host())
WORKFLOW = Path(__file__).parents[2] / "workflows" / "text_to_image.png"
Canvas = dict[str, Any]


def shipped() -> Canvas:
    canvas = read_workflow(WORKFLOW).workflow
    assert canvas is not None
    copy: Canvas = json.loads(json.dumps(canvas))
    return copy


def box(node_id: int, kind: str, **more: Any) -> dict[str, Any]:
    return {"id": node_id, "type": kind, "mode": 0, "inputs": [], "outputs": [], "widgets_values": [], **more}


def broadcasting(kind: str, *sources: tuple[int, int, str], **more: Any) -> Canvas:
    """A loader whose outputs are broadcast, two texts and a sampler, and no link between them."""
    clip = {"name": "clip", "type": "CLIP", "link": None}
    text = {"name": "text", "type": "STRING", "link": None, "widget": {"name": "text"}}
    nodes = [
        box(1, "CheckpointLoaderSimple", outputs=[{"name": n, "type": n} for n in ("MODEL", "CLIP", "VAE")]),
        box(2, "CLIPTextEncode", inputs=[clip, text], outputs=[{"name": "CONDITIONING", "type": "CONDITIONING"}]),
        box(3, "CLIPTextEncode", inputs=[clip, text], outputs=[{"name": "CONDITIONING", "type": "CONDITIONING"}]),
        box(4, "KSampler", inputs=[{"name": n, "type": t, "link": None} for n, t in SOCKETS]),
        box(9, kind, inputs=[{"name": n, "type": "*", "link": i} for i, (_, _, n) in enumerate(sources, 1)], **more),
    ]
    links = [[i, node, slot, 9, i - 1, "*"] for i, (node, slot, _) in enumerate(sources, 1)]
    return {"nodes": nodes, "links": links, "version": 0.4}


SOCKETS = (("model", "MODEL"), ("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent_image", "LATENT"))
MODEL, CLIP, VAE = (1, 0, "MODEL"), (1, 1, "CLIP"), (1, 2, "VAE")


def linked(canvas: Canvas, node_id: str) -> dict[str, Any]:
    inputs = canvas_to_prompt(canvas, CLASSES)[node_id]["inputs"]
    return {name: value for name, value in inputs.items() if isinstance(value, list)}


@pytest.mark.parametrize("kind", sorted(NEVER_SENT))
def test_a_canvas_runs_beside_whatever_only_the_editor_knows(kind: str) -> None:
    canvas = shipped()
    canvas["nodes"].append(box(99, kind, outputs=[{"name": "OPT_CONNECTION", "type": "*", "links": None}]))
    prompt = canvas_to_prompt(canvas, CLASSES)
    assert "99" not in prompt and not validate(prompt, CLASSES).problems


def test_an_api_prompt_loses_them_and_the_links_to_them() -> None:
    prompt = {
        "1": {"class_type": "Bookmark (rgthree)", "inputs": {}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": ["1", 0]}},
    }
    assert without_editor_nodes(prompt, CLASSES) == {"2": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}}}
    assert "1" in without_editor_nodes(prompt, {"Bookmark (rgthree)": object})
    assert to_prompt(read_workflow(WORKFLOW), CLASSES) == read_workflow(WORKFLOW).prompt


@pytest.mark.parametrize("kind", ["Anything Everywhere", "Anything Everywhere3"])
def test_a_broadcast_feeds_every_open_input_of_its_type(kind: str) -> None:
    canvas = broadcasting(kind, MODEL, CLIP)
    assert "9" not in canvas_to_prompt(canvas, CLASSES)
    assert linked(canvas, "2") == linked(canvas, "3") == {"clip": ["1", 1]}
    assert linked(canvas, "4") == {"model": ["1", 0]}


def test_a_link_that_is_drawn_stays() -> None:
    canvas = broadcasting("Anything Everywhere", MODEL)
    canvas["nodes"].append(box(5, "UNETLoader", outputs=[{"name": "MODEL", "type": "MODEL"}]))
    canvas["links"].append([7, 5, 0, 4, 0, "MODEL"])
    assert linked(canvas, "4") == {"model": ["5", 0]}


def test_prompts_go_to_inputs_of_their_name() -> None:
    canvas = broadcasting("Prompts Everywhere", (2, 0, "positive"), (3, 0, "negative"))
    assert linked(canvas, "4") == {"positive": ["2", 0], "negative": ["3", 0]}


def test_two_of_one_priority_feed_nothing_and_a_restricted_one_goes_first() -> None:
    canvas = broadcasting("Anything Everywhere", MODEL)
    canvas["nodes"] += [
        box(5, "UNETLoader", outputs=[{"name": "MODEL", "type": "MODEL"}]),
        box(6, "Anything Everywhere", inputs=[{"name": "MODEL", "type": "*", "link": 7}]),
    ]
    canvas["links"].append([7, 5, 0, 6, 0, "*"])
    assert linked(canvas, "4") == {}
    canvas["nodes"][-1]["properties"] = {"ue_properties": {"version": "7.0", "title_regex": "Sampler"}}
    assert linked(canvas, "4") == {"model": ["5", 0]}
    canvas["nodes"][-1]["properties"]["ue_properties"]["title_regex_invert"] = True
    assert linked(canvas, "4") == {"model": ["1", 0]}


@pytest.mark.parametrize(("restricted", "fed"), [(0, {"2", "3"}), (1, {"2"}), (2, {"3"})])
@pytest.mark.parametrize("by", ["group", "color"])
def test_a_broadcast_keeps_to_its_group_or_colour(by: str, restricted: int, fed: set[str]) -> None:
    canvas = broadcasting("Anything Everywhere", CLIP, properties={f"{by}_restricted": restricted})
    for one in canvas["nodes"]:
        one |= {
            "pos": [1000 * (one["id"] == 3), 0],
            "size": [10, 10],
            "color": "red" if one["id"] in (2, 9) else "blue",
        }
    canvas["groups"] = [{"title": "Texts", "bounding": [-50, -50, 200, 200]}]
    assert {name for name in ("2", "3") if linked(canvas, name)} == fed


def test_a_widget_is_fed_only_where_the_file_says_so() -> None:
    canvas = broadcasting("Anything Everywhere", (5, 0, "STRING"))
    canvas["nodes"].append(box(5, "PrimitiveString", outputs=[{"name": "STRING", "type": "STRING"}]))
    assert linked(canvas, "2") == {}
    canvas["nodes"][1]["properties"] = {"ue_properties": {"version": "7.0", "widget_ue_connectable": {"text": True}}}
    assert linked(canvas, "2") == {"text": ["5", 0]}


def test_what_is_switched_off_broadcasts_nothing() -> None:
    canvas = broadcasting("Anything Everywhere", MODEL)
    canvas["nodes"][-1]["mode"] = 4
    assert linked(canvas, "4") == {}
    canvas = broadcasting("Anything Everywhere", MODEL)
    canvas["nodes"][0]["mode"] = 2
    assert linked(canvas, "4") == {}
