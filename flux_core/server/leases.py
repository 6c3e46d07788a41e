"""Other programs get the card for a time: leases, and what workers do when one begins.

A lease ends by itself, so that a program that dies does not hold the queue for ever. Leases are not stored: a server
that is started again has none, and the jobs that waited for them go on.

Independent of: HTTP, how jobs are assigned.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .clients import Clients
from .members import Member, Members
from .store import Store

LONGEST_STOP = 60.0  # seconds that a request for the card waits for running jobs to stop


@dataclass(frozen=True)
class Lease:
    """`ends`: seconds of the clock of `Leases`. `by`: the name of the program, as it gave it."""

    id: str
    by: str
    ends: float


class Leases:
    """All leases that have not ended."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._leases: dict[str, Lease] = {}

    def add(self, by: str, seconds: float) -> Lease:
        """A new lease."""
        lease = Lease(uuid.uuid4().hex, by, self._clock() + seconds)
        self._leases[lease.id] = lease
        return lease

    def renew(self, lease_id: str, seconds: float) -> Lease:
        """The lease lasts so many seconds from now. Raises KeyError if it has ended."""
        known = {lease.id: lease for lease in self}
        self._leases[lease_id] = Lease(lease_id, known[lease_id].by, self._clock() + seconds)
        return self._leases[lease_id]

    def end(self, lease_id: str) -> bool:
        """Whether there was such a lease."""
        return any(lease.id == lease_id for lease in self) and self._leases.pop(lease_id, None) is not None

    def __iter__(self) -> Iterator[Lease]:
        now = self._clock()
        self._leases = {key: lease for key, lease in self._leases.items() if lease.ends > now}
        return iter(list(self._leases.values()))

    @property
    def left(self) -> float:
        """Seconds until the last one ends; 0 without one."""
        return max((lease.ends - self._clock() for lease in self), default=0.0)

    @property
    def account(self) -> list[dict[str, Any]]:
        """The leases as JSON, without the ids, which only their owners know."""
        return [{"by": lease.by, "seconds": round(lease.ends - self._clock(), 1)} for lease in self]


class Lending:
    """The leases of one server. What begins when they end looks at `left`; `changed` is called when that may differ."""

    def __init__(self, members: Members, store: Store, clients: Clients, changed: Callable[[], None]) -> None:
        self._members, self._store, self._clients, self._changed = members, store, clients, changed
        self._leases = Leases()

    @property
    def left(self) -> float:
        """Seconds for which no job may begin on this machine."""
        return self._leases.left

    @property
    def account(self) -> list[dict[str, Any]]:
        return self._leases.account

    def add(self, by: str, seconds: float) -> Lease:
        """Note that a program has the card already."""
        lease = self._leases.add(by, seconds)
        self._tell()
        return lease

    async def lend(self, by: str, seconds: float, renewed: str | None = None) -> tuple[Lease, bool]:
        """Give the memory of this machine's workers to another program for a time: running jobs stop after their
        current product and wait in their places of the queue, loaded models go, and no job begins.

        Returns the lease, and whether all memory is free; it waits for that. renewed: a lease that is to last longer.
        Raises KeyError if it has ended.
        """
        lease = self._leases.add(by, seconds) if renewed is None else self._leases.renew(renewed, seconds)
        self._tell()
        here = [member for member in self._members if member.here]
        await asyncio.gather(*(self._free(member) for member in here))
        end = time.monotonic() + LONGEST_STOP
        while any(member.running for member in here) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return lease, not any(member.running for member in here)

    async def _free(self, member: Member) -> None:
        if member.running is not None:
            if not self._store.is_paused(member.running.prompt_id):
                member.worker.tell("pause", prompt_id=member.running.prompt_id)
                self._clients.send("sluice.stopping", {"prompt_id": member.running.prompt_id})
        elif member.warm:  # a process gives all memory back only with its end; the next call starts another one
            await member.worker.stop()
            member.died()

    def give_back(self, lease_id: str) -> bool:
        """End a lease: jobs go on. Returns whether it was one."""
        ended = self._leases.end(lease_id)
        self._tell()
        return ended

    def _tell(self) -> None:
        self._changed()
        self._clients.send("sluice.lent", {"leases": self.account})
