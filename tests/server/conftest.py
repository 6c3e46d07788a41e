"""A server for the tests of this folder."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.client import Server, begun


@pytest.fixture
def sluice(command: list[str]) -> Callable[..., subprocess.Popen[str]]:
    """sluice("serve", ...): the program in a process."""
    return functools.partial(begun, command)


@pytest.fixture(scope="module")
def server(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of a module."""
    server = Server(command, tmp_path_factory.mktemp("base"))
    yield server
    if server.process.poll() is None:
        server.stop()


@pytest.fixture
def start(command: list[str], tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """start(arguments...): a server of one's own in tmp_path."""
    started: list[Server] = []

    def begin(*arguments: str, base: Path = tmp_path, **options: Any) -> Server:
        started.append(Server(command, base, *arguments, **options))
        return started[-1]

    yield begin
    for one in started:
        one.close()
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
