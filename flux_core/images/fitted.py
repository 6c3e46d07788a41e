"""Images fitted into a size by the rules of other packs' nodes, which occur in workflows.

Images are [B, H, W, C] in 0..1, masks [B, H, W]. Sizes are in pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from ..errors import InputError
from ..limits import check_room
from . import masks
from .resize import resize

LARGEST = 16384
WHEN = ("always", "downscale if bigger", "upscale if smaller", "if bigger area", "if smaller area")


def essentials_resize(
    image: Tensor, width: int, height: int, interpolation: str, method: str, condition: str, multiple: int
) -> Tensor:
    """ComfyUI_essentials' resizing: "stretch", "keep proportion", "fill / crop" or "pad", under a condition of `WHEN`.

    A side of 0 follows the image. The result is cut in the middle to multiples of `multiple`, and to 0..1.
    """
    tall, wide = image.shape[1:3]
    if multiple > 1:
        width, height = width - width % multiple, height - height % multiple
    frame = (0, 0, 0, 0)  # pixels added on the left, on the right, at the top, at the bottom
    crop = None
    if method in ("keep proportion", "pad"):
        width, height, frame = _within(wide, tall, width, height, padded=method == "pad")
    elif method.startswith("fill"):
        width, height, crop = _covering(wide, tall, width or wide, height or tall)
    else:
        width, height = width or wide, height or tall
    made = image
    if _applies(condition, wide, tall, width, height):
        check_room(f"{len(image)} images of {width}x{height} pixels", image.shape[0] * width * height * 12)
        planes = resize(image.movedim(-1, 1), width, height, interpolation)
        made = F.pad(planes, frame).movedim(1, -1) if any(frame) else planes.movedim(1, -1)
        if crop is not None:
            x, y, right, bottom = crop
            made = made[:, y:bottom, x:right]
    return _cut_to_multiple(made, multiple).clamp(0, 1)


def _within(wide: int, tall: int, width: int, height: int, padded: bool) -> tuple[int, int, tuple[int, int, int, int]]:
    """The size that fits into `width` x `height` in the image's shape, and the missing pixels on each side."""
    if width == 0:
        width = LARGEST if tall < height else wide
    if height == 0:
        height = LARGEST if wide < width else tall
    ratio = min(width / wide, height / tall)
    across, down = round(wide * ratio), round(tall * ratio)
    left, top = (width - across) // 2, (height - down) // 2
    frame = (left, width - across - left, top, height - down - top) if padded else (0, 0, 0, 0)
    return across, down, frame


def _covering(wide: int, tall: int, width: int, height: int) -> tuple[int, int, tuple[int, int, int, int]]:
    """The size that covers `width` x `height` in the image's shape, and the part of it that is kept."""
    ratio = max(width / wide, height / tall)
    across, down = round(wide * ratio), round(tall * ratio)
    x, y = max(0, (across - width) // 2), max(0, (down - height) // 2)
    right, bottom = (across - width) // 2 + width, (down - height) // 2 + height
    x, y = max(0, x - max(0, right - across)), max(0, y - max(0, bottom - down))
    return across, down, (x, y, right, bottom)


def _applies(condition: str, wide: int, tall: int, width: int, height: int) -> bool:
    if condition == "downscale if bigger":
        return tall > height or wide > width
    if condition == "upscale if smaller":
        return tall < height or wide < width
    if condition == "if bigger area":
        return tall * wide > height * width
    if condition == "if smaller area":
        return tall * wide < height * width
    return True


def _cut_to_multiple(image: Tensor, multiple: int) -> Tensor:
    if multiple <= 1:
        return image
    height, width = image.shape[1:3]
    x, y = width % multiple // 2, height % multiple // 2
    return image[:, y : y + height - height % multiple, x : x + width - width % multiple]


def kj_size(wide: int, tall: int, width: int, height: int, proportion: str, multiple: int) -> tuple[int, int, int, int]:
    """KJNodes' size: width and height of the resized image, and of the frame around it.

    proportion: "stretch", "resize" (fits into the frame), "pad" (the same, on a ground), "crop", "total_pixels".
    """
    if proportion == "total_pixels":
        pixels, aspect = width * height, wide / tall
        new = int(math.sqrt(pixels * aspect)), int(math.sqrt(pixels / aspect))
    elif proportion in ("resize", "pad", "pad_edge_pixel"):
        if width and height:
            ratio = min(width / wide, height / tall)
        else:
            ratio = (height / tall if height else width / wide) if width or height else 1.0
        new = (round(wide * ratio), round(tall * ratio))
        new = (new[0] if not width or height else width, new[1] if not height or width else height)
    else:
        new = width or wide, height or tall
    frame = (width, height) if proportion.startswith("pad") and width and height else new
    cut = tuple(side - side % multiple for side in new) if multiple > 1 else new
    # The padding of the uncut image stays; the frame is then enlarged to the next multiple.
    around = tuple(cut[n] + frame[n] - new[n] for n in (0, 1))
    if multiple > 1 and frame != new:
        around = tuple(math.ceil(side / multiple) * multiple for side in around)
    return cut[0], cut[1], around[0], around[1]


def kj_resize(
    image: Tensor, mask: Tensor | None, size: tuple[int, int], method: str, proportion: str,
    colour: tuple[float, ...], position: str, multiple: int,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """KJNodes' resizing of an image and a mask of the same size. Raises InputError for an unknown proportion.

    colour: of the padding, in 0..1. position: "center", "top", "bottom", "left" or "right", of the part that is kept.
    """
    if proportion not in ("stretch", "resize", "pad", "pad_edge_pixel", "crop", "total_pixels"):
        raise InputError(f"keep_proportion {proportion!r} is not offered; choose pad, crop, resize or stretch.")
    tall, wide = image.shape[1:3]
    width, height, around, about = kj_size(wide, tall, *size, proportion, multiple)
    if min(width, height) < 1:
        raise InputError(f"An image of {width}x{height} pixels cannot be made.")
    check_room(f"{len(image)} images of {around}x{about} pixels", image.shape[0] * around * about * 12)
    planes = image.movedim(-1, 1)
    layers = None if mask is None else masks.layers(mask)
    if proportion == "crop":
        planes = _part(planes, width / height, position)
        layers = None if layers is None else _part(layers, width / height, position)
    planes = resize(planes, width, height, method)
    layers = None if layers is None else resize(layers, width, height, "bilinear" if method == "lanczos" else method)
    if (around, about) != (width, height):
        planes, framing = _framed(planes, around, about, position, colour, edges=proportion == "pad_edge_pixel")
        layers = framing if layers is None else _framed(layers, around, about, position, (0.0,), edges=False)[0]
    return planes.movedim(1, -1), None if layers is None else layers[:, 0]


def _part(planes: Tensor, aspect: float, position: str) -> Tensor:
    """The largest part of a shape, at a position."""
    tall, wide = planes.shape[-2:]
    across, down = (round(tall * aspect), tall) if wide / tall > aspect else (wide, round(wide / aspect))
    x = {"left": 0, "right": wide - across}.get(position, (wide - across) // 2)
    y = {"top": 0, "bottom": tall - down}.get(position, (tall - down) // 2)
    return planes[..., y : y + down, x : x + across]


def _framed(
    planes: Tensor, width: int, height: int, position: str, colour: tuple[float, ...], edges: bool
) -> tuple[Tensor, Tensor]:
    """Planes with padding of one colour or of their outermost pixels, and the mask of the padding."""
    tall, wide = planes.shape[-2:]
    left = {"left": 0, "right": width - wide}.get(position, (width - wide) // 2)
    top = {"top": 0, "bottom": height - tall}.get(position, (height - tall) // 2)
    frame = (left, width - wide - left, top, height - tall - top)
    ground = F.pad(torch.zeros_like(planes[:, :1]), frame, value=1.0)
    if edges:
        return F.pad(planes, frame, mode="replicate"), ground
    channels = [
        F.pad(planes[:, n : n + 1], frame, value=colour[min(n, len(colour) - 1)]) for n in range(planes.shape[1])
    ]
    return torch.cat(channels, dim=1), ground


def grow_and_blur(
    mask: Tensor, expand: int, rate: float, tapered: bool, inverted: bool, radius: float, alpha: float, decay: float,
    fill_holes: bool,
) -> Tensor:  # fmt: skip
    """KJNodes' masks: each grown by `expand` pixels (shrunk if negative) and `rate` more than the one before it.

    alpha, decay: factors of each mask itself and of the mask before it. radius: of a Gaussian blur of 8-bit pixels.
    [B, H, W].
    """
    out: list[Tensor] = []
    now = float(expand)
    for layer in masks.layers(1.0 - mask if inverted else mask)[:, 0]:
        grown = masks.grow(layer, round(now), tapered)[0]
        now += abs(rate) if now >= 0 else -abs(rate)
        if fill_holes:
            from scipy.ndimage import binary_fill_holes

            grown = torch.from_numpy(binary_fill_holes((grown > 0).cpu().numpy())).to(layer)
        if out and alpha < 1.0:
            grown = alpha * grown + (1 - alpha) * out[-1]
        if out and decay < 1.0:
            grown = grown + decay * out[-1]
            grown = grown / grown.max().clamp(min=1e-12)
        out.append(grown)
    stacked = torch.stack(out)
    return torch.stack([_blurred(layer, radius) for layer in stacked]) if radius else stacked


def _blurred(layer: Tensor, radius: float) -> Tensor:
    pixels = Image.fromarray((layer * 255).clamp(0, 255).byte().cpu().numpy())
    blurred = pixels.filter(ImageFilter.GaussianBlur(radius))
    return torch.frombuffer(bytearray(blurred.tobytes()), dtype=torch.uint8).reshape(layer.shape).to(layer) / 255


def soften(mask: Tensor, size: int) -> Tensor:
    """A Gaussian over `size` pixels (made odd), as wide as OpenCV's rule for that size says; edges are mirrored."""
    size += size % 2 == 0
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    place = torch.arange(size) - size // 2
    line = torch.exp(-0.5 * (place / sigma) ** 2)
    line = (line / line.sum()).to(mask)
    half = size // 2
    layers = masks.layers(mask)
    if half >= min(layers.shape[-2:]):
        raise InputError(f"A blur of {size} pixels needs a mask of more than {half} pixels on each side.")
    padded = F.pad(layers, (half,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, line.view(1, 1, 1, -1)), line.view(1, 1, -1, 1))[:, 0]


def nearest_shape(wide: int, tall: int, sizes: tuple[tuple[int, int, float], ...]) -> tuple[int, int]:
    """Of sizes (width, height, ratio) the one whose ratio is nearest to the image's."""
    width, height, _ = min(sizes, key=lambda size: abs(wide / tall - size[2]))
    return width, height


def colour_of(text: str) -> tuple[float, ...]:
    """A colour in 0..1 from "255, 0, 0", from one number, or from a name or code ("#ff0000"). Raises InputError."""
    parts = [part.strip() for part in text.split(",")]
    try:
        numbers = [float(part) for part in parts]
        scale = 1.0 if all("." in part for part in parts) and max(numbers) <= 1 else 255.0
        return tuple(min(max(number / scale, 0.0), 1.0) for number in numbers)
    except ValueError:
        pass
    from PIL import ImageColor

    try:
        return tuple(part / 255 for part in ImageColor.getrgb(text.strip()))
    except ValueError as error:
        raise InputError(f"{text!r} is no colour. Write it as three numbers (255, 0, 0), a name or a code.") from error
