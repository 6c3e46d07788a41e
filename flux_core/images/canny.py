"""Edges of an image (Canny 1986), for FLUX.1-Canny and its LoRA. The numbers are those of kornia, which ComfyUI uses.

The image is converted to grey and smoothed by a Gaussian. Of its Sobel gradient (not normalised) only ridges are kept,
and of the weak ridges only those that touch a strong one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

GREY = (0.299, 0.587, 0.114)
EPSILON = 1e-6  # added below the square root: the square of the gradient of a flat image
AROUND = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))  # (dy, dx), clockwise from the right


def canny(image: Tensor, low: float, high: float) -> Tensor:
    """Image [B, H, W, C] in 0..1 -> its edges, 0 or 1, [B, H, W, 3].

    low, high: the least gradients of weak and of strong ridges; a step from black to white has about 2.6.
    Raises InputError if low is above high.
    """
    if low > high:
        raise InputError(f"The low threshold, {low}, is above the high one, {high}. Exchange them.")
    ridge = _ridges(_smoothed(_grey(image)))
    return _linked(ridge > low, ridge > high).to(image).movedim(1, -1).expand(-1, -1, -1, 3)


def _grey(image: Tensor) -> Tensor:
    """[B, 1, H, W], contiguous, because the rounding of the sums below depends on the order in memory."""
    if image.shape[-1] < 3:
        return image[..., 0].clone(memory_format=torch.contiguous_format)[:, None]
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    return (red * GREY[0]).add(green, alpha=GREY[1]).add(blue, alpha=GREY[2])[:, None]


def _smoothed(grey: Tensor) -> Tensor:
    """A Gaussian of one pixel, cut off after two."""
    weights = torch.exp(-(torch.arange(-2.0, 3.0, device=grey.device) ** 2) / 2)
    weights = (weights / weights.sum()).to(grey)
    rows = F.conv2d(F.pad(grey, (2, 2, 0, 0), mode="reflect"), weights.reshape(1, 1, 1, 5))
    return F.conv2d(F.pad(rows, (0, 0, 2, 2), mode="reflect"), weights.reshape(1, 1, 5, 1))


def _ridges(grey: Tensor) -> Tensor:
    """The length of the gradient where it is the largest along its own direction, elsewhere 0. [B, 1, H, W]

    Of two equal neighbours in a row the left one is kept, in a column the upper one.
    """
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(grey)
    x, y = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), torch.stack((sobel, sobel.T))[:, None]).split(1, dim=1)
    length = (x * x + y * y + EPSILON).sqrt()
    height, width = length.shape[-2:]
    padded = F.pad(length, (1, 1, 1, 1), value=math.sqrt(EPSILON))
    around = torch.cat([padded[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] for dy, dx in AROUND], dim=1)
    ahead = (torch.atan2(y, x) * (4 / math.pi)).round().long() % 8
    keep = length > math.sqrt(EPSILON)
    for direction in (ahead, (ahead + 4) % 8):
        neighbour = around.gather(1, direction)
        tie = (length == neighbour) & ((direction == 0) | (direction == 2))
        keep &= (length > neighbour) | tie
    thin: Tensor = length * keep
    return thin


def _linked(weak: Tensor, strong: Tensor) -> Tensor:
    """The strong pixels, and the weak ones that are joined to them by weak ones."""
    linked = strong.float()
    while True:
        spread = torch.where(weak, F.max_pool2d(linked, 3, stride=1, padding=1), linked)
        if spread.equal(linked):
            return linked
        linked = spread
