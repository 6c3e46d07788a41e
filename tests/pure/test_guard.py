"""Access to the server, and the headers of every answer."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from sluice.flux_core.server.guard import POLICY, guard, is_loopback


def ask(
    method: str = "GET", token: str | None = None, path: str = "/", hosts: Collection[str] = (), **headers: str
) -> tuple[int, Mapping[str, str], str]:
    """The answer of a guarded server to one request; "_" in names of headers stands for "-"."""

    async def scenario() -> tuple[int, Mapping[str, str], str]:
        async def handler(request: web.Request) -> web.Response:
            return web.Response(text="secret")

        app = web.Application(middlewares=[guard(token, hosts)])
        app.router.add_route("*", "/", handler)
        async with TestClient(TestServer(app, host="127.0.0.1")) as client:
            named = {name.replace("_", "-"): value.replace("PORT", str(client.port)) for name, value in headers.items()}
            response = await client.request(method, path, headers=named)
            return response.status, response.headers, await response.text()

    return asyncio.run(scenario())


@pytest.mark.parametrize("host", ["127.0.0.1:8188", "localhost:8188", "localhost", "[::1]:8188", "127.5.5.5"])
def test_names_of_this_machine_are_answered(host: str) -> None:
    assert ask(Host=host)[0] == 200


FOREIGN = ["evil.example", "evil.example:8188", "localhost.evil.example", "0.0.0.0", "[", "a b", "@"]


@pytest.mark.parametrize("host", FOREIGN)
def test_other_names_are_not_so_that_a_rebound_name_gets_nothing(host: str) -> None:
    status, _, text = ask(Host=host)
    assert status in (400, 403) and "secret" not in text


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", ""])
def test_pages_of_other_sites_are_not_answered(method: str, origin: str) -> None:
    assert ask(method, Host="127.0.0.1:8188", Origin=origin)[0] == 403


def test_our_own_page_is_answered_whatever_it_sends() -> None:
    status, _, _ = ask("POST", Host="localhost:8188", Origin="http://localhost:8188", Content_Type="text/plain")
    assert status == 200


def test_programs_may_send_what_they_like() -> None:
    assert ask("POST", Host="127.0.0.1:8188", Content_Type="application/x-www-form-urlencoded")[0] == 200


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"])
def test_browsers_that_hide_their_origin_may_not_send_forms(kind: str) -> None:
    agent = "Mozilla/5.0 (an old one)"
    assert ask("POST", Host="127.0.0.1:8188", User_Agent=agent, Content_Type=kind)[0] == 403
    assert ask("POST", Host="127.0.0.1:8188", User_Agent=agent, Content_Type="application/json")[0] == 200
    assert ask("POST", Host="127.0.0.1:8188", Sec_Fetch_Site="cross-site", Content_Type="application/json")[0] == 403


def test_a_token_is_asked_of_everybody_and_taken_in_three_places() -> None:
    assert ask(token="t", Host="192.168.1.5:8188")[0] == 401
    assert ask(token="t", Host="192.168.1.5:8188", path="/?token=x")[0] == 401
    status, headers, _ = ask(token="t", Host="192.168.1.5:8188", path="/?token=t")
    assert status == 200 and "sluice_token=t" in headers["Set-Cookie"] and "SameSite=Strict" in headers["Set-Cookie"]
    assert ask(token="t", Host="h", Authorization="Bearer t")[0] == 200
    assert ask(token="t", Host="h", Cookie="sluice_token=t")[0] == 200
    assert ask(token="t", Host="h", Cookie="sluice_token=x")[0] == 401
    assert ask("POST", token="t", Host="h", Cookie="sluice_token=t", Origin="http://evil.example")[0] == 403


def test_every_answer_carries_the_policy() -> None:
    for path in ("/", "/nothing"):
        _, headers, _ = ask(Host="127.0.0.1", path=path)
        assert headers["Content-Security-Policy"] == POLICY and headers["X-Content-Type-Options"] == "nosniff"


def test_the_policy_lets_the_page_talk_to_nobody_else() -> None:
    sources = {part.split()[0]: part.split()[1:] for part in POLICY.split("; ")}
    assert sources["connect-src"][0] == "'self'" and sources["default-src"] == ["'self'"]
    assert not any(source.startswith(("http", "ws", "*")) for listed in sources.values() for source in listed)


def test_loopback() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "::1", "[::1]", "localhost", "LOCALHOST."]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.168.0.1", "example.com", "", "127.0.0.1.example.com"]))


def test_a_name_can_be_allowed_and_only_that() -> None:
    hosts = ["Host.Docker.Internal"]
    assert ask(hosts=hosts, Host="host.docker.internal:8188")[0] == 200
    assert ask(hosts=hosts, Host="evil.example")[0] == 403
    assert ask(hosts=hosts, Host="x.host.docker.internal")[0] == 403
    assert ask("POST", hosts=hosts, Host="host.docker.internal", Origin="http://evil.example")[0] == 403
    assert ask("POST", hosts=hosts, Host="host.docker.internal", Origin="http://host.docker.internal")[0] == 200
    assert "--allow-host box.tailnet.example" in ask(Host="box.tailnet.example")[2]


def test_a_browser_without_the_token_gets_a_page_with_a_field_and_a_program_an_error() -> None:
    status, headers, text = ask(token="t", Host="h", Accept="text/html,*/*")
    assert status == 401 and headers["Content-Type"].startswith("text/html") and 'name="token"' in text
    assert headers["Content-Security-Policy"] == POLICY and "This is not" not in text and "secret" not in text
    assert "This is not the token" in ask(token="t", path="/?token=<x>", Host="h", Accept="text/html")[2]
    assert ask(token="t", Host="h")[1]["Content-Type"].startswith("application/json")
    assert ask("POST", token="t", Host="h", Accept="text/html")[1]["Content-Type"].startswith("application/json")


def test_programs_that_call_themselves_mozilla_may_put_and_delete() -> None:
    qt = {"Host": "127.0.0.1:8188", "User_Agent": "Mozilla/5.0"}
    assert ask("PUT", **qt, Content_Type="text/plain")[0] == 200 and ask("DELETE", **qt)[0] == 200
    assert ask("PUT", **qt, Origin="https://evil.example")[0] == 403
    assert ask("POST", **qt, Content_Type="text/plain")[0] == 403
