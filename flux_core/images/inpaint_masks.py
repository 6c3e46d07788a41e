"""Masks and fills for inpainting, and matching of colours, by the rules of comfyui-inpaint-nodes.

Images are [B, H, W, 3] in 0..1, masks [B, H, W]. Squares are 2 radius + 1 pixels wide; sizes of blurs are made odd.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from . import masks

BLURS = ("box", "linear", "gaussian")


def odd(size: int) -> int:
    """The size, or one more if it is even; 0 stays."""
    return size + 1 if size > 0 and size % 2 == 0 else size


def expand(mask: Tensor, grow: int, blur: int, kind: str) -> Tensor:
    """1 wherever a square of this radius touches the mask, then blurred."""
    layers = masks.layers(mask)
    if grow > 0:
        layers = (F.max_pool2d(layers, 2 * grow + 1, stride=1, padding=grow) > 0).to(mask)
    return _blurred(layers, odd(blur), kind)[:, 0]


def shrink(mask: Tensor, shrink: int, blur: int, kind: str) -> Tensor:
    """1 wherever a square of this radius lies within the fully masked area, then blurred."""
    layers = masks.layers(mask)
    if shrink > 0:
        layers = eroded(layers, shrink)
    return _blurred(layers, odd(blur), kind)[:, 0]


def eroded(layers: Tensor, radius: int) -> Tensor:
    """[B, 1, H, W] of 0 and 1, eroded; everything beyond the edges counts as 1."""
    return (-F.max_pool2d(-layers, 2 * radius + 1, stride=1, padding=radius) >= 1).to(layers)


def blend_neutral(image: Tensor, mask: Tensor, falloff: int) -> Tensor:
    """Grey where the mask is 1, softly over `falloff` pixels inside it."""
    return 0.5 + (image - 0.5) * (1 - _alpha(mask, falloff)).movedim(1, -1)


def blend_blurred(image: Tensor, mask: Tensor, blur: int, falloff: int) -> Tensor:
    """The blurred image where the mask is 1, softly over `falloff` pixels inside it."""
    blur = odd(blur)
    alpha = _alpha(mask, min(odd(falloff), blur - 2))
    planes = image.movedim(-1, 1)
    return (planes + (_gaussian(planes, blur) - planes) * alpha).movedim(1, -1)


def blend_filled(image: Tensor, mask: Tensor, falloff: int, method: str) -> Tensor:
    """The image with OpenCV's fill ("telea" or "navier-stokes") where the mask is 1. InputError without OpenCV."""
    try:
        import cv2
    except ModuleNotFoundError as missing:
        raise InputError(
            f"fill {method} needs OpenCV: pip install opencv-python-headless; neutral does not."
        ) from missing
    alpha = _alpha(mask, falloff)
    how = cv2.INPAINT_TELEA if method == "telea" else cv2.INPAINT_NS
    made = []
    for one, share in zip(image, alpha.expand(len(image), -1, -1, -1), strict=True):
        pixels, where = (one * 255).byte().cpu().numpy(), (share[0] * 255).byte().cpu().numpy()
        made.append(torch.from_numpy(cv2.inpaint(pixels, where, 3, how)).to(one) / 255)
    weight = alpha.movedim(1, -1)
    return image * (1 - weight) + torch.stack(made) * weight


def _alpha(mask: Tensor, falloff: int) -> Tensor:
    hard = (masks.layers(mask) >= 0.99).to(mask)
    falloff = odd(falloff)
    return hard * _gaussian(eroded(hard, falloff), falloff) if falloff > 0 else hard


def _blurred(layers: Tensor, size: int, kind: str) -> Tensor:
    if size <= 2:
        return layers
    if kind == "gaussian":
        return _gaussian(layers, size)
    line = torch.ones(size)
    if kind == "linear" and size > 3:
        half = size // 2
        rising = torch.linspace(1 / half, (half - 1) / half, half)
        line = torch.cat((rising, torch.ones(1), rising.flip(0)))
    return _convolved(layers, line / line.sum())


def _gaussian(planes: Tensor, size: int) -> Tensor:
    """A Gaussian with a standard deviation of 0.3 (size - 1) + 0.8 pixels."""
    if size <= 1:
        return planes
    place = torch.arange(size) - size // 2
    line = torch.exp(-0.5 * (place / (0.3 * (size - 1) + 0.8)) ** 2)
    return _convolved(planes, line / line.sum())


def _convolved(planes: Tensor, line: Tensor) -> Tensor:
    """Every plane filtered with one kernel in both directions; edges are mirrored once, then repeated."""
    half, channels = len(line) // 2, planes.shape[1]
    for axis in (3, 2):
        near = min(half, planes.shape[axis] - 1)
        rest = half - near
        pads = {3: ((near, near, 0, 0), (rest, rest, 0, 0)), 2: ((0, 0, near, near), (0, 0, rest, rest))}[axis]
        padded = F.pad(F.pad(planes, pads[0], mode="reflect"), pads[1], mode="replicate")
        kernel = line.to(planes).view(1, 1, *((1, -1) if axis == 3 else (-1, 1)))
        planes = F.conv2d(padded, kernel.expand(channels, -1, -1, -1), groups=channels)
    return planes


# -- colours ----------------------------------------------------------------------------------------------------------


def match_colours(target: Tensor, reference: Tensor, excluded: Tensor | None, strength: float) -> Tensor:
    """The target with the mean and the spread of the reference's colours in CIE Lab, outside of `excluded`."""
    if strength <= 0:
        return target
    source, wanted = to_lab(target.movedim(-1, 1)), to_lab(reference.movedim(-1, 1))
    seen = []
    for planes in (source, wanted):
        weight = torch.ones_like(planes[:, :1])
        if excluded is not None:
            weight = (masks.resize(excluded, *planes.shape[-2:]) < 0.5).to(planes)
        seen.append((planes * weight).flatten(2))
    (from_std, from_mean), (to_std, to_mean) = (
        torch.std_mean(one, dim=-1, keepdim=True, unbiased=False) for one in seen
    )
    moved = (source.flatten(2) - from_mean) * (to_std / from_std.clamp_min(1e-6)) + to_mean
    made = from_lab(moved.view_as(source)).movedim(1, -1)
    return (target + strength * (made - target)).clamp(0, 1)


WHITE = (0.95047, 1.0, 1.08883)  # D65
RGB_TO_XYZ = (
    (0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227),
)  # fmt: skip


def to_lab(planes: Tensor) -> Tensor:
    """sRGB [B, 3, H, W] in 0..1 as CIE Lab."""
    linear = torch.where(planes > 0.04045, ((planes + 0.055) / 1.055).clamp(min=0) ** 2.4, planes / 12.92)
    xyz = torch.einsum("ij,bjhw->bihw", torch.tensor(RGB_TO_XYZ).to(planes), linear)
    share = xyz / torch.tensor(WHITE).to(planes).view(1, 3, 1, 1)
    root = torch.where(share > 0.008856, share.clamp(min=1e-12) ** (1 / 3), 7.787 * share + 4 / 29)
    x, y, z = root.unbind(1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), 1)


def from_lab(planes: Tensor) -> Tensor:
    """CIE Lab [B, 3, H, W] as sRGB, cut to 0..1."""
    light, a, b = planes.unbind(1)
    y = (light + 16) / 116
    root = torch.stack((y + a / 500, y, (y - b / 200).clamp(min=0)), 1)
    share = torch.where(root > 0.2068966, root**3, (root - 4 / 29) / 7.787)
    xyz = share * torch.tensor(WHITE).to(planes).view(1, 3, 1, 1)
    linear = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(torch.tensor(RGB_TO_XYZ)).to(planes), xyz)
    curved = 1.055 * linear.clamp(min=1e-12) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curved, 12.92 * linear).clamp(0, 1)
