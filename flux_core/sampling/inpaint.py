"""Inpainting as a wrapper around any denoiser, so that solvers need no masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .flow import Denoise, Sigmas
from .schedule import Sampling

# (mask [B, 1, h, w], sigma, levels of the run, model's sampling) -> the mask to use at this sigma
MaskFunction = Callable[[Tensor, float, Sigmas, Sampling], Tensor]


@dataclass(frozen=True)
class DifferentialDiffusion:
    """Levin & Fried 2023 (arXiv 2306.00950): a cell is denoised from the time given by its mask value to the end.

    A cell with a darker mask value starts later. `strength` below 1 blends the result with the mask itself.
    """

    strength: float = 1.0

    def __call__(self, mask: Tensor, sigma: float, sigmas: Sigmas, sampling: Sampling) -> Tensor:
        start, end = sigmas[0], max(sampling.sigma_min, sigmas[-1])
        threshold = (sigma - end) / (start - end) if start != end else 0.0
        binary = (mask >= threshold).to(mask.dtype)
        return self.strength * binary + (1 - self.strength) * mask if 0 < self.strength < 1 else binary


@dataclass(frozen=True)
class Inpaint:
    """A Denoise that keeps `latent` where the mask is 0.

    Before each call the region outside the mask is replaced by the original at the same noise level; after it, the same
    region of D is replaced by the original. U is not changed.
    """

    inner: Denoise
    mask: Tensor  # [B, 1, h, w], 1 = paint
    noise: Tensor  # [B, 16, h, w]
    latent: Tensor  # [B, 16, h, w], scaled
    sigmas: Sigmas
    sampling: Sampling
    mask_function: MaskFunction | None = None

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        mask = self._mask_at(sigma)
        return self._keep(self.inner(self._renoise(x, mask, sigma), sigma), mask)

    def with_uncond(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        mask = self._mask_at(sigma)
        D, U = self.inner.with_uncond(self._renoise(x, mask, sigma), sigma)
        return self._keep(D, mask), U

    def _mask_at(self, sigma: float) -> Tensor:
        if self.mask_function is None:
            return self.mask
        return self.mask_function(self.mask, sigma, self.sigmas, self.sampling)

    def _renoise(self, x: Tensor, mask: Tensor, sigma: float) -> Tensor:
        original = sigma * self.noise + (1 - sigma) * self.latent
        return x * mask + original * (1 - mask)

    def _keep(self, D: Tensor, mask: Tensor) -> Tensor:
        return D * mask + self.latent * (1 - mask)
