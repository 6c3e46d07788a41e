"""The executor that ships, on the simulated device: in thousands of orders, broken on purpose, and with faults.

Every kernel compares the weights it reads with the file's, when it begins and when it ends; memory under copy holds
poison. `verdict` is empty when all was right and nothing is left behind.
"""

from __future__ import annotations

import json
import random
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from doubles.published_flux import flux_workload
from doubles.random_cases import seeds
from doubles.simulated import Event, Fault, Faults, Pending, SimulatedDevice, SimulatedSource, Simulation
from doubles.workloads import Pair, again, once, pair, repeated_order, with_locations
from sluice.flux_core.commands.plan_model import Beside, as_computed, open_model
from sluice.flux_core.commands.plan_step import job_of, plan_for
from sluice.flux_core.commands.plan_target import target_of
from sluice.flux_core.errors import BudgetTooSmall
from sluice.flux_core.memory.device import COMPUTE, COPY, HostBuffer, Steps
from sluice.flux_core.memory.plan import Plan, plan, smallest_budget
from sluice.flux_core.memory.residency import Residency
from sluice.flux_core.memory.stream import Stream
from sluice.flux_core.memory.workload import IN_RAM, Budget, GiB, Location, Machine, Workload, groups_of
from sluice.flux_core.runtime.flux_needs import Job
from sluice.flux_core.runtime.settings import INT8, SIXTEEN_BIT

ORDERS = 3000


@dataclass
class Case:
    """A small random model with a plan, on a device that can just hold it."""

    rng: random.Random
    plan: Plan
    device: SimulatedDevice
    source: SimulatedSource
    simulation: Simulation
    steps: int

    @property
    def order(self) -> list[int]:
        """The weights of one step, in order of use."""
        return [use.weight for use in self.plan.workload.schedule]

    def stream(self, kind: type[Stream] = Stream) -> Stream:
        return kind(self.plan, self.device, self.source, self.simulation.spawn, self.simulation.clock)

    def verdict(self) -> list[str]:
        left = [f"{len(self.device.live)} allocations left"] if self.device.live else []
        return self.device.violations + [repr(error) for error in self.simulation.errors] + left


def random_workload(rng: random.Random) -> Workload:
    """Groups one after the other, or two at a time, as in a double block."""
    pairs: list[Pair] = []
    group, count = 0, rng.randint(2, 9)
    while group < count:
        order = [group] * rng.randint(1, 3)
        if rng.random() < 0.3:
            order = [group, group + 1] + [rng.choice((group, group + 1)) for _ in range(rng.randint(0, 4))]
        pairs += [pair(f"{len(pairs)}.{g}", g, rng.randint(1, 24), rng.random()) for g in order]
        group = max(order) + 1
    return once("random", pairs)


def repeated(rng: random.Random) -> Workload:
    """The same, but weights are used more than once."""
    workload = random_workload(rng)
    groups: dict[int, list[int]] = {}
    for number, weight in enumerate(workload.weights):
        groups.setdefault(weight.group, []).append(number)
    return again(workload, repeated_order(list(groups.values()), rng), rng)


def make_case(
    seed: int,
    faults: Faults | None = None,
    unified: bool | None = None,
    make: Callable[[random.Random], Workload] = random_workload,
) -> Case:
    rng = random.Random(seed)
    workload = make(rng)
    unified = rng.random() < 0.4 if unified is None else unified
    staging, size = rng.randint(1, 3), rng.randint(3, 16)
    link = None if unified else 1e3
    machine = Machine(1.0, 1.0, 1e9, 1e3, link, alignment=4, staging_buffers=staging, staging_bytes=size)
    budget = random_budget(rng, workload, machine)
    made = plan(workload, budget, machine)
    data = [bytes(rng.randrange(1, 200) for _ in range(weight.nbytes)) for weight in workload.weights]
    device = SimulatedDevice(budget.device, unified=unified, pinnable=rng.choice((99999, 30)), faults=faults)
    slack = rng.choice((0, 4))
    source = SimulatedSource(data, 1e3, [rng.randint(0, slack) for _ in data], slack)
    return Case(rng, made, device, source, Simulation(device, rng), rng.randint(1, 4))


def random_budget(rng: random.Random, workload: Workload, machine: Machine) -> Budget:
    low = smallest_budget(workload, machine)
    high = max(low, sum(group.room for group in groups_of(workload, machine)))
    return Budget(rng.randint(low, high), rng.randint(0, 2 * high), rng.randint(0, 2 * high))


def steps(case: Case, stream: Stream, count: int) -> Steps[None]:
    """What a sampler does: every use in order, some steps long."""
    for _ in range(count):
        yield from block(case, stream, case.order)


def block(case: Case, stream: Stream, weights: Sequence[int]) -> Steps[None]:
    for weight in weights:
        place = yield from stream.taking(weight)
        try:
            case.device.kernel(place.slab, place.offset, case.source.weights[weight], seconds=case.rng.random())
            yield None
        finally:
            stream.release(weight)
        yield None


def whole_job(case: Case, stream: Stream) -> Steps[None]:
    yield from steps(case, stream, case.steps)
    yield from stream.closing()


def run(case: Case, job: Steps[None]) -> list[str]:
    case.simulation.spawn(job)
    case.simulation.run()
    return case.verdict()


@pytest.mark.slow
def test_in_no_order_of_events_a_kernel_reads_anything_but_its_weights() -> None:
    for seed in seeds(ORDERS):
        case = make_case(seed)
        assert run(case, whole_job(case, case.stream())) == [], seed


@pytest.mark.slow
def test_weights_may_be_used_more_than_once_in_a_step() -> None:
    """Forward and then backward, shared by several layers, or in any order: still no kernel reads anything else."""
    fetched = 0
    for seed in seeds(ORDERS * 2 // 3):
        case = make_case(seed, make=repeated)
        stream = case.stream()
        assert run(case, whole_job(case, stream)) == [], seed
        assert stream.restarts <= 1, seed
        fetched += case.plan.streamed_bytes > sum(w.nbytes for w in case.plan.workload.weights)
    assert fetched > len(seeds(50)), "some weights are fetched twice in a step"


@pytest.mark.slow
@pytest.mark.parametrize("make", [random_workload, repeated])
def test_what_is_no_longer_used_is_left_out_after_two_steps(make: Callable[[random.Random], Workload]) -> None:
    """A part of a step that ends, as a ControlNet's range does, and comes back: three restarts in all."""
    for seed in seeds(60):
        case = make_case(seed, make=make)
        order, stream = case.order, case.stream()
        first = case.rng.randrange(len(order))
        rest = order[:first] + order[first + case.rng.randint(0, len(order) // 2) :]
        walk = order * 2 + rest * 5 + order * 2

        def job(case: Case = case, stream: Stream = stream, walk: list[int] = walk) -> Steps[None]:
            yield from block(case, stream, walk)
            yield from stream.closing()

        assert run(case, job()) == [], seed
        assert make is repeated or stream.restarts <= 4, seed


@pytest.mark.slow
def test_a_step_with_repeats_may_be_cut_changed_and_run_again() -> None:
    for seed in seeds(500):
        case = make_case(seed, make=repeated)
        case.device.capacity = 99999
        workload, machine = case.plan.workload, case.plan.machine
        other = plan(workload, random_budget(case.rng, workload, machine), machine)
        stream, walk = case.stream(), case.order * case.steps
        cut, change = sorted(case.rng.randrange(len(walk)) for _ in range(2))
        back = case.rng.randint(max(0, cut - 5), cut)

        def job(
            case: Case = case,
            stream: Stream = stream,
            other: Plan = other,
            walk: list[int] = walk,
            cut: int = cut,
            change: int = change,
            back: int = back,
        ) -> Steps[None]:
            yield from block(case, stream, walk[:cut])
            yield from block(case, stream, walk[back:change])
            yield from stream.changing(other)
            assert case.device.used <= other.weight_bytes
            yield from block(case, stream, walk[change:])
            yield from stream.closing()

        assert run(case, job()) == [], seed


# --- each part of the protocol is needed --------------------------------------------------------------------


def replace_methods(case: Case, **methods: Callable[..., object]) -> None:
    """Give the device of this case methods other than its class has."""
    vars(case.device).update(methods)


def drop_waits(case: Case, stream: str) -> None:
    wait = case.device.wait
    replace_methods(case, wait=lambda on, event: None if on == stream else wait(on, event))


def no_copy_wait(case: Case) -> type[Stream]:
    drop_waits(case, COMPUTE)
    return Stream


def no_done_wait(case: Case) -> type[Stream]:
    drop_waits(case, COPY)
    return Stream


def no_done_record(case: Case) -> type[Stream]:
    record = case.device.record
    replace_methods(case, record=lambda on, event: None if on == COMPUTE else record(on, event))
    return Stream


def no_stage_wait(case: Case) -> type[Stream]:
    replace_methods(case, finished=lambda event: None)
    return Stream


def no_fed_wait(case: Case) -> type[Stream]:
    return type("NoFedWait", (Stream,), {"_fed_to": lambda self, turn: None})


def no_slot_credit(case: Case) -> type[Stream]:
    return type("NoSlotCredit", (Stream,), {"_used_to": lambda self, visit: None})


def record_late(case: Case) -> type[Stream]:
    record = case.device.record
    staged: set[int] = set()
    finished = case.device.finished

    def note(event: Event) -> Pending:
        staged.add(id(event))
        return finished(event)

    def later(on: str, event: Event) -> Steps[None]:
        yield None
        record(on, event)

    def record_or_later(on: str, event: Event) -> None:
        if on == COPY and id(event) not in staged:
            case.simulation.spawn(later(on, event))
        else:
            record(on, event)

    replace_methods(case, finished=note, record=record_or_later)
    return Stream


def free_early(case: Case) -> type[Stream]:
    replace_methods(case, idle=lambda: None)
    return Stream


BROKEN = [
    no_copy_wait, no_done_wait, no_done_record, no_stage_wait, no_fed_wait, no_slot_credit, record_late, free_early,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_leaving_out_any_part_of_the_protocol_is_found(broken: Callable[[Case], type[Stream]]) -> None:
    for make in (random_workload, repeated):
        found = 0
        for seed in seeds(200):
            case = make_case(seed, unified=False, make=make)
            found += run(case, whole_job(case, case.stream(broken(case)))) != []
        assert found > 0


def test_where_reads_land_on_the_device_the_host_must_wait_for_its_kernels() -> None:
    found = 0
    for seed in seeds(200):
        case = make_case(seed, unified=True)
        found += run(case, whole_job(case, case.stream(no_stage_wait(case)))) != []
    assert found > 0


# --- what goes wrong ends well ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(25))
def test_out_of_memory_at_any_allocation_ends_in_right_weights_or_one_clear_error(seed: int) -> None:
    most = len(make_case(seed).plan.groups) + 8
    for call in range(1, most):
        for calls in ({call}, set(range(call, 99))):
            case = make_case(seed, Faults(allocate=frozenset(calls)))
            try:
                stream = case.stream()
            except BudgetTooSmall as refused:
                assert "no room for" in str(refused) and not case.device.live
                continue
            assert run(case, whole_job(case, stream)) == []


@pytest.mark.parametrize("seed", seeds(25))
def test_a_failed_read_is_one_error_and_the_step_can_be_run_again(seed: int) -> None:
    for call in range(1, 40):
        case = make_case(seed)
        case.source.faults = Faults(read=frozenset({call}))
        stream = case.stream()
        errors: list[Fault] = []

        def job(case: Case = case, stream: Stream = stream, errors: list[Fault] = errors) -> Steps[None]:
            done = 0
            while done < case.steps:
                try:
                    yield from steps(case, stream, 1)
                    done += 1
                except Fault as error:
                    errors.append(error)
            yield from stream.closing()

        assert run(case, job()) == []
        assert len(errors) <= 1
        if case.source.faults.calls["read"] < call:
            return


@pytest.mark.parametrize("seed", seeds(40))
def test_refused_pinning_falls_back_to_ordinary_memory(seed: int) -> None:
    for calls in (frozenset({1}), frozenset({2}), frozenset({3}), frozenset({5}), frozenset(range(1, 99))):
        case = make_case(seed, Faults(pin=calls), unified=False)
        assert run(case, whole_job(case, case.stream())) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(15))
def test_a_run_cancelled_anywhere_leaves_nothing_behind_and_the_next_one_is_right(seed: int) -> None:
    for moment in range(200):
        for close in (True, False):
            case = make_case(seed)
            stream = case.stream()

            def job(
                case: Case = case, stream: Stream = stream, moment: int = moment, close: bool = close
            ) -> Steps[None]:
                first = steps(case, stream, case.steps)
                for _, wait in zip(range(moment), first, strict=False):
                    yield wait
                first.close()
                if not close:
                    yield from steps(case, stream, 1)
                yield from stream.closing()

            assert run(case, job()) == [], moment
        if moment > 2 * case.steps * len(case.source.weights):
            return


@pytest.mark.parametrize("seed", seeds(30))
def test_the_budget_may_change_at_any_boundary(seed: int) -> None:
    boundaries = make_case(seed).steps * len(make_case(seed).source.weights)
    for boundary in range(boundaries + 1):
        case = make_case(seed)
        case.device.capacity = 99999
        workload, machine = case.plan.workload, case.plan.machine
        other = plan(workload, random_budget(case.rng, workload, machine), machine)
        stream = case.stream()
        walk = case.order * case.steps

        def job(
            case: Case = case,
            stream: Stream = stream,
            boundary: int = boundary,
            other: Plan = other,
            walk: list[int] = walk,
        ) -> Steps[None]:
            yield from block(case, stream, walk[:boundary])
            yield from stream.changing(other)
            assert case.device.used <= other.weight_bytes
            yield from block(case, stream, walk[boundary:])
            yield from stream.closing()

        assert run(case, job()) == [], boundary


def test_weights_may_be_skipped_repeated_or_asked_for_in_any_order() -> None:
    for seed in seeds(300):
        case = make_case(seed)
        stream = case.stream()
        count = len(case.source.weights)
        walk = [case.rng.randrange(count) for _ in range(12)] + [*range(count)] + [*range(0, count, 2)] * 2

        def job(case: Case = case, stream: Stream = stream, walk: list[int] = walk) -> Steps[None]:
            yield from block(case, stream, walk)
            yield from stream.closing()

        assert run(case, job()) == [], seed


def test_a_block_that_is_run_again_gets_its_weights_again() -> None:
    for seed in seeds(300):
        case = make_case(seed)
        stream = case.stream()
        walk = case.order * case.steps
        cut = case.rng.randrange(len(walk))
        back = case.rng.randint(0, cut)

        def job(
            case: Case = case, stream: Stream = stream, walk: list[int] = walk, cut: int = cut, back: int = back
        ) -> Steps[None]:
            yield from block(case, stream, walk[:cut])
            yield from block(case, stream, walk[back:])
            yield from stream.closing()

        assert run(case, job()) == [], seed


def test_memory_of_the_host_is_counted_as_it_is_filled_and_kept_while_the_stream_is_parked() -> None:
    filled = 0
    for seed in seeds(100):
        case = make_case(seed, unified=False)
        stream = case.stream()
        made, holdings = case.plan, stream.held

        def job(
            case: Case = case, stream: Stream = stream, holdings: Residency = holdings, made: Plan = made
        ) -> Steps[None]:
            buffers = [one for one in case.device.live.values() if isinstance(one, HostBuffer)]
            assert holdings.arena.used_bytes + holdings.staging.used_bytes == holdings.ram_bytes
            assert sum(one.nbytes for one in buffers if one.pinned) <= holdings.ram_bytes
            assert holdings.ram_bytes <= sum(one.nbytes for one in buffers)
            yield from steps(case, stream, 1)
            in_ram = sum(group.nbytes for group in made.at(*IN_RAM))
            assert holdings.arena.used_bytes == in_ram
            yield from stream.changing(replace(made, slots=0, slot_bytes=0))
            assert holdings.arena.used_bytes == in_ram
            yield from stream.closing()
            assert holdings.ram_bytes == 0

        assert run(case, job()) == [], seed
        filled += set(made.locations) > {Location.DEVICE}
    assert filled > len(seeds(30))


# --- the clock ----------------------------------------------------------------------------------------------

SCALE = 2**16  # a simulated byte stands for this many, and rates with it


def simulated_seconds(made: Plan, steps_run: int = 6) -> float:
    """Seconds of the last half of some steps, on the simulated device with the plan's own rates."""
    machine = made.machine
    weights = tuple(replace(weight, nbytes=max(1, weight.nbytes // SCALE)) for weight in made.workload.weights)
    small = replace(
        machine,
        alignment=1,
        disk=machine.disk / SCALE,
        host_copy=machine.host_copy / SCALE,
        link=machine.link and machine.link / SCALE,
        staging_bytes=machine.staging_bytes // SCALE,
    )
    shrunk = with_locations(replace(made.workload, weights=weights), small, made.locations, made.slots)
    data = [bytes([number % 200 + 1]) * weight.nbytes for number, weight in enumerate(weights)]
    sizes = [weight.nbytes for weight in made.workload.weights]
    uses = [(use.weight, machine.seconds(use, sizes[use.weight])) for use in made.workload.schedule]
    device = SimulatedDevice(
        link=small.link or 1.0, latency=machine.latency, host_copy=small.host_copy, unified=small.link is None
    )
    simulation = Simulation(device)
    stream = Stream(shrunk, device, SimulatedSource(data, small.disk), simulation.spawn, simulation.clock)
    ends = []

    def job() -> Steps[None]:
        for _ in range(steps_run):
            for weight, seconds in uses:
                place = yield from stream.taking(weight)
                device.kernel(place.slab, place.offset, data[weight], seconds)
                if stream.held.reads_in_place:  # a CPU finishes a product before it continues
                    through = device.event()
                    device.record(COMPUTE, through)
                    yield device.finished(through)
                stream.release(weight)
            through = device.event()  # as a sampler does that looks at the result
            device.record(COMPUTE, through)
            yield device.finished(through)
            ends.append(device.now)
        yield from stream.closing()

    simulation.spawn(job())
    simulation.run()
    assert not device.violations and not simulation.errors and not device.live
    half = len(ends) // 2
    return (ends[-1] - ends[half - 1]) / (len(ends) - half)


POLICIES = json.loads((Path(__file__).parents[1] / "fixtures" / "memory_policies.json").read_text())["rows"]


@pytest.mark.parametrize("modulation", (True, False), ids=("streamed", "tabled"))
@pytest.mark.parametrize("row", POLICIES, ids=lambda row: f"{row['gemm']:g}TFLOPs-{row['model']}-{row['width']}")
def test_the_executor_comes_within_two_percent_of_the_idealised_pipeline(row: dict[str, Any], modulation: bool) -> None:
    machine = Machine(row["gemm"] * 1e12, row["attention"] * 1e12, row["memory"] * 1e9, 3e9, row["link"] * 1e9)
    workload = flux_workload(row["model"], Job(row["height"], row["width"]), modulation=modulation)
    made = plan(workload, Budget(int(row["weights_gib"] * GiB - 64_124_992 * 2), 2**50, 2**50), machine)
    seconds = simulated_seconds(made)
    assert seconds == pytest.approx(made.seconds, rel=0.01)
    assert seconds == pytest.approx(row["modulation_streamed" if modulation else "modulation_tabled"], rel=0.02)


Row = tuple[float, float, float | None, float, float, float, int, int, int, str]
CARDS: list[
    Row
] = [  # GEMM, attention TFLOP/s, link GB/s or None, memory GB/s, disk GB/s, GiB device, host, pinned, side, model
    (25.0, 22.0, 12.8, 272, 3.0, 5.5, 16, 16, 1024, "flux1-dev-fp8"),
    (25.0, 22.0, 12.8, 272, 3.0, 5.5, 16, 0, 512, "flux1-dev-bf16"),
    (25.0, 22.0, 12.8, 272, 3.0, 5.5, 6, 2, 1024, "flux1-dev-bf16"),
    (32.5, 26.0, 24.5, 448, 0.5, 5.5, 1, 0, 1024, "flux1-dev-fp8"),
    (650.0, 450.0, 53.0, 4800, 3.0, 6.0, 32, 32, 1024, "flux1-dev-bf16"),
    (5.5, 3.0, 12.3, 256, 0.5, 5.5, 0, 0, 1024, "flux1-dev-bf16"),
    (0.5, 0.3, None, 40, 1.2, 4.0, 0, 0, 256, "flux1-dev-fp8"),
    (0.5, 0.3, None, 40, 3.0, 6.0, 0, 0, 256, "flux1-dev-bf16"),
]


@pytest.mark.parametrize("row", CARDS, ids=lambda row: f"{row[0]:g}TFLOPs-{row[9]}-{row[8]}-{row[6]}GiB")
def test_the_executor_takes_the_time_the_plan_predicts(row: Row) -> None:
    gemm, attention, link, memory, disk, room, host, pinned, side, name = row
    machine = Machine(gemm * 1e12, attention * 1e12, memory * 1e9, disk * 1e9, link and link * 1e9)
    workload = flux_workload(name, Job(side, side))
    made = plan(workload, Budget(int(room * GiB), host * GiB, pinned * GiB), machine)
    assert simulated_seconds(made) == pytest.approx(made.seconds, rel=0.01)


@pytest.mark.parametrize(
    "row", CARDS[:4] + CARDS[6:7], ids=lambda row: f"{row[0]:g}TFLOPs-{row[9]}-{row[8]}-{row[6]}GiB"
)
def test_going_forward_and_backward_it_takes_the_time_the_plan_predicts(row: Row) -> None:
    gemm, attention, link, memory, disk, room, host, pinned, _, name = row
    machine = Machine(gemm * 1e12, attention * 1e12, memory * 1e9, disk * 1e9, link and link * 1e9)
    forward = flux_workload(name, Job(512, 512))
    made = plan(
        replace(forward, schedule=forward.schedule + forward.schedule[::-1]),
        Budget(int(room * GiB), host * GiB, pinned * GiB),
        machine,
    )
    assert made.streamed_bytes > 1.5 * sum(group.nbytes for group in made.groups) - 1.5 * made.resident_bytes
    assert simulated_seconds(made) == pytest.approx(made.seconds, rel=0.01)


@pytest.mark.parametrize(("card", "side"), [("rtx4060", 1024), ("rtx3070", 512)])
def test_integers_stream_as_they_are_in_the_predicted_time(card: str, side: int) -> None:
    """Int8 matrices beside the same ones decoded: less scratch, the same stored bytes, a faster step."""
    args = Namespace(
        disk=3.0, ram="16G", vram="6G", card=card, link=None, compute=INT8, size=f"{side}x{side}", batch=1,
        prompt_tokens=512,
    )  # fmt: skip
    model, made = open_model("flux1-dev-int8"), {}
    for word in (INT8, SIXTEEN_BIT):
        args.compute = word
        target = target_of(args)
        made[word] = plan_for(as_computed(model, target), target, job_of(args, target), Beside())
        assert simulated_seconds(made[word]) == pytest.approx(made[word].seconds, rel=0.01)
    fast, plain = made[INT8], made[SIXTEEN_BIT]
    for one, other in zip(fast.workload.schedule, plain.workload.schedule, strict=True):
        assert one.integers > 0 == other.integers and one.integers + one.products == other.products
    assert fast.seconds < 0.7 * plain.seconds
    assert [(w.name, w.nbytes) for w in fast.workload.weights] == [(w.name, w.nbytes) for w in plain.workload.weights]
    assert fast.workload.fixed["decoding"] < plain.workload.fixed["decoding"], "only adaLN's matrices are decoded"
    stored = sum(group.nbytes for group in fast.groups)
    assert fast.slots and fast.streamed_bytes == stored - fast.resident_bytes
