"""Core nodes replaced by ours and back: what changes, what stays, and that the browser does the same."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sluice
from sluice.flux_core.commands import cli
from sluice.flux_core.commands.help_pages import DOCS, help_pages, swap_table
from sluice.flux_core.errors import WorkflowError
from sluice.flux_core.graph.translate import TABLE, read_table, swap

ROOT = Path(sluice.__file__).parent
Json = dict[str, Any]


def node(id: Any, type: str, inputs: list[Json] = [], outputs: list[Json] = [], **more: Any) -> Json:  # noqa: B006
    return {"id": id, "type": type, "pos": [1.5, 2], "inputs": inputs, "outputs": outputs, **more}


def slot(name: str, kind: str, **more: Any) -> Json:
    return {"name": name, "type": kind, **more}


MODEL_OUT = slot("MODEL", "MODEL", localized_name="MODEL", links=[1], slot_index=0)


def simple() -> Json:
    """A loader, a reroute, a sampler, and what is wired to it by kinds that are shared."""
    named = {"Node name for S&R": "UNETLoader", "cnr_id": "comfy-core", "ver": "0.3.64"}
    return {
        "nodes": [
            node(1, "UNETLoader", outputs=[MODEL_OUT], widgets_values=["a.safetensors", "default"], properties=named),
            node(2, "Reroute", [slot("", "*", link=1)], [slot("", "MODEL", links=[2])]),
            node(3, "KSampler", [slot("model", "MODEL", link=2), slot("positive", "CONDITIONING", link=3)],
                 [slot("LATENT", "LATENT", links=[4])], widgets_values=[7, "fixed", 20, 1, "euler", "simple", 1]),
            node(4, "FluxGuidance", outputs=[slot("CONDITIONING", "CONDITIONING", links=[3])], widgets_values=[3.5]),
            node(5, "DualCLIPLoader", outputs=[slot("CLIP", "CLIP")], widgets_values=["c", "t", "flux", "default"]),
        ],
        "links": [[1, 1, 0, 2, 0, "*"], [2, 2, 0, 3, 0, "MODEL"], [3, 4, 0, 3, 1, "CONDITIONING"], None],
        "groups": [{"title": "all"}], "extra": {"ds": {"scale": 1}}, "version": 0.4,
    }  # fmt: skip


def subgraph() -> Json:
    """A sampler in a subgraph with two instances, fed by a loader outside, links as objects."""
    inner = {
        "id": "0a1b", "inputNode": {"id": -10}, "outputNode": {"id": -20},
        "inputs": [slot("model", "MODEL")], "outputs": [slot("vae", "VAE")],
        "nodes": [
            node(7, "BasicGuider", [slot("model", "MODEL", link=1)]),
            node(8, "VAELoader", outputs=[slot("VAE", "VAE", links=[2])], widgets_values=["ae"]),
        ],
        "links": [
            {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 7, "target_slot": 0, "type": "MODEL"},
            {"id": 2, "origin_id": 8, "origin_slot": 0, "target_id": -20, "target_slot": 0, "type": "VAE"},
        ],
    }  # fmt: skip
    instances = [
        node(n, "0a1b", [slot("model", "MODEL", link=n)], [slot("vae", "VAE", links=[n + 10])]) for n in (2, 3)
    ]
    return {
        "nodes": [
            node(1, "UNETLoader", outputs=[slot("MODEL", "MODEL", links=[2, 3])]), *instances,
            node(4, "VAEDecode", [slot("samples", "LATENT"), slot("vae", "VAE", link=12)]),
        ],
        "links": [[2, 1, 0, 2, 0, "MODEL"], [3, 1, 0, 3, 0, "MODEL"], [12, 2, 0, 4, 1, "VAE"]],
        "definitions": {"subgraphs": [inner]},
    }  # fmt: skip


def blocked() -> Json:
    made = simple()
    made["nodes"].append(node(6, "FreeU", [slot("model", "MODEL", link=6)]))
    made["links"].append([6, 1, 0, 6, 0, "MODEL"])
    made["nodes"][4]["widgets_values"][2] = "sdxl"
    return made


def prompt() -> Json:
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "a"}, "_meta": {"title": "x"}},
        "2": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "seed": 3, "latent_image": ["3", 0]}},
        "3": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64}},
        "4": {"class_type": "DualCLIPLoader", "inputs": {"type": "sdxl"}},
        "5": {"class_type": "VAELoader", "inputs": {}},
        "6": {"class_type": "SomebodysDecode", "inputs": {"vae": ["5", 0]}},
    }


def shipped() -> list[Path]:
    return sorted((ROOT / "workflows").glob("*.json"))


def with_core_ids(path: Path) -> Json:
    return swap(json.loads(path.read_text(encoding="utf-8")), read_table(), back=True).workflow


def types(workflow: Json) -> list[str]:
    sheets = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    return [one["type"] for sheet in sheets for one in sheet["nodes"]]


def test_nodes_on_wires_of_models_change_and_the_rest_stays() -> None:
    before = simple()
    made = swap(before, read_table())
    assert before == simple(), "the argument is not changed"
    assert (made.changed, made.left) == (3, ())
    after = made.workflow
    assert types(after) == ["SluiceUNETLoader", "Reroute", "SluiceKSampler", "FluxGuidance", "SluiceDualCLIPLoader"]
    assert after["nodes"][0]["outputs"][0] == {
        "name": "FLUX_MODEL",
        "type": "FLUX_MODEL",
        "localized_name": "FLUX_MODEL",
        "links": [1],
        "slot_index": 0,
    }
    assert after["nodes"][0]["properties"] == {
        "Node name for S&R": "SluiceUNETLoader",
        "cnr_id": "sluice",
        "ver": "0.3.64",
    }
    assert after["nodes"][1]["outputs"][0]["type"] == "FLUX_MODEL"
    assert after["nodes"][2]["inputs"][0] == slot("model", "FLUX_MODEL", link=2)
    assert after["links"][1] == [2, 2, 0, 3, 0, "FLUX_MODEL"]
    for one, other in zip(after["nodes"], before["nodes"], strict=True):
        assert [one.get(key) for key in ("widgets_values", "pos", "id")] == [
            other.get(key) for key in ("widgets_values", "pos", "id")
        ]
    assert {**after, "nodes": 0, "links": 0} == {**before, "nodes": 0, "links": 0}


def test_wires_go_through_the_boundaries_of_subgraphs() -> None:
    made = swap(subgraph(), read_table())
    after = made.workflow
    assert (made.changed, made.left) == (4, ())
    (inner,) = after["definitions"]["subgraphs"]
    assert types(after) == [
        "SluiceUNETLoader",
        "0a1b",
        "0a1b",
        "SluiceVAEDecode",
        "SluiceBasicGuider",
        "SluiceVAELoader",
    ]
    assert inner["inputs"] == [slot("model", "FLUX_MODEL")] and inner["outputs"] == [slot("vae", "FLUX_VAE")]
    assert [one["inputs"][0]["type"] for one in after["nodes"][1:3]] == ["FLUX_MODEL"] * 2
    assert [link["type"] for link in inner["links"]] == ["FLUX_MODEL", "FLUX_VAE"]


def test_what_holds_a_node_without_a_twin_is_left_alone_and_told() -> None:
    made = swap(blocked(), read_table())
    assert made.workflow == blocked() and made.changed == 0
    assert made.left == (
        "Not changed: 1 UNETLoader, 3 KSampler. 6 FreeU has no twin.",
        "Not changed: 5 DualCLIPLoader. 5 DualCLIPLoader has the type sdxl, not flux.",
    )


def test_api_prompts_change_by_what_their_links_carry() -> None:
    made = swap(prompt(), read_table())
    after = made.workflow
    expected = prompt()
    expected["1"]["class_type"], expected["2"]["class_type"] = "SluiceUNETLoader", "SluiceKSampler"
    assert after == expected
    assert made.left == (
        "Not changed: 4 DualCLIPLoader. 4 DualCLIPLoader has the type sdxl, not flux.",
        "Not changed: 5 VAELoader. 6 SomebodysDecode has no twin.",
    )


CASES = {"simple": simple(), "subgraph": subgraph(), "blocked": blocked(), "prompt": prompt()}
CASES |= {path.stem: with_core_ids(path) for path in shipped()}


@pytest.mark.parametrize("name", CASES)
def test_there_and_back_is_the_same_workflow(name: str) -> None:
    there = swap(CASES[name], read_table())
    assert swap(there.workflow, read_table(), back=True).workflow == CASES[name]
    assert swap(there.workflow, read_table()).changed == 0
    assert swap(CASES[name], read_table(), back=True).workflow == CASES[name]


@pytest.mark.parametrize("wrong", [{}, {"nodes": None}, {"1": {"inputs": {}}}, {"last_node_id": 3}])
def test_what_is_no_workflow_is_refused(wrong: Json) -> None:
    with pytest.raises(WorkflowError):
        swap(wrong, read_table())


def test_a_workflow_of_any_shape_is_read() -> None:
    odd = {
        "nodes": [None, 3, {"id": [1]}, {"id": 1}, {"id": 2, "type": "KSampler", "inputs": None, "properties": None}],
        "links": [[1], "x", {"id": 1}, [1, 9, 9, 9, 9, ["MODEL"]], [2, 9, 0, 2, 0, "MODEL"]],
        "definitions": None,
    }
    made = swap(odd, read_table())
    assert made.changed == 1 and made.workflow["links"][4][5] == "FLUX_MODEL"


def test_the_command_writes_the_workflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, there, back = (tmp_path / name for name in ("a.json", "b.json", "c.json"))
    source.write_text(json.dumps(simple()))
    assert cli.main(["swap", str(source), "--out", str(there)]) == 0
    assert "3 nodes changed" in capsys.readouterr().err
    assert cli.main(["swap", str(there), "--back", "--out", str(back)]) == 0
    assert json.loads(back.read_text()) == simple()
    assert cli.main(["swap", str(source)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(there.read_text())
    assert cli.main(["swap", str(source), "--out", str(tmp_path / "nowhere" / "b.json")]) == 1
    assert f"{tmp_path / 'nowhere' / 'b.json'} cannot be written" in capsys.readouterr().err


SCRIPT = """
import { readFileSync } from "node:fs";
const { swap } = await import(process.argv[1]);
const { cases, table } = JSON.parse(readFileSync(0, "utf-8"));
const both = (one) => [false, true].map((back) => swap(one, table, back));
const done = cases.map((one) => { const first = both(one); return [...first, ...both(first[0].workflow)]; });
console.log(JSON.stringify(done));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="the browser's half runs in Node.js")
def test_the_browser_does_the_same() -> None:
    table = read_table()
    canvases = [copy.deepcopy(case) for case in CASES.values() if "nodes" in case]
    module = (ROOT / "web" / "comfyui" / "swap.mjs").as_uri()
    told = json.dumps({"cases": canvases, "table": table})
    command = ["node", "--input-type=module", "-e", SCRIPT, module]
    done = subprocess.run(command, input=told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for case, theirs in zip(canvases, json.loads(done.stdout), strict=True):
        there = swap(case, table)
        ours = [there, swap(case, table, True), swap(there.workflow, table), swap(there.workflow, table, True)]
        assert theirs == [{"workflow": o.workflow, "changed": o.changed, "left": list(o.left)} for o in ours]


def test_files_made_from_the_nodes_are_up_to_date() -> None:
    assert TABLE.read_text(encoding="utf-8") == swap_table(), "run python -m sluice.flux_core.commands.help_pages"
    assert {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")} == help_pages()
