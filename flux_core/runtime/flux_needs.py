"""What a FLUX transformer needs and does at one picture size, observed on the meta device: no file, no weights.

The same dry run makes the plan of a loaded model (streamed_flux.py) and that of `sluice plan`, for a file's header or
for a published name. How weights are grouped for the ring is said here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch

from ..memory.workload import Workload, decode_traffic, grouped, observed_workload
from ..models.denoiser_inputs import DenoiserInputs
from ..models.flux import Flux
from ..models.flux_config import FluxConfig
from ..models.latents import CELL, patches
from ..models.linear import Linear
from ..models.tensor_trees import map_tensors, tensors_of
from ..sampling.guider import Run
from .dry_run import META, DryRun, dry_run, shape_of
from .modulation import modulation_linears, rows_like

TEXT_TOKENS = 512


@dataclass(frozen=True)
class Job:
    """What one step has to do. Sizes in pixels."""

    height: int = 1024
    width: int = 1024
    batch: int = 1
    text_tokens: int = TEXT_TOKENS
    itemsize: int = 2  # bytes of an activation

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.itemsize == 4 else torch.bfloat16


@dataclass(frozen=True)
class FluxNeeds:
    """Everything about a transformer that planning asks for. Matrices are [out, in], by name."""

    run: DryRun
    matrices: Mapping[str, tuple[int, int]]
    streamed: tuple[str, ...]  # in order of use
    modulation: tuple[str, ...]  # the adaLN matrices, in order of use: one vector a step goes through them
    small: int  # numbers in all that is always on the device: embedders, final layer, every vector

    def workload(
        self,
        name: str,
        nbytes: Callable[[str], int],
        decoded: Callable[[str], bool],
        itemsize: int,
        fixed: Mapping[str, int] | None = None,
    ) -> Workload:
        """One step. nbytes: stored bytes of a matrix; decoded: whether it is not multiplied as stored."""

        def traffic(name: str) -> int:
            return decode_traffic(nbytes(name), prod(self.matrices[name]), itemsize) if decoded(name) else 0

        weights = grouped({name: nbytes(name) for name in self.streamed}, half_block)
        return observed_workload(name, weights, self.run.uses, traffic, fixed or {})

    def row_bytes(self, job: Job) -> int:
        """Of the modulation rows of one step."""
        return sum(self.matrices[name][0] for name in self.modulation) * job.batch * job.itemsize


@lru_cache(maxsize=8)
def flux_needs(config: FluxConfig, job: Job) -> FluxNeeds:
    """Of a transformer of these sizes without LoRAs, given latents of all its channels."""
    with torch.device(META):
        flux = Flux(config)
        x = torch.empty(job.batch, config.in_channels, job.height // CELL, job.width // CELL, dtype=job.dtype)
        context = torch.empty(job.batch, job.text_tokens, config.context_dim, dtype=job.dtype)
        one, pooled = torch.empty(job.batch), torch.empty(job.batch, config.vec_dim, dtype=job.dtype)
    inputs = DenoiserInputs(x, one, context, pooled, one)
    run = observe_blocks(flux, inputs)
    modules = {name: part for name, part in flux.named_modules() if isinstance(part, Linear)}
    matrices = {f"{name}.weight": (part.out_features, part.in_features) for name, part in modules.items()}
    streamed, modulation = streamed_names(run), tuple(f"{name}.weight" for name in modulation_linears(flux))
    small = sum(parameter.numel() for parameter in flux.parameters())
    small -= sum(prod(matrices[name]) for name in (*streamed, *modulation))
    return FluxNeeds(run, matrices, streamed, modulation, small)


def observe_blocks(flux: Flux, inputs: DenoiserInputs) -> DryRun:
    """One step of a transformer, LoRAs and all, with its modulation rows out of a table. inputs: on the meta device."""
    vector = inputs.x.new_empty(inputs.x.shape[0], flux.config.hidden)
    rows = rows_like(flux, vector)
    return dry_run(flux, lambda module: module(inputs, modulation=rows))


def streamed_names(run: DryRun) -> tuple[str, ...]:
    """The weights that stream, in order of first use: those of the blocks. The others are small."""
    return tuple(name for name in run.order if name.startswith(("double_blocks.", "single_blocks.")))


def half_block(name: str) -> str:
    """The group of a weight: the image's or the text's half of a double block, or a single block. All are equal in
    size, and so a slot of the ring takes any of them."""
    parts = name.split(".")
    return ".".join(parts[:2]) + (f".{parts[2][:3]}" if parts[0] == "double_blocks" else "")


def heaviest_inputs(run: Run, dtype: torch.dtype) -> DenoiserInputs:
    """Of all inputs that a run will give the network, those with the most bytes: shapes only, on the meta device."""
    x = torch.empty(run.shape, device=META)
    everything = [map_tensors(condition, shape_of).inputs(x, 1.0, dtype) for condition in run.conditions]
    heaviest = max(everything, key=lambda inputs: sum(tensor.nbytes for tensor in tensors_of(inputs)))
    return map_tensors(heaviest, shape_of)


def smallest_inputs(config: FluxConfig, dtype: torch.dtype) -> DenoiserInputs:
    """One token of everything, on the meta device: enough to see in which order weights are used."""
    x = torch.empty(1, config.in_channels, 2, 2, dtype=dtype, device=META)
    context, pooled = x.new_empty(1, 1, config.context_dim), x.new_empty(1, config.vec_dim)
    return DenoiserInputs(x, x.new_empty(1), context, pooled)


def tokens_of(inputs: DenoiserInputs) -> int:
    """Of one picture: text, image and references."""
    pictures = (inputs.x, *inputs.references)
    return inputs.context.shape[1] + sum(patches(part.shape[-2]) * patches(part.shape[-1]) for part in pictures)
