"""Images cropped, rotated, joined side by side, padded. Images are [B, H, W, C] in 0..1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..limits import check_room
from .resize import resize

COLOURS = {
    "white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0), "red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
}  # fmt: skip


def crop(image: Tensor, width: int, height: int, x: int, y: int) -> Tensor:
    """A part of the image without what lies outside, and with at least one pixel."""
    x, y = min(x, image.shape[2] - 1), min(y, image.shape[1] - 1)
    return image[:, y : y + height, x : x + width]


def turns(rotation: str) -> int:
    """Quarter turns to the right in "none", "90 degrees", ..."""
    return int(rotation.split()[0]) // 90 if rotation[0].isdigit() else 0


def scale_to_longest(image: Tensor, longest: int, method: str) -> Tensor:
    """The same shape with a longer side of `longest` pixels."""
    height, width = image.shape[1:3]
    if height > width:
        size = round(width / height * longest), longest
    else:
        size = longest, longest if width == height else round(height / width * longest)
    return resize(image.movedim(-1, 1), *size, method).movedim(1, -1)


def fit_into(image: Tensor, width: int, height: int, colour: str, method: str) -> Tensor:
    """The image as large as fits into `width` x `height`, in the middle of padding of one colour."""
    batch, old_height, old_width, channels = image.shape
    scale = min(width / old_width, height / old_height)
    columns, rows = int(old_width * scale), int(old_height * scale)
    check_room(f"{batch} images of {width}x{height} pixels", batch * width * height * channels * 4)
    ground = image.new_full((batch, height, width, channels), COLOURS[colour][0])
    top, left = (height - rows) // 2, (width - columns) // 2
    fitted = resize(image.movedim(-1, 1), columns, rows, method).movedim(1, -1)
    ground[:, top : top + rows, left : left + columns] = fitted
    return ground


def stitch(first: Tensor, second: Tensor, direction: str, match: bool, gap: int, colour: str) -> Tensor:
    """Set `second` to the right, below ("down"), left or above ("up") of `first`.

    match: give it the height (left, right) or the width (above, below) of the first; else the smaller one is centred
    on padding. gap: pixels between them, made even. The last image of the smaller batch is repeated.
    """
    across = direction in ("left", "right")
    batch = max(len(first), len(second))
    first, second = (torch.cat((i, i[-1:].expand(batch - len(i), -1, -1, -1))) for i in (first, second))
    if match:
        height, width = first.shape[1:3]
        aspect = second.shape[2] / second.shape[1]
        size = (int(height * aspect), height) if across else (width, int(width / aspect))
        second = resize(second.movedim(-1, 1), *size, "lanczos").movedim(1, -1)
    else:
        side = 1 if across else 2
        length = max(first.shape[side], second.shape[side])
        ground = 1.0 if colour == "white" else 0.0  # the padding is black, also with a coloured gap
        first, second = (_centred(i, side, length, ground) for i in (first, second))
    channels = max(first.shape[-1], second.shape[-1])
    first, second = (F.pad(i, (0, channels - i.shape[-1]), value=1.0) for i in (first, second))
    parts = [second, first] if direction in ("left", "up") else [first, second]
    if gap:
        gap += gap % 2
        shape = (batch, first.shape[1], gap, channels) if across else (batch, gap, first.shape[2], channels)
        parts.insert(1, first.new_tensor((*COLOURS[colour], 1.0)[:channels]).expand(shape))
    return torch.cat(parts, dim=2 if across else 1)


def _centred(image: Tensor, side: int, length: int, ground: float) -> Tensor:
    missing = length - image.shape[side]
    before, after = missing // 2, missing - missing // 2
    return F.pad(image, (0, 0, 0, 0, before, after) if side == 1 else (0, 0, before, after), value=ground)
