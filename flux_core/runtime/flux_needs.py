"""The memory and work of a FLUX transformer at one image size, observed on the meta device without file and weights.

The same dry run serves the plan of a loaded model (streamed_flux.py) and that of `sluice plan`, for a file's header or
for a published name. The grouping of weights for the ring is defined here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import cast

import torch

from ..checkpoint.stored import Stored
from ..memory.workload import Workload, decode_traffic, grouped, observed_workload
from ..models.controlnet import ControlNet
from ..models.controlnet_config import ControlNetConfig
from ..models.denoiser_inputs import ControlInput, DenoiserInputs
from ..models.flux import Flux, with_controlnets
from ..models.flux_body import FluxBody
from ..models.flux_config import FluxConfig
from ..models.latents import CELL, patches
from ..models.linear import Linear
from ..models.tensor_trees import map_tensors, tensors_of
from ..sampling.guider import Run
from .dry_run import DryRun, dry_run, shape_of
from .meta_results import META, MetaResults
from .modulation import modulation_linears, rows_like
from .published import TEXT_TOKENS

_STREAMED = re.compile(
    r"(controlnets\.[^.]+\.)?(double_blocks|single_blocks|controlnet_blocks|controlnet_single_blocks)\."
)
_CONTROLNET = re.compile(r"^controlnets\.[^.]+\.")
_BEHIND = {"controlnet_blocks": "double_blocks", "controlnet_single_blocks": "single_blocks"}


@dataclass(frozen=True)
class Job:
    """The task of one step. Sizes in pixels."""

    height: int = 1024
    width: int = 1024
    batch: int = 1
    text_tokens: int = TEXT_TOKENS
    itemsize: int = 2  # bytes of one activation value

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.itemsize == 4 else torch.bfloat16


@dataclass(frozen=True)
class FluxNeeds:
    """All facts about a transformer that planning uses. Matrices are [out, in], by name."""

    run: DryRun
    matrices: Mapping[str, tuple[int, int]]
    streamed: tuple[str, ...]  # in order of use
    modulation: tuple[str, ...]  # the adaLN matrices, in order of use: each multiplies one vector per step
    small: int  # number of values that are always on the device: embedders, final layer, every vector

    def workload(
        self,
        name: str,
        nbytes: Callable[[str], int],
        decoded: Callable[[str], bool],
        itemsize: int,
        fixed: Mapping[str, int] | None = None,
        integers: Callable[[str], bool] = lambda name: False,
    ) -> Workload:
        """One step. nbytes: stored bytes of a matrix; decoded: whether it is decoded before the product.

        integers: whether it is multiplied in 8-bit integers. Then inputs are quantised (read twice, written once) and
        sums are scaled (read once, written once).
        """
        products = {use.name: use.products + use.transposed for use in self.run.uses}

        def traffic(name: str) -> int:
            outputs, inputs = self.matrices[name]
            if integers(name):
                rows = products[name] / (2 * outputs * inputs)
                return int(rows * (inputs * (2 * itemsize + 1) + outputs * (4 + itemsize)))
            return decode_traffic(nbytes(name), outputs * inputs, itemsize) if decoded(name) else 0

        uses = [
            replace(use, products=0.0, integers=use.products) if integers(use.name) else use for use in self.run.uses
        ]

        weights = grouped({name: nbytes(name) for name in self.streamed}, half_block)
        return observed_workload(name, weights, uses, traffic, fixed or {})

    def row_bytes(self, job: Job) -> int:
        """Bytes of the modulation rows of one step."""
        return sum(self.matrices[name][0] for name in self.modulation) * job.batch * job.itemsize


@lru_cache(maxsize=8)
def flux_needs(config: FluxConfig, job: Job, controlnets: tuple[tuple[str, ControlNetConfig], ...] = ()) -> FluxNeeds:
    """The needs of a transformer of these sizes without LoRAs, for latents with all its channels and ControlNets by
    key.
    """
    with torch.device(META):
        flux = with_controlnets(Flux(config), {key: ControlNet(sizes).to(job.dtype) for key, sizes in controlnets})
        x = torch.empty(job.batch, config.in_channels, job.height // CELL, job.width // CELL, dtype=job.dtype)
        context = torch.empty(job.batch, job.text_tokens, config.context_dim, dtype=job.dtype)
        one, pooled = torch.empty(job.batch), torch.empty(job.batch, config.vec_dim, dtype=job.dtype)
    inputs = DenoiserInputs(x, one, context, pooled, one)
    inputs = replace(inputs, controls=tuple(control_inputs(key, sizes, inputs) for key, sizes in controlnets))
    run = observe_blocks(flux, inputs)
    modules = {name: part for name, part in flux.named_modules() if isinstance(part, Linear)}
    matrices = {f"{name}.weight": (part.out_features, part.in_features) for name, part in modules.items()}
    bodies = {"": flux, **{f"controlnets.{key}.": cast(FluxBody, net) for key, net in flux.controlnets.items()}}
    streamed = streamed_names(run)
    modulation = tuple(f"{at}{name}.weight" for at, body in bodies.items() for name in modulation_linears(body))
    small = sum(parameter.numel() for parameter in flux.parameters())
    small -= sum(prod(matrices[name]) for name in (*streamed, *modulation))
    return FluxNeeds(run, matrices, streamed, modulation, small)


def observe_blocks(flux: Flux, inputs: DenoiserInputs) -> DryRun:
    """Observe one step of a transformer, including LoRAs, with modulation rows from a table. inputs: on the meta
    device.
    """
    vector = inputs.x.new_empty(inputs.x.shape[0], flux.config.hidden)
    rows = rows_like(flux, vector)
    control_rows = {name: rows_like(cast(FluxBody, net), vector) for name, net in flux.controlnets.items()}
    return dry_run(flux, lambda module: module(inputs, modulation=rows, control_rows=control_rows))


def streamed_names(run: DryRun) -> tuple[str, ...]:
    """The streamed weights in order of first use: those of the blocks. The others are small."""
    return tuple(name for name in run.order if _STREAMED.match(name))


def half_block(name: str) -> str:
    """The group of a weight: the image's or the text's half of a double block, or a single block. All have the same
    size, so each fits in any slot of the ring. A ControlNet's layer after a block belongs to the group of that
    block.
    """
    own = _CONTROLNET.sub("", name)
    family, number, part, *_ = own.split(".")
    if family in _BEHIND:
        family, part = _BEHIND[family], "img"
    half = f".{part[:3]}" if family == "double_blocks" else ""
    return f"{name.removesuffix(own)}{family}.{number}{half}"


def heaviest_inputs(run: Run, dtype: torch.dtype) -> DenoiserInputs:
    """The largest inputs of a run in bytes: shapes only, on the meta device."""
    x = torch.empty(run.shape, device=META)
    with MetaResults():
        everything = [map_tensors(condition, shape_of).inputs(x, 1.0, dtype) for condition in run.conditions]
    heaviest = max(everything, key=lambda inputs: sum(tensor.nbytes for tensor in tensors_of(inputs)))
    return map_tensors(heaviest, shape_of)


def smallest_inputs(config: FluxConfig, dtype: torch.dtype) -> DenoiserInputs:
    """One token of each kind, on the meta device: enough to observe the order in which weights are used."""
    x = torch.empty(1, config.in_channels, 2, 2, dtype=dtype, device=META)
    context, pooled = x.new_empty(1, 1, config.context_dim), x.new_empty(1, config.vec_dim)
    return DenoiserInputs(x, x.new_empty(1), context, pooled)


def control_inputs(key: str, config: ControlNetConfig, inputs: DenoiserInputs) -> ControlInput:
    """An image for a ControlNet, in the size of `inputs`."""
    height, width = inputs.x.shape[-2:]
    if config.takes_latent:
        return ControlInput(key, inputs.x.new_empty(1, config.hint_channels, height, width), 1.0)
    return ControlInput(key, inputs.x.new_empty(1, 3, height * CELL, width * CELL), 1.0)


def controlnet_tensors(nets: Mapping[str, Mapping[str, Stored]]) -> dict[str, Stored]:
    """The tensors of ControlNets, by key, with their names in a transformer."""
    return {f"controlnets.{key}.{name}": stored for key, tensors in nets.items() for name, stored in tensors.items()}


def tokens_of(inputs: DenoiserInputs) -> int:
    """The tokens of one image: style, text, image and references."""
    pictures = (inputs.x, *inputs.references)
    style = 0 if inputs.style is None else inputs.style.shape[1]
    image = sum(patches(part.shape[-2]) * patches(part.shape[-1]) for part in pictures)
    return style + inputs.context.shape[1] + image
