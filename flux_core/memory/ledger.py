"""What the runtimes of one process hold on a device, so that each of them can tell its own share.

The resident set of a process and PyTorch's allocator know the process as a whole. A runtime that counts against its
budget must leave out what the others hold, so each has an account that the others can read. One runtime alone finds
nothing to leave out. This is bookkeeping about a device that all share, no setting: nobody can change anything for
somebody else by it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager


class Account:
    """One runtime's share of a device."""

    def __init__(self, ledger: Ledger, weights: Callable[[], int]) -> None:
        """weights: bytes of weights it holds on the device now; called from any thread."""
        self.ledger, self.weights = ledger, weights
        self.working = 0  # bytes of activations of the run in progress
        self.limit = 0  # bytes it is allowed, as last computed
        self.lasting = False  # whether the run in progress allocates the same things again and again
        self.disturbed = False  # whether somebody else ran during this run
        self.peak = 0  # of the whole process, as far as it was seen before somebody else reset it

    @property
    def others_weights(self) -> int:
        """Bytes of weights that the other accounts hold."""
        return sum(other.weights() for other in self.ledger.others(self))

    @property
    def others_working(self) -> int:
        """At most so many bytes of activations have the other accounts at the moment."""
        return sum(other.working for other in self.ledger.others(self))

    def own_share(self, whole: int) -> int:
        """What is left of `whole` bytes, which all runtimes have together besides their own weights.

        While others run it is not known how much of their activations is there: then at least what was found when
        nobody else ran.
        """
        left = whole - self.others_weights - self.others_working
        if self.others_working:
            return max(left, self.ledger.quiet)
        self.ledger.quiet = left
        return left

    def own_peak(self, whole: int) -> int:
        """Of a peak of the process: what is left if the others had then what they have now."""
        return max(self.peak, whole) - self.others_weights - self.others_working

    @contextmanager
    def running(self, working: int, lasting: bool) -> Iterator[None]:
        """A run that needs so many bytes besides weights. Inside another run of the same account it stands for both."""
        before = self.working, self.lasting
        self.ledger.begin(self, max(1, working), lasting)
        try:
            yield
        finally:
            self.working, self.lasting = before


class Ledger:
    """The accounts of all runtimes of this process on one device."""

    def __init__(self) -> None:
        self.quiet = 0  # bytes that one runtime had besides weights when nobody else ran
        self._accounts: weakref.WeakSet[Account] = weakref.WeakSet()
        self._lock = threading.Lock()

    def open(self, weights: Callable[[], int]) -> Account:
        """A new account; it is closed when nobody holds it any more."""
        account = Account(self, weights)
        with self._lock:
            self._accounts.add(account)
        return account

    def others(self, account: Account) -> list[Account]:
        with self._lock:
            return [other for other in self._accounts if other is not account]

    def begin(self, account: Account, working: int, lasting: bool) -> None:
        """A run begins: whoever is running now disturbs it, and is disturbed by it."""
        with self._lock:
            running = [other for other in self._accounts if other is not account and other.working]
            for other in running:
                other.disturbed = True
            account.disturbed = bool(running) or (account.disturbed and account.working > 0)
            account.working, account.lasting = working, lasting

    def note_peak(self, nbytes: int) -> None:
        """The peak of the process is about to be forgotten: runs in progress keep it."""
        with self._lock:
            for account in self._accounts:
                if account.working:
                    account.peak = max(account.peak, nbytes)

    @property
    def lasting(self) -> bool:
        """Whether any runtime allocates the same things again and again."""
        with self._lock:
            return any(account.lasting for account in self._accounts)


_ledgers: dict[Hashable, Ledger] = {}


def ledger_of(device: Hashable) -> Ledger:
    """The ledger of a device of this process."""
    return _ledgers.setdefault(device, Ledger())
