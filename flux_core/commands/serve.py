"""`sluice serve`: the ComfyUI editor in the browser, on a server of our own.

    arguments -> folders, socket, queue file (each error is one sentence) -> serve until Ctrl-C -> everything is closed

Independent of: what is served.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import logging
import os
import secrets
import signal
import socket
import sys
import time
import webbrowser
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp import web

from ..errors import InputError, SluiceError
from ..io.folders import Folders, make_folder, standard_folders
from ..memory.budget import AUTO, Allowed, add_budget_arguments
from ..server import frontend
from ..server.app import build
from ..server.guard import is_loopback
from ..server.remote import LEASE_SECONDS
from ..server.services import Settings
from ..server.sluice_routes import kept_budget
from ..server.store import Store
from ..workers.process import with_budget
from .arguments import add_device_arguments, add_folder_arguments, add_pack_arguments, add_preview_argument
from .devices import add_devices_argument, workers_of

PORT = 8188
_KEEP_PREVIEWS = 86400.0  # seconds; older temporary files are removed at the start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice serve`."""
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: this machine only); any other address requires a token",
    )
    parser.add_argument(
        "--port", type=_port, default=PORT, help=f"port to listen on; 0 takes a free one (default: {PORT})"
    )
    parser.add_argument(
        "--token", metavar="TEXT", help="token that visitors must give (default with --host: a random one)"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name of this server besides localhost, e.g. host.docker.internal; may be repeated",
    )
    parser.add_argument(
        "--remote-only",
        action="store_true",
        help="run no jobs here; leave them to machines that run `sluice work` for this server",
    )
    parser.add_argument(
        "--lease",
        type=_seconds,
        default=LEASE_SECONDS,
        metavar="SECONDS",
        help="time after which the job of a machine that sends nothing is given to another "
        f"(default: {LEASE_SECONDS:.0f})",
    )
    parser.add_argument(
        "--yield",
        action="store_true",
        dest="gives_way",
        help="pause the running job when another program takes memory that the job needs, and continue it later",
    )
    parser.add_argument("--open", action="store_true", help="open the editor in the browser")
    parser.add_argument(
        "--base-directory",
        type=Path,
        default=None,
        metavar="DIR",
        help="the folder that contains models, input, output, temp and user (default: the current folder)",
    )
    add_folder_arguments(parser)
    add_pack_arguments(parser)
    add_device_arguments(parser)
    add_preview_argument(parser)
    add_devices_argument(parser)
    add_budget_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until stopped. Raises SluiceError if the server cannot start."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    settings = _settings(args)
    _make_folders(settings.folders)
    listening = _listen(args.host, args.port)
    try:
        store = Store(settings.folders.user / "sluice" / "queue.sqlite3")
    except BaseException:
        listening.close()
        raise
    try:
        asyncio.run(_serve(settings, store, listening, args))
    finally:
        store.close()
    return 0


async def _serve(settings: Settings, store: Store, listening: socket.socket, args: argparse.Namespace) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        _on_signal(loop, number, stopped)
    runner = web.AppRunner(build(settings, store), access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        address = _address(args.host, listening.getsockname()[1], settings.token)
        _announce(address, store)
        if args.open:
            asyncio.get_running_loop().run_in_executor(None, webbrowser.open, address)
        await stopped.wait()
    finally:
        await runner.cleanup()


def _on_signal(loop: asyncio.AbstractEventLoop, number: signal.Signals, stopped: asyncio.Event) -> None:
    """Set `stopped` when the signal arrives."""
    try:
        loop.add_signal_handler(number, stopped.set)
    except NotImplementedError:  # Windows
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stopped.set))


def _announce(address: str, store: Store) -> None:
    print(f"Sluice is at {address} (Ctrl-C stops it)", flush=True)
    if frontend.static() is None:
        print(frontend.HOW_TO_INSTALL, flush=True)
    if store.put_back:
        print(f"{store.put_back} job(s) that were running when the last server ended are run again.", flush=True)
    if store.waiting:
        print(f"{store.waiting} job(s) are waiting.", flush=True)


# -- what it needs -----------------------------------------------------------------------------------------------------


def _settings(args: argparse.Namespace) -> Settings:
    base = (args.base_directory or Path.cwd()).expanduser().absolute()
    folders = standard_folders(base, args.models, extra=args.extra_model_paths, input=args.input, output=args.out)
    options = {
        "base": str(base),
        "models": [str(place.expanduser().absolute()) for place in args.models],
        "extra": [str(file.absolute()) for file in args.extra_model_paths],
        "input": str(folders.input),
        "output": str(folders.output),
        "node_packs": [str(_existing_folder(place)) for place in args.node_packs],
        "device": args.device,
        "dtype": args.dtype,
        "cache": args.cache,
        "previews": args.previews,
        "compute": args.compute,
        "attention": args.attention,
        "gives_way": args.gives_way,
    }
    workers = {name: _with_kept_budget(name, given, folders.user) for name, given in workers_of(args, options).items()}
    token = args.token or (None if is_loopback(args.host) else secrets.token_urlsafe(16))
    return Settings(folders, workers, token, tuple(args.allow_host), _argv(sys.argv[1:]), args.remote_only, args.lease)


def _with_kept_budget(name: str, options: dict[str, Any], user: Path) -> dict[str, Any]:
    """A worker's options with the budget of the command line, or else the one set in the page of the last server."""
    said = {key: options[key] for key in ("vram", "ram")}
    kept = kept_budget(user, name)
    if set(said.values()) != {AUTO} or not kept:
        return options
    try:
        kept = Allowed.parse(kept.get("vram", AUTO), kept.get("ram", AUTO)).words
    except InputError:
        return options
    where = "" if name == AUTO else f" for {name}"
    print(f"Memory as set in the page{where}: VRAM {kept['vram']}, RAM {kept['ram']}.", flush=True)
    return with_budget(options, kept)


def _argv(argv: list[str]) -> tuple[str, ...]:
    """The command line without secrets."""
    return tuple("..." if before == "--token" else one for before, one in zip(["", *argv], argv, strict=False))


def _existing_folder(place: Path) -> Path:
    place = place.expanduser().absolute()
    if not place.exists():
        raise SluiceError(f"The folder of node packs {place} does not exist.")
    return place


def _make_folders(folders: Folders) -> None:
    """Create the folders to write to, and check now that they are writable."""
    for place in (folders.input, folders.output, folders.temp, folders.user / "default" / "workflows"):
        make_folder(place)
        if not os.access(place, os.W_OK | os.X_OK):
            raise SluiceError(f"The folder {place} cannot be written to. Choose another, or change its permissions.")
    _remove_old(folders.temp)


def _remove_old(temp: Path) -> None:
    """Remove old previews; those of the last day stay, because jobs in the queue panel show them."""
    for file in temp.iterdir():
        with contextlib.suppress(OSError):
            if file.is_file() and time.time() - file.lstat().st_mtime > _KEEP_PREVIEWS:
                file.unlink()


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens at this address. Raises SluiceError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SluiceError(f"There is no address {host!r} to listen on: {error.strerror}.") from error
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise SluiceError(
                f"Port {port} is in use, perhaps by another Sluice or ComfyUI. Stop that, or choose another --port."
            ) from error
        raise SluiceError(f"Nothing can listen at {host}:{port}: {error.strerror}.") from error
    return listening


def _address(host: str, port: int, token: str | None) -> str:
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={quote(token, safe='')}" if token else "")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400.0:
        raise argparse.ArgumentTypeError(f"a time is a number of seconds from 0.1 to 86400, not {text!r}")
    return seconds


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)
