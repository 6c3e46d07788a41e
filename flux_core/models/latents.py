"""FLUX latents: their scaling, the initial noise, their patches and positions, and a fast preview.

A latent is [B, 16, h, w], one cell per 8x8 pixels. Outside the sampler it has the autoencoder's scale; inside, the
transformer's (`process_in`). Uses no autoencoder, no transformer and no solver.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

CHANNELS = 16
CELL = 8  # pixels along one side of a latent cell
SCALE = 0.3611
SHIFT = 0.1159

# A linear map of the 16 channels to RGB in -1..1, for previews (fitted by the ComfyUI project).
PREVIEW_RGB = (
    (-0.0346, 0.0244, 0.0681),
    (0.0034, 0.0210, 0.0687),
    (0.0275, -0.0668, -0.0433),
    (-0.0174, 0.0160, 0.0617),
    (0.0859, 0.0721, 0.0329),
    (0.0004, 0.0383, 0.0115),
    (0.0405, 0.0861, 0.0915),
    (-0.0236, -0.0185, -0.0259),
    (-0.0245, 0.0250, 0.1180),
    (0.1008, 0.0755, -0.0421),
    (-0.0515, 0.0201, 0.0011),
    (0.0428, -0.0012, -0.0036),
    (0.0817, 0.0765, 0.0749),
    (-0.1264, -0.0522, -0.1103),
    (-0.0280, -0.0881, -0.0499),
    (-0.1262, -0.0982, -0.0778),
)
PREVIEW_BIAS = (-0.0329, -0.0718, -0.0851)


def process_in(latent: Tensor) -> Tensor:
    """Autoencoder's scale -> the transformer's (about unit variance)."""
    return (latent - SHIFT) * SCALE


def process_out(latent: Tensor) -> Tensor:
    """The transformer's scale -> the autoencoder's."""
    return latent / SCALE + SHIFT


def fix_channels(latent: Tensor, channels: int = CHANNELS) -> Tensor:
    """Widen an empty latent of another model family (4 channels, all zero) to `channels` by repetition.

    Raises InputError for a latent of another family that is not empty: its values mean something else.
    """
    have = latent.shape[1]
    if have == channels:
        return latent
    if latent.count_nonzero():
        raise InputError(
            f"The latent has {have} channels and FLUX works on {channels}. "
            "Encode the image with the FLUX autoencoder, or start from an empty latent."
        )
    return latent.repeat(1, -(-channels // have), 1, 1)[:, :channels]


def noise(
    seed: int, shape: Sequence[int], batch_index: Sequence[int] | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal noise on the CPU: the same numbers for a seed everywhere.

    The generator uses the low 32 bits of the seed. Items are drawn one after the other, so item k of a batch does not
    depend on the batch's size; `batch_index` picks which draws the items are (and may repeat them).
    """
    generator = torch.Generator().manual_seed(seed)
    if batch_index is None:
        return torch.randn(*shape, generator=generator, dtype=dtype)
    draws = [torch.randn(1, *shape[1:], generator=generator, dtype=dtype) for _ in range(max(batch_index) + 1)]
    return torch.cat([draws[index] for index in batch_index])


def pack(latent: Tensor) -> Tensor:
    """[B, C, h, w] -> tokens [B, ceil(h/2)*ceil(w/2), 4C], row by row; odd sizes wrap around at the far edges."""
    height, width = latent.shape[-2:]
    latent = F.pad(latent, (0, width % 2, 0, height % 2), mode="circular")
    batch, channels, height, width = latent.shape
    patches = latent.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undo `pack`: tokens [B, L, 4C] -> [B, C, height, width]."""
    rows, columns = patches(height), patches(width)
    channels = tokens.shape[-1] // 4
    cells = tokens.reshape(-1, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(-1, channels, rows * 2, columns * 2)[..., :height, :width]


def patches(cells: int) -> int:
    """The number of patches that cover `cells` latent cells."""
    return (cells + 1) // 2


def image_ids(
    height: int, width: int, *, index: int = 0, top: int = 0, left: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Positions (index, row, column) of a latent's patches, [L, 3]. Sizes and offsets are in latent cells.

    bf16 counts exactly to 256; beyond that far positions coincide, as they do in the reference.
    """
    rows, columns, top, left = patches(height), patches(width), patches(top), patches(left)
    row = torch.linspace(top, top + rows - 1, rows, dtype=dtype)
    column = torch.linspace(left, left + columns - 1, columns, dtype=dtype)
    ids = torch.full((rows, columns, 3), index, dtype=dtype)
    ids[..., 1] = row[:, None]
    ids[..., 2] = column
    return ids.flatten(0, 1)


def place_references(
    height: int, width: int, sizes: Sequence[tuple[int, int]], method: str = "offset"
) -> list[tuple[int, int, int]]:
    """Positions of reference images beside a latent of height x width cells: (index, top, left) for each.

    offset  all on one sheet with index 1, each put below or to the right, whichever keeps the sheet more square
    index   one sheet each: 1, 2, 3...
    uxo     on the sheet of the image itself, along its diagonal
    """
    places = []
    bottom = right = 0
    for number, (rows, columns) in enumerate(sizes, start=1):
        if method == "index":
            places.append((number, 0, 0))
        elif method == "uxo":
            places.append((0, patches(height) * 2 + bottom, patches(width) * 2 + right))
            bottom, right = bottom + rows, right + columns
        else:
            top, left = (0, right) if rows + bottom > columns + right else (bottom, 0)
            places.append((1, top, left))
            bottom, right = max(bottom, rows + top), max(right, columns + left)
    return places


def preview(latent: Tensor) -> Tensor:
    """A rough image of one scaled latent [16, h, w]: uint8 [h, w, 3], one pixel per cell.

    Of another number of channels, which models in pixel space have: the mean of each colour.
    """
    if len(latent) != CHANNELS:
        colours = latent.unflatten(0, (1 if len(latent) % 3 else 3, -1)).mean(1).expand(3, -1, -1).movedim(0, -1)
        shown: Tensor = ((colours + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8)
        return shown
    factors = torch.tensor(PREVIEW_RGB, dtype=latent.dtype, device=latent.device)
    bias = torch.tensor(PREVIEW_BIAS, dtype=latent.dtype, device=latent.device)
    rgb = latent.movedim(0, -1) @ factors + bias
    return ((rgb + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8)
