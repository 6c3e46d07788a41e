"""The weights of each kind of model: how the tensors' shapes give its config, and how its matrices are kept in memory.

Independent of: handles, nodes, sampling.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import torch
from torch import Tensor

from ..checkpoint.load import Resident, Tensors
from ..checkpoint.stored import Stored
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
from .settings import INT8
from .streamed_flux import ManagedFlux
from .weights import Weights

FILLED = 0.8  # share of the free memory that matrices may take after expansion to the type of the products


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
