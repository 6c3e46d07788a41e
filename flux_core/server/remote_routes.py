"""The routes for workers on other machines: the WebSocket through which they connect, and the files they fetch.

Both are behind the guard: a connection needs the token, if the server has one.

Independent of: how jobs are assigned.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import partial
from typing import Any

from aiohttp import WSMsgType, web

from ..errors import SluiceError
from ..workers.process import OnMessage
from ..workers.protocol import Message, frame_of, parsed
from .members import Member
from .remote import RemoteWorker
from .remote_files import NeededFiles, Results
from .services import Route, Services, refuse, services

log = logging.getLogger(__name__)

LARGEST_FRAME = 64 << 20  # bytes
HELLO_SECONDS = 20.0
CLOCK_SECONDS = 60.0  # seconds by which clocks may differ before a warning
_LONGEST_NAME = 100


class Remotes:
    """The common data of all workers on other machines."""

    def __init__(self, here: Services) -> None:
        self.needed = NeededFiles(here.folders)
        self.names: dict[tuple[str, int], dict[str, Any]] = {}  # see Results


REMOTES = web.AppKey("remotes", Remotes)


async def dial_in(request: web.Request) -> web.StreamResponse:
    """GET /sluice/worker: a worker's WebSocket, for as long as it is open."""
    here = services(request)
    socket = web.WebSocketResponse(heartbeat=here.settings.lease / 2, max_msg_size=LARGEST_FRAME, timeout=1.0)
    await socket.prepare(request)
    try:
        hello = await _hello(socket)
        member, welcome = await _welcomed(request, here, hello)
    except SluiceError as error:
        log.warning("A worker at %s was refused: %s", request.remote, error)
        with contextlib.suppress(ConnectionError):
            await socket.send_bytes(frame_of({"refused": str(error)}))
        await socket.close()
        return socket
    worker = member.worker
    assert isinstance(worker, RemoteWorker)
    outbox: asyncio.Queue[bytes] = asyncio.Queue()
    writing = asyncio.create_task(_write(socket, outbox))
    outbox.put_nowait(frame_of({"welcome": welcome}))
    send = outbox.put_nowait
    worker.connected(send)
    member.contact = True
    here.job_runner.look()
    try:
        await _listen(socket, here, member, worker)
    finally:
        writing.cancel()
        if worker.disconnected(send):
            member.contact = False
            here.job_runner.look()
    return socket


async def _hello(socket: web.WebSocketResponse) -> Message:
    try:
        message, _ = parsed(await socket.receive_bytes(timeout=HELLO_SECONDS))
        hello = message["hello"]
        if not isinstance(hello, dict) or not all(isinstance(hello.get(key), str) for key in ("name", "session")):
            raise ValueError
    except (ValueError, KeyError, TypeError, asyncio.TimeoutError):
        raise SluiceError("Its first message was not that of `sluice work`.") from None
    return hello


async def _welcomed(request: web.Request, here: Services, hello: Message) -> tuple[Member, Message]:
    """The worker as a member, and the welcome message for it. Raises SluiceError with the reason if it cannot be
    used.
    """
    own = await here.job_runner.worker.call("identity")
    name = hello["name"]
    if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
        raise SluiceError(f"The name of a worker is a printable text of at most {_LONGEST_NAME} characters.")
    if hello.get("version") != own["version"]:
        raise SluiceError(
            f"The worker {name} runs Sluice {hello.get('version')} and this server {own['version']}. Install the same "
            "version on both."
        )
    if hello.get("nodes") != own["nodes"]:
        raise SluiceError(
            f"The worker {name} has other nodes than this server: it {_of_packs(hello.get('packs'))}, the server "
            f"{_of_packs(own.get('packs'))}. Give both the same --node-packs in the same versions."
        )
    runner = here.job_runner
    member = runner.members[name] if name in runner.members else None
    known = member is not None and isinstance(member.worker, RemoteWorker) and member.worker.session == hello["session"]
    if member is not None and not known:
        if not isinstance(member.worker, RemoteWorker) or member.contact:
            raise SluiceError(f"There is a worker {name} already. Give this one another --name.")
        member.worker.lose()  # the program there was restarted: jobs of its previous process are lost
        await asyncio.sleep(0)
    if not known:
        member = runner.join(name, partial(_new, request.app[REMOTES], here, name, hello["session"]))
        member.here = False
    assert member is not None and isinstance(member.worker, RemoteWorker)
    member.taking = True
    keep = _resumed(here, member, hello.get("running"))
    return member, {"known": known, "keep": keep, "warning": _clock_warning(name, hello)}


def _new(remotes: Remotes, here: Services, name: str, session: str, heard: OnMessage) -> RemoteWorker:
    def gone() -> None:
        if name in here.job_runner.members:
            here.job_runner.members.remove(here.job_runner.members[name])
        here.job_runner.look()

    results = Results(here.folders, remotes.names)
    return RemoteWorker(name, session, heard, remotes.needed, results, gone, here.settings.lease)


def _resumed(here: Services, member: Member, running: Any) -> bool:
    """Whether a worker still has the job that it reports as running."""
    if not isinstance(running, dict):
        return False
    assert isinstance(member.worker, RemoteWorker)
    return here.job_runner.resume(member, str(running["prompt_id"]), int(running["attempt"]), member.worker.rest)


def _of_packs(names: Any) -> str:
    if not isinstance(names, list) or not names:
        return "has no node packs"
    return f"has the node pack{'s' if len(names) > 1 else ''} {', '.join(map(str, names))}"


def _clock_warning(name: str, hello: Message) -> str | None:
    clock = hello.get("clock")
    off = clock - time.time() if isinstance(clock, (int, float)) else 0.0
    if abs(off) <= CLOCK_SECONDS:
        return None
    minutes = f"{abs(off) / 60:.0f} minutes {'ahead of' if off > 0 else 'behind'}"
    return (
        f"The clock of the worker {name} is {minutes} the server's. File names with dates will differ; set the clock."
    )


async def _listen(socket: web.WebSocketResponse, here: Services, member: Member, worker: RemoteWorker) -> None:
    async for frame in socket:
        if frame.type is not WSMsgType.BINARY:
            continue
        try:
            message, payload = parsed(frame.data)
            if message.get("drain"):
                member.taking = False
                here.job_runner.look()
            elif message.get("leave"):
                worker.lose(counts=False)
                return
            else:
                await worker.received(message, payload)
        except (ValueError, KeyError, TypeError):
            log.exception("The worker %s sent a message that cannot be read.", member.name)
            return


async def _write(socket: web.WebSocketResponse, outbox: asyncio.Queue[bytes]) -> None:
    with contextlib.suppress(ConnectionError, RuntimeError):
        while True:
            await socket.send_bytes(await outbox.get())


async def file(request: web.Request) -> web.StreamResponse:
    """GET /sluice/file/{sha256}: a file that a job needs, or with Range: a part of it."""
    path = await asyncio.to_thread(request.app[REMOTES].needed.path, request.match_info["sha256"])
    if path is None:
        return refuse(404, "No job needs a file with this digest.", "no_file")
    return web.FileResponse(path, headers={"Content-Type": "application/octet-stream", "Cache-Control": "no-store"})


ROUTES: tuple[Route, ...] = (("GET", "/sluice/worker", dial_in), ("GET", "/sluice/file/{sha256}", file))
