"""The state that all models of one program share: device, number types, budget, loaded weights, caches.

Each door creates one and passes it on: `sluice run`, the worker, training, benchmarks, ComfyUI's pack, a test. The
handles of models refer to it (handles.py). Below the doors there are no settings of the whole process, so several
runtimes can work at the same time, on several devices or on one, each in its own thread.

    device, model_dtype ...    where models compute, in which number types, by which products; fixed
    budget                     how much memory they may use; may be changed at any time (memory/manager.py)
    external                   another allocator of the device's memory (memory/external.py)
    events                     receives every plan, step and job (memory/report.py)
    weights                    loaded files, shared by all handles of a file (weights.py)
    encodings, activations     results that are reused
    evaluations                results of the running job, on disk (evaluation_log.py)

All runtimes of a process share only what depends on the machine or on a file and not on a user's choice: measured rates
(memory/rates.py), tokenizers by their path, and each thread's scratch memory (quant/workspace.py), which is in use only
during one product.

Independent of: files, models, nodes.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Generic, TypeVar

import torch

from ..conditioning.text import Cache
from ..errors import BudgetTooSmall
from ..memory.budget import Allowed
from ..memory.external import ExternalAllocator
from ..memory.manager import SMALL_BYTES, Manager
from ..memory.report import Events
from ..models.attention_library import LibraryAttention
from ..parallel.share import DeviceShare
from ..sampling.step_cache import PRESETS
from .device import TEXT_DTYPE, autoencoder_dtype, device_report, find_device, model_dtype
from .evaluation_log import EvaluationLog
from .settings import Settings
from .team import Team

Value = TypeVar("Value")
SomeValue = TypeVar("SomeValue")


class Shared(Generic[Value]):
    """Values that exist once per identity while they are referenced. Any thread may use it."""

    def __init__(self) -> None:
        self._values: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()

    def get(self, identity: Hashable, make: Callable[[], SomeValue]) -> SomeValue:
        """The value of this identity, created if it does not exist."""
        with self._lock:
            value: SomeValue | None = self._values.get(identity)
            if value is None:
                value = self._values[identity] = make()
            return value


class Runtime:
    """One device with a budget, and everything that was loaded and computed on it."""

    def __init__(self, settings: Settings | None = None, external: ExternalAllocator | None = None) -> None:
        """external: another allocator of the device's memory; None by default. Raises InputError for a device that does
        not exist.
        """
        settings = settings or Settings()
        self.device = find_device(settings.device)
        self.model_dtype = model_dtype(self.device, settings.dtype)
        self.autoencoder_dtype = autoencoder_dtype(self.model_dtype, self.device)
        self.text_dtype = TEXT_DTYPE
        self.step_cache = PRESETS[settings.cache]
        self.compute, self.attention = settings.compute, settings.attention
        self.library_attention: LibraryAttention | None = None  # another library's, once a model has asked for it
        self.exact = False  # whether models compute every step from decoded weights, regardless of other settings
        self.external = external
        self.events = Events()
        self.managers: dict[torch.device, Manager] = {}
        self.weights: Shared[Any] = Shared()
        self.loras: Shared[Any] = Shared()
        self.encodings = Cache()  # encoded prompts
        self.activations: dict[Hashable, int] = {}  # bytes of activations found by dry runs, by shape
        self.evaluations: EvaluationLog | None = None  # log of the running job, if it can be paused
        self.give_way: Callable[[bool], None] | None = None  # as of a manager; set before the first model is opened
        self.team: Team | None = None  # the devices that compute an image together; None if this device works alone
        self.share: DeviceShare | None = None  # the share of this device in a team
        self._budget = settings.budget
        self._lock = threading.Lock()

    # -- memory ------------------------------------------------------------------------------------------------------

    @property
    def budget(self) -> Allowed:
        """How much memory models may use. Models that are running follow a change at their next step.

        The other devices of a team are given the same.
        """
        return self._budget

    @budget.setter
    def budget(self, allowed: Allowed) -> None:
        self._budget = allowed
        for manager in list(self.managers.values()):
            manager.allowed = allowed
        if self.team is not None:
            self.team.tell_budget(allowed.words)

    def manager(self, device: torch.device, nbytes: int) -> Manager | None:
        """The manager for a model of this many bytes on this device; None if it can be loaded whole.

        Without a budget set by the user, a model is loaded whole if it is small compared with any machine's memory;
        except on a GPU shared with another allocator.
        """
        shared = self.external is not None and device.type == "cuda"
        if not self._budget.managed or (nbytes < SMALL_BYTES and not self._budget.explicit and not shared):
            return None
        with self._lock:
            if device not in self.managers:
                made = self.managers[device] = Manager(device, self._budget, self.external, self.events.emit)
                made.give_way = self.give_way
            return self.managers[device]

    def shrink_to_budget(self) -> None:
        """Between two runs: free loaded weights until they fit in a budget that has become smaller."""
        for manager in list(self.managers.values()):
            with suppress(BudgetTooSmall):
                manager.reclaim("What is loaded", 0)

    def make_room_in_ram(self, label: str, nbytes: int) -> None:
        """Before `label` reads this many bytes into RAM: if RAM is a managed device, free loaded weights for them.

        Raises BudgetTooSmall.
        """
        manager = self.managers.get(torch.device("cpu"))
        if manager is not None and self._budget.managed:
            manager.reclaim(label, nbytes)

    def device_report(self) -> list[dict[str, Any]]:
        """The devices in the format of ComfyUI's /system_stats."""
        return [device_report(self.device)]
