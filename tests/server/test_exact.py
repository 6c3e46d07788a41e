"""An image of the gallery is made again exactly, once, and is compared with its twin."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doubles.client import Server
from PIL import Image
from sluice.flux_core.images.similarity import nearest, psnr
from sluice.flux_core.io.embedded import read_workflow

SHIPPED = Path(__file__).resolve().parents[2] / "workflows" / "text_to_image.png"


def test_an_image_made_with_a_step_cache_beside_the_exact_one(start: Callable[..., Server]) -> None:
    server = start("--cache", "faster", "--dtype", "fp32", packs=None, device="cpu")
    prompt = read_workflow(SHIPPED).prompt
    assert prompt is not None
    image = saved(server.made(prompt)[0])
    where = f"/sluice/gallery/exact?filename={image['filename']}&subfolder={image['subfolder']}"
    assert server.get(where).json == {"state": "none", "prompt_id": None, "picture": None}
    listener = server.listen()
    asked = {**image, "client_id": listener.client_id}
    prompt_id = server.post("/sluice/gallery/exact", asked).json["prompt_id"]
    twin = saved(listener.end_of(prompt_id))
    found = server.get(where).json
    assert (found["state"], found["prompt_id"]) == ("completed", prompt_id)
    assert found["picture"]["filename"] == twin["filename"] != image["filename"]
    folder = server.base / "output" / image["subfolder"]
    with Image.open(folder / image["filename"]) as one, Image.open(folder / twin["filename"]) as other:
        assert found["picture"]["psnr"] == psnr(one, other), "of these two"
        assert 20 < found["picture"]["psnr"] < 80 and found["picture"]["ssim"] > 0.9
    assert server.post("/sluice/gallery/exact", asked).json == {"prompt_id": prompt_id}, "an image is made again once"
    cached = saved(server.made(prompt)[0])
    with Image.open(folder / image["filename"]) as one, Image.open(folder / cached["filename"]) as other:
        assert psnr(one, other) == math.inf, (
            "the next job is computed as the server was told, and not from exact results"
        )
    (folder / twin["filename"]).unlink()
    assert server.get(where).json["state"] == "none", "the exact image is gone"
    missing = server.post("/sluice/gallery/exact", {"filename": "none.png"})
    assert missing.status == 404 and "no image 'none.png'" in missing.json["error"]["message"]


def saved(entry: Any) -> Any:
    """The image of a job's entry in the history."""
    return next(image for output in entry["outputs"].values() for image in output.get("images", ()))


def test_the_nearest_of_several_images(tmp_path: Path) -> None:
    files = []
    for number, shade in enumerate((10, 60, 50)):
        files.append(tmp_path / f"{number}.png")
        Image.new("RGB", (16, 16), (shade, shade, shade)).save(files[-1])
    small = tmp_path / "small.png"
    Image.new("RGB", (8, 8), (60, 60, 60)).save(small)
    index, decibels, alike = nearest(files[1], [small, files[0], files[2]])
    assert index == 2 and decibels == pytest.approx(20 * math.log10(255 / 10)) and alike is not None
    assert nearest(files[1], [files[0], files[1]])[:2] == (1, math.inf)
    assert nearest(files[1], [small]) == (0, None, None)
