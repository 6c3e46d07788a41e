"""Paused jobs: other jobs run before them, kills do not lose them, and resumed they give the same bits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from doubles.client import Server
from PIL import Image
from safetensors.torch import load_file

Begin = Callable[..., Server]


def prompt(seed: int = 1, steps: int = 24) -> dict[str, Any]:
    """The shipped model with a solver that has a history and noise of its own."""
    loader = {"clip_name1": "sluice-tiny-clip_l.safetensors", "clip_name2": "sluice-tiny-t5xxl.safetensors"}
    return {
        "model": {"class_type": "UNETLoader", "inputs": {
            "unet_name": "sluice-tiny.safetensors", "weight_dtype": "default"}},
        "clip": {"class_type": "DualCLIPLoader", "inputs": {**loader, "type": "flux", "device": "default"}},
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "sluice-tiny-ae.safetensors"}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": "a red circle on the left"}},
        "empty": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "sampler": {"class_type": "KSampler", "inputs": {
            "model": ["model", 0], "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["empty", 0],
            "seed": seed, "steps": steps, "cfg": 1.0, "sampler_name": "dpmpp_2m_sde", "scheduler": "simple",
            "denoise": 1.0}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["vae", 0]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "tiny"}},
    }  # fmt: skip


def begin(start: Begin) -> Server:
    return start("--dtype", "fp32", packs=None, device="cpu")


def entry_of(server: Server, prompt_id: str) -> Any:
    return server.until(lambda: server.get(f"/history/{prompt_id}").json.get(prompt_id), f"the end of {prompt_id}")


def pixels(server: Server, prompt_id: str) -> bytes:
    entry = entry_of(server, prompt_id)
    assert entry["status"]["completed"], entry["status"]
    (image,) = entry["outputs"]["save"]["images"]
    with Image.open(server.base / "output" / image["subfolder"] / image["filename"]) as opened:
        plain: bytes = opened.convert("RGB").tobytes()
        return plain


def evaluations(server: Server) -> list[Any]:
    return [file for file in (server.base / "user/sluice/unfinished").glob("*/*.evaluations") if file.stat().st_size]


def paused(server: Server) -> list[str]:
    return [job["prompt_id"] for job in server.get("/sluice/paused").json if not job["stopping"]]


def test_paused_or_killed_and_restarted_a_job_gives_the_same_pixels(start: Begin) -> None:
    server = begin(start)
    expected = pixels(server, server.queue(prompt()))
    moments = random.Random(1)
    for kill in (False, True):
        server.post("/free", {"free_memory": True})
        listener = server.listen()
        stop_after = moments.randint(1, 20)
        job = server.queue(prompt(), listener.client_id)
        listener.until("progress", lambda data: data["value"] >= stop_after and data["prompt_id"] == job)  # noqa: B023
        assert server.post("/sluice/pause", {"prompt_id": job}).json == {"paused": [job]}
        if not kill:
            server.until(lambda: paused(server) == [job], "the pause")  # noqa: B023
            assert server.get("/queue").json == {"queue_running": [], "queue_pending": []}
            assert server.workers == [], "a paused job keeps no memory"
            other = server.queue(prompt(seed=2, steps=2), listener.client_id)
            assert pixels(server, other) != expected and evaluations(server)
        else:
            server.kill()
            server = begin(start)
            assert paused(server) == [job] and server.get(f"/history/{job}").json == {}
        assert server.post("/sluice/resume", {"prompt_id": job}).json == {"resumed": [job]}
        assert pixels(server, job) == expected
        server.until(lambda: not evaluations(server), "what was kept to go")  # noqa: B023
        assert server.get("/sluice/paused").json == []
    another_program_gets_the_card(server, expected)
    a_killed_job_goes_on_where_it_was(start, server, expected)


def another_program_gets_the_card(server: Server, expected: bytes) -> None:
    """A running job stops, waits in the queue without any memory, and continues when the lease is returned."""
    server.post("/free", {"free_memory": True})
    listener = server.listen()
    job = server.queue(prompt(), listener.client_id)
    listener.until("progress", lambda data: data["value"] >= 3 and data["prompt_id"] == job)
    lease = server.post("/sluice/yield", {"by": "a game", "seconds": 600}).json
    assert lease["free"] and server.workers == []
    (waiting,) = server.get("/queue").json["queue_pending"]
    assert waiting[1] == job and server.get("/queue").json["queue_running"] == []
    longer = server.post("/sluice/yield", {"lease": lease["lease"], "seconds": 900}).json
    assert longer["lease"] == lease["lease"]
    (told,) = server.get("/sluice/yield").json
    assert told["by"] == "a game" and 600 < told["seconds"] <= 900
    assert server.post("/sluice/yield", {"lease": "none", "seconds": 5}).status == 404
    for wrong in ({"seconds": 0}, {"seconds": "5"}, {"seconds": 1e9}, {"by": "\n"}):
        assert server.post("/sluice/yield", wrong).status == 400
    assert server.ask("DELETE", f"/sluice/yield/{lease['lease']}").json == {"ended": True}
    assert server.ask("DELETE", f"/sluice/yield/{lease['lease']}").json == {"ended": False}
    assert pixels(server, job) == expected


def a_killed_job_goes_on_where_it_was(start: Begin, server: Server, expected: bytes) -> None:
    server.post("/free", {"free_memory": True})
    listener = server.listen()
    job = server.queue(prompt(), listener.client_id)
    listener.until("progress", lambda data: data["value"] >= 5 and data["prompt_id"] == job)
    server.kill()
    (kept,) = evaluations(server)
    assert kept.stat().st_size > 4 * 16 * 16 * 16 * 4
    assert pixels(begin(start), job) == expected


def training(name: str, folder: str, steps: int = 40) -> dict[str, Any]:
    """A training that lets other jobs go first."""
    found = prompt()
    return {key: found[key] for key in ("model", "clip", "vae")} | {
        "train": {"class_type": "SluiceTrainLora", "inputs": {
            "model": ["model", 0], "clip": ["clip", 0], "vae": ["vae", 0], "folder": folder, "name": name,
            "trigger": "x", "steps": steps, "rank": 2, "size": 64, "batch": 1, "rate": 1e-3, "seed": 0,
            "save_every": 100, "others_first": True}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def server(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that do not kill theirs."""
    server = Server(command, tmp_path_factory.mktemp("base"), "--dtype", "fp32", packs=None, device="cpu")
    yield server
    server.stop()


def test_a_training_lets_waiting_jobs_go_first_and_ends_with_the_same_numbers(server: Server) -> None:
    folder = server.base / "input/few"
    folder.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (64, 64), (100 * number, 50, 200)).save(folder / f"{number}.png")
    listener = server.listen()
    job = server.queue(training("gaps", "few"), listener.client_id)
    listener.until("progress", lambda data: data["prompt_id"] == job and data["max"] == 40 and data["value"] >= 3)
    pictures = [server.queue(prompt(seed=seed, steps=1), listener.client_id) for seed in (7, 8)]
    told = listener.until("sluice.paused", lambda data: any(one["aside"] for one in data["jobs"]))["jobs"]
    assert [one["prompt_id"] for one in told] == [job]
    assert all(pixels(server, one) for one in pictures) and server.get(f"/history/{job}").json == {}
    server.until(lambda: server.get("/sluice/paused").json == [], "the training to go on")
    assert entry_of(server, job)["status"]["completed"]
    undisturbed = server.queue(training("alone", "few"))
    assert entry_of(server, undisturbed)["status"]["completed"]
    first, second = (load_file(server.base / f"models/loras/{name}/{name}.safetensors") for name in ("gaps", "alone"))
    assert first.keys() == second.keys() and all(first[key].equal(second[key]) for key in first)


def test_waiting_jobs_can_be_paused_and_paused_ones_cancelled(server: Server) -> None:
    running = server.queue(prompt(steps=400))
    first, second = server.queue(prompt(seed=3, steps=1)), server.queue(prompt(seed=4, steps=1))
    assert server.post("/sluice/pause", {"prompt_id": first}).json == {"paused": [first]}
    assert [item[1] for item in server.get("/queue").json["queue_pending"]] == [second]
    server.post("/sluice/pause")  # all that run
    assert entry_of(server, second)["status"]["completed"]
    assert paused(server) == [running, first] or paused(server) == [first, running]
    assert {job["id"] for job in server.get("/jobs?status=paused").json["jobs"]} == {running, first}
    assert server.post("/sluice/pause", {"prompt_id": "nobody"}).json == {"paused": []}
    server.post("/queue", {"delete": [running]})
    assert paused(server) == [first]
    assert server.post("/sluice/resume").json == {"resumed": [first]}
    assert pixels(server, first)
    assert server.post("/sluice/resume", {"prompt_id": running}).json == {"resumed": []}
