"""Pictures in and out: names stay inside their folders, nothing foreign is rendered, sizes are bounded."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from typing import Any

import aiohttp
import pytest
from doubles.client import Answer, Server
from PIL import Image
from sluice.flux_core.io.embedded import read_workflow_bytes
from sluice.flux_core.io.png import encode

PROMPT = {"1": {"class_type": "Number", "inputs": {"value": 1}}}


def picture(colour: Any = "red", size: tuple[int, int] = (8, 6), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def upload(server: Server, data: bytes, name: str = "a.png", route: str = "/upload/image", **fields: str) -> Answer:
    form = aiohttp.FormData()
    form.add_field("image", data, filename=name, content_type="image/png")
    for key, value in fields.items():
        form.add_field(key, value)
    return server.post(route, data=form)


def opened(answer: Answer) -> Image.Image:
    return Image.open(io.BytesIO(answer.body))


def test_an_upload_is_found_under_the_name_it_is_given(server: Server) -> None:
    answer = upload(server, picture("red"), "up.png")
    assert answer.json == {"name": "up.png", "subfolder": "", "type": "input"}
    assert server.get("/view?filename=up.png&type=input").body == picture("red")
    assert upload(server, picture("red"), "up.png").json["name"] == "up.png"
    assert upload(server, picture("green"), "up.png").json["name"] == "up (1).png"
    assert upload(server, picture("blue"), "up.png").json["name"] == "up (2).png"
    assert upload(server, picture("blue"), "up.png", overwrite="true").json["name"] == "up.png"
    assert server.get("/view?filename=up.png&type=input").body == picture("blue")
    sub = upload(server, picture(), "up.png", subfolder="a/b", type="temp").json
    assert sub == {"name": "up.png", "subfolder": "a/b", "type": "temp"}
    assert server.get("/view?filename=up.png&type=temp&subfolder=a%2Fb").status == 200
    assert "up.png" in server.get("/internal/files/input").json
    assert not [name for name in os.listdir(server.base / "input") if name.endswith(".tmp")]


OUTSIDE = ["../x.png", "/etc/x.png", "a/../../x.png", "..\\x.png", "C:\\x.png", "a\0.png", "link/x.png"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_its_folder(server: Server, name: str) -> None:
    (server.base / "output").mkdir(exist_ok=True)
    for folder in ("input", "output", "user/default"):
        link = server.base / folder / "link"
        if not link.is_symlink():
            link.symlink_to(server.base)
    (server.base / "x.png").write_bytes(picture())
    quoted = "".join(f"%{byte:02x}" for byte in name.encode())
    assert server.get(f"/view?filename={quoted}").status in (403, 404)
    assert server.get(f"/view?filename=x.png&subfolder={quoted[: -len('%78%2e%70%6e%67')]}").status in (403, 404)
    assert upload(server, picture(), "x.png", subfolder=name).status in (400, 403)
    assert server.get(f"/userdata/{quoted}").status in (400, 403, 404)
    assert server.post(f"/userdata/{quoted}", data=b"x").status in (400, 403)
    assert server.get(f"/userdata?dir={quoted}").status in (403, 404)
    assert server.get(f"/sluice/canvas?filename={quoted}").status in (403, 404)
    assert server.get(f"/templates/{quoted}").status in (403, 404)
    assert server.get(f"/extensions/sluice/{quoted}").status in (403, 404)
    assert server.get(f"/extensions/test_nodes/{quoted}").status in (403, 404)
    assert server.get(f"/{quoted}").status in (403, 404)
    assert server.get(f"/view_metadata/vae?filename={quoted}").status in (403, 404)


def test_an_upload_cannot_choose_a_name_that_leads_out(server: Server) -> None:
    for name in ("../x.png", ".hidden.png", "a.html", "a.py", "a.svg", "a"):
        assert upload(server, picture(), name).status in (400, 403), name
    assert not (server.base / "input" / ".hidden.png").exists()


def test_files_that_lie_about_being_pictures_are_refused(server: Server) -> None:
    for data, name, wrong in ((b"<html>", "page.png", "not an image of a known format"), (b"", "empty.png", "empty")):
        answer = upload(server, data, name)
        assert answer.status == 400
        assert answer.json["error"]["message"].startswith(name) and wrong in answer.json["error"]["message"]
        assert str(server.base) not in answer.json["error"]["message"]
    assert not (server.base / "input" / "page.png").exists()


def test_pictures_too_large_to_decode_are_refused_by_their_header(server: Server) -> None:
    big = encode(Image.new("L", (1, 1)))
    header = bytearray(big)
    header[16:24] = (20000).to_bytes(4, "big") * 2
    header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
    assert upload(server, bytes(header), "big.png").status == 400
    (server.base / "output" / "big.png").write_bytes(header)
    assert server.get("/view?filename=big.png&preview=webp").status == 415
    assert server.get("/view?filename=big.png&channel=rgb").status == 415


def test_uploads_need_their_form(server: Server) -> None:
    assert server.post("/upload/image", {"image": 1}).status == 415
    assert server.post("/upload/image", data=b"x", headers={"Content-Type": "multipart/form-data"}).status == 400
    form = aiohttp.FormData()
    form.add_field("type", "input")
    form.add_field("subfolder", "")
    assert server.post("/upload/image", data=aiohttp.FormData([("type", "input")])).status in (400, 415)
    assert upload(server, picture(), type="elsewhere").status == 400


def test_view_makes_smaller_files_and_single_channels(server: Server) -> None:
    place = server.base / "output"
    Image.new("RGBA", (40, 30), (200, 10, 10, 128)).save(place / "v.png")
    small = server.get("/view?filename=v.png&preview=webp;60")
    assert small.headers["Content-Type"] == "image/webp" and opened(small).size == (40, 30)
    assert server.get("/view?filename=v.png&preview=jpeg;1").headers["Content-Type"] == "image/jpeg"
    assert server.get("/view?filename=v.png&preview=;;;").headers["Content-Type"] == "image/webp"
    rgb = opened(server.get("/view?filename=v.png&channel=rgb"))
    assert rgb.mode == "RGB" and rgb.getpixel((0, 0)) == (200, 10, 10)
    alpha = opened(server.get("/view?filename=v.png&channel=a"))
    assert alpha.mode == "RGBA" and alpha.getchannel("A").getpixel((0, 0)) == 128
    assert server.get("/view?filename=v.png&channel=x").status == 400
    assert server.get("/view?filename=v.png%20%5Boutput%5D&type=input").status == 200
    assert server.get("/view?filename=nothing.png").status == 404
    assert server.get("/view?filename=v.png&type=elsewhere").status == 400
    assert server.get("/view").status == 400
    (place / "broken.png").write_bytes(b"not a picture")
    assert server.get("/view?filename=broken.png&preview=webp").status == 415


@pytest.mark.parametrize("name", ["a.html", "a.svg", "a.js", "a.css", "a.xhtml", "a.xml", "a"])
def test_what_could_run_in_a_browser_is_only_offered_for_download(server: Server, name: str) -> None:
    (server.base / "output" / name).write_text("<script>alert(1)</script>")
    answer = server.get(f"/view?filename={name}")
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_mask_is_painted_into_its_picture_and_the_workflow_stays(server: Server) -> None:
    (server.base / "output" / "m.png").write_bytes(encode(Image.new("RGB", (8, 6), "red"), PROMPT))
    reference = json.dumps({"filename": "m.png", "subfolder": "", "type": "output"})
    mask = picture((0, 0, 0, 77), mode="RGBA")
    answer = upload(server, mask, "painted.png", "/upload/mask", original_ref=reference)
    assert answer.status == 200, answer.body
    body = server.get(f"/view?filename={answer.json['name']}&type=input").body
    assert Image.open(io.BytesIO(body)).getpixel((0, 0)) == (255, 0, 0, 77)
    assert read_workflow_bytes(body).prompt == PROMPT
    for wrong in ("", "{}", json.dumps({"filename": "../m.png"}), json.dumps({"filename": "none.png"})):
        assert upload(server, mask, "p.png", "/upload/mask", original_ref=wrong).status in (400, 403, 404)
    assert upload(server, picture(size=(1, 1)), "p.png", "/upload/mask", original_ref=reference).status == 400


def test_the_gallery_lists_pictures_with_what_they_were_made_from(server: Server) -> None:
    prompt = {
        "1": {"class_type": "Paint", "inputs": {"value": 1, "text": "a red fox in snow", "steps": 9}},
        "2": {"class_type": "Steps", "inputs": {"value": 5, "steps": 1, "seconds": 0.0}},
    }
    entry, _ = server.made(prompt, extra_data={"extra_pnginfo": {"workflow": {"nodes": [], "links": []}}})
    newest = server.get("/sluice/gallery?limit=1").json["pictures"][0]
    image = entry["outputs"]["1"]["images"][0]
    assert newest["filename"] == image["filename"] and newest["subfolder"] == image["subfolder"]
    assert newest["prompt_id"] == entry["prompt"][1] and newest["seconds"] > 0 and newest["peak_ram"] > 0
    assert (newest["width"], newest["height"]) == (48, 32)
    assert newest["text"] == "a red fox in snow" and newest["steps"] == 9 and newest["has_workflow"]
    found = server.get("/sluice/gallery?text=FOX%20snow").json
    assert [one["filename"] for one in found["pictures"]] == [image["filename"]] and found["pagination"]["total"] == 1
    assert server.get("/sluice/gallery?text=walrus").json["pictures"] == []
    inside = server.get(f"/sluice/canvas?filename={image['filename']}&subfolder={image['subfolder']}").json
    assert inside["prompt"] == prompt and inside["workflow"] == {"nodes": [], "links": []}


def test_the_pictures_that_come_with_us_can_be_viewed(server: Server) -> None:
    assert server.get("/view?filename=sketch.png&type=input").headers["Content-Type"] == "image/png"
    assert server.get("/view?filename=sketch.png&type=output").status == 404
    assert server.get("/view?filename=sketch.png&type=input&subfolder=x").status == 404


def test_pictures_are_starred_sorted_thrown_away_and_taken_back(server: Server) -> None:
    folder = server.base / "output" / "changes"
    folder.mkdir()
    for number, name in enumerate(["b.png", "a.png", "c.jpg"]):
        picture = Image.new("RGB", (10 + number, 10), "red")
        picture.save(folder / name)
        os.utime(folder / name, (1000 + number, 1000 + number))
    ask = {"filename": "a.png", "subfolder": "changes"}

    def names(query: str = "") -> list[str]:
        pictures = server.get(f"/sluice/gallery?limit=500&text=.&{query}").json["pictures"]
        return [one["filename"] for one in pictures if one["subfolder"] == "changes"]

    assert names() == ["c.jpg", "a.png", "b.png"] and names("sort=oldest") == ["b.png", "a.png", "c.jpg"]
    assert names("sort=name") == ["a.png", "b.png", "c.jpg"] and names("sort=largest") == ["c.jpg", "a.png", "b.png"]
    assert server.post("/sluice/gallery/star", {**ask, "starred": True}).json == {"starred": True}
    assert names("starred=true") == ["a.png"]
    assert server.post("/sluice/gallery/star", {**ask, "starred": False}).json == {"starred": False}
    assert names("starred=true") == []
    page = server.listen()
    page.until("status")
    trashed = [server.post("/sluice/gallery/delete", {"pictures": [ask]}).json["trashed"]]
    page.until("sluice.gallery")  # every other page shows the change
    page.close()
    assert trashed == [["changes/a.png"]] and names() == ["c.jpg", "b.png"]
    (folder / "a.png").write_bytes((folder / "b.png").read_bytes())
    trashed.append(server.post("/sluice/gallery/delete", {"pictures": [ask]}).json["trashed"])
    assert trashed[1] == ["changes/a (1).png"], "what was thrown away before is still there"
    assert server.post("/sluice/gallery/restore", {"trashed": trashed[0]}).json == {"restored": 1}
    assert server.post("/sluice/gallery/restore", {"trashed": trashed[0]}).status == 404
    assert sorted(names()) == ["a.png", "b.png", "c.jpg"]


@pytest.mark.parametrize("name", ["../x.png", "/etc/passwd", "none.png", "", ".trash/x.png"])
def test_only_pictures_of_the_output_folder_can_be_thrown_away(server: Server, name: str) -> None:
    wrong = {"pictures": [{"filename": name, "subfolder": ""}]}
    assert server.post("/sluice/gallery/delete", wrong).status in (400, 403, 404)
    assert server.post("/sluice/gallery/star", {"filename": name, "starred": True}).status in (400, 403, 404)
    assert server.post("/sluice/gallery/restore", {"trashed": [name]}).status in (400, 403, 404)
