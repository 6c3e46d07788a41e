"""Carries out a plan: brings each weight to the device before it is used.

    feeder   file or RAM ──▶ staging ──copy stream──▶ slot or slab        one weight after the other, by the schedule,
    main     take(weight): kernels wait for the copy · release(weight)    step after step

The two streams and the two threads synchronise by exactly these events and counters, each of which is necessary:

    arrived[slot][weight]  recorded after a copy, waited for by the kernels that use it
    done[slot]             recorded after the last kernel of a visit, waited for by the next copy into its slot
    staged[buffer]         recorded after a copy out of it, waited for (on the host) before it is filled again
    fed, used              the number of turns queued, and of visits finished. A wait for an event that was not recorded
                           yet waits for nothing; so main waits for `fed` before it queues a wait for `arrived`, and the
                           feeder waits for `used` before it queues one for `done`.

The threads are written as generators that yield what they wait for. In the program a thread waits; in the tests a
simulator does, and runs this same code in thousands of orders. In steady state nothing is allocated, and no thread
waits for the device except the feeder for its staging buffers.

All unexpected events (a block run again, a cancelled run, a changed budget) are handled in one way: drain, then start
again at the requested weight. Weights are immutable, so this costs only time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from ..cancel import check_cancelled
from .device import COMPUTE, COPY, Device, Slab, Source, Steps, Wait, drive
from .plan import Plan
from .residency import Residency, Slot, WeightSpan
from .schedule import Turn

NOTHING = Turn(-1, -1, -1, None)
ASK_SECONDS = 0.1  # a wait for a slow disk asks this often whether the run was cancelled


class Until:
    """Wait for a condition that another thread of the same stream will fulfil.

    ask: called now and then meanwhile; what it raises ends the wait.
    """

    def __init__(
        self, changed: threading.Condition, ready: Callable[[], bool], ask: Callable[[], object] | None = None
    ) -> None:
        self.changed, self.ready, self.ask = changed, ready, ask

    def __call__(self) -> None:
        with self.changed:
            while not self.changed.wait_for(self.ready, ASK_SECONDS if self.ask else None):
                if self.ask is not None:
                    self.ask()


def start_thread(steps: Steps[None]) -> None:
    threading.Thread(target=drive, args=(steps,), name="sluice-feeder", daemon=True).start()


class Stream:
    """One model's weights on one device. `take` and `release` belong to one thread, the one that queues kernels."""

    def __init__(
        self,
        plan: Plan,
        device: Device,
        source: Source,
        spawn: Callable[[Steps[None]], None] = start_thread,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """spawn: runs the feeder. Raises BudgetTooSmall if the device has no room for the ring."""
        self.device, self.source, self.spawn, self.clock = device, source, spawn, clock
        self.weights = plan.workload.weights
        self.held = Residency(plan, device, source)
        self.waited = 0.0  # seconds the main thread has waited for the feeder
        self.fetched_bytes = 0  # of weights that were brought and taken; what was read ahead counts when it is taken
        self.restarts = 0
        self.in_ring: tuple[int, ...] = ()  # groups in the ring, for display; written by the feeder

        self._changed = threading.Condition()  # guards the five attributes that both threads write
        self._fed = self._used = 0
        self._feeding = self._stopping = False
        self._error: BaseException | None = None

        self._taken = 0  # turns that the main thread has taken; below, those to come
        self._upcoming: Iterator[Turn] = iter(())
        self._ahead: deque[Turn] = deque()
        self._in_ring: dict[int, Turn] = {}  # the last turn of each weight whose group is in a slot
        self._closed: set[int] = set()  # visits that ended before an earlier one did
        self._last_use = -1  # the last use in the schedule that was taken in order
        self._jumped: frozenset[int] = frozenset()  # uses that the last restart passed over
        self._left_out: frozenset[int] = frozenset()  # uses that are passed over in every step

    # --- the main thread ------------------------------------------------------------------------------------

    def take(self, weight: int) -> WeightSpan:
        """Where the weight is on the device; valid for kernels queued on the compute stream before `release`."""
        resident = self.held.resident[weight]
        if resident is not None and weight in resident.here:
            return self.held.place(resident.slab, weight)
        return drive(self.taking(weight))

    def release(self, weight: int) -> None:
        """The kernels that use the weight are queued."""
        turn = self._in_ring.get(weight)
        if turn is not None and turn.closes:
            self._close(turn)

    def change(self, plan: Plan) -> None:
        """Follow another plan for the same schedule from now on, between two steps or between two blocks."""
        drive(self.changing(plan))

    def close(self) -> None:
        """Free all memory. The stream cannot be used afterwards."""
        drive(self.closing())

    def taking(self, weight: int) -> Steps[WeightSpan]:
        resident = self.held.resident[weight]
        if resident is not None and weight in resident.here:
            return self.held.place(resident.slab, weight)
        if not self._is_next(weight):
            held_turn = self._in_ring.get(weight)  # used again while its group is in a slot
            if held_turn is not None:
                return self.held.place(self._slot(held_turn).slab, weight)
        turn = yield from self._turn_of(weight)
        if self._fed <= turn.number:
            began = self.clock()
            yield self._fed_to(turn)
            self.waited += self.clock() - began
        if self._fed <= turn.number and not self._feeding:
            self._forget_turns()
            error, self._error = self._error, None
            raise error or RuntimeError("the feeder ended without an error")
        self._ahead.popleft()
        self._taken += 1
        self._count(turn)
        self._last_use = turn.use
        if turn.use in self._jumped:
            self._jumped = frozenset()
        if resident is not None:
            self.device.wait(COMPUTE, resident.arrived[weight])
            resident.here.add(weight)
            return self.held.place(resident.slab, weight)
        self._in_ring[weight] = turn
        slot = self._slot(turn)
        self.device.wait(COMPUTE, slot.arrived[self.held.index[weight]])
        return self.held.place(slot.slab, weight)

    def changing(self, plan: Plan) -> Steps[None]:
        yield from self._draining()
        self.held.adopt(plan)

    def closing(self) -> Steps[None]:
        yield from self._draining()
        self.held.close()

    def _is_next(self, weight: int) -> bool:
        if not self._ahead:
            self._ahead.append(next(self._upcoming, NOTHING))
        return self._ahead[0].weight == weight

    def _turn_of(self, weight: int) -> Steps[Turn]:
        """The turn of this weight. Turns before it that have been fed are skipped; otherwise the stream starts again.

        The turn stays the next one until it is taken, because the thread that waits for it may be interrupted.
        """
        for passed in range(max(1, self._fed - self._taken)):
            while len(self._ahead) <= passed:
                self._ahead.append(next(self._upcoming, NOTHING))
            if self._ahead[passed].weight == weight:
                for _ in range(passed):
                    self._pass_over(self._ahead.popleft())
                self._taken += passed
                return self._ahead[0]
        yield from self._draining()
        self._begin(weight)
        self._ahead.append(next(self._upcoming))
        return self._ahead[0]

    def _count(self, turn: Turn) -> None:
        if turn.brings:
            self.fetched_bytes += self.weights[turn.weight].nbytes

    def _pass_over(self, turn: Turn) -> None:
        self._count(turn)
        if turn.visit is None:
            resident = self.held.resident[turn.weight]
            assert resident is not None
            self.device.wait(COMPUTE, resident.arrived[turn.weight])
            resident.here.add(turn.weight)
        elif turn.closes:
            self._close(turn)

    def _close(self, turn: Turn) -> None:
        """All kernels of the visit are queued: after them its slot may be filled again."""
        assert turn.visit is not None
        self.device.record(COMPUTE, self._slot(turn).done)
        for weight in [weight for weight, other in self._in_ring.items() if other.visit == turn.visit]:
            del self._in_ring[weight]
        self._closed.add(turn.visit)
        used = self._used
        while used in self._closed:
            self._closed.discard(used)
            used += 1
        with self._changed:
            self._used = used
            self._changed.notify_all()

    # --- the feeder -----------------------------------------------------------------------------------------

    def _feed(self, turns: Iterator[Turn]) -> Steps[None]:
        try:
            for turn in turns:
                yield from self._bring(turn)
                if self._stopping:
                    return
                with self._changed:
                    self._fed = turn.number + 1
                    self._changed.notify_all()
                yield None
        except BaseException as error:
            with self._changed:
                self._error = error
        finally:
            with self._changed:
                self._feeding = False
                self._changed.notify_all()

    def _bring(self, turn: Turn) -> Steps[None]:
        if not turn.brings:
            return
        weight, slot, resident = turn.weight, None, self.held.resident[turn.weight]
        if resident is not None:
            slab, arrived = resident.slab, resident.arrived[weight]
        else:
            assert turn.visit is not None
            slot = self._slot(turn)
            slab, arrived = slot.slab, slot.arrived[self.held.index[weight]]
            if turn.opens:
                yield self._used_to(turn.visit - len(self.held.slots))
                if self._stopping:
                    return
                self.in_ring = (*self.in_ring, self.held.group[weight])[-len(self.held.slots) :]
        window = self.device.host_view(slab, self.held.offset[weight], self.held.room[weight])
        if window is not None:
            if slot is not None and turn.opens:
                yield self.device.finished(slot.done)
            yield self.source.read(weight, 0, self.weights[weight].nbytes, window)
        else:
            if slot is not None and turn.opens:
                self.device.wait(COPY, slot.done)
            yield from self._copy(weight, slab)
        yield None
        self.device.record(COPY, arrived)

    def _copy(self, weight: int, slab: Slab) -> Steps[None]:
        """Queue the copies of one weight: directly from pinned RAM, or through staging buffers."""
        nbytes, offset = self.weights[weight].nbytes, self.held.offset[weight]
        held = self.held.arena.find(weight)
        if held is not None:
            if weight not in self.held.arena.filled:
                yield self.held.arena.fill(weight)
                self.held.arena.filled.add(weight)
            if held.buffer.pinned:
                self.device.copy(slab, offset, held.buffer, held.start, nbytes)
                return
        for start in range(0, nbytes, self.held.staging.nbytes):
            size = min(self.held.staging.nbytes, nbytes - start)
            buffer, staged = self.held.staging.turn()
            yield self.device.finished(staged)
            if held is None:
                lead = self.source.lead(weight)
                yield self.source.read(weight, start, size, buffer.view[: size + self.source.slack])
            else:
                lead = 0
                yield self.held.arena.read(weight, start, buffer.view[:size])
            self.device.copy(slab, offset + start, buffer, lead, size)
            self.device.record(COPY, staged)
            yield None

    # --- starting and stopping ------------------------------------------------------------------------------

    def _begin(self, weight: int) -> None:
        """Start the feeder at a use of this weight. Both threads iterate over the same turns, each at its own pace."""
        if self.held.closed:
            raise RuntimeError("this stream was closed")
        self._error, self._stopping, self._feeding = None, False, True
        self.restarts += 1
        use = self._nearest_use(weight)
        self._leave_out(use)
        self._last_use = use
        self._upcoming, turns = (self.held.turns_from(use, self._left_out) for _ in range(2))
        try:
            self.spawn(self._feed(turns))
        except BaseException:
            self._feeding = False
            raise

    def _nearest_use(self, weight: int) -> int:
        """The use of a weight that is nearest to the expected one, ahead of it or behind (where a block runs again)."""
        order, count = self.held.order, len(self.held.order)
        ahead = {(use - self._last_use - 1) % count: use for use in range(count) if order[use] == weight}
        return ahead[min(ahead, key=lambda distance: min(distance, count - distance))]

    def _leave_out(self, use: int) -> None:
        """Learn from a restart at this use which uses the following steps will pass over.

        A ControlNet whose range of steps has ended is no longer evaluated. The first step without it restarts the
        stream behind the ControlNet; if the next step does so again, its uses are left out, and no further step
        restarts. They come back as soon as one of them is asked for.
        """
        if use in self._left_out:
            self._left_out = self._jumped = frozenset()
            return
        count = len(self.held.order)
        distance = (use - self._last_use - 1) % count if self._last_use >= 0 else 0
        passed = frozenset((self._last_use + 1 + step) % count for step in range(distance)) - self._left_out
        if passed and passed == self._jumped:
            self._left_out |= passed
        self._jumped = passed

    def _draining(self) -> Steps[None]:
        """Stop the feeder and let the device finish. The ring is empty afterwards."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        yield self._until(lambda: not self._feeding)
        yield self.device.idle()
        self._forget_turns()
        self._fed = self._used = self._taken = 0
        self._in_ring.clear()
        self.in_ring = ()
        self._closed.clear()

    def _forget_turns(self) -> None:
        self._upcoming = iter(())
        self._ahead.clear()

    def _slot(self, turn: Turn) -> Slot:
        assert turn.visit is not None
        return self.held.slots[turn.visit % len(self.held.slots)]

    def _fed_to(self, turn: Turn) -> Wait:
        return Until(self._changed, lambda: self._fed > turn.number or not self._feeding, check_cancelled)

    def _used_to(self, visit: int) -> Wait:
        return self._until(lambda: self._used > visit or self._stopping)

    def _until(self, ready: Callable[[], bool]) -> Wait:
        return Until(self._changed, ready)
