"""Images blurred, sharpened, blended. Images are [B, H, W, C] in 0..1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .resize import resize

BLEND_MODES = ("normal", "multiply", "screen", "overlay", "soft_light", "difference")


def blur(image: Tensor, radius: int, sigma: float) -> Tensor:
    """A Gaussian over 2 `radius` + 1 pixels. `sigma` is in units of the radius: 1 is nearly a box."""
    return _convolved(image, _gaussian(radius, sigma), radius)


def sharpen(image: Tensor, radius: int, sigma: float, strength: float) -> Tensor:
    """The image plus 10 `strength` times its difference from its blur, cut to 0..1."""
    kernel = _gaussian(radius, sigma) * (-10 * strength)
    kernel[radius, radius] += 1.0 - kernel.sum()
    return _convolved(image, kernel, radius).clamp(0, 1)


def blend(under: Tensor, over: Tensor, share: float, mode: str) -> Tensor:
    """`share` times the result of `mode` for both, plus the rest of `under`. `over` gets the size of `under`."""
    over = over[..., : under.shape[-1]]
    if over.shape[-1] < under.shape[-1]:  # the lower image's transparency is removed
        under = torch.cat((under[..., :-1], torch.ones_like(under[..., -1:])), dim=-1)
        over = torch.cat((over, torch.ones_like(over[..., -1:])), dim=-1)
    if over.shape[1:3] != under.shape[1:3]:
        height, width = under.shape[1:3]
        over = resize(over.movedim(-1, 1), width, height, "bicubic", "center").movedim(1, -1)
    return (under * (1 - share) + _mixed(under, over, mode) * share).clamp(0, 1)


def _mixed(a: Tensor, b: Tensor, mode: str) -> Tensor:
    if mode == "normal":
        return b
    if mode == "multiply":
        return a * b
    if mode == "screen":
        return 1 - (1 - a) * (1 - b)
    if mode == "overlay":
        return torch.where(a <= 0.5, 2 * a * b, 1 - 2 * (1 - a) * (1 - b))
    if mode == "soft_light":
        lighter = torch.where(a <= 0.25, ((16 * a - 12) * a + 4) * a, a.sqrt())
        return torch.where(b <= 0.5, a - (1 - 2 * b) * a * (1 - a), a + (2 * b - 1) * (lighter - a))
    if mode == "difference":
        return a - b
    raise InputError(f"There is no blend mode {mode!r}; choose {', '.join(BLEND_MODES)}.")


def _gaussian(radius: int, sigma: float) -> Tensor:
    """[2 radius + 1, 2 radius + 1], its sides at 1 and -1, its sum 1."""
    place = torch.linspace(-1, 1, 2 * radius + 1)
    far = (place[:, None] ** 2 + place**2).sqrt()
    kernel = torch.exp(-(far * far) / (2.0 * sigma * sigma))
    return kernel / kernel.sum()


def _convolved(image: Tensor, kernel: Tensor, radius: int) -> Tensor:
    """Every channel with the same kernel. Raises InputError if the image is no larger than the radius."""
    if min(image.shape[1:3]) <= radius:
        height, width = image.shape[1:3]
        raise InputError(f"The radius is {radius}, and the image only {width}x{height}. Use a smaller radius.")
    channels = image.shape[-1]
    padded = F.pad(image.movedim(-1, 1), (radius,) * 4, mode="reflect")
    return F.conv2d(padded, kernel.to(image).expand(channels, 1, -1, -1), groups=channels).movedim(1, -1)
