"""What there is: nodes, packs, models, extensions, templates, the page, the machine."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import struct
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from doubles.client import Server
from sluice.flux_core.server.model_routes import send_page_part

BARE_AND_API = [
    "/object_info/Number", "/settings", "/users", "/queue", "/history", "/jobs", "/extensions", "/models",
    "/embeddings", "/experiment/models", "/experiment/models/vae", "/system_stats", "/features", "/i18n",
    "/workflow_templates", "/global_subgraphs", "/prompt", "/sluice/packs", "/sluice/gallery", "/sluice/workers",
    "/internal/logs", "/internal/logs/raw", "/internal/folder_paths", "/internal/files/output",
    "/templates/index.json", "/user.css", "/sluice/doctor", "/sluice/app", "/sluice/app/app.mjs",
    "/sluice/app/workflows", "/sluice/loras",
]  # fmt: skip


@pytest.mark.parametrize("route", BARE_AND_API)
def test_routes_exist_bare_and_below_api(server: Server, route: str) -> None:
    bare, api = server.get(route), server.get(f"/api{route}")
    assert bare.status == api.status == 200
    assert bare.headers["Content-Type"] == api.headers["Content-Type"]


def test_node_classes_are_described(server: Server) -> None:
    every = server.get("/object_info").json
    assert {"KSampler", "SluiceKSampler", "SaveImage", "Number"} <= set(every)
    assert every["KSampler"]["python_module"] == "nodes" and "model" in every["KSampler"]["input"]["required"]
    number = server.get("/object_info/Number").json["Number"]
    assert number == every["Number"]
    assert number["display_name"] == "A Number" and number["python_module"] == "custom_nodes.test_nodes"
    assert server.get("/object_info/nothing").json == {}


def test_packs_tell_what_became_of_them(server: Server) -> None:
    packs = {pack["name"]: pack for pack in server.get("/sluice/packs").json}
    broken = {"calls_absent", "gives_up", "needs_a_package", "no_pack"}
    assert set(packs) == {"test_nodes", "uses_comfyui", "with_schema", *broken}
    assert {name for name, pack in packs.items() if pack["error"]} == broken
    good = packs["test_nodes"]
    assert good["error"] is None and "Number" in good["nodes"] and good["taken"] == ["KSampler"]
    assert "torch_of_the_future" in packs["needs_a_package"]["error"]
    assert "SystemExit" in packs["gives_up"]["error"] and "NODE_CLASS_MAPPINGS" in packs["no_pack"]["error"]
    assert any(
        "calls_absent was not loaded" in entry["m"] for entry in server.get("/internal/logs/raw").json["entries"]
    )


def test_scripts_of_ours_and_of_packs_are_served(server: Server) -> None:
    listed = server.get("/extensions").json
    assert "/extensions/test_nodes/panel.js" in listed
    for script in listed:
        answer = server.get(script)
        assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/javascript")
    assert server.get("/extensions/test_nodes/none.js").status == 404
    assert server.get("/extensions/nobody/none.js").status == 404


def test_workflows_of_packs_are_offered(server: Server) -> None:
    assert server.get("/workflow_templates").json == {"test_nodes": ["first"]}
    assert server.get("/api/workflow_templates/test_nodes/first.json").json == {"nodes": [], "links": []}
    assert server.get("/workflow_templates/test_nodes/none.json").status == 404
    assert server.get("/workflow_templates/nobody/first.json").status == 404


def test_the_gallery_offers_our_workflows_and_the_first_visit_lacks_nothing(server: Server) -> None:
    small, full = server.get("/templates/index.json").json
    assert small["templates"][0]["name"] == "text_to_image" and len(full["templates"]) == 13
    for template in small["templates"] + full["templates"]:
        canvas = server.get(f"/templates/{template['name']}.json").json
        assert canvas["nodes"] and not any(node["type"].startswith("Sluice") for node in canvas["nodes"])
        assert len(template["description"]) > len(template["title"])
        picture = server.get(f"/templates/{template['name']}-1.{template['mediaSubtype']}")
        assert picture.headers["Content-Type"] == {"png": "image/png", "svg": "image/svg+xml"}[template["mediaSubtype"]]
    assert full["templates"][0]["description"].endswith("Needs 34.2 GB (4 files, listed in its note).")
    assert full["templates"][0]["files"][0]["size"] == "23.8 GB"
    assert server.get("/sluice/default_workflow").json == server.get("/templates/text_to_image.json").json
    assert server.post("/sluice/missing", server.get("/sluice/default_workflow").json).json == []
    assert server.get("/templates/none.json").status == server.get("/templates/flux1_none.json").status == 404


def test_a_form_is_given_filled_in_and_nonsense_is_answered(server: Server) -> None:
    form = server.post("/sluice/app/form", {"name": "text_to_image"}).json
    seed = next([one["node"], one["input"], 5] for one in form["fields"] if one["kind"] == "seed")
    told = server.post("/sluice/app/filled", {"workflow": form["workflow"], "values": [seed], "loras": []}).json
    assert told["prompt"][seed[0]]["inputs"]["noise_seed"] == 5 and told["workflow"]["nodes"]
    assert server.post("/sluice/app/form", {}).status == 403
    assert server.post("/sluice/app/form", {"name": "../../x"}).status in (403, 404)
    assert server.post("/sluice/app/form", {"workflow": {"nodes": 5}}).status == 400
    for wrong in ({"values": 5}, {"values": [["1"]]}, {"values": [["1", "x", {}]]}, {"loras": [["a", 1.0]] * 9}):
        answer = server.post("/sluice/app/filled", {"workflow": form["workflow"], **wrong})
        assert answer.status == 403 and answer.json["error"]["message"], wrong
    assert server.get("/sluice/app/index.html").status == server.get("/sluice/app/none.mjs").status == 404


def test_model_files_are_listed_with_their_metadata(server: Server) -> None:
    folder = server.base / "models" / "loras" / "sub"
    folder.mkdir(parents=True)
    header = json.dumps({"__metadata__": {"trigger": "fox"}}).encode()
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert server.get("/models/loras").json == ["sub/a.safetensors"]
    (told,) = server.get("/experiment/models/loras").json
    assert told["name"] == "sub/a.safetensors" and told["size"] == 8 + len(header)
    assert server.get("/view_metadata/loras?filename=sub%2Fa.safetensors").json == {"trigger": "fox"}
    assert server.get("/view_metadata/loras?filename=none.safetensors").status == 404
    assert server.get("/models/nonsense").status == 404
    assert str(server.base / "models" / "vae") in server.get("/internal/folder_paths").json["vae"]


def test_missing_model_files_are_listed_with_where_to_get_them(server: Server) -> None:
    values = ["flux1-dev.safetensors", "default"]
    inputs = dict(zip(["unet_name", "weight_dtype"], values, strict=True))
    prompt = {"7": {"class_type": "UNETLoader", "inputs": inputs}}
    (told,) = server.post("/sluice/missing", {"prompt": prompt}).json
    assert told["name"] == "flux1-dev.safetensors" and told["category"] == "diffusion_models" and told["node_id"] == "7"
    assert told["source"] == "https://huggingface.co/black-forest-labs/FLUX.1-dev"
    assert told["folder"] == str(server.base / "models" / "diffusion_models") and told["folder"] in told["message"]
    assert server.post("/sluice/missing", prompt).json == [told]
    node = {"id": 7, "type": "UNETLoader", "inputs": [], "outputs": [], "widgets_values": values}
    assert server.post("/sluice/missing", {"nodes": [node], "links": []}).json == [told]
    assert server.post("/sluice/missing", {"neither": 1}).status >= 400


def test_a_prompt_that_lacks_a_file_says_where_it_is_to_be_had(server: Server) -> None:
    prompt = {
        "1": {"class_type": "VAELoader", "inputs": {"vae_name": "ae.safetensors"}},
        "2": {"class_type": "Show", "inputs": {"value": ["1", 0]}},
    }
    answer = server.post("/prompt", {"prompt": prompt})
    assert answer.status == 400 and answer.json["node_errors"]["1"]["errors"][0]["type"] == "value_not_in_list"
    assert "huggingface" in " ".join(answer.json["problems"]).lower().replace(" ", "")


def test_the_page_is_asked_for_each_time_and_its_parts_are_kept(server: Server) -> None:
    page = server.get("/")
    assert page.status == 200 and page.headers["Cache-Control"] == "no-cache"
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assets = re.findall(r'(?:src|href)="(?:\./|/)?(assets/[^"]+)"', page.body.decode())
    assert assets
    for asset in assets[:3]:
        answer = server.get(f"/{asset}")
        assert answer.status == 200 and "immutable" in answer.headers["Cache-Control"]
    assert server.get("/scripts/app.js").headers["Cache-Control"] == "no-cache"
    assert server.get("/no/such/thing").status == 404


@pytest.mark.parametrize(("visitor", "encoding"), [("192.0.2.7", "gzip"), ("2001:db8::7", "gzip"), ("127.0.0.1", None)])
def test_parts_of_the_page_are_compressed_for_the_network_and_not_for_this_machine(
    tmp_path: Path, visitor: str, encoding: str | None
) -> None:
    script = tmp_path / "editor.js"
    script.write_text("const a = 1;\n" * 10_000)

    async def scenario() -> tuple[list[tuple[str | None, bytes]], list[tuple[int, bytes]]]:
        async def handler(request: web.Request) -> web.StreamResponse:
            return send_page_part(request.clone(remote=visitor), script)

        app = web.Application()
        app.router.add_get("/", handler)
        async with TestClient(TestServer(app), auto_decompress=False) as client:
            answers = [await client.get("/", headers={"Accept-Encoding": offer}) for offer in ("gzip, br", "identity")]
            again = await client.get("/", headers={"if-modified-since": answers[0].headers["Last-Modified"]})
            some = await client.get("/", headers={"Range": "bytes=0-4"})
            head = await client.head("/")
            whole = [(answer.headers.get("Content-Encoding"), await answer.read()) for answer in answers]
            return whole, [(answer.status, await answer.read()) for answer in (again, some, head)]

    [(packed, body), plain], others = asyncio.run(scenario())
    assert packed == encoding and (gzip.decompress(body) if packed else body) == script.read_bytes()
    assert plain == (None, script.read_bytes()) and others == [(304, b""), (206, b"const"), (200, b"")]


def test_head_tells_what_get_would(server: Server) -> None:
    for route in ("/", "/scripts/app.js", "/object_info/Number", "/queue"):
        told, got = server.ask("HEAD", route), server.get(route)
        assert told.status == 200 and told.body == b"" and told.headers["Content-Length"] == str(len(got.body))


def test_the_machine_is_described(server: Server) -> None:
    stats = server.get("/system_stats").json
    assert stats["system"]["ram_total"] > 0 and stats["system"]["comfyui_version"]
    assert stats["system"]["required_frontend_version"].count(".") == 2
    assert server.get("/features").json["supports_preview_metadata"] is True


def test_log_lines_reach_who_asks_for_them(server: Server) -> None:
    listener = server.listen()
    answer = server.ask("PATCH", "/internal/logs/subscribe", json={"enabled": True, "clientId": listener.client_id})
    assert answer.status == 200
    server.made(server.prompt_of(("Die", {"value": 1, "how": "exit"})))
    listener.until("logs", lambda data: data["entries"][0]["m"] == "I have had enough.\n")
    server.ask("PATCH", "/internal/logs/subscribe", json={"enabled": False, "clientId": listener.client_id})
    assert "I have had enough." in server.get("/internal/logs").json
    listener.close()
