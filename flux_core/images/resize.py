"""Sizes of images: resizing, cropping, padding, blending. ComfyUI's rules, so that its workflows give its pixels.

An image here is [B, H, W, C] with values 0..1, a plane [B, C, H, W]. Uses no files, no nodes and no models.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# (width, height) pairs FLUX.1-Kontext was trained on, about one megapixel each.
KONTEXT_SIZES = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
)


def resize(planes: Tensor, width: int, height: int, method: str, crop: str = "disabled") -> Tensor:
    """[B, C, H, W] -> [B, C, height, width]. `crop="center"` first cuts the longer side to the new aspect ratio.

    Methods: "nearest-exact", "bilinear", "area" and "bicubic" (torch's, without antialiasing), "lanczos" (8 bit), and
    "bislerp" (for latents).
    """
    if crop == "center":
        planes = _crop_to_aspect(planes, width / height)
    if method == "lanczos":
        return _lanczos(planes, width, height)
    if method == "bislerp":
        return _bislerp(_bislerp(planes, width, dim=3), height, dim=2)
    return F.interpolate(planes, size=(height, width), mode=method)


def resize_image(image: Tensor, width: int, height: int, method: str, crop: str = "disabled") -> Tensor:
    """`resize` for an image [B, H, W, C]. Both sizes 0: unchanged. One 0: that side follows the other."""
    if width == 0 and height == 0:
        return image
    old_height, old_width = image.shape[1:3]
    width = width or max(1, round(old_width * height / old_height))
    height = height or max(1, round(old_height * width / old_width))
    return resize(image.movedim(-1, 1), width, height, method, crop).movedim(1, -1)


def size_for_pixels(width: int, height: int, megapixels: float, multiple: int = 1) -> tuple[int, int]:
    """The size of the same shape with `megapixels` * 1024 * 1024 pixels, both sides multiples of `multiple`."""
    scale = math.sqrt(int(megapixels * 1024 * 1024) / (width * height))
    return round(width * scale / multiple) * multiple, round(height * scale / multiple) * multiple


def kontext_size(width: int, height: int) -> tuple[int, int]:
    """The trained size of FLUX.1-Kontext whose shape is nearest."""
    return min(KONTEXT_SIZES, key=lambda size: abs(width / height - size[0] / size[1]))


def pad_for_outpaint(
    image: Tensor, left: int, top: int, right: int, bottom: int, feathering: int
) -> tuple[Tensor, Tensor]:
    """The image on a larger grey canvas, and the mask [1, H, W] of the area to paint.

    Inside the old image the mask falls off quadratically over `feathering` pixels from every side that grew.
    """
    batch, height, width, channels = image.shape
    canvas = image.new_full((batch, top + height + bottom, left + width + right, channels), 0.5)
    canvas[:, top : top + height, left : left + width] = image
    mask = image.new_ones(canvas.shape[1:3])
    inside = image.new_zeros(height, width)
    if feathering > 0 and feathering * 2 < height and feathering * 2 < width:
        rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
        far = torch.full((height, width), max(height, width))
        distances = [
            rows.expand_as(far) if top else far,
            (height - rows).expand_as(far) if bottom else far,
            columns.expand_as(far) if left else far,
            (width - columns).expand_as(far) if right else far,
        ]
        nearest = torch.stack(distances).amin(0)
        inside = ((feathering - nearest) / feathering).clamp(min=0).square().to(image)
    mask[top : top + height, left : left + width] = inside
    return canvas, mask[None]


def crop_to_cells(planes: Tensor, cell: int = 8) -> Tensor:
    """Cut the last two sides to multiples of `cell`, the same on both ends (half the remainder, rounded down)."""
    for dim in (-2, -1):
        over = planes.shape[dim] % cell
        planes = planes.narrow(dim, over // 2, planes.shape[dim] - over)
    return planes


def grey_where_masked(image: Tensor, mask: Tensor) -> Tensor:
    """Set the colours of `image` [B, H, W, C] to grey where `mask` [b, 1, H, W] rounds to 1."""
    keep = (1 - mask.round()).movedim(1, -1)
    image = image.clone()
    image[..., :3] = (image[..., :3] - 0.5) * keep + 0.5
    return image


def composite(target: Tensor, source: Tensor, x: int, y: int, mask: Tensor | None, fit: bool, cell: int = 1) -> Tensor:
    """Lay `source` over `target` (both [B, C, H, W]) with its corner at (x, y), given in units of 1/`cell`.

    `fit` first stretches the source to the target's size. `mask` [b, h, w] says where the source covers. A source
    without the target's last channel (alpha) covers fully; one that has more channels loses them.
    """
    source = source[:, : target.shape[1]]
    if source.shape[1] < target.shape[1]:
        source = F.pad(source, (0, 0, 0, 0, 0, target.shape[1] - source.shape[1]), value=1.0)
    target = target.clone()
    if fit:
        source = F.interpolate(source, size=target.shape[-2:], mode="bilinear")
    source = repeat_to_batch(source, target.shape[0])
    cover = torch.ones_like(source[:, :1])
    if mask is not None:
        cover = F.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]), size=source.shape[-2:], mode="bilinear")
        cover = repeat_to_batch(cover, source.shape[0])
    left, top = min(x // cell, target.shape[-1]), min(y // cell, target.shape[-2])
    there = target[..., top : top + source.shape[-2], left : left + source.shape[-1]]
    height, width = there.shape[-2:]
    cover, source = cover[..., :height, :width], source[..., :height, :width]
    there.copy_(cover * source + (1 - cover) * there)
    return target


def repeat_to_batch(x: Tensor, batch: int) -> Tensor:
    """Cut or repeat `x` cyclically along its first dimension to `batch` items."""
    times = -(-batch // x.shape[0])
    return x.repeat(times, *[1] * (x.ndim - 1))[:batch]


def _crop_to_aspect(planes: Tensor, aspect: float) -> Tensor:
    height, width = planes.shape[-2:]
    old = width / height
    x = round((width - width * (aspect / old)) / 2) if old > aspect else 0
    y = round((height - height * (old / aspect)) / 2) if old < aspect else 0
    return planes[..., y : height - y, x : width - x]


def _lanczos(planes: Tensor, width: int, height: int) -> Tensor:
    """Pillow's Lanczos on 8-bit pixels; values between the 256 steps are truncated."""
    import numpy as np
    from PIL import Image

    out = []
    for image in planes.movedim(1, -1):
        pixels = (255.0 * image.cpu().numpy()).clip(0, 255).astype(np.uint8)
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        small = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
        out.append(torch.from_numpy(np.asarray(small, dtype=np.float32) / 255.0).reshape(height, width, -1))
    return torch.stack(out).movedim(-1, 1).to(planes)


def _bislerp(x: Tensor, size: int, dim: int) -> Tensor:
    """Resize one side of [B, C, H, W], turning channel vectors along the great circle instead of averaging them."""
    length = x.shape[dim]
    # The source positions are those of torch's bilinear resize, rounding included.
    place = F.interpolate(torch.arange(length, dtype=torch.float32)[None, None], size=size, mode="linear")[0, 0]
    first = place.long()
    share = (place - place.floor()).reshape([-1 if d == dim else 1 for d in range(4)])  # of the second vector
    a = x.float().index_select(dim, first)
    b = x.float().index_select(dim, (first + 1).clamp(max=length - 1))
    a_norm, b_norm = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    a_way, b_way = (a / a_norm).nan_to_num(0.0), (b / b_norm).nan_to_num(0.0)
    cosine = (a_way * b_way).sum(1, keepdim=True)
    angle = cosine.acos()
    turned = (((1 - share) * angle).sin() * a_way + (share * angle).sin() * b_way) / angle.sin()
    turned = turned * (a_norm * (1 - share) + b_norm * share)
    out = torch.where(cosine > 1 - 1e-5, a, turned)  # the same direction: no circle to follow
    out = torch.where(cosine < 1e-5 - 1, a * (1 - share) + b * share, out)  # opposite: too many
    return out.to(x.dtype)
