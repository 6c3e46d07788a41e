"""Leases of the card: they end by themselves, can be renewed and given back."""

from __future__ import annotations

from typing import Any

import pytest
from sluice.flux_core.graph.execute import Executor
from sluice.flux_core.server.leases import Leases
from sluice.flux_core.worker.worker import Worker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_lease_ends_by_itself_or_is_given_back_or_renewed() -> None:
    clock = Clock()
    leases = Leases(clock)
    assert leases.left == 0.0 and leases.account == []
    game, render = leases.add("a game", 10.0), leases.add("a render", 30.0)
    assert leases.left == 30.0 and leases.account[0] == {"by": "a game", "seconds": 10.0}
    clock.now += 10.0
    assert [lease.id for lease in leases] == [render.id]
    with pytest.raises(KeyError):
        leases.renew(game.id, 5.0)
    leases.renew(render.id, 5.0)
    assert leases.left == 5.0
    assert leases.end(render.id) and not leases.end(render.id) and leases.left == 0.0


@pytest.mark.parametrize(
    ("opening", "resumed", "stops"), [(False, False, True), (True, True, True), (True, False, False)]
)
def test_a_job_gives_way_unless_it_never_fitted(opening: bool, resumed: bool, stops: bool) -> None:
    worker = Worker.__new__(Worker)
    worker.pausing, worker.gave_way, worker.resumed = set(), False, resumed

    class Sampler:
        RETURN_TYPES, FUNCTION, OUTPUT_NODE = (), "run", True

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {}}

        def run(self) -> tuple[()]:
            worker._give_way(opening)
            return ()

    worker.executor = Executor({"Sampler": Sampler})
    result = worker.executor.execute({"1": {"class_type": "Sampler", "inputs": {}}}, "job", {}, ["1"])
    assert result.status == ("interrupted" if stops else "success")
    assert worker.gave_way == stops and worker.pausing == ({"job"} if stops else set())
