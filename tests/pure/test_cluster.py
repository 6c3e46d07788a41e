"""Workers on a cluster engine: started, started anew when lost, told about, and stopped. Here the engine is a double.

A real Ray cluster: tests/cluster/ray_nodes.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pytest
from sluice.flux_core.commands import cluster
from sluice.flux_core.errors import InputError, SluiceError
from sluice.flux_core.workers import ray_engine
from sluice.flux_core.workers.cluster import LOST, RUNNING, WAITING, Keeper, State


class Nodes:
    """An engine whose states are set by the test."""

    def __init__(self) -> None:
        self.states: dict[int, State] = {}
        self.commands: list[Sequence[str]] = []
        self.stopped: list[tuple[int, float]] = []

    def start(self, number: int, command: Sequence[str]) -> None:
        self.states[number] = State(WAITING)
        self.commands.append(command)

    def state(self, number: int) -> State:
        return self.states[number]

    def stop(self, number: int, seconds: float) -> None:
        self.stopped.append((number, seconds))


def test_workers_are_kept_and_what_becomes_of_them_is_said() -> None:
    engine, said = Nodes(), list[str]()
    keeper = Keeper(engine, 2, ["http://x:1", "--token", "t"], said.append)
    keeper.look()
    assert [command[-1] for command in engine.commands] == ["cluster-1", "cluster-2"]
    assert engine.commands[0] == ["work", "http://x:1", "--token", "t", "--name", "cluster-1"]
    keeper.look()
    engine.states = {1: State(RUNNING, "a"), 2: State(RUNNING, "b")}
    keeper.look()
    keeper.look()
    assert keeper.running == 2 and len(engine.commands) == 2
    engine.states[1] = State(WAITING)  # its node was killed, and the engine looks for another one
    keeper.look()
    engine.states |= {1: State(RUNNING, "b"), 2: State(LOST)}
    keeper.look()
    assert [command[-1] for command in engine.commands] == ["cluster-1", "cluster-2", "cluster-2"]
    assert said == [
        "Worker 1 waits for room.", "Worker 2 waits for room.", "Worker 1 runs on a.", "Worker 2 runs on b.",
        "Worker 1 on a is lost. It is started where there is room.", "Worker 1 runs on b.",
        "Worker 2 on b is lost. It is started where there is room.",
    ]  # fmt: skip
    keeper.stop(7.0)
    assert engine.stopped == [(1, 7.0), (2, 7.0)]


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cluster.add_arguments(parser)
    return parser.parse_args(words)


def test_options_of_workers_go_to_every_worker() -> None:
    args = parsed("http://x:1", "--token", "t", "--workers", "3", "--gpus", "1", "--options", "--vram 8G --dtype bf16")
    assert (args.workers, args.gpus) == (3, 1.0)
    expected = ["http://x:1", "--token", "t", "--grace", "30.0", "--vram", "8G", "--dtype", "bf16"]
    assert cluster.command_of(args) == expected
    with pytest.raises(InputError, match="not --speed"):
        cluster.command_of(parsed("http://x:1", "--options=--speed 9"))
    with pytest.raises(InputError, match="--name, which is given to each worker here"):
        cluster.command_of(parsed("http://x:1", "--options=--name me"))
    with pytest.raises(InputError, match="does not take that: .*invalid choice"):
        cluster.command_of(parsed("http://x:1", "--options=--dtype int1"))


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not there
    with pytest.raises(SluiceError, match=r'pip install "sluice\[cluster\]"'):
        ray_engine.RayEngine("local", 1, 0)
