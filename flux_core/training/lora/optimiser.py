"""AdamW (Loshchilov & Hutter 2019) for the masters of a LoRA, its rate at each step, and its state as tensors.

The moments have 8 bits if requested and a library for it is installed (bitsandbytes). Tensors are updated one by one,
so that at most one is in memory twice. Independent of models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from .settings import LoraSettings

BETAS = (0.9, 0.999)
# PyTorch's names of the tensors that an optimiser has for each parameter, besides the number of steps
MOMENTS = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "adam": ("exp_avg", "exp_avg_sq"),
    "rmsprop": ("square_avg",),
}


def optimiser_for(settings: LoraSettings, masters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """With its moments allocated, so that a plan that is made next contains them.

    bitsandbytes allocates its own in the first update. Raises InputError if 8-bit moments are requested and no library
    has them.
    """
    optimiser = _optimiser(settings, masters)
    for master in masters:
        names = MOMENTS.get(settings.optimiser, ())
        if names:
            zeros = {name: torch.zeros_like(master) for name in names}
            optimiser.state[master] = {"step": torch.zeros((), dtype=torch.float32), **zeros}
    return optimiser


def _optimiser(settings: LoraSettings, masters: Sequence[Tensor]) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": settings.rate, "betas": BETAS, "weight_decay": settings.weight_decay}
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(list(masters), foreach=False, **options)
    if settings.optimiser == "adam":
        return torch.optim.Adam(list(masters), lr=settings.rate, betas=BETAS, foreach=False)
    if settings.optimiser in ("sgd", "rmsprop"):
        plain = torch.optim.SGD if settings.optimiser == "sgd" else torch.optim.RMSprop
        return plain(list(masters), lr=settings.rate, foreach=False)
    made: torch.optim.Optimizer = _bitsandbytes().optim.AdamW8bit(list(masters), **options)
    return made


def check_installed(optimiser: str) -> None:
    """Raises InputError if the optimiser needs a library that is not installed."""
    if optimiser == "adamw8bit":
        _bitsandbytes()


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError:
        raise InputError(
            "8-bit moments need bitsandbytes, which is not installed: pip install bitsandbytes, or take "
            "--optimiser adamw, whose moments take 8 bytes a number instead of 2."
        ) from None
    return bitsandbytes


def rate_at(settings: LoraSettings, step: int) -> float:
    """The rate of the step with this number, from 0."""
    rising = min(1.0, (step + 1) / max(1, settings.warm_up))
    left = 1 - step / max(1, settings.steps)
    falling = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left)))}
    return settings.rate * rising * max(0.0, falling[settings.schedule])


def update(optimiser: torch.optim.Optimizer, masters: Sequence[Tensor], rate: float, clip: float) -> float:
    """One step with the masters' gradients. Returns the norm of the gradients before clipping."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    norm = float(torch.nn.utils.clip_grad_norm_(list(masters), clip if clip > 0 else float("inf"), foreach=False))
    if math.isfinite(norm):
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm


def state_of(optimiser: torch.optim.Optimizer, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its state: tensors by the name of their parameter, and other values."""
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    for index, state in optimiser.state_dict()["state"].items():
        for key, value in state.items():
            name = f"{names[index]}/{key}"
            if isinstance(value, Tensor):
                tensors[name] = value
            else:
                others[name] = value
    return tensors, others


def load_state(
    optimiser: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor], others: Mapping[str, Any]
) -> None:
    """Restore the result of `state_of`."""
    state: dict[int, dict[str, Any]] = {}
    for index, name in enumerate(names):
        prefix = f"{name}/"
        parts = {**tensors, **others}
        found = {key.removeprefix(prefix): value for key, value in parts.items() if key.startswith(prefix)}
        if found:
            state[index] = found
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def bytes_a_number(optimiser: str, dtype: torch.dtype) -> int:
    """Bytes per value of a LoRA in training, besides its gradients: the master, its moments, and the copy for
    products.
    """
    moments = 2 if optimiser == "adamw8bit" else 4 * len(MOMENTS.get(optimiser, ()))
    return 4 + moments + (0 if dtype == torch.float32 else dtype.itemsize)
