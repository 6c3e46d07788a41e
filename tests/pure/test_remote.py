"""Workers on other machines, without processes: files by content, names given here, late results, leases."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st
from sluice.flux_core.errors import SluiceError
from sluice.flux_core.io.folders import Folders, standard_folders
from sluice.flux_core.server import remote_routes
from sluice.flux_core.server.remote import RemoteWorker
from sluice.flux_core.server.remote_files import NeededFiles, Results
from sluice.flux_core.workers.fetch import Fetcher, Needed
from sluice.flux_core.workers.process import LostContact
from sluice.flux_core.workers.protocol import frame_of, parsed

DATA = bytes(range(256)) * 40


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    found = standard_folders(tmp_path)
    for place in (found.input, found.output, found.temp, tmp_path / "models" / "vae"):
        place.mkdir(parents=True)
    return found


@given(st.dictionaries(st.text(max_size=5), st.integers()), st.binary(max_size=50))
def test_frames_are_read_as_they_were_written(message: dict[str, int], payload: bytes) -> None:
    assert parsed(frame_of(message, payload)) == (message, payload)


@given(st.binary(max_size=40))
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        parsed(data + b"x")


# -- files of a job ----------------------------------------------------------------------------------------------------


def test_a_job_names_the_files_it_needs_by_their_content(folders: Folders, tmp_path: Path) -> None:
    (folders.input / "a.png").write_bytes(DATA)
    (folders.output / "b.png").write_bytes(b"b")
    (tmp_path / "secret").write_bytes(b"s")
    models = tmp_path / "models" / "vae"
    for number in (1, 2):
        (models / f"m-0000{number}-of-00002.safetensors").write_bytes(bytes([number]))
    needed = NeededFiles(folders)
    texts = ["a.png", "b.png [output]", "../secret", "a prompt", "", str(tmp_path / "secret"), 3, ["1", 0]]
    prompt = {str(n): {"inputs": {"x": text}} for n, text in enumerate(texts)}
    listed = needed.of(prompt, ["vae/m-00001-of-00002.safetensors", "vae/absent.safetensors"])
    assert [(one["folder"], one["name"], one["size"]) for one in listed] == [
        ("input", "a.png", len(DATA)), ("output", "b.png", 1),
        ("models/vae", "m-00001-of-00002.safetensors", 1), ("models/vae", "m-00002-of-00002.safetensors", 1),
    ]  # fmt: skip
    assert listed[0]["sha256"] == sha(DATA) and needed.path(sha(DATA)) == folders.input / "a.png"
    assert needed.path(sha(b"s")) is None
    (folders.input / "a.png").write_bytes(b"changed")
    assert needed.path(sha(DATA)) is None


def about(index: int, filename: str = "x_00009_.png", **more: Any) -> dict[str, Any]:
    return {
        "prompt_id": "p",
        "attempt": 1,
        "index": index,
        "type": "output",
        "subfolder": "",
        "filename": filename,
        **more,
    }


def test_results_get_their_numbers_here_and_a_job_run_again_writes_the_same_files(folders: Folders) -> None:
    names: dict[tuple[str, int], dict[str, Any]] = {}
    first = Results(folders, names)
    first.receive(about(0), False, b"one ")
    first.receive(about(0), True, b"picture")
    first.receive(about(1, "x_00010_.png"), True, b"two")
    assert {path.name: path.read_bytes() for path in folders.output.iterdir()} == {
        "x_00001_.png": b"one picture", "x_00002_.png": b"two"
    }  # fmt: skip
    told = {"images": [{"filename": "x_00010_.png", "subfolder": "", "type": "output", "more": 1}], "value": [3]}
    assert first.renamed(told)["images"] == [{"filename": "x_00002_.png", "subfolder": "", "type": "output", "more": 1}]
    second = Results(folders, names)  # of another worker, which numbers its own files
    second.receive(about(0, "x_00077_.png", attempt=2), True, b"one picture")
    assert len(list(folders.output.iterdir())) == 2
    assert second.renamed({"filename": "x_00077_.png", "type": "output"})["filename"] == "x_00001_.png"


@pytest.mark.parametrize(
    "wrong",
    [
        {"filename": "../x_00001_.png"}, {"subfolder": "../.."}, {"type": "input"}, {"filename": ""},
        {"subfolder": "/etc"}, {"filename": "..\\\\x.png"},
    ],
)  # fmt: skip
def test_results_stay_in_their_folders(folders: Folders, tmp_path: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(SluiceError):
        Results(folders, {}).receive(about(0) | wrong, True, b"bad")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# -- fetching ----------------------------------------------------------------------------------------------------------

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def fetcher(place: Path, handler: Handler) -> AsyncIterator[Fetcher]:
    app = web.Application()
    app.router.add_get("/sluice/file/{sha256}", handler)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        (place / "models").mkdir(exist_ok=True)
        yield Fetcher(session, str(server.make_url("")).rstrip("/"), place, standard_folders(place, [place / "models"]))


def needed(folder: str = "models/vae", name: str = "sub/ae.sft", data: bytes = DATA) -> Needed:
    return Needed(folder, name, len(data), sha(data))


def test_a_file_is_resumed_where_it_broke_off_and_fetched_once(tmp_path: Path) -> None:
    starts: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        starts.append(request.headers.get("Range", ""))
        start = int(starts[-1].removeprefix("bytes=").rstrip("-") or 0)
        response = web.StreamResponse(status=206 if start else 200, headers={"Content-Length": str(len(DATA) - start)})
        await response.prepare(request)
        await response.write(DATA[start : start + 4000])
        if start + 4000 < len(DATA):
            assert request.transport is not None
            request.transport.close()
        return response

    async def main() -> None:
        async with fetcher(tmp_path, handler) as fetch:
            await asyncio.gather(fetch.bring(needed(), lambda text: None), fetch.bring(needed(), lambda text: None))

    asyncio.run(main())
    assert (tmp_path / "models" / "vae" / "sub" / "ae.sft").read_bytes() == DATA
    assert starts == ["", "bytes=4000-", "bytes=8000-"]


def test_what_arrives_damaged_is_refused_and_what_is_here_is_left_alone(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=DATA[::-1])

    async def main() -> None:
        async with fetcher(tmp_path, handler) as fetch:
            (tmp_path / "input").mkdir()
            (tmp_path / "input" / "a.png").write_bytes(DATA)
            await fetch.bring(needed("input", "a.png"), lambda text: None)
            with pytest.raises(SluiceError, match="arrived damaged"):
                await fetch.bring(needed(), lambda text: None)
            for folder, name in (("input", "../x"), ("etc", "x"), ("models", "x"), ("models/../..", "x")):
                with pytest.raises(SluiceError):
                    await fetch.bring(needed(folder, name), lambda text: None)

    asyncio.run(main())
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.png"]


def test_a_file_that_the_server_has_not_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sluice.flux_core.workers.fetch.ATTEMPTS", 1)

    async def handler(request: web.Request) -> web.StreamResponse:
        raise web.HTTPNotFound

    async def main() -> None:
        async with fetcher(tmp_path, handler) as fetch:
            with pytest.raises(SluiceError, match=r"ae.sft could not be fetched from http.*: the server answered 404"):
                await fetch.bring(needed(), lambda text: None)

    asyncio.run(main())


# -- the worker as the server sees it ----------------------------------------------------------------------------------


class Elsewhere:
    """A RemoteWorker with the messages to it and from it, and whether it has gone."""

    def __init__(self, folders: Folders, lease: float = 60.0) -> None:
        self.sent: list[Any] = []
        self.heard: list[Any] = []
        self.gone = 0
        self.worker = RemoteWorker(
            "box", "life", lambda message, payload: self.heard.append(message), NeededFiles(folders),
            Results(folders, {}), self._gone, lease,
        )  # fmt: skip
        self.send = lambda frame: self.sent.append(parsed(frame)[0])
        self.worker.connected(self.send)

    def _gone(self) -> None:
        self.gone += 1

    async def begin(self, attempt: int = 1) -> asyncio.Task[Any]:
        task = asyncio.create_task(self.worker.run("p", {}, {}, ["1"], attempt=attempt))
        while not any(message.get("op") == "run" for message in self.sent):
            await asyncio.sleep(0.001)
        return task

    async def end(self, attempt: int = 1, value: int = 1) -> None:
        done = {"done": "p", "attempt": attempt, "status": "success", "outputs": {"n": value}, "messages": []}
        await self.worker.received(done, b"")


def test_a_result_of_another_attempt_is_taken_from_the_worker_and_does_not_count(folders: Folders) -> None:
    async def main() -> Any:
        box = Elsewhere(folders)
        job = await box.begin(attempt=2)
        await box.end(attempt=1, value=1)
        await box.worker.received({"file": about(0), "last": True}, b"late")
        assert not job.done() and not list(folders.output.iterdir())
        await box.end(attempt=2, value=2)
        await box.end(attempt=2, value=3)
        assert [message["attempt"] for message in box.sent if message["op"] == "taken"] == [1, 2, 2]
        return (await job)["outputs"]

    assert asyncio.run(main()) == {"n": 2}


def test_a_lease_outlives_a_short_silence_and_ends_after_a_long_one(folders: Folders) -> None:
    async def main() -> None:
        box = Elsewhere(folders, lease=0.05)
        job = await box.begin()
        assert box.worker.disconnected(box.send) and not box.worker.disconnected(box.send)
        box.worker.connected(box.send)
        await asyncio.sleep(0.1)
        assert (job.done(), box.gone) == (False, 0)
        box.worker.disconnected(box.send)
        with pytest.raises(LostContact, match="box is out of reach") as lost:
            await job
        assert lost.value.counts and [box.gone] == [1]

    asyncio.run(main())


def test_a_job_is_given_back_at_once_by_a_worker_that_leaves(folders: Folders) -> None:
    async def main() -> None:
        box = Elsewhere(folders)
        job = await box.begin()
        asking = asyncio.create_task(box.worker.call("system"))
        await asyncio.sleep(0)
        box.worker.lose(counts=False)
        for task in (job, asking):
            with pytest.raises(LostContact) as lost:
                await task
            assert not lost.value.counts
        with pytest.raises(LostContact):
            await box.worker.call("system")

    asyncio.run(main())


def test_a_job_that_is_to_be_stopped_out_of_reach_has_ended(folders: Folders) -> None:
    async def main() -> None:
        box = Elsewhere(folders)
        job = await box.begin()
        box.worker.disconnected(box.send)
        box.worker.tell("interrupt", prompt_id="p")
        with pytest.raises(LostContact):
            await job
        assert not box.gone

    asyncio.run(main())


# -- who is let in -----------------------------------------------------------------------------------------------------


class Asked:
    """The worker of the server's own machine, which reports its version and nodes."""

    async def call(self, op: str) -> dict[str, Any]:
        assert op == "identity"
        return {"version": "1.0", "nodes": "abc", "packs": ["one"]}


@pytest.mark.parametrize(
    ("hello", "said"),
    [
        ({"version": "0.9"}, "The worker box runs Sluice 0.9 and this server 1.0. Install the same version on both."),
        ({"version": None}, "The worker box runs Sluice None and this server 1.0. Install the same version on both."),
        (
            {"nodes": "abd", "packs": ["one", "two"]},
            "The worker box has other nodes than this server: it has the node packs one, two, the server has the node "
            "pack one. Give both the same --node-packs",
        ),
        ({"nodes": "abd"}, "than this server: it has no node packs, the server has the node pack one."),
        ({"name": "cuda:0"}, "There is a worker cuda:0 already. Give this one another --name."),
        ({"name": "a\nb"}, "The name of a worker is a printable text of at most 100 characters."),
        ({"name": ""}, "The name of a worker is a printable text of at most 100 characters."),
    ],
)
def test_a_worker_that_cannot_help_is_told_why_in_a_sentence(hello: dict[str, Any], said: str) -> None:
    here: Any = SimpleNamespace(
        job_runner=SimpleNamespace(worker=Asked(), members={"cuda:0": SimpleNamespace(worker=None, contact=True)})
    )
    given = {"name": "box", "session": "life", "version": "1.0", "nodes": "abc", **hello}
    with pytest.raises(SluiceError, match=re.escape(said)):
        asyncio.run(remote_routes._welcomed(None, here, given))  # type: ignore[arg-type]  # the request is not asked


@pytest.mark.parametrize(
    ("off", "said"),
    [(7200.0, "is 120 minutes ahead of"), (-180.0, "is 3 minutes behind"), (5.0, None), (None, None)],
)
def test_a_clock_that_is_off_is_worth_a_warning(off: float | None, said: str | None) -> None:
    told = remote_routes._clock_warning("box", {"clock": None if off is None else time.time() + off})
    assert told is None if said is None else told is not None and said in told and "set the clock" in told
