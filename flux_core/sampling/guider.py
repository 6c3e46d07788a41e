"""Guiders: which conditionings a model is asked about, and how the answers become one picture D.

`Denoiser` asks the network once for each condition that is active, weighs overlapping areas, and turns velocity into D.
Knows no solver, no noise and no latent scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..conditioning.entries import Conditioning
from ..errors import InputError
from ..images.resize import repeat_to_batch
from .conditions import Condition
from .inpaint import MaskFunction
from .schedule import Sampling

# network(x, timesteps [B], context, y, guidance [B] | None, **what an entry has of ref_latents, ref_method,
# attention_mask) -> velocity [B, 16, h, w]; see transformer.Flux.forward. timesteps, y and guidance are on the CPU:
# so a table can be asked for them without waiting for a GPU.
Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Run:
    """What a sampling run will ask of the network, told before it starts."""

    shape: tuple[int, ...]  # of the latent, [B, 16, h, w]
    timesteps: tuple[float, ...]  # what it will be told of the noise levels it looks at, each once
    conditions: tuple[Condition, ...]


class Model(Protocol):
    """What sampling asks of a model handle. `open` makes the network usable for one run, and lets go of it after."""

    @property
    def sampling(self) -> Sampling: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def mask_function(self) -> MaskFunction | None: ...
    @property
    def joint(self) -> bool:
        """Whether conditions of the same shape shall share a call: less time where weights must be fetched for it."""

    def open(self, run: Run) -> AbstractContextManager[Network]: ...


@dataclass(frozen=True)
class NetworkModel:
    """A Model around a network that is simply there."""

    network: Network
    sampling: Sampling
    in_channels: int = 16
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    mask_function: MaskFunction | None = None
    joint: bool = False

    def open(self, run: Run) -> AbstractContextManager[Network]:
        return nullcontext(self.network)


# A guider asks for the pictures seen with some of its conditionings, by number, and combines them.
Ask = Callable[[Sequence[int]], list[Tensor]]


class Guider(Protocol):
    """What a GUIDER wire carries. `combine` returns (D, U); U only when wanted."""

    @property
    def model(self) -> Model: ...
    @property
    def conditionings(self) -> tuple[Conditioning, ...]: ...
    def combine(self, ask: Ask, want_uncond: bool) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class BasicGuider:
    """One conditioning, no guidance but the one distilled into the model. U is zero."""

    model: Model
    conditioning: Conditioning

    @property
    def conditionings(self) -> tuple[Conditioning, ...]:
        return (self.conditioning,)

    def combine(self, ask: Ask, want_uncond: bool) -> tuple[Tensor, Tensor | None]:
        (D,) = ask([0])
        return D, torch.zeros_like(D) if want_uncond else None


@dataclass(frozen=True)
class CFGGuider:
    """Classifier-free guidance, D = U + cfg (C - U) (Ho & Salimans 2022). At cfg 1 the negative is not asked."""

    model: Model
    positive: Conditioning
    negative: Conditioning
    cfg: float = 1.0

    @property
    def conditionings(self) -> tuple[Conditioning, ...]:
        return self.positive, self.negative

    def combine(self, ask: Ask, want_uncond: bool) -> tuple[Tensor, Tensor | None]:
        if math.isclose(self.cfg, 1.0) and not want_uncond:
            return ask([0])[0], None
        C, U = ask([0, 1])
        return U + self.cfg * (C - U), U


@dataclass(frozen=True)
class DualCFGGuider:
    """Two prompts guided apart: `cond1` against `cond2`, and both against `negative` (Brooks et al. 2023, eq. 3).

    regular  D = U + b (C2 - U) + a (C1 - C2)       nested  D = U + b (C2 + a (C1 - C2) - U)
    """

    model: Model
    cond1: Conditioning
    cond2: Conditioning
    negative: Conditioning
    cfg_conds: float  # a
    cfg_cond2_negative: float  # b
    style: str = "regular"

    @property
    def conditionings(self) -> tuple[Conditioning, ...]:
        return self.cond1, self.cond2, self.negative

    def combine(self, ask: Ask, want_uncond: bool) -> tuple[Tensor, Tensor | None]:
        a, b = self.cfg_conds, self.cfg_cond2_negative
        if self.style == "nested":
            C1, C2, U = ask([0, 1, 2])
            return U + b * (C2 + a * (C1 - C2) - U), C2
        if math.isclose(b, 1.0) and not want_uncond:
            if math.isclose(a, 1.0):
                return ask([0])[0], None
            C1, C2 = ask([0, 1])
            return C2 + a * (C1 - C2), None
        C1, C2, U = ask([0, 1, 2])
        return U + b * (C2 - U) + a * (C1 - C2), U


@dataclass(frozen=True)
class Denoiser:
    """A Denoise: the picture a guider sees through a network."""

    guider: Guider
    network: Network
    conditions: Sequence[Sequence[Condition]]  # one list for each of the guider's conditionings
    dtype: torch.dtype
    joint: bool = False

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.guider.combine(lambda which: self._see(which, x, sigma), want_uncond=False)[0]

    def with_uncond(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        D, U = self.guider.combine(lambda which: self._see(which, x, sigma), want_uncond=True)
        assert U is not None
        return D, U

    def _see(self, which: Sequence[int], x: Tensor, sigma: float) -> list[Tensor]:
        """The picture seen with each of the conditionings asked for: sum w D / sum w over what is active."""
        sigma = torch.tensor(sigma).item()  # fp32, as the network is told it
        active = [(n, c) for n in which for c in self.conditions[n] if c.active(sigma)]
        seen = list(zip(active, self._looks([c for _, c in active], x, sigma), strict=True))
        return [_blend([(c, D) for (n, c), D in seen if n == number], x) for number in which]

    def _looks(self, conditions: Sequence[Condition], x: Tensor, sigma: float) -> list[Tensor]:
        inputs = [_Input.of(condition, x, self.dtype) for condition in conditions]
        seen: list[Tensor | None] = [None] * len(inputs)
        for group in _groups(inputs) if self.joint else [[n] for n in range(len(inputs))]:
            velocity = _call(self.network, [inputs[n] for n in group], self.guider.model.sampling.timestep(sigma))
            for n, v in zip(group, velocity.chunk(len(group)), strict=True):
                area = conditions[n].area
                seen[n] = (x if area is None else area.of(x)) - sigma * v
        return [D for D in seen if D is not None]


def _blend(looks: Sequence[tuple[Condition, Tensor]], x: Tensor) -> Tensor:
    if len(looks) == 1 and looks[0][0].everywhere:
        return looks[0][1]
    total = torch.zeros_like(x)
    weights = torch.full_like(x[:, :1], 1e-37)  # nothing active: 0 / 1e-37
    for condition, D in looks:
        area, weight = condition.area, condition.weight
        (total if area is None else area.of(total)).add_(D * weight)
        (weights if area is None else area.of(weights)).add_(weight)
    return total / weights


@dataclass(frozen=True)
class _Input:
    """The arguments of one network call, in the network's dtype, for a whole batch."""

    x: Tensor
    context: Tensor
    pooled: Tensor
    guidance: Tensor | None
    references: tuple[Tensor, ...]
    reference_method: str
    attention_mask: Tensor | None

    @classmethod
    def of(cls, condition: Condition, x: Tensor, dtype: torch.dtype) -> _Input:
        batch, area = x.shape[0], condition.area
        parts = [x.to(dtype)] if condition.concat is None else [x.to(dtype), condition.concat]
        parts = parts if area is None else [area.of(part) for part in parts]
        mask, guidance = condition.attention_mask, condition.guidance
        return cls(
            x=torch.cat(parts, dim=1),
            context=repeat_to_batch(condition.context, batch),
            pooled=repeat_to_batch(condition.pooled, batch),
            guidance=None if guidance is None else torch.full((batch,), guidance).to(dtype),
            references=tuple(repeat_to_batch(reference, batch) for reference in condition.references),
            reference_method=condition.reference_method,
            attention_mask=None if mask is None else repeat_to_batch(mask, batch),
        )

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.x, self.context, self.pooled, self.guidance, self.attention_mask, *self.references

    def kind(self) -> tuple[Any, ...]:
        """Inputs of one kind fit into one batch."""
        return self.reference_method, *(None if t is None else t.shape for t in self.tensors())


def _groups(inputs: Sequence[_Input]) -> list[list[int]]:
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for number, item in enumerate(inputs):
        kinds.setdefault(item.kind(), []).append(number)
    return list(kinds.values())


def _call(network: Network, inputs: Sequence[_Input], timestep: float) -> Tensor:
    """Velocity in fp32, of the inputs' batches one after the other."""

    def join(parts: Sequence[Tensor | None]) -> Tensor | None:
        present = [part for part in parts if part is not None]
        return torch.cat(present) if len(present) > 1 else present[0] if present else None

    x, context, pooled, guidance, mask, *references = map(join, zip(*(i.tensors() for i in inputs), strict=True))
    assert x is not None
    extras: dict[str, Any] = {}
    if references:
        extras = {"ref_latents": references, "ref_method": inputs[0].reference_method}
    if mask is not None:
        extras["attention_mask"] = mask
    timesteps = torch.full((x.shape[0],), timestep)
    velocity = network(x, timesteps, context, pooled, guidance, **extras).float()
    if velocity.shape[-2:] != x.shape[-2:]:
        raise InputError(f"The network returned {tuple(velocity.shape)} for a latent {tuple(x.shape)}.")
    return velocity
