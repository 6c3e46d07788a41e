"""Describes the device, number type and memory: one sentence for the terminal, one record for the page.

Also warns if the installed PyTorch cannot use the NVIDIA card of this machine, and if a budget is impossible here.
"""

from __future__ import annotations

import ctypes.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from ..memory import meter
from ..memory.budget import Allowed, format_size
from ..memory.usage import CONTEXT_BYTES
from .device import total_bytes
from .runtime import Runtime

_NUMBERS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def device_notice(runtime: Runtime) -> dict[str, Any]:
    """{"name", "type", "dtype", "total_bytes", "free_bytes", "ram_bytes", "text", "warning"}; warning may be None."""
    (described,) = runtime.device_report()
    kind, numbers = runtime.device.type, _NUMBERS.get(runtime.model_dtype, str(runtime.model_dtype))
    name = described["name"] if kind != "cpu" else _processor()
    total, free = described["vram_total"], described["vram_free"]
    memory = "RAM" if kind == "cpu" else "VRAM"
    text = f"Computes on {name} in {numbers}: {format_size(total)} of {memory}, {format_size(free)} of it free."
    return {
        "name": name, "type": kind, "dtype": numbers, "total_bytes": total, "free_bytes": free,
        "ram_bytes": meter.total_ram(), "text": text, "warning": unused_card(runtime.device),
    }  # fmt: skip


def unused_card(device: torch.device) -> str | None:
    """What to do if an NVIDIA card is unused because PyTorch was built without CUDA; None if that is not the case."""
    if device.type != "cpu" or torch.version.cuda or torch.version.hip or not _has_nvidia_card():
        return None
    return (
        f"This machine has an NVIDIA card, but PyTorch {torch.__version__} is built for the CPU alone. Install the "
        "build for CUDA: pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu128 "
        "(cu126 for GTX 10 cards)."
    )


def budget_problem(runtime: Runtime, allowed: Allowed) -> str | None:
    """Why a budget is impossible on this machine; None if it is possible."""
    on_cpu, ram = runtime.device.type == "cpu", meter.total_ram()
    if allowed.vram is not None and on_cpu:
        return "There is no GPU here: models compute on the processor, and what limits them is RAM. Leave VRAM at auto."
    program = meter.resident_bytes()
    if allowed.ram is not None and allowed.ram < program:
        return _too_small("RAM", allowed.ram, f"this program takes {format_size(program)} before any model is loaded")
    if allowed.ram is not None and allowed.ram > ram:
        return _too_large("RAM", allowed.ram, ram)
    if allowed.vram is None:
        return None
    total = total_bytes(runtime.device)
    if allowed.vram < CONTEXT_BYTES:
        return _too_small("VRAM", allowed.vram, f"CUDA itself takes about {format_size(CONTEXT_BYTES)}")
    return _too_large("VRAM", allowed.vram, total) if allowed.vram > total else None


def _too_small(what: str, given: int, why: str) -> str:
    return f"{format_size(given)} of {what} is too little: {why}. Allow more, or auto."


def _too_large(what: str, given: int, there: int) -> str:
    return f"{format_size(given)} of {what} is more than there is: {format_size(there)}. Allow less, or auto."


def _has_nvidia_card() -> bool:
    """Whether NVIDIA's driver is installed, judged by its files: nothing is started."""
    if os.name == "nt":
        return ctypes.util.find_library("nvcuda") is not None
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _processor() -> str:
    """The product name of the processor, with its number of threads."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text("utf-8", "replace").splitlines())
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    threads = torch.get_num_threads()
    return f"{name or 'the CPU'} ({threads} thread{'s' if threads > 1 else ''})"
