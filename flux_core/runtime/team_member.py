"""The process of a further device of a team (team.py): opens the team's models and computes its share of each step.

It has a runtime, a budget and a plan of its own. It ends when the process that started it ends.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import threading
import traceback
from contextlib import ExitStack, closing
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from ..errors import BudgetTooSmall, SluiceError
from ..memory.budget import Allowed
from ..models.tensor_trees import map_tensors
from ..parallel.share import joined
from ..parallel.split import Split
from ..sampling.guider import Network, Run
from ..workers.protocol import Channel, Message, private_pipes
from .autoencoder_handle import TilesOf
from .handles import FluxModel, described, load_autoencoder, told_encoder
from .run_elsewhere import restored
from .runtime import Runtime
from .settings import Settings

Heard = queue.SimpleQueue[tuple[Message, bytes]]


def main(options: str) -> None:
    """Serve until the pipe closes. `options`, as JSON:

    {"device", "dtype", "vram", "ram", "compute", "threads", "rank", "port", "split", "shares", "seconds"}
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    channel, given = private_pipes(), json.loads(options)
    heard: Heard = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, heard), daemon=True).start()
    try:
        if given.get("threads"):
            torch.set_num_threads(given["threads"])
        device, dtype, vram, ram, compute = (given.get(name) for name in ("device", "dtype", "vram", "ram", "compute"))
        runtime = Runtime(Settings.parse(device, dtype, vram, ram, None, compute))
        channel.send({"ready": True})
        _join(channel, heard, runtime, given)
        with torch.inference_mode():
            _serve(channel, heard, runtime)
    except Exception as error:
        if not isinstance(error, SluiceError):
            traceback.print_exc()
        sentence = str(error) if isinstance(error, SluiceError) else f"{type(error).__name__}: {error}"
        channel.send({"error": sentence, "type": type(error).__name__})
        os._exit(1)


def _listen(channel: Channel, heard: Heard) -> None:
    try:
        while True:
            heard.put(channel.receive())
    except (EOFError, OSError, ValueError):
        os._exit(0)


def _join(channel: Channel, heard: Heard, runtime: Runtime, given: dict[str, Any]) -> None:
    while (message := heard.get()[0])["op"] != "join":  # the connection exists when all processes have started
        _follow(runtime, message)
    torchs: Any = torch.distributed
    split = Split(**given["split"])
    store = torchs.TCPStore("127.0.0.1", given["port"], split.size, False, timedelta(seconds=given["seconds"]))
    runtime.share, wrong = joined(store, split, given["rank"], given["shares"], runtime.device, given["seconds"])
    channel.send({"wrong": wrong})


def _serve(channel: Channel, heard: Heard, runtime: Runtime) -> None:
    reports: list[dict[str, Any]] = []  # of the models that ran since this was last sent
    runtime.events.listen(lambda event: reports.append(event) if event["type"] == "memory.job" else None)
    kept: tuple[FluxModel, Run] | None = None  # so that their weights stay for the next run
    encoders: dict[str, Any] = {}  # likewise
    stack, network = ExitStack(), None
    while True:
        message, payload = heard.get()
        if message["op"] == "open":
            description, run = _unpacked(payload, runtime.device)
            kept = described(runtime, description), restored(run, runtime)
            network = stack.enter_context(kept[0].open(kept[1]))
            channel.send({"opened": True})
        elif message["op"] == "call":
            velocity = _called(network, _unpacked(payload, runtime.device))
            if message["answer"]:
                channel.send({"velocity": True}, pickle.dumps(velocity.cpu(), protocol=pickle.HIGHEST_PROTOCOL))
        elif message["op"] == "tiles":
            _convert(channel, heard, runtime, message, _unpacked(payload, runtime.device))
        elif message["op"] == "encode":
            told, args = _unpacked(payload, runtime.device)
            encoders[told.kind] = told_encoder(runtime, told)
            encoders[told.kind](*args)
        elif message["op"] == "stop":
            channel.send({"stopped": True})
        elif message["op"] == "budget":
            _follow(runtime, message)
            if network is None:
                runtime.shrink_to_budget()
        else:
            stack.close()
            network = None
            told = [{key: report[key] for key in ("line", "peak_bytes", "limit_bytes")} for report in reports]
            channel.send({"closed": told})
            reports.clear()


def _convert(channel: Channel, heard: Heard, runtime: Runtime, order: Message, tiles: TilesOf) -> None:
    """Send this device's tiles, unless it is told to stop."""
    try:
        autoencoder = load_autoencoder(runtime, *tiles.paths)
        with closing(autoencoder.own_tiles(tiles, slice(order["rank"], None, order["size"]))) as computed:
            for number, tile in computed:
                channel.send({"tile": number}, pickle.dumps(tile.cpu(), protocol=pickle.HIGHEST_PROTOCOL))
                while not heard.empty():
                    message, _ = heard.get()
                    if message["op"] == "stop":
                        channel.send({"stopped": True})
                        return
                    _follow(runtime, message)
    except (torch.OutOfMemoryError, BudgetTooSmall) as error:
        channel.send({"short": str(error)})


def _follow(runtime: Runtime, budget: Message) -> None:
    runtime.budget = Allowed.parse(budget["vram"], budget["ram"])


def _called(network: Network | None, inputs: Any) -> Tensor:
    assert network is not None
    return network(inputs)


def _unpacked(payload: bytes, device: torch.device) -> Any:
    value = pickle.loads(payload)
    return value if device.type == "cpu" else map_tensors(value, lambda tensor: tensor.to(device))
