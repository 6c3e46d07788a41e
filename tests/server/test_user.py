"""Settings and files of the browser, kept whole."""

from __future__ import annotations

import json

from doubles.client import Server


def test_settings_have_useful_defaults_and_are_kept(server: Server) -> None:
    assert server.get("/users").json == {"storage": "server", "migrated": True}
    assert server.get("/settings").json["Comfy.TutorialCompleted"] is True
    assert server.get("/settings/Comfy.Notification.ShowVersionUpdates").json is False
    assert server.get("/settings/never%20set").json is None
    body = json.dumps(True).encode()
    headers = {"Content-Type": "text/plain;charset=UTF-8", "Origin": server.address}  # as the editor sends it
    assert server.post("/settings/Comfy.Some.Switch", data=body, headers=headers).status == 200
    assert server.post("/settings", {"a": [1, {"b": None}], "Comfy.TutorialCompleted": False}).status == 200
    settings = server.get("/api/settings").json
    assert settings["Comfy.Some.Switch"] is True and settings["a"] == [1, {"b": None}]
    assert settings["Comfy.TutorialCompleted"] is False
    assert server.post("/settings", [1]).status == 400
    assert server.post("/settings/x", data=b"{").status == 400


def test_damaged_settings_are_put_aside(server: Server) -> None:
    file = server.base / "user" / "default" / "comfy.settings.json"
    file.write_text("{ damaged")
    assert server.get("/settings").json["Comfy.TutorialCompleted"] is True
    assert file.with_suffix(".damaged.json").read_text() == "{ damaged"


def test_files_are_written_listed_renamed_and_removed(server: Server) -> None:
    route = "/userdata/workflows%2Fmine.json"
    told = server.post(f"{route}?overwrite=false&full_info=true", data=b'{"nodes": []}').json
    assert told["path"] == "workflows/mine.json" and told["size"] == 13 and told["modified"] > 1e12
    assert server.post(f"{route}?overwrite=false", data=b"{}").status == 409
    assert server.post(f"{route}?overwrite=true", data=b"{}").json == "workflows/mine.json"
    assert server.get(route).body == b"{}"
    assert server.post("/userdata/workflows%2Fdeep%2Fb%20c.json", data=b"1").status == 200
    assert server.get("/userdata?dir=workflows").json == ["mine.json"]
    assert server.get("/userdata?dir=workflows&recurse=true").json == ["deep/b c.json", "mine.json"]
    split = server.get("/userdata?dir=workflows&recurse=true&split=true").json
    assert split[0] == ["deep/b c.json", "deep", "b c.json"]
    info = server.get("/api/userdata?dir=workflows&recurse=true&full_info=true").json
    assert [one["path"] for one in info] == ["deep/b c.json", "mine.json"]
    moved = server.post(f"{route}/move/workflows%2Fyours.json?overwrite=false&full_info=true")
    assert moved.json["path"] == "workflows/yours.json" and server.get(route).status == 404
    assert server.post(f"{route}/move/x.json").status == 404
    server.post(route, data=b"1")
    assert server.post(f"{route}/move/workflows%2Fyours.json?overwrite=false").status == 409
    assert server.ask("DELETE", route).status == 204 and server.ask("DELETE", route).status == 404
    assert server.get("/userdata?dir=nowhere").status == 404 and server.get("/userdata").status == 400


def test_files_are_never_pages(server: Server) -> None:
    server.post("/userdata/page.html", data=b"<script>1</script>")
    answer = server.get("/userdata/page.html")
    assert answer.headers["Content-Type"] == "application/octet-stream"
    server.post("/userdata/user.css", data=b"body { color: red }")
    style = server.get("/user.css")
    assert style.headers["Content-Type"].startswith("text/css") and b"color: red" in style.body
    assert b"login-button" in style.body
