"""Node packs that import ComfyUI's modules: what they can import and do, and that other code is not affected."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doubles.client import Server

PACKS = Path(__file__).parent / "packs"


@pytest.fixture(scope="module")
def packs(server: Server) -> dict[str, Any]:
    return {pack["name"]: pack for pack in server.get("/sluice/packs").json}


def said(server: Server, what: str) -> Any:
    entry, _ = server.made(server.prompt_of(("Facts", {"what": what})))
    return ast.literal_eval(entry["outputs"]["show"]["value"][0])


def test_a_pack_that_imports_comfyui_loads_and_is_told_about(packs: dict[str, Any]) -> None:
    pack = packs["uses_comfyui"]
    assert pack["error"] is None and set(pack["nodes"]) == {"Facts", "Grow", "Some", "Tell"}
    assert pack["missing"] == ["nobody-has-this-package==3"]
    assert pack["patches"] == ["comfy.ldm.modules.attention.attention_pytorch"]


def test_what_is_not_offered_says_so_when_it_is_called(server: Server, packs: dict[str, Any]) -> None:
    told = packs["calls_absent"]["error"]
    assert "comfy.ldm.modules.attention.attention_flash" in told and "ComfyUI" in told
    flux, mine, function, method = said(server, "absent")
    assert flux.startswith("comfy.ldm.flux.model.Flux is ") and "Mine is built" in mine
    assert function.startswith("comfy.ldm.modules.attention.attention_xformers is ")
    assert method.startswith("comfy.ldm.flux.model.Flux.forward is ")


def test_probes_hear_what_is_there(server: Server) -> None:
    assert said(server, "probes") == [
        *("no such module", True, False, False, None, False, 16384, False, True, "decode", "CLIPTextEncode"),
        *(("INT", "required"), False, True, True, True, None),
    ]


def test_paths_are_those_of_this_program(server: Server) -> None:
    paths = said(server, "paths")
    assert paths.pop("kinds") == ["unet", "upscale_models", "vae"] and paths.pop("nowhere") is None
    assert paths.pop("outside") is None and paths.pop("user") == "user" and paths.pop("annotated") == "a.png"
    assert paths.pop("types") == ["a.png", "c.webp"] and paths.pop("subfolders") == []
    name, counter, subfolder, prefix = paths.pop("save")
    assert (name, counter, subfolder) == ("b", 1, "a") and prefix.endswith("b")
    assert paths and all(value is True for value in paths.values()), paths
    assert "'nowhere.safetensors'" in said(server, "missing")


def test_a_node_knows_which_call_of_which_prompt_it_is(server: Server) -> None:
    listener = server.listen()
    prompt = server.prompt_of(("Facts", {"what": "context"}))
    entry = listener.end_of(server.queue(prompt, listener.client_id))
    assert ast.literal_eval(entry["outputs"]["show"]["value"][0]) == [True, 0, listener.client_id, 1]


def test_a_graph_that_a_node_builds_runs_in_its_place(server: Server) -> None:
    prompt = server.prompt_of(("Number", {"value": 5}), ("Grow", {"first": ["1", 0], "times": 4}))
    entry, events = server.made(prompt)
    assert entry["outputs"]["show"]["value"] == [20]
    assert any(data["node"] == "2.0.0.1" for kind, data in events if kind == "executing")


def test_a_blocker_in_a_list_skips_its_own_item_alone(server: Server) -> None:
    entry, _ = server.made(server.prompt_of(("Some", {"message": ""})))
    assert entry["outputs"]["show"]["value"] == [1, 3] and entry["status"]["completed"]
    entry, events = server.made(server.prompt_of(("Some", {"message": "not this one"})))
    assert entry["outputs"]["show"]["value"] == [1, 3]
    assert ["not this one" in data["exception_message"] for kind, data in events if kind == "execution_error"] == [True]


def test_messages_of_packs_reach_the_pages(server: Server) -> None:
    asker, other = server.listen(), server.listen()
    prompt = {"1": {"class_type": "Tell", "inputs": {"text": "hello"}}}
    asker.end_of(server.queue(prompt, asker.client_id))
    assert asker.until("uses_comfyui.mine") == {"text": "hello", "number": None}
    assert other.until("uses_comfyui.all") == asker.until("uses_comfyui.all") == {"text": "hello"}
    assert not [data for kind, data in other.heard if kind == "uses_comfyui.mine"]


def test_routes_of_packs_are_served(server: Server) -> None:
    assert server.get("/uses_comfyui/me?q=1&q=%C3%A4").json == {"name": "me", "twice": ["1", "ä"]}
    assert server.get("/api/uses_comfyui/you").json == {"name": "you", "twice": []}
    body = bytes(range(256)) * 1000
    answer = server.ask("POST", "/uses_comfyui/echo", data=body)
    assert (answer.status, answer.body, answer.headers["X-Length"]) == (201, body, str(len(body)))
    assert "A pack that imports ComfyUI" in server.get("/uses_comfyui_files/__init__.py").body.decode()
    assert server.get("/uses_comfyui_files/../../conftest.py").status == 403
    assert server.get("/uses_comfyui/fails").status == 500
    assert server.get("/uses_comfyui_nothing").status == 404


def test_routes_of_packs_are_guarded_as_ours_are(server: Server) -> None:
    foreign = {"Origin": "http://elsewhere.example"}
    assert server.get("/uses_comfyui/me", headers=foreign).status == 403
    assert server.get("/uses_comfyui/me", headers={"Host": "elsewhere.example"}).status == 403


def test_prompts_pass_packs_before_they_are_checked(server: Server) -> None:
    entry, _ = server.made(server.prompt_of(("Number", {"value": 98})))
    assert entry["outputs"]["show"]["value"] == [49]


def test_scripts_of_such_packs_are_listed(server: Server) -> None:
    assert "/extensions/uses_comfyui/uses.js" in server.get("/extensions").json
    assert server.get("/extensions/uses_comfyui/uses.js").status == 200


def test_nodes_with_schemas_are_described_and_run(server: Server, packs: dict[str, Any]) -> None:
    assert set(packs["with_schema"]["nodes"]) == {"SchemaJoin", "SchemaShow", "SchemaStop", "SchemaChange"}
    told = server.get("/object_info/SchemaJoin").json["SchemaJoin"]
    assert told["display_name"] == "Join" and told["output"] == ["STRING", "BOOLEAN"]
    assert told["output_name"] == ["joined", "BOOLEAN"] and told["python_module"] == "custom_nodes.with_schema"
    assert told["input"]["required"]["by"] == ["COMBO", {"default": "+", "options": ["-", "+"]}]
    assert told["input"]["required"]["share"] == ["FLOAT,INT", {"default": 0.5, "tooltip": "A number."}]
    assert told["input"]["optional"]["times"][1] == {"default": 2, "min": 1, "max": 9, "display": "slider"}
    prompt: dict[str, Any] = {
        "1": {"class_type": "SchemaJoin", "inputs": {"first": "x", "by": "-", "times": 3, "share": 0.25}},
        "2": {"class_type": "SchemaShow", "inputs": {"value": ["1", 0]}},
        "3": {"class_type": "SchemaShow", "inputs": {"value": ["1", 1]}},
    }
    entry, _ = server.made(prompt)
    assert entry["outputs"]["2"]["text"] == ["x-x-x 0.25 1"] and entry["outputs"]["3"]["text"] == ["True"]
    prompt["1"]["inputs"]["times"] = 7
    assert "seven is too many" in str(server.post("/prompt", {"prompt": prompt}).json)


def test_a_node_with_a_schema_can_stop_what_follows(server: Server) -> None:
    prompt = {
        "1": {"class_type": "SchemaStop", "inputs": {}},
        "2": {"class_type": "SchemaShow", "inputs": {"value": ["1", 0]}},
    }
    entry, events = server.made(prompt)
    assert entry["outputs"] == {} and any(
        "not today" in str(data) for kind, data in events if kind == "execution_error"
    )


def test_inputs_of_schemas_may_come_and_go(server: Server) -> None:
    told = server.get("/object_info/SchemaChange").json["SchemaChange"]
    assert told["output_matchtypes"] == ["kind"] and told["input"]["required"]["by"][0] == "COMFY_DYNAMICCOMBO_V3"
    assert "output_matchtypes" not in server.get("/object_info/SchemaJoin").json["SchemaJoin"]
    chosen = {"by": "times", "by.factor": 3, "rest.more0": ["1", 0], "rest.more1": ["1", 0]}
    prompt = server.prompt_of(("Number", {"value": 5}), ("SchemaChange", {"value": ["1", 0], **chosen}))
    entry, _ = server.made(prompt)
    assert entry["outputs"]["show"]["value"] == [25]


def test_nobody_else_sees_comfyuis_modules(prologue: str, tmp_path: Path) -> None:
    """The pack's own file imports `folder_paths`; this process, its libraries and sys.modules do not have it."""
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text(
        "import sys, os\nsys.path.append(os.path.dirname(__file__))\n"
        "import folder_paths, comfy.utils\nfrom . import part\nimport beside\n"
        "import importlib.util\n"
        "spec = importlib.util.spec_from_file_location('loose', os.path.join(os.path.dirname(__file__), 'loose.py'))\n"
        "loose = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(loose)\n"
        "NODE_CLASS_MAPPINGS = {}\n"
    )
    for name in ("part", "beside", "loose"):
        (tmp_path / "pack" / f"{name}.py").write_text("def late():\n    import folder_paths\n    return folder_paths\n")
    code = prologue + (
        "import pathlib\n"
        "from sluice.flux_core.io.folders import standard_folders\n"
        "from sluice.flux_core.worker.node_packs import Engine, NodePacks\n"
        "from sluice.flux_core.graph.execute import Executor\n"
        "from sluice.nodes.host import Host\n"
        f"folders = standard_folders(base := pathlib.Path({str(tmp_path)!r}))\n"
        "packs = NodePacks(Engine(Host(folders), folders, {}, {}, Executor({})))\n"
        "packs.load([base / 'pack'])\n"
        "assert packs.packs[0]['error'] is None, packs.packs\n"
        "pack = next(m for n, m in sys.modules.items() if n.startswith('sluice_pack_') and n.endswith('pack'))\n"
        "assert pack.part.late() is pack.beside.late() is pack.loose.late() is pack.folder_paths\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not tops & {'folder_paths', 'comfy', 'nodes', 'server', 'execution'}, tops\n"
        "assert importlib.util.find_spec('folder_paths') is None\n"
        "try:\n    import folder_paths\nexcept ModuleNotFoundError:\n    print('unseen')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "unseen", done.stderr


def test_the_command_line_tells_of_packs_and_runs_with_them(
    sluice: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    listed = sluice("packs", "--json", "--verbose", str(PACKS), cwd=tmp_path, stderr=subprocess.DEVNULL)
    told = json.loads(listed.communicate(timeout=120)[0])
    assert listed.returncode == 1 and len(told["packs"]) == 7  # some of them do not load
    assert {name for pack in told["packs"] for name in pack["taken"]} == {"KSampler"}
    assert any("uses_comfyui" in route["pattern"] for route in told["routes"])
    shown = sluice("packs", str(PACKS / "uses_comfyui"), cwd=tmp_path)
    text = shown.communicate(timeout=120)[0]
    assert shown.returncode == 0 and text.startswith("uses_comfyui: 4 nodes (Facts, Grow, Some, Tell)")
    assert "not installed: nobody-has-this-package==3" in text and "1 of 1 packs loaded." in text
    (tmp_path / "prompt.json").write_text(json.dumps({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 255}},
        "2": {"class_type": "Tell", "inputs": {"text": "to nobody"}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "packs"}},
    }))  # fmt: skip
    ran = sluice("run", "prompt.json", "--node-packs", str(PACKS), "--device", "cpu", cwd=tmp_path)
    assert ran.communicate(timeout=120)[0].strip().endswith("packs_00001_.png") and ran.returncode == 0
