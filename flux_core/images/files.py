"""Image files <-> tensors: RGB [B, H, W, 3] in 0..1 and masks [B, H, W], where 1 is transparent.

Files are read as in ComfyUI: camera rotation is applied, several frames become a batch, alpha becomes the mask. Uses no
folders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import FileFormatError, MissingFileError, NotFinite, SluiceError
from ..io.paths import openable
from ..limits import check_room

if TYPE_CHECKING:
    from PIL import Image

UNMASKED = (64, 64)  # the size of the mask of an image without transparency


def load(path: Path) -> tuple[Tensor, Tensor]:
    """An image and its mask (all 0 without transparency). Frames of another size than the first are left out.

    Raises MissingFileError, FileFormatError, or InputError for an image that does not fit into memory.
    """
    from PIL import ImageSequence

    images: list[Tensor] = []
    masks: list[Tensor] = []
    with _opened(path) as file:
        for frame in ImageSequence.Iterator(file):
            upright = _upright(frame)
            image = _values(upright.convert("RGB"))
            if images and image.shape != images[0].shape:
                continue
            images.append(image)
            masks.append(_transparency(upright))
            if file.format == "MPO":  # the following frames are a depth map or the view of the other eye
                break
    if any(mask.shape != masks[0].shape for mask in masks):
        size = images[0].shape[:2]
        masks = [mask if mask.shape == size else torch.zeros(size) for mask in masks]
    return torch.stack(images), torch.stack(masks)


def load_channel(path: Path, channel: str) -> Tensor:
    """One channel ("red", "green", "blue", "alpha") of an image as a mask [1, H, W]; alpha counts inverted.

    Raises as `load` does.
    """
    with _opened(path) as file:
        values = _values(_upright(file).convert("RGBA").getchannel(channel[0].upper()))
    return (1 - values if channel == "alpha" else values)[None]


def from_bytes(data: bytes, name: str = "the image") -> Tensor:
    """The content of a file as [1, H, W, C] in 0..1, C as in the file: 1 (grey), 3, or 4. Raises FileFormatError."""
    from io import BytesIO

    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(data)) as file:
            check_room(f"{name} ({file.size[0]}x{file.size[1]} pixels)", file.size[0] * file.size[1] * 16)
            seen = file if file.mode in ("L", "RGB", "RGBA") else file.convert("RGBA" if "A" in file.mode else "RGB")
            values = _values(seen)
    except SluiceError:
        raise
    except UnidentifiedImageError:
        raise FileFormatError(f"{name} is of no known format.") from None
    except Exception as error:  # Pillow's readers raise whatever their format's parser met
        raise FileFormatError(f"{name} cannot be read: {error}") from error
    return (values[..., None] if values.ndim == 2 else values)[None]


def to_pil(image: Tensor) -> Image.Image:
    """One image [H, W, C] as 8-bit PIL image: values are cut to 0..1 and truncated to 256 steps. C 1 is grey.

    Raises NotFinite for an image with NaN in it, which would be black there.
    """
    from PIL import Image

    if image.isnan().any():
        raise NotFinite("The image contains values that are not numbers (NaN). A node before this one made them.")
    values = (255.0 * image.cpu().numpy()).clip(0, 255).astype(np.uint8)
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)


def fingerprint(path: Path) -> str:
    """A value that changes with the content of the file."""
    digest = hashlib.sha256()
    with open(openable(path), "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(openable(path)) as file:
            width, height = file.size
            frames = getattr(file, "n_frames", 1)
            check_room(f"{path.name} ({frames} x {width}x{height} pixels)", frames * width * height * 12)
            yield file
    except SluiceError:
        raise
    except FileNotFoundError:
        raise MissingFileError(f"There is no image {path}.") from None
    except UnidentifiedImageError:
        wrong = "not an image of a known format" if path.stat().st_size else "empty"
        raise FileFormatError(f"{path.name} is {wrong}.") from None
    except Exception as error:  # Pillow's readers raise whatever their format's parser met
        raise FileFormatError(f"{path.name} is not an image that can be read: {error}") from error


def _upright(frame: Image.Image) -> Image.Image:
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(frame)
    if upright.mode.startswith("I"):  # 16 or 32 bits: FLUX works on 8
        upright = upright.convert("I").point(lambda value: value * (1 / 255))
    return upright


def _values(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)


def _transparency(image: Image.Image) -> Tensor:
    if "A" in image.getbands():
        return 1 - _values(image.getchannel("A"))
    if image.mode == "P" and "transparency" in image.info:
        return 1 - _values(image.convert("RGBA").getchannel("A"))
    return torch.zeros(UNMASKED)
