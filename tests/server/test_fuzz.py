"""Arbitrary data sent to all routes: each answer is below 500 and quick, and no file is written outside its folders."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from doubles.client import Server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sluice.flux_core.server import (
    files,
    frontend,
    gallery,
    jobs,
    model_routes,
    prompts,
    sluice_routes,
    system,
    templates,
    user,
)

ROOMS = (prompts, jobs, files, model_routes, user, templates, system, sluice_routes, gallery, frontend)
ROUTES = sorted({(method, path) for room in ROOMS for method, path, _ in room.ROUTES})
TREASURE = "7f3a-treasure"  # in files that must never be shown
FOLDERS = ("input", "output", "temp", "user/default", "user/sluice")
FAIR = settings(
    max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

HOSTILE = [
    "", ".", "..", "../..", "../secret.txt", "/etc/passwd", "a/../../secret.txt", "..\\secret.txt", "C:\\x", "\0",
    "a\nb", "%2e%2e", "~", "con", "a" * 300, "a/" * 60 + "a", "é", "\ud800", "\U0001f98a", "-1", "1e9", "NaN", "null",
    "[]", "{}", "x.png [output]", "x.png [", "x]", "__proto__", "comfy.settings.json", "workflows", "workflows/a.json",
    "KSampler", "99999999999999999999", "webp;90", "jpeg;-1", "rgb", "a", "output", "temp", "input", "true", "false",
    "loras", "vae",
]  # fmt: skip
words = st.sampled_from(HOSTILE) | st.text(max_size=20)
numbers = st.integers() | st.floats() | st.sampled_from([2**63, 2**64 - 1, -1, 0, 1e308])
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=10,
)
PARAMETERS = [
    "filename", "type", "subfolder", "preview", "channel", "max_items", "offset", "limit", "status", "sort_order",
    "dir", "recurse", "split", "full_info", "overwrite", "text", "token", "clientId",
]  # fmt: skip
FIELDS = [
    "prompt", "client_id", "prompt_id", "extra_data", "front", "number", "partial_execution_targets", "clear", "delete",
    "job_ids", "unload_models", "free_memory", "vram", "ram", "enabled", "clientId", "nodes", "links", "workflow",
]  # fmt: skip
queries = st.dictionaries(st.sampled_from(PARAMETERS) | words, words, max_size=4)
objects = st.dictionaries(st.sampled_from(FIELDS), values, max_size=5)
bodies = st.one_of(
    st.none(),
    objects.map(lambda value: json.dumps(value).encode()),
    values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=200),
    st.sampled_from([b"[" * 100_000, b"{", b'{"prompt": NaN}', b"\xff\xfe", b"9" * 5000, b'{"a": 1e999}']),
)
TYPES = [
    "application/json",
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=b",
    "",
    "x",
]


def encoded(text: str) -> str:
    return quote(text, safe="", errors="surrogatepass")


@pytest.fixture(scope="module")
def house(server: Server) -> Server:
    """The server, with secrets lying around its folders."""
    (server.base / "secret.txt").write_text(TREASURE)
    (server.base.parent / "secret.txt").write_text(TREASURE)
    (server.base / "models" / "loras").mkdir(parents=True)
    (server.base / "models" / "loras" / "secret.safetensors").write_text(TREASURE)
    return server


def outside(server: Server) -> dict[str, tuple[int, int]]:
    """Every file around the folders that may be written to, with its size and time."""
    allowed = [str(server.base / folder) for folder in FOLDERS]
    found = {}
    for place, folders, names in os.walk(server.base.parent):
        folders[:] = [name for name in folders if os.path.join(place, name) not in allowed]
        for name in names:
            stat = os.lstat(os.path.join(place, name))  # tests beside this one leave links to nowhere
            found[os.path.join(place, name)] = (stat.st_size, stat.st_mtime_ns)
    return found


@pytest.mark.parametrize("method, path", ROUTES, ids=[f"{method} {path}" for method, path in ROUTES])
def test_every_route_answers_whatever_it_is_asked(house: Server, method: str, path: str) -> None:
    before = outside(house)

    @settings(FAIR, max_examples=25)
    @given(st.data())
    def ask(data: st.DataObject) -> None:
        asked = path
        while "{" in asked:
            start, end = asked.index("{"), asked.index("}")
            asked = asked[:start] + encoded(data.draw(words)) + asked[end + 1 :]
        query = "&".join(f"{encoded(k)}={encoded(v)}" for k, v in data.draw(queries).items())
        headers = {"Content-Type": data.draw(st.sampled_from(TYPES))} if method != "GET" else {}
        body = data.draw(bodies) if method != "GET" else None
        answer = house.ask(method, f"{asked}?{query}" if query else asked, data=body, headers=headers)
        assert answer.status < 500, answer.body
        assert TREASURE.encode() not in answer.body

    ask()
    assert outside(house) == before


CLASSES = [
    "Number",
    "Half",
    "Show",
    "Chosen",
    "Add",
    "Either",
    "Many",
    "Total",
    "Anything",
    "Twice",
    "OnlyEven",
    "Nothing",
]
ids = st.sampled_from(["1", "2", "3", "a:b", ""])
links = st.tuples(ids, st.integers(-1, 2)).map(list)
nodes = st.fixed_dictionaries(
    {"class_type": st.sampled_from(CLASSES) | words},
    optional={
        "inputs": st.dictionaries(
            st.sampled_from(["value", "a", "b", "choice", "first", "second", "count", "values"]) | words,
            links | values, max_size=4,
        ) | values,
        "_meta": values,
        "is_changed": values,
    },
)  # fmt: skip
graphs = st.dictionaries(ids | words, nodes | values, max_size=5)


def test_any_graph_is_answered_and_whatever_is_taken_ends(house: Server) -> None:
    taken = []

    @settings(FAIR, max_examples=150)
    @given(graphs, objects)
    def post(graph: dict[str, Any], more: dict[str, Any]) -> None:
        graph = {**graph, "show": {"class_type": "Show", "inputs": {"value": ["1", 0]}}}
        answer = house.post("/prompt", data=json.dumps({**more, "prompt": graph}).encode())
        assert answer.status in (200, 400, 409), answer.body
        if answer.status == 200:
            taken.append(answer.json["prompt_id"])
        else:
            assert answer.json["error"]["message"]

    post()
    house.until(lambda: house.get("/prompt").json["exec_info"]["queue_remaining"] == 0, "the end of all jobs")
    for prompt_id in taken:
        assert house.get(f"/history/{encoded(prompt_id)}").json[prompt_id]["status"]["status_str"] in (
            "success",
            "error",
        )
    assert house.get("/jobs").status == house.get("/history").status == 200


FORM_FIELDS = ["image", "type", "subfolder", "overwrite", "original_ref", "x", ""]
PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


@FAIR
@given(
    st.lists(st.tuples(st.sampled_from(FORM_FIELDS), words), max_size=5),
    words,
    st.binary(max_size=50) | st.just(PNG_START),
    st.sampled_from(["/upload/image", "/upload/mask"]),
    st.booleans(),
)
def test_any_upload_is_answered_and_stays_inside(
    house: Server, fields: list[tuple[str, str]], name: str, content: bytes, route: str, ends: bool
) -> None:
    before = outside(house)
    parts = [(f'name="image"; filename="{name}.png"', content)]
    parts += [(f'name="{key}"', value.encode("utf-8", "replace")) for key, value in fields]
    body = b"".join(
        b"--b\r\nContent-Disposition: form-data; " + head.encode("utf-8", "replace") + b"\r\n\r\n" + value + b"\r\n"
        for head, value in parts
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = house.post(route, data=body + (b"--b--\r\n" if ends else b""), headers=headers)
    assert answer.status < 500, answer.body
    assert outside(house) == before


@FAIR
@given(st.lists(words | values.map(json.dumps) | st.binary(max_size=100), max_size=4), words)
def test_any_listener_is_heard_and_harms_nobody(house: Server, said: list[str | bytes], client_id: str) -> None:
    async def talk() -> None:
        async with house.session.ws_connect(f"{house.address}/ws?clientId={encoded(client_id)}") as talking:
            for message in said:
                if isinstance(message, bytes):
                    await talking.send_bytes(message)
                else:
                    await talking.send_str(message.encode("utf-8", "replace").decode())
            await asyncio.wait_for(talking.receive(), 10)

    try:
        house.wait(talk())
    except aiohttp.WSServerHandshakeError as error:
        assert error.status == 400
    assert house.get("/prompt").status == 200


@FAIR
@given(
    st.binary(max_size=300) | st.sampled_from([b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n"])
)
def test_bytes_that_are_no_request_leave_the_server_as_it_was(house: Server, said: bytes) -> None:
    port = int(house.address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        while answer := connection.recv(1 << 16):
            assert not answer.startswith(b"HTTP/1.1 5")
    assert house.get("/prompt").status == 200
