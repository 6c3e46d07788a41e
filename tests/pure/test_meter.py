"""How much memory there is: by the machine's own account, within the limits of containers however they are nested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from sluice.flux_core.memory import meter
from sluice.flux_core.memory.workload import GiB, MiB
from sluice.flux_core.worker.measure import release_memory

Machine = Callable[..., None]
GROUP = {2: ("memory.max", "memory.current", "inactive_file"),
         1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """machine(total, available, membership): so much RAM, and the lines of /proc/self/cgroup."""
    monkeypatch.setattr(meter, "_CGROUP", tmp_path)
    monkeypatch.setattr(meter, "_MEMBERSHIP", tmp_path / "membership")

    def make(total: int, available: int, membership: str = "0::/") -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=total, available=available))
        (tmp_path / "membership").write_text(f"{membership}\n")

    return make


def limit(folder: Path, most: int | str, used: int, cached: int = 0, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = GROUP[version]
    (folder / names[0]).write_text(f"{most}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cached}\nactive_file 7\n")


def test_without_a_container_the_machine_is_the_limit(machine: Machine, tmp_path: Path) -> None:
    machine(16 * GiB, 9 * GiB)  # no file of memory in the root group, as on every machine without containers
    assert (meter.available_ram(), meter.total_ram()) == (9 * GiB, 16 * GiB)
    (tmp_path / "membership").unlink()  # nor anything at all, as on Windows
    assert (meter.available_ram(), meter.total_ram()) == (9 * GiB, 16 * GiB)
    limit(tmp_path, "max", 3 * GiB)
    assert (meter.available_ram(), meter.total_ram()) == (9 * GiB, 16 * GiB)


def test_inside_a_container_its_own_root_is_the_limit(machine: Machine, tmp_path: Path) -> None:
    machine(16 * GiB, 9 * GiB)
    limit(tmp_path, 4 * GiB, GiB)
    assert (meter.available_ram(), meter.total_ram()) == (3 * GiB, 4 * GiB)


def test_of_groups_within_groups_the_tightest_counts(machine: Machine, tmp_path: Path) -> None:
    machine(16 * GiB, 9 * GiB, "0::/user.slice/user-1000.slice/run-7.scope")
    limit(tmp_path / "user.slice/user-1000.slice/run-7.scope", "max", GiB)
    limit(tmp_path / "user.slice/user-1000.slice", 6 * GiB, 5 * GiB)
    limit(tmp_path / "user.slice", 8 * GiB, 5 * GiB)
    assert (meter.available_ram(), meter.total_ram()) == (GiB, 6 * GiB)


@pytest.mark.parametrize("controllers", ("memory", "cpu,memory"))
def test_version_1_is_read_where_it_is(machine: Machine, tmp_path: Path, controllers: str) -> None:
    machine(16 * GiB, 9 * GiB, f"12:pids:/docker/ab\n4:{controllers}:/docker/ab\n1:name=systemd:/docker/ab")
    limit(tmp_path / "memory", 2**63 - 4096, 12 * GiB, version=1)  # which is how version 1 says no limit
    assert meter.total_ram() == 16 * GiB
    limit(tmp_path / "memory/docker/ab", 5 * GiB, 2 * GiB, version=1)
    assert (meter.available_ram(), meter.total_ram()) == (3 * GiB, 5 * GiB)


@pytest.mark.parametrize("version", (1, 2))
def test_cached_files_are_no_use_of_memory(machine: Machine, tmp_path: Path, version: int) -> None:
    """A container that has just downloaded 12 GB is full by its own count, of what is dropped when room is needed."""
    machine(64 * GiB, 60 * GiB, "0::/" if version == 2 else "4:memory:/")
    limit(tmp_path if version == 2 else tmp_path / "memory", 16 * GiB, 16 * GiB, 12 * GiB, version)
    assert meter.available_ram() == 12 * GiB


def test_an_automatic_budget_leaves_room_and_takes_some(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "resident_bytes", lambda: 500 * MiB)
    machine(24 * GiB, 20 * GiB)
    assert meter.automatic_ram() == 500 * MiB + 17 * GiB
    machine(16 * GiB, 3 * GiB)  # mostly used: half of what is left
    assert meter.automatic_ram() == 500 * MiB + 3 * GiB // 2
    machine(16 * GiB, 0)
    assert meter.automatic_ram() == 500 * MiB


def test_memory_is_counted_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(meter, "open", missing, raising=False)
    monkeypatch.setattr(Path, "read_text", missing)
    held = psutil.Process().memory_info().rss
    assert held * 0.9 < meter.resident_bytes() < held * 1.1 and meter.peak_resident_bytes() >= held * 0.9


def test_what_a_stopped_job_held_goes_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    returned: list[bool] = []
    monkeypatch.setattr(meter, "trim", lambda: returned.append(True))
    release_memory()
    assert returned == [True]
