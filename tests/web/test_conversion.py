"""Canvases read as the editor queues them: random ones are given to the real editor in Chromium and to us.

What differs on purpose is not drawn (see canvases.py):
    Get and Set nodes, and other nodes of the browser alone, work here also without the pack that draws them
    choices in prompts {a|b} and %date% in names are made anew each time
    ids inside subgraphs are those of the file; the editor renumbers them when two definitions use the same
    a muted or bypassed subgraph inside another takes its nodes with it; the editor still sends them, linked to nothing
    a group node keeps its mode, its primitives, and the links into its widgets; the editor loses them when it makes a
        subgraph of it
    a primitive's value passes through reroutes, bypassed nodes and the inputs of subgraphs, as in earlier editors; this
        one sends the value stored in the node instead
    links into inputs that a class does not declare are dropped; the editor sends them, and ComfyUI ignores them
    nodes of unknown classes: the editor names their values UNKNOWN, we leave them out; a node of an unknown class
        without sockets is left out as a whole

    CANVASES=500 SEED=7000 python -m pytest tests/web/test_conversion.py      compares that many, from another seed
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sluice.flux_core.graph.flatten import canvas_to_prompt
from sluice.flux_core.graph.object_info import object_info
from sluice.flux_core.worker.registry import standalone_tables
from sluice.nodes.host import pack_host
from web.canvases import Artist, catalogue

COUNT, SEED = int(os.environ.get("CANVASES", "16")), int(os.environ.get("SEED", "0"))


def signatures(prompt: Mapping[str, Any]) -> dict[str, str]:
    """Node -> its signature, without ids: its class, its values, and the signatures of the nodes linked to it."""
    known: dict[str, str] = {}

    def signature(node_id: str) -> str:
        if node_id not in known:
            known[node_id] = "a circle"
            inputs = {name: told(value) for name, value in sorted(prompt[node_id]["inputs"].items())}
            known[node_id] = str(hash(json.dumps([prompt[node_id]["class_type"], inputs])))
        return known[node_id]

    def told(value: Any) -> Any:
        if isinstance(value, list):
            return [signature(value[0]), value[1]] if value[0] in prompt else ["nothing", value[1]]
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    return {node_id: signature(node_id) for node_id in prompt}


def unlike(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The nodes of each prompt that the other has not."""
    mine, yours = signatures(ours), signatures(theirs)
    more, less = Counter(mine.values()) - Counter(yours.values()), Counter(yours.values()) - Counter(mine.values())
    told = [f"ours   {key}: {ours[key]}" for key in mine if mine[key] in more]
    return told + [f"theirs {key}: {theirs[key]}" for key in yours if yours[key] in less]


def test_the_editor_and_we_read_canvases_alike(server: Any, scene: Any, tmp_path: Path) -> None:
    classes, _ = standalone_tables(pack_host())
    known = catalogue(object_info(classes))
    canvases = [Artist(known, SEED + number).canvas() for number in range(COUNT)]
    drawn, answers = tmp_path / "canvases.json", tmp_path / "answers.json"
    drawn.write_text(json.dumps(canvases), "utf-8")
    assert scene("converted.mjs", server.url, drawn, answers)["count"] == COUNT
    found = json.loads(answers.read_text("utf-8"))
    differing = {}
    for number, (canvas, answer) in enumerate(zip(canvases, found, strict=True), SEED):
        assert "error" not in answer, f"canvas {number}: {answer}"
        differing[number] = unlike(canvas_to_prompt(canvas, classes), answer["output"])
    assert any("definitions" in canvas for canvas in canvases) and any(canvas["extra"] for canvas in canvases)
    assert {number: nodes for number, nodes in differing.items() if nodes} == {}
