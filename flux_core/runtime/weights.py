"""The weights of one model: shared by all handles of a file, described by its header, loaded at first use.

A `Weights` has its tensors and its config without reading any bytes. `module` reads them onto a device in a number type
and keeps the result while the `Weights` is referenced; for another device or type it loads the file again, because the
file is the only source of truth. `managed` is the same under a memory budget.

Independent of: handles, nodes, sampling.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..checkpoint.detect import detect, refuse
from ..checkpoint.files import open_weights
from ..checkpoint.load import Resident, Tensors, bind
from ..checkpoint.stored import Stored
from ..errors import FileFormatError
from ..memory.manager import Manager
from ..models.autoencoder import Autoencoder, AutoencoderConfig
from ..models.clip_text import ClipConfig, ClipTextModel
from ..models.controlnet import ControlNet
from ..models.controlnet_config import ControlNetConfig, controlnet_key
from ..models.flux import Flux
from ..models.flux_config import AXES, FluxConfig, axes_from
from ..models.image_coder import ImageCoder
from ..models.linear import HeldWeight
from ..models.pixel_codec import KEY as PIXELS
from ..models.pixel_codec import PixelCodec, PixelCodecConfig
from ..models.t5 import T5Config, T5Encoder
from ..models.taef1 import Taef1, Taef1Config
from ..parallel.share import DeviceShare
from ..quant.encoding import multiplied_as_integers
from ..quant.fp8 import FP8
from ..quant.int8 import Integers
from .device import room
from .encoder import ManagedEncoder
from .integer_products import block_matrices, integers_for, within_ram
from .managed_controlnet import ManagedControlNet
from .runtime import Runtime
from .settings import INT8, SIXTEEN_BIT
from .streamed_flux import ManagedFlux

FILLED = 0.8  # share of the free memory that matrices may take after expansion to the type of the products

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


class FluxWeights(Weights[Flux]):
    """A transformer. `round_to`: the type to which `weight_dtype` rounds all weights, None for the file's own."""

    config: FluxConfig

    def __init__(self, runtime: Runtime, tensors: Tensors, identity: Hashable, round_to: torch.dtype | None) -> None:
        self.round_to = round_to
        super().__init__(runtime, tensors, identity)

    def _config(self, shapes: dict[str, tuple[int, ...]]) -> FluxConfig:
        """Shapes do not say how a head's channels are shared among index, row and column; the header may."""
        config = FluxConfig.from_shapes(shapes)
        axes = next(iter(self.tensors.values())).file.metadata.get(AXES)
        return config if axes is None else replace(config, axes_dim=axes_from(axes, config.head_dim))

    def _share_on(self, device: torch.device) -> DeviceShare | None:
        return self.runtime.share

    def _make(self) -> Flux:
        return Flux(self.config)

    def _holder(self, device: torch.device, dtype: torch.dtype, integers: Integers | None) -> Resident:
        return _expanded(self.tensors, device, dtype, self.round_to, integers)

    def _manage(self, manager: Manager, dtype: torch.dtype, integers: Integers | None) -> ManagedFlux:
        allowed = within_ram(integers, manager, self.tensors)
        return ManagedFlux(manager, self.config, self.tensors, dtype, self.round_to, allowed, self.runtime.share)

    def _integers(self, device: torch.device, dtype: torch.dtype, compute: str) -> Integers | None:
        return _integers_of(self.tensors, device, dtype, compute)


class ControlNetWeights(Weights[ControlNet]):
    """A ControlNet. Its key identifies it among those of a run."""

    config: ControlNetConfig

    @property
    def key(self) -> str:
        return controlnet_key(self.path)

    def _config(self, shapes: dict[str, tuple[int, ...]]) -> ControlNetConfig:
        return ControlNetConfig.from_shapes(shapes)

    def _share_on(self, device: torch.device) -> DeviceShare | None:
        return self.runtime.share

    def _make(self) -> ControlNet:
        return ControlNet(self.config)

    def _holder(self, device: torch.device, dtype: torch.dtype, integers: Integers | None) -> Resident:
        return _expanded(self.tensors, device, dtype, None, integers)

    def _manage(self, manager: Manager, dtype: torch.dtype, integers: Integers | None) -> ManagedControlNet:
        return ManagedControlNet(manager, self.key, self.config, self.tensors, dtype, integers)

    def _integers(self, device: torch.device, dtype: torch.dtype, compute: str) -> Integers | None:
        return _integers_of(self.tensors, device, dtype, compute)


class ClipWeights(Weights[ClipTextModel]):
    """CLIP-L, converted to float16 whatever the file has, as in ComfyUI."""

    config: ClipConfig

    def _config(self, shapes: dict[str, tuple[int, ...]]) -> ClipConfig:
        return ClipConfig.from_shapes(shapes)

    def _share_on(self, device: torch.device) -> DeviceShare | None:
        return _rows_on(self.runtime, device)

    def _make(self) -> ClipTextModel:
        return ClipTextModel(self.config)

    def _holder(self, device: torch.device, dtype: torch.dtype, integers: Integers | None = None) -> Resident:
        return Resident(device, None, round_to=torch.float16, packed=True)

    def _manage(self, manager: Manager, dtype: torch.dtype, integers: Integers | None) -> ManagedEncoder:
        rows = torch.empty(1, self.config.positions, self.config.width, device="meta")
        sample = rows, torch.zeros(1, dtype=torch.int64, device="meta")
        holder = self._holder(manager.device, dtype)
        return ManagedEncoder(manager, "CLIP-L", self._make, self.tensors, dtype, holder, sample, self._share)


class T5Weights(Weights[T5Encoder]):
    """T5, converted to the type of its last norm, but float16 instead of float32, as in ComfyUI."""

    config: T5Config

    def _config(self, shapes: dict[str, tuple[int, ...]]) -> T5Config:
        return T5Config.from_shapes(shapes)

    def _share_on(self, device: torch.device) -> DeviceShare | None:
        return _rows_on(self.runtime, device)

    def _make(self) -> T5Encoder:
        return T5Encoder(self.config)

    def _holder(self, device: torch.device, dtype: torch.dtype, integers: Integers | None = None) -> Resident:
        norm = self.tensors["encoder.final_layer_norm.weight"]
        if norm.file.container == "GGUF":
            return Resident(device, None, packed=True)
        stored = {"BF16": torch.bfloat16, **FP8}.get(norm.format, torch.float16)
        return Resident(device, None, round_to=stored, packed=True)

    def _manage(self, manager: Manager, dtype: torch.dtype, integers: Integers | None) -> ManagedEncoder:
        sample = (torch.empty(1, 2, self.config.width, device="meta"),)
        holder = self._holder(manager.device, dtype)
        return ManagedEncoder(manager, "T5", self._make, self.tensors, dtype, holder, sample, self._share)


class _ChannelsLast(Resident):
    """Convolutions in 16-bit types get the memory layout that processors and tensor cores read fastest: twice as fast
    on CPUs with bf16.
    """

    def __call__(self, stored: Stored, raw: Tensor, matrix: bool) -> Tensor | HeldWeight:
        value = super().__call__(stored, raw, matrix)
        if isinstance(value, Tensor) and value.ndim == 4 and value.dtype.itemsize == 2:
            return value.contiguous(memory_format=torch.channels_last)
        return value


class AutoencoderWeights(Weights[ImageCoder | PixelCodec]):
    config: AutoencoderConfig | PixelCodecConfig | Taef1Config
    exceeds_half = False  # whether an image was found that float16 cannot hold, scaled down as it is

    def _config(self, shapes: dict[str, tuple[int, ...]]) -> AutoencoderConfig | PixelCodecConfig | Taef1Config:
        return (PixelCodecConfig if PIXELS in shapes else AutoencoderConfig).from_shapes(shapes)

    def _make(self) -> ImageCoder | PixelCodec:
        if isinstance(self.config, Taef1Config):
            return Taef1(self.config)
        return PixelCodec(self.config) if isinstance(self.config, PixelCodecConfig) else Autoencoder(self.config)

    def _holder(self, device: torch.device, dtype: torch.dtype, integers: Integers | None = None) -> Resident:
        return _ChannelsLast(device, dtype)

    def _fill(self, module: ImageCoder | PixelCodec, holder: Resident) -> None:
        super()._fill(module, holder)
        if holder.dtype is torch.float16 and isinstance(module, Autoencoder):
            module.scale_down()

    def module_on_meta(self, dtype: torch.dtype) -> ImageCoder | PixelCodec:
        """The module without weights, on the meta device."""
        with torch.device("meta"):
            return self._make().to(dtype)

    def loaded_bytes(self, dtype: torch.dtype) -> int:
        return sum(stored.numel for stored in self.tensors.values()) * dtype.itemsize


class Taef1Weights(AutoencoderWeights):
    """The small autoencoder, or one half of it."""

    def _config(self, shapes: dict[str, tuple[int, ...]]) -> Taef1Config:
        return Taef1Config.from_shapes(shapes)


def _rows_on(runtime: Runtime, device: torch.device) -> DeviceShare | None:
    """A text encoder is divided where matrices are, on the device of the team."""
    share = runtime.share
    return share if share is not None and share.weights is not None and device == runtime.device else None


def _expanded(
    tensors: Tensors,
    device: torch.device,
    dtype: torch.dtype,
    round_to: torch.dtype | None,
    integers: Integers | None,
) -> Resident:
    """Expand all matrices once if memory allows it, else each matrix at each use: the numbers are the same."""
    expanded = sum(stored.numel for stored in tensors.values()) * dtype.itemsize
    quantised = block_matrices(tensors) if integers is not None and integers.quantises else ()
    packed = expanded > FILLED * room(device)
    return Resident(device, dtype, round_to=round_to, packed=packed, integers=integers, quantised=quantised)


def _integers_of(tensors: Tensors, device: torch.device, dtype: torch.dtype, compute: str) -> Integers | None:
    """The object that multiplies matrices stored as integers, if there are any."""
    stored_so = any(multiplied_as_integers(stored.encoding, stored.shape) for stored in tensors.values())
    if not stored_so and compute != INT8:
        return None
    return integers_for(device, dtype, compute)
