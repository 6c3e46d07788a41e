"""From a prompt to a picture through everything: the model that comes with the program, in the worker, over HTTP."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from doubles.client import Listener, Server
from PIL import Image
from sluice.flux_core.io.embedded import read_workflow_bytes

CANVAS = {"id": "a canvas", "nodes": [], "links": []}

Make = Callable[[dict[str, Any]], tuple[Server, Listener, Any, bytes]]


def prompt(seed: int = 1, steps: int = 4) -> dict[str, Any]:
    return {
        "model": {"class_type": "UNETLoader", "inputs": {
            "unet_name": "sluice-tiny.safetensors", "weight_dtype": "default"}},
        "clip": {"class_type": "DualCLIPLoader", "inputs": {
            "clip_name1": "sluice-tiny-clip_l.safetensors", "clip_name2": "sluice-tiny-t5xxl.safetensors",
            "type": "flux", "device": "default"}},
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "sluice-tiny-ae.safetensors"}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": "a red circle on the left"}},
        "empty": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "sampler": {"class_type": "KSampler", "inputs": {
            "model": ["model", 0], "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["empty", 0],
            "seed": seed, "steps": steps, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["vae", 0]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "tiny"}},
        "send": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["decode", 0]}},
    }  # fmt: skip


@pytest.fixture
def made(start: Callable[..., Server]) -> Make:
    """made(prompt): its listener, its entry in the history, and its picture as bytes."""
    server = start("--dtype", "fp32", packs=None, device="cpu")

    def make(prompt: dict[str, Any]) -> tuple[Server, Listener, Any, bytes]:
        listener = server.listen()
        body = {"extra_pnginfo": {"workflow": CANVAS}, "preview_method": "latent2rgb"}
        entry = listener.end_of(server.queue(prompt, listener.client_id, extra_data=body))
        assert entry["status"]["completed"], entry["status"]
        (image,) = entry["outputs"]["save"]["images"]
        picture = server.get(f"/view?filename={image['filename']}&subfolder={image['subfolder']}&type=output").body
        return server, listener, entry, picture

    return make


def test_a_picture_is_made_shown_found_and_made_again(made: Make) -> None:
    server, listener, entry, picture = made(prompt())
    embedded = read_workflow_bytes(picture)
    assert embedded.workflow == CANVAS and embedded.prompt == entry["prompt"][2]
    steps = [data["value"] for kind, data in listener.heard if kind == "progress" and data["node"] == "sampler"]
    assert steps == [1, 2, 3, 4]
    first, *_, sent = [Image.open(io.BytesIO(frame[8:])) for frame in listener.bytes]
    assert first.format == "JPEG" and first.size == (128, 128), "a preview has the size of the picture"
    assert sent.format == "PNG" and sent.tobytes() == Image.open(io.BytesIO(picture)).tobytes()
    shown = server.get("/sluice/gallery").json["pictures"][0]
    assert shown["text"] == "a red circle on the left" and (shown["seed"], shown["steps"]) == (1, 4)
    assert (shown["width"], shown["height"]) == (128, 128)
    peaks = [data["peak_bytes"] for kind, data in listener.heard if kind == "sluice.memory.job"]
    assert peaks and shown["peak_ram"] >= max(peaks), "the job's peak is no lower than those that the Memory tab shows"
    assert shown["prompt_id"] == entry["prompt"][1]

    _, listener, entry, other = made(prompt(seed=2))
    kept = listener.until("execution_cached")["nodes"]
    assert sorted(kept) == ["clip", "empty", "model", "text", "vae"] and other != picture

    again = read_workflow_bytes(picture).prompt
    assert again is not None
    again["save"]["inputs"]["filename_prefix"] = "again"
    _, _, _, same = made(again)
    assert Image.open(io.BytesIO(same)).tobytes() == Image.open(io.BytesIO(picture)).tobytes()
