"""Cancels and pauses at random moments of a full-size job on `sluice serve`, and kills after them.

    cancels  a job is stopped while it loads, encodes, samples or decodes: seconds until it has ended, and how many of
             them its worker computed; some of each phase are killed with their server at once, and the server once more
             at the end. None may ever run again
    pauses   a job is paused, its server killed and started again, the job resumed: its pixels are compared with those
             of a job that was never stopped, and its memory meanwhile with that of a worker that has loaded nothing

The files have the published sizes and random weights (random_model.py); `--shipped` takes the small model, to try this
out. A phase begins with the first event of its nodes, and the moment is a random part of how long it took before.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ..errors import SluiceError
from ..io.folders import TINY_MODELS
from ..runtime.published import picture_size
from . import random_model
from .files import FORMATS, path_of, written
from .scratch import scratch_folder
from .server import Server, running
from .watch import Watch, watching

TARGET = 2.0  # seconds until a cancelled job has ended
MEMORY_TARGET = 1.05  # of a paused job, times that of an idle worker
FIRST_SECONDS = 5.0  # of a job with nothing loaded: the phase "loading"
ENCODING_SECONDS = 20.0  # in which a text is stopped; a full-size T5 takes longer on a CPU
PHASES = ("loading", "encoding", "decoding", "sampling")  # decoding needs what a whole job just before it has sampled
BEGINS = {"decoding": "decode", "sampling": "sampler", "encoding": "text", "loading": "vae"}  # with this node
SAMPLERS = ("dpmpp_2m", "dpmpp_2m_sde")  # with several steps' history, and with noise of its own
T5_TOKENS, T5_LENGTH = 32100, 512  # of the published tokenizer, and of a prompt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice bench stopping`."""
    parser.add_argument("--cancels", type=int, default=30, help="number of cancels")
    parser.add_argument(
        "--kills", type=int, default=6, help="number of cancels after which the server is killed at once"
    )
    parser.add_argument("--pauses", type=int, default=20, help="number of pauses")
    parser.add_argument("--size", default="512x512", metavar="WxH", help="size of the image")
    parser.add_argument("--steps", type=int, default=2, help="sampling steps")
    parser.add_argument("--ram", default="10G", metavar="SIZE", help="RAM budget (default: %(default)s)")
    parser.add_argument("--dtype", default="bf16", help="number type of the computation")
    parser.add_argument("--folder", type=Path, default=Path("bench-models"), help="folder for the model files")
    parser.add_argument("--keep", action="store_true", help="keep the model files for another run")
    parser.add_argument("--shipped", action="store_true", help="use the shipped model instead of full-size files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both parts. `met`: all cancelled jobs stopped in time and ran no more, all paused ones had the same pixels."""
    files: dict[str, tuple[Callable[[], Any], str]] = {} if args.shipped else {
        "flux-fp8": (random_model.flux, FORMATS["fp8"]), "t5-fp8": (random_model.t5, FORMATS["fp8"]),
        "clip-fp16": (random_model.clip, "F16"), "ae-fp32": (random_model.autoencoder, "F32"),
    }  # fmt: skip
    with scratch_folder() as folder, written(args.folder, files, args.keep):
        if not args.shipped:
            lay_out(args.folder, folder / "models")
        return asyncio.run(_measure(args, folder))


def lay_out(folder: Path, models: Path, flux: str = "flux-fp8") -> None:
    """The files as a models folder, with a T5 tokenizer of the published size."""
    for kind, names in (
        ("diffusion_models", [flux]),
        ("text_encoders", ["t5-fp8", "clip-fp16"]),
        ("vae", ["ae-fp32"]),
    ):
        (models / kind).mkdir(parents=True)
        for name in names:
            file = path_of(str(folder.absolute()), name)
            (models / kind / file.name).symlink_to(file)
    tokenizer = json.loads((TINY_MODELS / "tokenizers/t5xxl/tokenizer.json").read_text("utf-8"))
    words = tokenizer["model"]["vocab"]
    words += [[f"filler{number}", -20.0] for number in range(len(words), T5_TOKENS)]
    tokenizer["padding"]["strategy"] = {"Fixed": T5_LENGTH}
    (models / "tokenizers/t5xxl").mkdir(parents=True)
    (models / "tokenizers/t5xxl/tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")


async def _measure(args: argparse.Namespace, base: Path) -> dict[str, Any]:
    options = ["--device", "cpu", "--dtype", args.dtype, "--ram", args.ram]
    found: dict[str, Any] = {"met": True}
    async with running(base, options) as server:
        job = Job(args)
        if args.cancels:
            found["cancels"] = await _cancels(server, job, args)
            found["met"] &= found["cancels"]["met"]
        if args.pauses:
            found["pauses"] = await _pauses(server, job, args)
            found["met"] &= found["pauses"]["met"]
    return found


@dataclass(frozen=True)
class Job:
    """The prompt that is stopped."""

    args: argparse.Namespace

    def prompt(
        self, text: str = "a red circle", seed: int = 1, sampler: str = "euler", turn: str = "none"
    ) -> dict[str, Any]:
        """turn: a rotation of the latent before it is decoded, so that only the decoding of the job differs."""
        width, height = picture_size(self.args.size)
        ours = ("sluice-tiny", "sluice-tiny-clip_l", "sluice-tiny-t5xxl", "sluice-tiny-ae")
        names = ours if self.args.shipped else ("flux-fp8", "clip-fp16", "t5-fp8", "ae-fp32")
        flux, clip, t5, vae = (f"{name}.safetensors" for name in names)
        nodes: dict[str, tuple[str, dict[str, Any]]] = {
            "model": ("UNETLoader", {"unet_name": flux, "weight_dtype": "default"}),
            "clip": ("DualCLIPLoader", {"clip_name1": clip, "clip_name2": t5, "type": "flux", "device": "default"}),
            "vae": ("VAELoader", {"vae_name": vae}),
            "text": ("CLIPTextEncode", {"clip": ["clip", 0], "text": text}),
            "empty": ("EmptySD3LatentImage", {"width": width, "height": height, "batch_size": 1}),
            "sampler": ("KSampler", {
                "model": ["model", 0], "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["empty", 0],
                "seed": seed, "steps": self.args.steps, "cfg": 1.0, "sampler_name": sampler, "scheduler": "simple",
                "denoise": 1.0}),
            "turn": ("LatentRotate", {"samples": ["sampler", 0], "rotation": turn}),
            "decode": ("VAEDecode", {"samples": ["turn", 0], "vae": ["vae", 0]}),
            "save": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "stopped"}),
        }  # fmt: skip
        return {node_id: {"class_type": kind, "inputs": inputs} for node_id, (kind, inputs) in nodes.items()}


async def _post(server: Server, path: str, body: Any) -> Any:
    async with server.session.post(server.url(path), json=body) as answer:
        text = await answer.text()
        if answer.status >= 400:
            raise SluiceError(text)
        return json.loads(text) if text else None


async def _ready(server: Server) -> None:
    """Wait until a worker has imported everything that it imports before its first job."""
    while not (await server.get("/system_stats")).get("devices"):
        await asyncio.sleep(0.2)


async def _begun(server: Server, watch: Watch, prompt: dict[str, Any]) -> str:
    return await server.queue(prompt, uuid.uuid4().hex, watch.client_id)


# -- cancels -----------------------------------------------------------------------------------------------------------


async def _cancels(server: Server, job: Job, args: argparse.Namespace) -> dict[str, Any]:
    chance = random.Random(args.seed)
    await _ready(server)
    watch = await watching(server)
    records, stopped = [], []
    took: dict[str, float] = {}
    turns = ["180 degrees", "90 degrees", "270 degrees"]
    for number, phase in enumerate(_shares(args.cancels)):
        kill = (number + 1) * args.kills // args.cancels > number * args.kills // args.cancels  # evenly among them
        if phase in ("decoding", "sampling") and not took:
            took = await _whole(server, watch, job)
        record, prompt_id = await _one_cancel(server, watch, job, phase, number, chance, took, kill, turns[0])
        while record["node"] == "end":
            took[BEGINS[phase]] = record["after"]
            if phase == "decoding":
                del turns[0]  # this latent has been decoded now, and is not decoded again
            print(f"  {phase} ended before its cancel, after {record['after']:.1f} s: once more, earlier", flush=True)
            record, prompt_id = await _one_cancel(server, watch, job, phase, number, chance, took, kill, turns[0])
        stopped.append(prompt_id)
        records.append(record)
        print(f"  {_told(record)}", flush=True)
        if kill:
            await watch.close()
            watch = await watching(server)
    await server.kill("server")
    await _ready(server)
    await asyncio.sleep(2)
    again = [one for one in stopped if not await _is_over(server, one)]
    await watch.close()
    measured = [record["seconds"] for record in records if record["seconds"] is not None]
    late = sum(seconds > TARGET for seconds in measured)
    slowest = max(measured, default=0)
    print(f"cancels: {len(records)}, slowest {slowest:.2f} s, {late} later than {TARGET} s; {len(again)} run again")
    return {
        "whole_seconds": took,
        "cancels": records,
        "late": late,
        "run_again": len(again),
        "met": not late and not again,
    }


async def _whole(server: Server, watch: Watch, job: Job) -> dict[str, float]:
    """The seconds of each node of a whole job."""
    whole = await _begun(server, watch, job.prompt())
    ended = await watch.node(whole, None)
    begins = [*watch.nodes(whole), ("end", ended)]
    took = {node: after - at for (node, at), (_, after) in zip(begins, begins[1:], strict=False)}
    print(f"a whole job: {', '.join(f'{node} {seconds:.1f} s' for node, seconds in took.items())}", flush=True)
    return took


def _shares(cancels: int) -> list[str]:
    """As many cancels of each phase, in the order of PHASES."""
    return sorted((PHASES[number % len(PHASES)] for number in range(cancels)), key=PHASES.index)


def _told(record: Mapping[str, Any]) -> str:
    if record["seconds"] is None:
        return f"{record['phase']:<10} killed with its server"
    return (
        f"{record['phase']:<10} {record['after']:7.2f} s in, at {record['node']:<8} ended after "
        f"{record['seconds']:.2f} s ({record['worker_seconds']:.2f} s of its worker's processor time)"
    )


async def _one_cancel(
    server: Server,
    watch: Watch,
    job: Job,
    phase: str,
    number: int,
    chance: random.Random,
    took: Mapping[str, float],
    kill: bool,
    turn: str,
) -> tuple[dict[str, Any], str]:
    prompts = {
        "decoding": job.prompt(turn=turn), "sampling": job.prompt(seed=100 + number),
        "encoding": job.prompt(text=f"a blue star {number}"), "loading": job.prompt(text=f"a green heart {number}"),
    }  # fmt: skip
    if phase == "loading":
        await _post(server, "/free", {"unload_models": True, "free_memory": True})
    prompt_id = await _begun(server, watch, prompts[phase])
    began = await watch.node(prompt_id, BEGINS[phase])
    length = {"loading": FIRST_SECONDS, "encoding": ENCODING_SECONDS}.get(phase) or took[BEGINS[phase]]
    after = chance.uniform(0.0, 0.95) * length
    await asyncio.sleep(max(0.0, began + after - time.monotonic()))
    node = watch.nodes(prompt_id)[-1][0]
    record: dict[str, Any] = {"phase": phase, "after": after, "node": node, "seconds": None}
    if (ended := watch.ended(prompt_id)) is not None:
        return record | {"node": "end", "after": ended - began}, prompt_id
    worker = psutil.Process((await server.workers())[0])
    before, asked = sum(worker.cpu_times()[:2]), time.monotonic()
    await _post(server, "/interrupt", {"prompt_id": prompt_id})
    if kill:
        await server.kill("server")
        await _ready(server)
        return record, prompt_id
    record["seconds"] = await watch.node(prompt_id, None) - asked
    record["worker_seconds"] = sum(worker.cpu_times()[:2]) - before
    return record, prompt_id


async def _is_over(server: Server, prompt_id: str) -> bool:
    """Whether the job neither waits nor runs, and is reported as stopped."""
    queue = await server.get("/queue")
    left = {item[1] for item in (*queue["queue_running"], *queue["queue_pending"])}
    entry = (await server.get(f"/history/{prompt_id}")).get(prompt_id)
    told = entry["status"]["messages"] if entry else []
    return prompt_id not in left and any(kind == "execution_interrupted" for kind, _ in told)


# -- pauses ------------------------------------------------------------------------------------------------------------


async def _pauses(server: Server, job: Job, args: argparse.Namespace) -> dict[str, Any]:
    chance = random.Random(args.seed)
    await server.kill("server")
    await _ready(server)
    idle = _memory(server)
    expected, seconds = {}, {}
    watch = await watching(server)
    for sampler in SAMPLERS:
        began = time.monotonic()
        prompt_id = await _begun(server, watch, job.prompt(sampler=sampler))
        seconds[sampler] = await watch.node(prompt_id, None) - began
        expected[sampler] = await _pixels(server, prompt_id)
    await watch.close()
    print(f"an idle worker takes {idle / 1e6:.0f} MB; uninterrupted: {seconds}", flush=True)
    records = []
    for number in range(args.pauses):
        sampler = SAMPLERS[number % len(SAMPLERS)]
        after = chance.uniform(0.02, 0.95) * seconds[sampler]
        while (paused := await _one_pause(server, job, sampler, after))["ended"]:
            print(f"  {sampler} was done before {after:.1f} s: once more, earlier", flush=True)
            after /= 2
        record: dict[str, Any] = {"sampler": sampler, "after": after} | paused
        record["same"] = record.pop("pixels") == expected[sampler]
        records.append(record)
        print(f"  {record}", flush=True)
    same = sum(record["same"] for record in records)
    most = max((record["memory"] for record in records), default=0)
    print(f"pauses: {len(records)}; {same} with the same pixels; at most {most / 1e6:.0f} MB meanwhile")
    met = same == len(records) and most <= MEMORY_TARGET * idle
    return {"idle_bytes": idle, "most_bytes": most, "same": same, "pauses": records, "met": met}


async def _one_pause(server: Server, job: Job, sampler: str, after: float) -> dict[str, Any]:
    """Pause, kill, start again, resume. `ended`: the job was done before it could be paused."""
    await _post(server, "/free", {"unload_models": True, "free_memory": True})
    watch = await watching(server)
    prompt_id = await _begun(server, watch, job.prompt(sampler=sampler))
    await watch.node(prompt_id, BEGINS["loading"])
    await asyncio.sleep(after)
    asked = time.monotonic()
    paused = (await _post(server, "/sluice/pause", {"prompt_id": prompt_id}))["paused"]
    while any(one["stopping"] for one in await server.get("/sluice/paused")):
        await asyncio.sleep(0.02)
    stopped, memory = time.monotonic() - asked, 0
    await watch.close()
    if paused and await server.get("/sluice/paused"):
        memory = _memory(server)
        await server.kill("server")
        await _ready(server)
        memory = max(memory, _memory(server))
        await _post(server, "/sluice/resume", {"prompt_id": prompt_id})
    while not (await server.get(f"/history/{prompt_id}")).get(prompt_id):
        await asyncio.sleep(0.1)
    pixels = await _pixels(server, prompt_id)
    return {"ended": not memory, "stop_seconds": stopped, "memory": memory, "pixels": pixels}


def _memory(server: Server) -> int:
    """Bytes of the server's workers."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    return sum(int(child.memory_info().rss) for child in children)


async def _pixels(server: Server, prompt_id: str) -> str:
    """A digest of the image of a job. Raises SluiceError if it has none."""
    from PIL import Image

    entry = (await server.get(f"/history/{prompt_id}"))[prompt_id]
    shown = list(_images(entry["outputs"]))
    if len(shown) != 1:
        raise SluiceError(f"The job made no image: {entry['status']['messages'][-1]}")
    with Image.open(server.base / "output" / shown[0]["subfolder"] / shown[0]["filename"]) as image:
        return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def _images(outputs: Mapping[str, Any]) -> Iterator[Mapping[str, str]]:
    for node in outputs.values():
        yield from node.get("images", ())
