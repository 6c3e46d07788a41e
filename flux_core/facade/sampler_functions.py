"""Conversion between our solvers and ComfyUI's sampler functions, in both directions.

SolverFunction   one of our solvers as a function of model(x, sigma) -> image
PackSampler      a pack's function in the place of one of our solvers
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..sampling.sample import Sampler as EngineSampler
from .offered.comfy import latent_formats, model_base, model_sampling
from .offered_modules import NotOffered


class SolverFunction:
    """One of our solvers with the interface of ComfyUI's sampler functions."""

    def __init__(self, sampler: EngineSampler) -> None:
        self.name, self.options = sampler.name, dict(sampler.options)
        self.__name__ = f"sample_{sampler.name}"

    def __call__(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Any = None,
        disable: Any = None,
        **options: Any,
    ) -> Tensor:
        given = dict(extra_args or {})

        def on_step(step: int, D: Tensor, x: Tensor) -> None:
            if callback is not None:
                callback({"i": step, "denoised": D, "x": x, "sigma": sigmas[step], "sigma_hat": sigmas[step]})

        method = EngineSampler(self.name).method
        sampling = _sampling_of(model)
        solved: Tensor = method(
            _ModelDenoiser(model, given), x, sigmas, sampling=sampling, seed=int(given.get("seed") or 0),
            on_step=on_step, **{**self.options, **options},
        )  # fmt: skip
        return solved


def _sampling_of(model: Any) -> Any:
    inner = model
    while not hasattr(inner, "model_sampling") and hasattr(inner, "inner_model"):
        inner = inner.inner_model
    return model_sampling.engine_sampling(getattr(inner, "model_sampling", None))


class _ModelDenoiser:
    """A model of ComfyUI's kind, model(x, sigma [B], **extra_args), with the interface of our solvers."""

    def __init__(self, model: Any, extra_args: Mapping[str, Any]) -> None:
        self.model, self.extra_args = model, extra_args

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        seen: Tensor = self.model(x, x.new_full((x.shape[0],), sigma), **self.extra_args)
        return seen

    def with_uncond(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        raise NotOffered("A cfg++ sampler inside a pack's own sampler")


@dataclass(frozen=True)
class PackSampler(EngineSampler):
    """A pack's sampler function where our engine expects a solver."""

    theirs: Any = None

    def __post_init__(self) -> None:
        """Does not check its name, which is not that of one of our solvers."""

    @property
    def method(self) -> Any:
        return _PackMethod(self.theirs)


class _PackMethod:
    """Calls a pack's sampler function with the interface of our solvers."""

    fresh_mask_noise = False

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __call__(
        self, denoise: Any, x: Tensor, sigmas: Any, *, sampling: Any, seed: int, on_step: Any = None, **options: Any
    ) -> Tensor:
        levels = [float(level) for level in sigmas]

        def callback(state: Mapping[str, Any]) -> None:
            if on_step is not None:
                on_step(state["i"], state["denoised"], state["x"])

        wrapped = _DenoiserModel(denoise, sampling, x.device)
        extra = {"model_options": {"transformer_options": {}}, "seed": seed, "denoise_mask": None}
        solved: Tensor = self.sampler.sampler_function(
            wrapped, x, torch.tensor(levels, device=x.device), extra_args=extra, callback=callback, disable=True,
            **self.sampler.extra_options,
        )  # fmt: skip
        return solved

    def evaluated(self, sigmas: Any, sampling: Any, **options: Any) -> tuple[float, ...]:
        """The beginning of each step, in fp32; the function may evaluate at further levels."""
        return tuple(dict.fromkeys(torch.tensor(float(level)).item() for level in sigmas[:-1]))


class _DenoiserModel:
    """Our denoiser with the interface of ComfyUI's samplers: model(x, sigma [B]) -> image."""

    def __init__(self, denoise: Any, sampling: Any, device: torch.device) -> None:
        self.denoise = denoise
        self.model_sampling = model_sampling.sampling_object(sampling)
        self.inner_model = _InnerModel(self.model_sampling, device)
        self.sigmas: Any = None
        self.cfg = 1.0

    def __call__(self, x: Tensor, sigma: Any, **extra: Any) -> Tensor:
        level = float(sigma.flatten()[0]) if isinstance(sigma, Tensor) else float(sigma)
        return _tensor(self.denoise(x, level))


class _InnerModel:
    """model.inner_model, model.inner_model.inner_model: where packs read the levels, the device and the latents' scale.

    The conditionings are not there: the function `denoise` evaluates them.
    """

    cfg = 1.0

    def __init__(self, sampling: Any, device: torch.device) -> None:
        self.model_sampling, self.device = sampling, device
        self.latent_format = latent_formats.Flux()
        self.conds: dict[str, Any] = {}
        self.diffusion_model = model_base.Network()
        self.model_patcher = SimpleNamespace(model=self, model_options={"transformer_options": {}})

    def process_latent_in(self, latent: Tensor) -> Tensor:
        return self.latent_format.process_in(latent)

    def process_latent_out(self, latent: Tensor) -> Tensor:
        return self.latent_format.process_out(latent)

    @property
    def inner_model(self) -> _InnerModel:
        return self


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value
