"""A server, two local workers and a worker in a network namespace of its own, under kills and cuts of the link.

    python tests/cluster/kills.py --jobs 1000 --kills 50           as root, on Linux, with `ip`

At random moments the server, a local worker or `sluice work` is killed with SIGKILL, or the link is down for up to
three seconds. At the end each acknowledged job has one result, in the server's answers and on its page. The page is
looked at in the middle and at the end if PLAYWRIGHT and CHROMIUM are set (tests/web/conftest.py says how).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import conftest  # noqa: E402, F401  # this checkout as `sluice`
import psutil  # noqa: E402
from aiohttp import ClientSession, ClientTimeout, TCPConnector  # noqa: E402
from sluice.flux_core.bench.server import STARTER, Server, ticking  # noqa: E402

ROOT = Path(__file__).parents[2]
HERE, THERE, TOKEN = "10.213.77.1", "10.213.77.2", "only-for-this-run"
WAYS = ("server", "local worker", "remote worker", "link")
LONGEST_CUT = 3.0  # seconds


class Link:
    """A pair of network interfaces, one of them in a namespace of its own."""

    def __init__(self) -> None:
        self.space = f"sluice{os.getpid()}"
        self.ours, self.theirs = f"sla{os.getpid()}"[:15], f"slb{os.getpid()}"[:15]
        _ip("netns", "add", self.space)
        _ip("link", "add", self.ours, "type", "veth", "peer", "name", self.theirs, "netns", self.space)
        _ip("addr", "add", f"{HERE}/24", "dev", self.ours)
        _ip("-n", self.space, "addr", "add", f"{THERE}/24", "dev", self.theirs)
        _ip("-n", self.space, "link", "set", self.theirs, "up")
        self.up(True)

    def up(self, up: bool) -> None:
        _ip("link", "set", self.ours, "up" if up else "down")

    def close(self) -> None:
        _ip("netns", "del", self.space)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def linked() -> Iterator[Link]:
    link = Link()
    try:
        yield link
    finally:
        link.close()


class Cluster(Server):
    """The server, reached at the address of its link, and the worker at the other end."""

    def __init__(self, base: Path, session: ClientSession, options: list[str], link: Link) -> None:
        self.link, self.remote = link, None
        super().__init__(base, session, [*options, "--host", HERE, "--token", TOKEN, "--lease", "3"])
        self.packs = options[options.index("--node-packs") + 1]
        self.remote = self._work()

    def _work(self) -> subprocess.Popen[bytes]:
        place = ["--base-directory", str(self.base / "elsewhere"), "--name", "far", "--device", "none"]
        arguments = ["work", self.url(""), "--token", TOKEN, *place, "--node-packs", self.packs]
        command = [sys.executable, "-c", STARTER, str(ROOT / "__init__.py"), *arguments]
        with (self.base / "work.log").open("ab") as log:
            return subprocess.Popen(["ip", "netns", "exec", self.link.space, *command], stdout=log, stderr=log)

    def url(self, path: str) -> str:
        return f"http://{HERE}:{self.port}{path}"

    async def disturb(self, way: str, chance: random.Random) -> None:
        if way == "server":
            await super().kill("server")
        elif way == "local worker":
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(chance.choice(await self.workers())).kill()
        elif way == "remote worker":
            assert self.remote is not None
            self.remote.kill()
            await asyncio.to_thread(self.remote.wait)
            self.remote = self._work()
        else:
            self.link.up(False)
            await asyncio.sleep(chance.uniform(0.2, LONGEST_CUT))
            self.link.up(True)

    def close(self) -> None:
        for process in (self.process, self.remote):
            if process is not None:
                process.terminate()
        for process in (self.process, self.remote):
            if process is not None:
                process.wait()


async def looked(server: Cluster, name: str) -> dict[str, Any] | None:
    """What the page shows: see tests/web/browser/cluster.mjs."""
    if "PLAYWRIGHT" not in os.environ:
        return None
    script = ROOT / "tests" / "web" / "browser" / "cluster.mjs"
    environment = os.environ | {"SLUICE_URL": server.url(""), "SCREENSHOTS": str(server.base.parent)}
    process = await asyncio.create_subprocess_exec(
        "node", str(script), TOKEN, name, env=environment, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, "the page"
    seen: dict[str, Any] = json.loads(out.splitlines()[-1])
    return seen


async def account(args: argparse.Namespace, folder: Path) -> int:
    headers, timeout = {"Authorization": f"Bearer {TOKEN}"}, ClientTimeout(total=60)
    with linked() as link:
        async with ClientSession(connector=TCPConnector(limit=0), headers=headers, timeout=timeout) as session:
            base = folder / "base"
            base.mkdir()
            options = ticking(base)
            options[options.index("--device") : options.index("--device") + 2] = ["--devices", "cpu:0,cpu:1"]
            server = Cluster(base, session, options, link)
            try:
                return await _account(args, server)
            finally:
                await asyncio.to_thread(server.close)


async def _account(args: argparse.Namespace, server: Cluster) -> int:
    chance, began = random.Random(args.seed), time.monotonic()
    names = [f"job-{n}" for n in range(args.jobs)]

    async def post(share: list[str]) -> list[str]:
        posted = []
        for name in share:
            posted.append(await server.post(name, args.seconds, "nobody"))
            await asyncio.sleep(chance.uniform(0, 80 * args.kills / args.jobs))
        return posted

    posting = asyncio.gather(*(post(names[n::20]) for n in range(20)))
    disturbed: Counter[str] = Counter()
    while disturbed.total() < args.kills:
        await asyncio.sleep(chance.uniform(0.3, 1.5))
        way = chance.choice(WAYS)
        await server.disturb(way, chance)
        disturbed[way] += 1
        if disturbed.total() == args.kills // 2:
            print("in the middle:", await looked(server, "middle"), flush=True)
    acknowledged = [prompt_id for share in await posting for prompt_id in share]
    await server.settled(acknowledged)
    history: dict[str, Any] = await server.get("/history?max_items=100000")
    ends = Counter(_end(history.get(prompt_id)) for prompt_id in acknowledged)
    runs = Counter(server.ticks())
    seen = await looked(server, "end")
    print(f"{len(acknowledged)} jobs, {dict(disturbed)}, in {time.monotonic() - began:.0f} s: {dict(ends)}")
    print(f"begun more than once, after a kill or a cut: {sum(count > 1 for count in runs.values())}")
    print("at the end:", seen)
    good = ends["completed"]
    truthful = seen is None or (seen["completed"], seen["failed"]) == (good, ends.total() - good)
    once = len(set(acknowledged)) == len(history) == len(names) and not ends["lost"]
    return 0 if once and truthful else 1


def _end(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "lost"
    if entry["status"]["completed"]:
        assert len(entry["outputs"]) == 1
        return "completed"
    return " ".join(str(entry["status"]["messages"][-1][1].get("exception_message", "no reason")).split())[:60]


def main() -> None:
    """Run the jobs and print the account. Ends with 1 if a job is lost, has two results, or the page shows others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=0.02, help="that a job takes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for logs and screenshots (default: a temporary one)")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sys.exit(asyncio.run(account(args, folder)))


if __name__ == "__main__":
    main()
