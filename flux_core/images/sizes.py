"""An image or a mask in another size, by the rules of ComfyUI's ResizeImageMaskNode."""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import InputError
from .masks import layers
from .resize import resize

PIXELS = 1024 * 1024


def resized(
    picture: Tensor,
    method: str,
    resize_type: str,
    width: int = 0,
    height: int = 0,
    crop: str = "disabled",
    multiplier: float = 1.0,
    longer_size: int = 0,
    shorter_size: int = 0,
    megapixels: float = 1.0,
    multiple: int = 1,
    match: Tensor | None = None,
) -> Tensor:
    """[B, H, W, C] or [B, H, W] in the size of `resize_type` and its values. Raises InputError.

    Two sides of 0 leave the image as it is; one of them follows the other.
    """
    tall, wide = picture.shape[1:3]
    if resize_type in ("scale dimensions", "scale width", "scale height"):
        if width == height == 0:
            return picture
        size = width or max(1, round(wide * height / tall)), height or max(1, round(tall * width / wide))
    elif resize_type == "scale by multiplier":
        size = round(wide * multiplier), round(tall * multiplier)
    elif resize_type == "scale longer dimension":
        size = _side(wide, tall, longer_size, wide > tall)
    elif resize_type == "scale shorter dimension":
        size = _side(wide, tall, shorter_size, wide < tall)
    elif resize_type == "scale total pixels":
        factor = math.sqrt(int(megapixels * PIXELS) / (wide * tall))
        size = max(1, round(wide * factor / multiple)) * multiple, max(1, round(tall * factor / multiple)) * multiple
    elif resize_type == "match size" and match is not None:
        size = match.shape[2], match.shape[1]
    elif resize_type == "scale to multiple":
        return _covering(picture, method, multiple)
    else:
        raise InputError(f"There is no way to resize called {resize_type!r}.")
    return _to(picture, *size, method, crop)


def _side(wide: int, tall: int, length: int, across: bool) -> tuple[int, int]:
    """The size whose width (`across`) or else height is `length`, in the same shape."""
    if wide == tall:
        return length, length
    return (length, round(tall / wide * length)) if across else (round(wide / tall * length), length)


def _covering(picture: Tensor, method: str, multiple: int) -> Tensor:
    """The largest multiples that fit into the image: reduced until one side fits, the other cropped in the middle."""
    tall, wide = picture.shape[1:3]
    width, height = wide // multiple * multiple, tall // multiple * multiple
    if multiple <= 1 or 0 in (width, height) or (width, height) == (wide, tall):
        return picture
    factor = max(width / wide, height / tall)
    grown = max(width, math.ceil(wide * factor)), max(height, math.ceil(tall * factor))
    if width / wide >= height / tall:
        grown = width, grown[1]
    else:
        grown = grown[0], height
    made = _to(picture, *grown, method, "disabled")
    left, top = (grown[0] - width) // 2, (grown[1] - height) // 2
    return made[:, top : top + height, left : left + width]


def _to(picture: Tensor, width: int, height: int, method: str, crop: str) -> Tensor:
    if picture.ndim == 3:
        return resize(layers(picture), width, height, method, crop)[:, 0]
    return resize(picture.movedim(-1, 1), width, height, method, crop).movedim(1, -1)
