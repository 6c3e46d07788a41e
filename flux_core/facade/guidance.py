"""Guidance of node packs on our engine: guiders and functions that combine predictions in their own way.

PackGuider     a pack derives from comfy.samplers.CFGGuider and overrides `predict_noise(x, timestep)`
ModelGuidance  a pack puts functions on a MODEL (set_model_sampler_cfg_function and its relatives, a wrapper around the
               model's function); the guiders of this program then use them

Both call the functions below for predictions. Our own engine's current evaluation computes them, for the same latent or
another one.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..conditioning.entries import Conditioning
from ..errors import InputError
from ..sampling.guider import Evaluation, Model


def as_entries(conds: Any) -> Any:
    """A conditioning for our engine, [[text, values], ...], also if a pack has converted it (`as_dicts`)."""
    if not isinstance(conds, list):
        return conds
    return [
        [one.get("cross_attn"), {name: value for name, value in one.items() if name not in _CONVERTED}]
        if isinstance(one, dict)
        else one
        for one in conds
    ]


def as_dicts(conds: Sequence[Any]) -> list[dict[str, Any]]:
    """A conditioning as ComfyUI's samplers have it: one dict for each entry, with the text as "cross_attn"."""
    return [
        {**values, **({} if text is None else {"cross_attn": text}), "model_conds": {}, "uuid": uuid.uuid4()}
        for text, values in conds
    ]


_CONVERTED = ("cross_attn", "model_conds", "uuid")


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


class ModelGuidance:
    """The functions that packs have put on a MODEL, for the guiders of this program.

    options: the model options with the functions. levels: the value of model_sampling for packs.
    """

    def __init__(self, options: Mapping[str, Any], levels: Any) -> None:
        self.options, self.levels = options, levels

    def combine(
        self, evaluate: Any, conditionings: Sequence[Conditioning], cfg: float, want_uncond: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(D, U) with D from the pack's functions. Raises InputError where ComfyUI itself samples."""
        if not isinstance(evaluate, Evaluation):
            raise InputError("A guidance function of a node pack runs only with the samplers of this program.")
        inner = Predictions(evaluate, dict(enumerate(conditionings)), self.levels)
        positive, negative = [*conditionings, None][:2]
        sigma = evaluate.x.new_full((evaluate.x.shape[0],), evaluate.sigma, dtype=torch.float32)
        D = sampling_function(inner, evaluate.x, sigma, negative, positive, cfg, self.options)
        return D, inner.predicted([negative], evaluate.x, sigma, self.options)[0] if want_uncond else None


# Parts of the model options that change the network itself, which is ours.
_OF_THE_NETWORK = ("patches", "patches_replace", "wrappers", "callbacks", "optimized_attention_override")


class Predictions:
    """ComfyUI's model as packs see it during one evaluation."""

    def __init__(self, evaluate: Evaluation, conds: Mapping[Any, Any], sampling: Any) -> None:
        self._evaluate = evaluate
        self._numbers = {id(cond): number for number, cond in enumerate(conds.values())}
        self._uncond = id([*conds.values()][1]) if len(conds) > 1 else None
        self.model_sampling = sampling

    @property
    def inner_model(self) -> Predictions:
        return self

    def predicted(
        self, conds: Sequence[Any], x: Tensor, timestep: Any, options: Mapping[str, Any] | None = None
    ) -> list[Tensor]:
        """D for each of these conditionings of the guider; zeros for None.

        Raises InputError for another conditioning, and for options that change the network.
        """
        options = options or {}
        inner = options.get("transformer_options") or {}
        changed = [name for name in _OF_THE_NETWORK if inner.get(name)]
        if changed:
            raise InputError(
                f"A node pack asks for a prediction with changes of the network itself ({', '.join(changed)}), which "
                "is not possible for a model of Sluice, whose weights are streamed. Remove that node."
            )
        known = [cond for cond in conds if cond is not None]
        if not all(id(cond) in self._numbers for cond in known):
            raise InputError("A guider of a node pack asked for a conditioning that is not its own.")
        wrapper = options.get("model_function_wrapper")
        if wrapper is None:
            made = iter(self._of(known, x, timestep))
        else:
            made = iter([self._wrapped(wrapper, cond, x, timestep, inner) for cond in known])
        return [torch.zeros_like(x) if cond is None else next(made) for cond in conds]

    def _of(self, conds: Sequence[Any], x: Tensor, timestep: Any) -> list[Tensor]:
        sigma = float(timestep.max()) if isinstance(timestep, Tensor) else float(timestep)
        return self._evaluate.at(x, sigma)([self._numbers[id(cond)] for cond in conds]) if conds else []

    def _wrapped(
        self, wrapper: Any, cond: Any, x: Tensor, timestep: Any, transformer_options: Mapping[str, Any]
    ) -> Tensor:
        """D of one conditioning by a pack's function around the model's function."""
        text = cond[0][0]
        which = [1 if id(cond) == self._uncond else 0] * x.shape[0]
        told = {**transformer_options, "cond_or_uncond": which[:1], "sigmas": timestep}

        def apply_model(x: Tensor, t: Tensor, **given: Any) -> Tensor:
            changed = {name for name in _OF_THE_NETWORK if (given.get("transformer_options") or {}).get(name)}
            changed |= {name for name in given if name not in ("c_crossattn", "transformer_options")}
            if given.get("c_crossattn", text) is not text:
                changed.add("c_crossattn")
            if changed:
                raise InputError(
                    f"A node pack's function around the model changes {', '.join(sorted(changed))}, which a model of "
                    "Sluice does not take from it. Remove that node."
                )
            return self._of([cond], x, t)[0]

        c = {"c_crossattn": text, "transformer_options": told}
        given = {"input": x, "timestep": timestep, "c": c, "cond_or_uncond": which[:1]}
        made: Tensor = wrapper(apply_model, given)
        return made


def calc_cond_batch(
    model: Predictions, conds: Sequence[Any], x_in: Tensor, timestep: Any, model_options: Any = None
) -> list[Tensor]:
    """The prediction of the denoised latent for each conditioning; zeros for None."""
    return model.predicted(conds, x_in, timestep, model_options)


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
    told = {"conds": conds, "input": x, "sigma": timestep, "model": model, "model_options": options}
    batch = options.get("sampler_calc_cond_batch_function")
    out = calc_cond_batch(model, conds, x, timestep, options) if batch is None else batch(told)
    for function in options.get("sampler_pre_cfg_function", ()):
        out = function({**told, "conds_out": out, "cond_scale": cond_scale, "timestep": timestep})
    return cfg_function(model, out[0], out[1], cond_scale, x, timestep, options, cond=cond, uncond=conds[1])
