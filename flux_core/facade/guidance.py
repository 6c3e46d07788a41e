"""Guiders of node packs on our engine: those that combine predictions in their own way.

A pack derives from comfy.samplers.CFGGuider and overrides `predict_noise(x, timestep)`, in which it calls the functions
below for predictions. Our own engine's current evaluation computes them, for the same latent or another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..conditioning.entries import Conditioning
from ..errors import InputError
from ..sampling.guider import Evaluation, Model


@dataclass(frozen=True)
class PackGuider:
    """A guider of a pack with the interface of our engine. `names` are those of its conditionings, in order."""

    model: Model
    names: tuple[str, ...]
    conditionings: tuple[Conditioning, ...]
    theirs: Any = field(compare=False)
    levels: Any = field(compare=False)  # the value of model_sampling for packs

    def combine(self, evaluate: Any, want_uncond: bool) -> tuple[Tensor, Tensor | None]:
        """(D, U), with D from the pack's predict_noise; U is that of the negative prompt."""
        if not isinstance(evaluate, Evaluation):
            raise InputError(f"The guider {type(self.theirs).__name__} runs only with the samplers of this program.")
        conds = dict(zip(self.names, self.conditionings, strict=True))
        self.theirs.conds = conds
        self.theirs.inner_model = Predictions(evaluate, conds, self.levels)
        sigma = evaluate.x.new_full((evaluate.x.shape[0],), evaluate.sigma, dtype=torch.float32)
        try:
            D: Tensor = self.theirs.predict_noise(evaluate.x, sigma, self.theirs.model_options, seed=None)
        finally:
            self.theirs.inner_model = None
        if not want_uncond:
            return D, None
        (U,) = evaluate([self.names.index("negative")]) if "negative" in self.names else (torch.zeros_like(D),)
        return D, U


class Predictions:
    """ComfyUI's model as packs see it during one evaluation."""

    def __init__(self, evaluate: Evaluation, conds: Mapping[str, Any], sampling: Any) -> None:
        self._evaluate = evaluate
        self._numbers = {id(cond): number for number, cond in enumerate(conds.values())}
        self.model_sampling = sampling

    @property
    def inner_model(self) -> Predictions:
        return self

    def predicted(self, conds: Sequence[Any], x: Tensor, timestep: Any) -> list[Tensor]:
        """D for each of these conditionings of the guider; zeros for None. Raises InputError for another
        conditioning.
        """
        known = [cond for cond in conds if cond is not None]
        if not all(id(cond) in self._numbers for cond in known):
            raise InputError("A guider of a node pack asked for a conditioning that is not its own.")
        sigma = float(timestep.max()) if isinstance(timestep, Tensor) else float(timestep)
        made = iter(self._evaluate.at(x, sigma)([self._numbers[id(cond)] for cond in known]) if known else ())
        return [torch.zeros_like(x) if cond is None else next(made) for cond in conds]


def calc_cond_batch(
    model: Predictions, conds: Sequence[Any], x_in: Tensor, timestep: Any, model_options: Any = None
) -> list[Tensor]:
    """The prediction of the denoised latent for each conditioning; zeros for None."""
    return model.predicted(conds, x_in, timestep)


def cfg_function(
    model: Predictions, cond_pred: Tensor, uncond_pred: Tensor, cond_scale: float, x: Tensor, timestep: Any,
    model_options: Mapping[str, Any] | None = None, cond: Any = None, uncond: Any = None,
) -> Tensor:  # fmt: skip
    """Guidance by cfg, or by `sampler_cfg_function` of the options; then `sampler_post_cfg_function`."""
    options = model_options or {}
    known = {
        "cond_denoised": cond_pred, "uncond_denoised": uncond_pred, "model": model, "model_options": options,
        "input": x, "sigma": timestep, "cond_scale": cond_scale,
    }  # fmt: skip
    if "sampler_cfg_function" in options:
        made: Tensor = x - options["sampler_cfg_function"](
            {**known, "cond": x - cond_pred, "uncond": x - uncond_pred, "timestep": timestep}
        )
    else:
        made = uncond_pred + (cond_pred - uncond_pred) * cond_scale
    for function in options.get("sampler_post_cfg_function", ()):
        made = function({**known, "denoised": made, "cond": cond, "uncond": uncond})
    return made


def sampling_function(
    model: Predictions, x: Tensor, timestep: Any, uncond: Any, cond: Any, cond_scale: float,
    model_options: Mapping[str, Any] | None = None, seed: int | None = None,
) -> Tensor:  # fmt: skip
    """The guided prediction. At a scale of 1 the negative prompt is not evaluated, unless the options forbid that."""
    options = model_options or {}
    single = math.isclose(cond_scale, 1.0) and not options.get("disable_cfg1_optimization", False)
    conds = [cond, None if single else uncond]
    C, U = calc_cond_batch(model, conds, x, timestep, options)
    return cfg_function(model, C, U, cond_scale, x, timestep, options, cond=cond, uncond=conds[1])
