"""The common parts of trainings of small networks: number type, settings of a CPU, sheets of samples."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 if the device multiplies it faster than float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # the answer is about the current card
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else torch.float32


@contextmanager
def fitting_for_small_networks(device: torch.device) -> Iterator[None]:
    """On a CPU: plain attention (the backward pass of the fused one is slow for 82 tokens), and memory that the process
    keeps, so that Linux does not clear it again for every tensor. Together they make training 1.5 times as fast."""
    if device.type != "cpu":
        yield
        return
    if sys.platform == "linux":
        keep_mapping, keep_top = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD in malloc.h
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(keep_mapping, 0)
            libc.mallopt(keep_top, 2**31 - 1)
    with sdpa_kernel(SDPBackend.MATH):
        yield


def save_sheet(path: Path, pixels: Tensor, columns: int = 8) -> None:
    """Pictures [N, 1 or 3, H, W] in -1..1 as one PNG, row by row; places left over in the last row are black."""
    image = ((pixels + 1) * 127.5).round().clamp(0, 255).byte()
    count, channels, height, width = image.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = image.new_zeros(rows * columns, channels, height, width)
    sheet[:count] = image
    sheet = sheet.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    made = Image.fromarray(sheet[0].numpy() if channels == 1 else sheet.movedim(0, -1).contiguous().numpy())
    made.save(path)
