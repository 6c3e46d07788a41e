"""`sluice bench`: the parts to which it assigns times, and the form of its output."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from typing import Any

import psutil
import pytest
from sluice.flux_core.bench import stopping
from sluice.flux_core.bench.child_process import end_with_parent
from sluice.flux_core.bench.run import PARTS, WORK, Clock, kind_of, split
from sluice.flux_core.bench.table import table
from sluice.flux_core.commands import bench, cli
from sluice.flux_core.graph.validate import validate
from sluice.flux_core.worker.registry import standalone_tables
from sluice.nodes.host import pack_host

CLASSES, _ = standalone_tables(pack_host())


@pytest.mark.parametrize(
    "kind, names",
    [
        ("loading", "UNETLoader DualCLIPLoader VAELoader CheckpointLoaderSimple LoraLoader"),
        ("encoding", "CLIPTextEncode CLIPTextEncodeFlux VAEEncode VAEEncodeTiled"),
        ("sampling", "KSampler KSamplerAdvanced SamplerCustomAdvanced"),
        ("decoding", "VAEDecode VAEDecodeTiled"),
        ("saving", "SaveImage PreviewImage"),
        ("rest", "LoadImage EmptyLatentImage FluxGuidance BasicGuider BasicScheduler RandomNoise ImageScale"),
    ],
)
def test_nodes_are_told_apart_by_what_they_take_and_give(kind: str, names: str) -> None:
    assert {name: kind_of(CLASSES[name]) for name in names.split()} == dict.fromkeys(names.split(), kind)


def test_a_class_nobody_knows_counts_as_outside() -> None:
    assert kind_of(None) == "rest" and "rest" not in WORK


def test_seconds_of_nodes_begin_and_end_with_their_events() -> None:
    times = iter([0.0, 10.0, 13.0, 17.0])
    clock = Clock(lambda: next(times))
    clock.hear("execution_start", {})
    clock.hear("executing", {"node": "1"})  # at 10
    clock.hear("progress", {"node": "1", "value": 1})
    clock.hear("executing", {"node": "2"})
    clock.hear("execution_success", {})
    assert clock.nodes == {"1": 3.0, "2": 4.0}


def test_reading_weights_is_counted_once_where_readers_call_readers() -> None:
    times = iter([0.0, 1.0, 2.0, 3.0, 5.0])  # made, executing, outer begins, inner begins, outer ends
    clock = Clock(lambda: next(times))
    clock.hear("executing", {"node": "sampler"})
    inner = clock.reader(lambda value: value + 1)
    assert clock.reader(lambda value: inner(value) * 2)(3) == 8
    assert clock.reading == {"sampler": 3.0}


def test_time_spent_reading_weights_is_loading_wherever_it_happens() -> None:
    kinds = {"1": "loading", "6": "sampling"}
    found = split({"1": 0.5, "6": 3.0, "other": 0.25}, {"6": 1.0}, kinds)
    assert found == {"loading": 1.5, "sampling": 2.0, "rest": 0.25}
    assert set(found) <= set(PARTS)


def test_the_last_line_is_all_of_it_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "_measure", lambda name, options: {"told": name, "options": options})
    assert cli.main(["bench"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [last[name]["told"] for name in ("run", "transformer")] == ["run", "transformer"]
    assert last["machine"]["cores"] >= 1
    assert cli.main(["bench", "memory", "--ram", "6G"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["options"] == ["--ram", "6G"]


def test_tables_have_straight_columns() -> None:
    assert table([("", "best"), ("ours", "1 s"), ("diffusers", "12 s")]) == (
        "           best\nours        1 s\ndiffusers  12 s"
    )


def test_a_cancelled_job_differs_from_the_one_before_in_the_phase_that_is_to_be_stopped() -> None:
    parser = argparse.ArgumentParser()
    stopping.add_arguments(parser)
    job = stopping.Job(parser.parse_args(["--size", "64x32", "--steps", "3"]))
    whole, decoding, sampling, encoding = (
        job.prompt(), job.prompt(turn="90 degrees"), job.prompt(seed=7), job.prompt(text="a blue star")
    )  # fmt: skip
    for prompt, node in ((decoding, "turn"), (sampling, "sampler"), (encoding, "text")):
        assert [name for name in whole if whole[name] != prompt[name]] == [node]
    checked = validate(whole, CLASSES)
    assert {problem.node_id for problem in checked.problems} <= {"model", "clip", "vae"}, "only files are missing"
    assert sorted(stopping._shares(6), key=stopping.PHASES.index) == stopping._shares(6)
    assert set(stopping._shares(4)) == set(stopping.PHASES)


def _sleeps(pipe: Connection) -> None:
    end_with_parent()
    pipe.send(os.getpid())
    time.sleep(60)


def _starts(pipe: Connection) -> None:
    fork: Any = multiprocessing.get_context("fork")
    fork.Process(target=_sleeps, args=(pipe,)).start()
    time.sleep(60)


def test_a_measuring_process_ends_with_the_program_that_was_killed() -> None:
    fork: Any = multiprocessing.get_context("fork")  # Any, because there is no such context on Windows
    heard, pipe = fork.Pipe()
    parent = fork.Process(target=_starts, args=(pipe,))
    parent.start()
    child = psutil.Process(heard.recv())
    parent.kill()
    parent.join()
    child.wait(timeout=20)
    assert not child.is_running()
