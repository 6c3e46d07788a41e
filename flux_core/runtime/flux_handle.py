"""The value of a MODEL link: a transformer, with its file and everything that patch nodes change about it.

It implements the interface that sampling needs (sampling/guider.py: Model). Its weights are shared by all handles of
the file (weights.py).

Independent of: nodes, prompts, solvers, and how bytes become parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..adapters.apply import adapted
from ..adapters.lora import LoraUse
from ..errors import InputError
from ..limits import check_room
from ..models.attention_library import RunAttention
from ..models.denoiser_inputs import DenoiserInputs
from ..models.flux import with_attention, with_controlnets, with_sharing
from ..models.flux_config import FluxConfig
from ..models.latents import CELL, patches
from ..quant.half_sums import check_half_sums, half_sums
from ..sampling.guider import Guidance, Network, Run, velocities
from ..sampling.inpaint import MaskFunction
from ..sampling.schedule import Sampling
from ..sampling.step_cache import StepCache
from .chosen_attention import run_attention
from .device import total_bytes
from .flux_needs import controlnet_tensors
from .image_adapters import SeenImages
from .loaded_whole import reported_flux
from .lora_memory import reclaim_for_loras
from .model_weights import ControlNetWeights, FluxWeights
from .run_elsewhere import portable
from .runtime import Runtime
from .settings import HALF_SUMS, PYTORCH, SIXTEEN_BIT
from .sound import unsound

log = logging.getLogger(__name__)

WEIGHT_DTYPES = {
    "default": None,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fn_fast": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class FluxModel:
    """A transformer with all settings that patch nodes change (by `dataclasses.replace`)."""

    weights: FluxWeights
    sampling: Sampling
    loras: tuple[LoraUse, ...] = ()
    mask_function: MaskFunction | None = None
    guidance: Guidance | None = None
    compute_dtype: torch.dtype | None = None  # None: the runtime's
    seen: tuple[SeenImages, ...] = ()  # images for an IP-Adapter
    style: Tensor | None = None  # tokens of style references [1, S, hidden]
    own_step_cache: StepCache | None = None  # None: the runtime's
    own_compute: str | None = None  # a word of settings.COMPUTES; None: the runtime's
    own_attention: str | None = None  # a word of settings.ATTENTIONS; None: the runtime's

    @property
    def runtime(self) -> Runtime:
        return self.weights.runtime

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    @property
    def dtype(self) -> torch.dtype:
        return self.compute_dtype or self.runtime.model_dtype

    @property
    def step_cache(self) -> StepCache | None:
        return None if self.runtime.exact else self.own_step_cache or self.runtime.step_cache

    @property
    def compute(self) -> str:
        return SIXTEEN_BIT if self.runtime.exact else self.own_compute or self.runtime.compute

    @property
    def attention(self) -> str:
        return PYTORCH if self.runtime.exact else self.own_attention or self.runtime.attention

    def emit(self, event: dict[str, Any]) -> None:
        self.runtime.events.emit(event)

    @property
    def in_channels(self) -> int:
        """Channels of the latent input; control LoRAs have more."""
        width = 4 * self.weights.config.in_channels
        return max([width, *(use.lora.input_width("img_in", width) for use in self.loras if use.strength)]) // 4

    @property
    def latent_channels(self) -> int:
        """Channels of the latent that comes out: 16, or others for models in pixel space."""
        return self.weights.config.out_channels

    @contextmanager
    def open(self, run: Run) -> Iterator[Network]:
        """The network, ready for one run; in a job that can be paused its evaluations are recorded on disk.

        Raises InputError for an image that does not fit in memory in any case.
        """
        check_room_for(self.weights.config, run.shape, self.dtype, self.device)
        log, attend = self.runtime.evaluations, run_attention(self)
        with self._showing(run, attend) as (run, network):
            if log is None:
                yield network
                return
            loras = tuple(use.identity for use in self.loras if use.strength)
            attention = attend.identity if attend else ""
            depends_on = self.weights.identity, loras, self.dtype, self.compute, self.device.type, attention
            with log.recorded(network, run, depends_on) as recorded:
                yield recorded

    def seeing(self, images: SeenImages) -> FluxModel:
        """The model with images for an IP-Adapter. Raises InputError for an adapter of another model."""
        made, config = images.keys_and_values, self.weights.config
        if len(made) != config.depth or made[0].shape[-1] != config.hidden:
            raise InputError(
                f"The IP-Adapter was made for a transformer of {len(made)} double blocks, {made[0].shape[-1]} wide; "
                f"{self.weights.path.name} has {config.depth}, {config.hidden} wide. Choose an adapter for it."
            )
        return replace(self, seen=(*self.seen, images))

    def styled(self, tokens: Tensor) -> FluxModel:
        """The model with one more style reference [1, S, hidden], before those that it has, as in ComfyUI.

        Raises InputError for tokens of another width.
        """
        config = self.weights.config
        if tokens.shape[-1] != config.hidden:
            raise InputError(
                f"The style projector was made for a transformer {tokens.shape[-1]} wide, and {self.weights.path.name} "
                f"is {config.hidden} wide. Choose a FLUX.1 dev model for USO."
            )
        return replace(self, style=tokens if self.style is None else torch.cat((tokens, self.style), dim=1))

    @contextmanager
    def _showing(self, run: Run, attend: RunAttention | None) -> Iterator[tuple[Run, Network]]:
        """The run and its network, which gets the images of the IP-Adapter and the style with every input."""
        if self.style is not None:
            style = self.style.to(self.device, self.dtype)
            run = replace(run, conditions=tuple(replace(c, style=style) for c in run.conditions))
            with replace(self, style=None)._showing(run, attend) as (run, network):
                yield run, _Changed(network, lambda inputs: replace(inputs, style=style))
            return
        if not self.seen:
            with self._opened(run, attend) as network:
                yield run, network
            return

        def there(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(tensor.to(self.device, self.dtype) for tensor in tensors)

        shown = tuple(there(images.keys_and_values) for images in self.seen)
        black = tuple(there(images.nothing) for images in self.seen)
        conditions = tuple(replace(c, seen=black if c.shows_none else shown) for c in run.conditions)
        run = replace(run, conditions=conditions)
        with self._opened(run, attend) as network:
            yield run, _Changed(network, lambda inputs: replace(inputs, seen=black if inputs.shows_none else shown))

    @contextmanager
    def _opened(self, run: Run, attend: RunAttention | None = None) -> Iterator[Network]:
        team = self.runtime.team
        if team is None:
            with self._opened_here(run, attend) as network:
                yield network
            return
        team.settings.split.check(self.weights.config.heads)
        for net in self._controlnets(run):
            team.settings.split.check(net.config.body.heads)
        if len(run.conditions) < team.settings.split.cfg:
            log.warning(
                "This image has %d condition%s for the %d groups of devices of --split %s, so some compute nothing. "
                "Give it a negative prompt and a cfg above 1, or choose a --split without cfg.",
                len(run.conditions), "" if len(run.conditions) == 1 else "s", team.settings.split.cfg,
                team.settings.split.words,
            )  # fmt: skip
        self.runtime.share = team.start()
        with team.opened(self.description, portable(run), self._opened_here(run, attend)) as network:
            yield network

    @property
    def description(self) -> Description:
        """Everything that another process needs to open the same model."""
        names = {dtype: name for name, dtype in WEIGHT_DTYPES.items()}
        uses = tuple(use for use in self.loras if use.strength)
        return Description(str(self.weights.path), names[self.weights.round_to], uses, self.dtype, self.compute)

    @contextmanager
    def _opened_here(self, run: Run, attend: RunAttention | None) -> Iterator[Network]:
        if self.compute != HALF_SUMS:
            with self._opened_on_device(run, attend) as network:
                yield network
            return
        check_half_sums(self.device, self.dtype)
        with self._opened_on_device(run, attend) as network:

            def summed_in_half(inputs: DenoiserInputs) -> Tensor:
                with half_sums():
                    return network(inputs)

            yield summed_in_half  # below a team's network, which has its own way to evaluate several inputs

    @contextmanager
    def _opened_on_device(self, run: Run, attend: RunAttention | None) -> Iterator[Network]:
        nets = self._controlnets(run)
        nbytes = self.weights.nbytes + sum(net.nbytes for net in nets)
        manager = self.runtime.manager(self.device, nbytes)
        if manager is None:
            loaded = self.weights.module(self.device, self.dtype, self.compute)
            module = adapted(loaded, self.loras, self.device, self.dtype)
            if nets:
                parts = {net.key: net.module(self.device, self.dtype, self.compute) for net in nets}
                module = with_controlnets(module, parts)
            if self.runtime.share is not None:
                module = with_sharing(module, self.runtime.share.tokens)
            if attend is not None:
                module = with_attention(module, attend)
            if not self.runtime.events.has_listeners:
                yield module
                return
            tensors = {**self.weights.tensors, **controlnet_tensors({net.key: net.tensors for net in nets})}
            with reported_flux(module, self.runtime, tensors, run, self.dtype) as network:
                yield network
            return
        managed = self.weights.managed(manager, self.dtype, self.compute)
        reclaim_for_loras(manager, self.loras, self.device, self.dtype)
        uses = [use for use in self.loras if use.strength]
        with managed.opened(
            run, uses, [net.managed(manager, self.dtype, self.compute) for net in nets], attend
        ) as network:
            yield network

    def _controlnets(self, run: Run) -> list[ControlNetWeights]:
        """The ControlNets of a run, in order. Raises InputError for one whose width differs from this transformer's."""
        nets = list(dict.fromkeys(control.weights for c in run.conditions for control in c.controls))
        for net in nets:
            if net.config.body.hidden != self.weights.config.hidden:
                raise InputError(
                    f"{net.path.name} was made for a transformer {net.config.body.hidden} wide, and "
                    f"{self.weights.path.name} is {self.weights.config.hidden} wide. Choose a ControlNet for it."
                )
        return nets

    def unsound(self) -> str | None:
        """Why the output is not finite: a sentence about a tensor of the file that is not finite, or None."""
        return unsound(self.weights.tensors)


@dataclass(frozen=True)
class _Changed:
    """A network whose inputs are changed first."""

    network: Network
    change: Callable[[DenoiserInputs], DenoiserInputs]

    def __call__(self, inputs: DenoiserInputs) -> Tensor:
        return self.network(self.change(inputs))

    def together(self, inputs: Sequence[DenoiserInputs]) -> list[Tensor]:
        """Of independent evaluations."""
        return velocities(self.network, [self.change(one) for one in inputs])


@dataclass(frozen=True)
class Description:
    """A FluxModel without its loaded parts, for a process on another device."""

    path: str
    weight_dtype: str
    loras: tuple[LoraUse, ...]
    dtype: torch.dtype
    compute: str


def check_room_for(config: FluxConfig, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    """Check the least memory of a block: its stream, queries, keys and values, and the hidden layer of its MLP.

    shape: of the latent [B, C, h, w]. Raises InputError.
    """
    batch, _, height, width = shape
    needed = batch * patches(height) * patches(width) * (4 * config.hidden + config.mlp) * dtype.itemsize
    check_room(f"Denoising a batch of {batch} at {width * CELL}x{height * CELL} pixels", needed, total_bytes(device))
