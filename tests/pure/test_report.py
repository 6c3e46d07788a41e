"""Laws of the reports of a run: a slow step has a cause, and everything is reported once."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
from doubles.workloads import once, pair
from sluice.flux_core.memory import report
from sluice.flux_core.memory.plan import plan
from sluice.flux_core.memory.workload import Budget, GiB, Machine, MiB

BLOCKS = once("blocks", [pair(f"{n}.weight", n, 100 * MiB, 1e12) for n in range(20)])
CARD = Machine(1e13, 1e13, 4e11, disk=3e9, link=25e9)


def run(
    seconds: float,
    waited: float = 0.0,
    steps: int = 4,
    ram: int = 4 * GiB,
    card: Machine = CARD,
    emit: report.Emit = report.ignore,
) -> report.JobReport:
    """A run in which every step takes `seconds` times what was predicted, of which it waited a part."""
    planned = plan(BLOCKS, Budget(GiB, ram), card)
    made = report.JobReport("blocks", planned, GiB, emit)
    for _ in range(steps):
        made.step(report.Step(seconds * planned.seconds, waited * planned.seconds, planned.streamed_bytes))
    return made


@pytest.mark.parametrize("seconds", [0.5, 1.0, 1.24])
def test_a_step_that_kept_its_time_needs_no_cause(seconds: float) -> None:
    assert run(seconds).cause() is None


def test_a_late_step_names_what_it_waited_for() -> None:
    assert "the link gave" in (run(2.0, waited=0.9).cause() or "")
    assert "the disk gave" in (run(2.0, waited=0.9, ram=GiB // 2).cause() or "")
    assert "computation was slower" in (run(2.0, waited=0.4).cause() or "")
    slow_link = replace(CARD, link=5e8)  # the kernels of a card wait for copies themselves: the host sees nothing
    assert "the link gave" in (run(2.0, card=slow_link).cause() or "")


def test_exchange_with_other_devices_is_shown_and_named_as_the_cause() -> None:
    planned, clock = run(1.0, steps=0), iter(range(100))
    planned.count_exchange(lambda: next(clock) * planned.plan.seconds)
    for _ in range(4):
        planned.step(report.Step(2 * planned.plan.seconds, 0.0, 0))
    assert "are exchange with the other devices" in (planned.cause() or "")
    assert planned.exchange == pytest.approx(planned.plan.seconds) and " · exchange " in planned.line()
    assert "exchange" not in run(2.0).line()


def test_the_first_step_which_also_loads_is_not_held_against_a_run() -> None:
    made = run(1.0)
    made.steps[0].seconds *= 50
    assert made.cause() is None
    assert run(9.0, steps=1).cause() is None


def test_line_and_cause_are_told_once_and_alike_in_log_and_to_listeners(caplog: pytest.LogCaptureFixture) -> None:
    """As no warnings: Python prints those by itself where ignore has set up a log, beside what `sluice run` prints."""
    told: list[dict[str, Any]] = []
    made = run(3.0, emit=told.append)
    with caplog.at_level(logging.INFO):
        made.close()
    assert [record.message for record in caplog.records] == [told[-1]["line"], told[-1]["warning"]]
    assert {record.levelno for record in caplog.records} == {logging.INFO}
