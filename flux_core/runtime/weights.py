"""The weights of a model: shared by all handles of a file, described by its header, loaded at first use.

A `Weights` has its tensors and its config without reading any bytes. `module` reads them onto a device in a number type
and keeps the result while the `Weights` is referenced; for another device or type it loads the file again, because the
file is the only source of truth. `managed` is the same under a memory budget.

Independent of: handles, nodes, sampling.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from ..checkpoint.detect import detect, refuse
from ..checkpoint.files import open_weights
from ..checkpoint.load import Resident, Tensors, bind
from ..errors import FileFormatError
from ..memory.manager import Manager
from ..parallel.share import DeviceShare
from ..quant.int8 import Integers
from .runtime import Runtime
from .settings import SIXTEEN_BIT

Module = TypeVar("Module", bound=nn.Module)
Kind = TypeVar("Kind", bound="Weights[Any]")


class Weights(Generic[Module]):
    """`tensors` under the model's own names; `identity` identifies the model and the state of its file."""

    config: Any

    def __init__(self, runtime: Runtime, tensors: Tensors, identity: Hashable) -> None:
        """Raises FileFormatError if no such model has tensors of these shapes."""
        self.runtime, self.tensors, self.identity = runtime, tensors, identity
        self._loaded: tuple[tuple[torch.device, torch.dtype, Integers | None], Module] | None = None
        self._managed: tuple[tuple[Manager, torch.dtype, Integers | None], Any] | None = None
        self._lock = threading.RLock()  # a reentrant lock, because freeing memory for one model may unload another
        self._allocation: Any = None  # registration with the external allocator, if there is one
        self._share: DeviceShare | None = None  # of the team that what is loaded was loaded for
        self.config = self._read_config({name: stored.shape for name, stored in tensors.items()})

    @property
    def path(self) -> Path:
        return next(iter(self.tensors.values())).file.path

    @property
    def nbytes(self) -> int:
        """Bytes in the stored format."""
        return sum(stored.nbytes for stored in self.tensors.values())

    def module(self, device: torch.device, dtype: torch.dtype, compute: str = SIXTEEN_BIT) -> Module:
        """The model on `device`, for computing in `dtype`. compute: one of settings.COMPUTES, for the transformer.

        Raises FileFormatError if the file is incomplete.
        """
        with self._lock:
            self._follow_team(device)
            key = device, dtype, self._integers(device, dtype, compute)
            if self._loaded is None or self._loaded[0] != key:
                self._loaded = None
                self._give_up_managed()
                self._ask_for_room()
                with torch.device("meta"):
                    module = self._make()
                self._fill(module, self._holder(*key))
                self._loaded = key, module
            return self._loaded[1]

    def managed(self, manager: Manager, dtype: torch.dtype, compute: str = SIXTEEN_BIT) -> Any:
        """The model with its matrices streamed by a manager, for computing in `dtype`. Only small tensors are read.

        compute: as for `module`.
        """
        with self._lock:
            self._loaded = None
            self._follow_team(manager.device)
            key = manager, dtype, self._integers(manager.device, dtype, compute)
            if self._managed is None or self._managed[0] != key:
                self._give_up_managed()
                self._managed = key, self._manage(*key)
            return self._managed[1]

    def unload(self) -> None:
        """Drop everything that was loaded; the next use loads it again."""
        with self._lock:
            self._loaded = None
            self._give_up_managed()

    def _follow_team(self, device: torch.device) -> None:
        """Load again for a team that was started anew: it communicates over other connections."""
        share = self._share_on(device)
        if self._share is not share:
            self.unload()
            self._share = share

    def _share_on(self, device: torch.device) -> DeviceShare | None:
        """This device's share, if several compute the model together."""
        return None

    # -- as a client of an external allocator, if it is loaded whole; under a manager its models are clients

    @property
    def label(self) -> str:
        return type(self).__name__

    @property
    def total_bytes(self) -> int:
        return self.nbytes

    @property
    def held_bytes(self) -> int:
        return self.nbytes if self._loaded else 0

    def release(self, nbytes: int) -> int:
        """Release all of it. A running job keeps its references to the end."""
        held = self.held_bytes
        with self._lock:
            self._loaded = None
        return held

    def _ask_for_room(self) -> None:
        external = self.runtime.external
        if external is not None:
            self._allocation = self._allocation or external.admit(self)
            external.make_room(self._allocation, self.nbytes, 0)

    def _give_up_managed(self) -> None:
        if self._managed is not None:
            self._managed[1].close()
            self._managed = None

    @property
    def loaded(self) -> bool:
        return self._loaded is not None or self._managed is not None

    def _read_config(self, shapes: dict[str, tuple[int, ...]]) -> Any:
        try:
            return self._config(shapes)
        except (ValueError, IndexError, ZeroDivisionError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(
                f"{self.path.name}: its tensors have shapes that no such model has. Fetch it again."
            ) from error

    def _fill(self, module: Module, holder: Resident) -> None:
        """In a team that divides matrices: with this device's rows of those that are cut."""
        cut = None if self._share is None else self._share.weights
        if cut is None:
            bind(module, self.tensors, holder)
            return
        cut.narrow(module, self.tensors)
        bind(module, cut.tensors(self.tensors), holder)
        cut.wrap(module, self.tensors)

    def _config(self, shapes: dict[str, tuple[int, ...]]) -> Any:
        raise NotImplementedError

    def _make(self) -> Module:
        raise NotImplementedError

    def _integers(self, device: torch.device, dtype: torch.dtype, compute: str) -> Integers | None:
        """The object that multiplies matrices stored as integers; None: they are decoded."""
        return None

    def _holder(self, device: torch.device, dtype: torch.dtype, integers: Integers | None) -> Resident:
        raise NotImplementedError

    def _manage(self, manager: Manager, dtype: torch.dtype, integers: Integers | None) -> Any:
        raise NotImplementedError


def weights_in(
    runtime: Runtime, path: str | Path, part: str, make: Callable[[Runtime, Tensors, Hashable], Kind]
) -> Kind:
    """The weights of one part of a file, as `detect` names parts; the same object for all who hold it.

    Raises MissingFileError, and FileFormatError that says what the file is if it has no such part.
    """
    file = open_weights(path)
    found = detect(file)
    if part not in found.parts:
        refuse(file.path, found, part)
    tensors, identity = found.parts[part], (file.identity, part)
    return runtime.weights.get(identity, lambda: make(runtime, tensors, identity))
