"""How much each runtime of this process holds on a device, so that each can compute its own share.

A process's resident set and PyTorch's allocator measure the process as a whole. A runtime must subtract what the others
hold before it compares with its budget, so each has an account that the others can read. These are measurements of a
shared device, not settings: no runtime can change another one's behaviour through them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager


class Account:
    """One runtime's share of a device."""

    def __init__(self, ledger: Ledger, weights: Callable[[], int]) -> None:
        """weights: returns the bytes of weights that the runtime holds on the device now; called from any thread."""
        self.ledger, self.weights = ledger, weights
        self.working = 0  # bytes of activations of the run in progress
        self.limit = 0  # its budget in bytes, as last computed
        self.lasting = False  # whether the run in progress allocates the same tensors in every step
        self.disturbed = False  # whether another runtime ran during this run
        self.peak = 0  # of the whole process, before another runtime reset it

    @property
    def others_weights(self) -> int:
        """Bytes of weights that the other accounts hold."""
        return sum(other.weights() for other in self.ledger.others(self))

    @property
    def others_working(self) -> int:
        """The most bytes of activations that the other accounts can have now."""
        return sum(other.working for other in self.ledger.others(self))

    def own_share(self, whole: int) -> int:
        """This account's share of `whole` bytes, which all runtimes use together besides this one's weights.

        While others run, it is unknown how much of their activations is allocated; the share is then at least what was
        measured when no other ran.
        """
        left = whole - self.others_weights - self.others_working
        if self.others_working:
            return max(left, self.ledger.quiet)
        self.ledger.quiet = left
        return left

    def own_peak(self, whole: int) -> int:
        """This account's share of a peak of the process, if the others held then what they hold now."""
        return max(self.peak, whole) - self.others_weights - self.others_working

    @contextmanager
    def running(self, working: int, lasting: bool) -> Iterator[None]:
        """A context for a run that needs `working` bytes besides weights. A run within a run replaces its numbers."""
        before = self.working, self.lasting
        self.ledger.begin(self, max(1, working), lasting)
        try:
            yield
        finally:
            self.working, self.lasting = before


class Ledger:
    """The accounts of all runtimes of this process on one device."""

    def __init__(self) -> None:
        self.quiet = 0  # bytes that one runtime used besides weights when no other ran
        self._accounts: weakref.WeakSet[Account] = weakref.WeakSet()
        self._lock = threading.Lock()

    def open(self, weights: Callable[[], int]) -> Account:
        """A new account. It ends when it is garbage-collected."""
        account = Account(self, weights)
        with self._lock:
            self._accounts.add(account)
        return account

    def others(self, account: Account) -> list[Account]:
        with self._lock:
            return [other for other in self._accounts if other is not account]

    def begin(self, account: Account, working: int, lasting: bool) -> None:
        """A run begins. It and all runs in progress are marked as disturbed if there are any."""
        with self._lock:
            running = [other for other in self._accounts if other is not account and other.working]
            for other in running:
                other.disturbed = True
            account.disturbed = bool(running) or (account.disturbed and account.working > 0)
            account.working, account.lasting = working, lasting

    def note_peak(self, nbytes: int) -> None:
        """Note the peak of the process for the runs in progress, before it is reset."""
        with self._lock:
            for account in self._accounts:
                if account.working:
                    account.peak = max(account.peak, nbytes)

    @property
    def lasting(self) -> bool:
        """Whether any runtime is in a run that allocates the same tensors in every step."""
        with self._lock:
            return any(account.lasting for account in self._accounts)


_ledgers: dict[Hashable, Ledger] = {}


def ledger_of(device: Hashable) -> Ledger:
    """The ledger of this process for a device."""
    return _ledgers.setdefault(device, Ledger())
