"""A Ray cluster of two nodes on this machine: 60 jobs, a node is killed in the middle, and all jobs are done.

    pip install "sluice[cluster]"
    unshare -rn sh -c 'ip link set lo up && python tests/cluster/ray_nodes.py'

The network namespace with nothing but `lo` keeps Ray's nodes on the loopback interface; and its ports, behind which
anybody may run code, out of reach. Not part of the test suite: Ray does not start reliably on a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
from sluice.flux_core.bench.server import Server, ticking

HEAD = {"num_cpus": 0}
NODE = {"num_cpus": 2}


def main() -> None:
    """Run the jobs and print the account. Ends with 1 if a job is lost or has two results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.5, help="that a job takes")
    args = parser.parse_args()
    utils: Any = importlib.import_module("ray.cluster_utils")
    cluster = utils.Cluster(initialize_head=True, head_node_args=HEAD)
    nodes = [cluster.add_node(**NODE) for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(asyncio.run(account(args, cluster, nodes, Path(folder))))


async def account(args: argparse.Namespace, cluster: Any, nodes: list[Any], folder: Path) -> int:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        server = Server(folder, session, [*ticking(folder), "--remote-only", "--lease", "3"])
        await server.get("/prompt")
        work = f"--device none --node-packs {folder / 'packs'}"
        place = ["--engine", cluster.address, "--workers", "2", "--cpus", "2", "--grace", "5"]
        keeper = subprocess.Popen(
            [sys.executable, "-m", "sluice", "cluster", server.url(""), *place, "--options", work]
        )
        try:
            began = time.monotonic()
            posted = [await server.post(f"job-{n}", args.seconds, "nobody") for n in range(args.jobs)]
            while len(server.ticks()) < args.jobs // 3:
                await asyncio.sleep(0.1)
            cluster.remove_node(nodes[0], allow_graceful=False)
            print(f"{len(server.ticks())} jobs have begun; a node is killed.", flush=True)
            await server.settled(posted)
            history: dict[str, Any] = await server.get("/history")
        finally:
            keeper.terminate()
            await asyncio.to_thread(keeper.wait)
            server.process.terminate()
        entries = [history.get(prompt_id) for prompt_id in posted]
        done = sum(bool(entry and entry["status"]["completed"]) for entry in entries)
        again = sum(count > 1 for count in Counter(server.ticks()).values())
        print(
            f"{args.jobs} jobs in {time.monotonic() - began:.0f} s: {done} done with one result each, "
            f"{args.jobs - done} not; {again} begun again."
        )
        return 0 if done == args.jobs else 1


if __name__ == "__main__":
    main()
