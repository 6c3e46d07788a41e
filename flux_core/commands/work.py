"""`sluice work URL --token T`: this machine's devices run jobs of a `sluice serve` on another machine.

It connects to the server and needs no open port. Model files and images that this machine lacks are fetched from
the server, below ./work/. After SIGTERM (which spot machines send) or Ctrl-C the running job may end; a second signal,
or the end of --grace, returns it to the queue.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from ..errors import InputError
from ..io.folders import make_folder, standard_folders
from ..memory.budget import add_budget_arguments
from ..workers.dial import Dialer
from ..workers.fetch import Fetcher
from .arguments import add_device_arguments, add_model_arguments, add_pack_arguments, add_preview_argument
from .devices import add_devices_argument, workers_of

_ADDRESS = re.compile(r"https?://[^\s/?#]+(/[^\s?#]*)?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice work`."""
    parser.add_argument("url", help="the server's address, e.g. http://192.168.1.5:8188")
    parser.add_argument("--token", metavar="TEXT", help="the token that the server printed when it started")
    parser.add_argument("--name", metavar="TEXT", help="the name of this machine (default: its host name)")
    parser.add_argument(
        "--grace",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="time that the running job gets after SIGTERM (default: 30)",
    )
    parser.add_argument(
        "--base-directory",
        type=Path,
        metavar="DIR",
        help="the folder with models; fetched files are stored in work/ inside it",
    )
    add_model_arguments(parser)
    add_pack_arguments(parser)
    add_device_arguments(parser)
    add_preview_argument(parser)
    add_devices_argument(parser)
    add_budget_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Work until stopped. Raises SluiceError if it cannot start."""
    url = _address(args.url)
    base = (args.base_directory or Path.cwd()).expanduser().absolute()
    place = base / "work" / re.sub(r"[^A-Za-z0-9.-]", "_", urlsplit(url).netloc)
    for folder in ("models", "input", "output", "temp"):
        make_folder(place / folder)
    models = [place / "models", *(root.expanduser().absolute() for root in args.models)]
    models += [base / "models"] if (base / "models").is_dir() else []
    common = {
        "base": str(place),
        "models": [str(root) for root in models],
        "extra": [str(file.absolute()) for file in args.extra_model_paths],
        "node_packs": [str(folder.expanduser().absolute()) for folder in args.node_packs],
        "device": args.device,
        "dtype": args.dtype,
        "cache": args.cache,
        "compute": args.compute,
        "attention": args.attention,
        "previews": args.previews,
    }
    asyncio.run(_work(args, url, place, workers_of(args, common)))
    return 0


def _address(text: str) -> str:
    if not _ADDRESS.fullmatch(text.rstrip("/")):
        raise InputError(f"{text!r} is not an address of a server. Write http://192.168.1.5:8188, for example.")
    return text.rstrip("/")


async def _work(args: argparse.Namespace, url: str, place: Path, workers: Mapping[str, Mapping[str, Any]]) -> None:
    headers = {"Authorization": f"Bearer {args.token}"} if args.token else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        options = next(iter(workers.values()))
        folders = standard_folders(
            place, [Path(p) for p in options["models"]], extra=[Path(p) for p in options["extra"]]
        )
        fetcher = Fetcher(session, url, place, folders)
        host = args.name or socket.gethostname()
        dialers = [
            Dialer(session, url, f"{host}/{name}", given, fetcher, lambda line: print(line, flush=True))
            for name, given in workers.items()
        ]
        running = [asyncio.create_task(dialer.run()) for dialer in dialers]
        stopping = asyncio.create_task(_until_stopped(dialers, args.grace))
        try:
            await asyncio.gather(*running)
        finally:
            stopping.cancel()
            for task in running:
                task.cancel()
            await asyncio.gather(*running, stopping, return_exceptions=True)


async def _until_stopped(dialers: list[Dialer], grace: float) -> None:
    signals: asyncio.Queue[None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, signals.put_nowait, None)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(signals.put_nowait, None))
    await signals.get()
    print(f"Takes no further job; a running one has {grace:.0f} s. A second signal gives it back at once.", flush=True)
    draining = asyncio.create_task(_drain(dialers))
    second = asyncio.create_task(signals.get())
    await asyncio.wait([draining, second], timeout=grace, return_when=asyncio.FIRST_COMPLETED)
    draining.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await draining
    await asyncio.gather(*(dialer.leave() for dialer in dialers))


async def _drain(dialers: list[Dialer]) -> None:
    await asyncio.gather(*(dialer.drain() for dialer in dialers))
