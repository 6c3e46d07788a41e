"""Devices and number types: which devices exist, what they support, how much memory they have.

Text encoders always compute in float32, as in ComfyUI: this costs little, while their rounding errors would be visible.

Independent of: models, files, budgets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..memory import meter, rates

PROBED = 512, 2048  # tokens and width of the linear layer by which a card's number types are measured
GAIN = 1.1  # of float16 over float32, from which it is used
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def find_device(name: str | None) -> torch.device:
    """The device of this name; None or "auto": the first GPU, or else the CPU. Raises InputError if it does not
    exist.
    """
    if name in (None, "auto"):
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"There is no device {name!r}; choose cpu, cuda or cuda:N.") from None
    if device.type != "cuda":
        try:  # whether another kind of PyTorch device is available shows only when it is used
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, ImportError):  # NotImplementedError is a RuntimeError
            raise InputError(f"The device {name} cannot be used here. Choose cpu, cuda or cuda:N.") from None
        return device
    if not torch.cuda.is_available():
        raise InputError(f"There is no {name}: PyTorch {torch.__version__} finds no CUDA or ROCm GPU. Choose cpu.")
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise InputError(f"There is no {name}; this machine has {count} GPU{'s' if count > 1 else ''}, from cuda:0.")
    return torch.device("cuda", device.index or 0)


def model_dtype(device: torch.device, name: str) -> torch.dtype:
    """The number type of the transformer. name: one of DTYPES, or "auto"."""
    return _fastest(device) if name == "auto" else DTYPES[name]


def autoencoder_dtype(of_model: torch.dtype, device: torch.device) -> torch.dtype:
    """The autoencoder's number type for a transformer's: the same, but on a CPU not float16, which is slow."""
    return torch.float32 if of_model is torch.float16 and device.type == "cpu" else of_model


TEXT_DTYPE = torch.float32


def total_bytes(device: torch.device) -> int:
    """The device's total memory; for a CPU that of the machine or the container."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return meter.total_ram()


def room(device: torch.device) -> int:
    """Bytes that can be allocated on the device now, as the device reports and the limits of this process allow."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return meter.available_ram()


def device_report(device: torch.device) -> dict[str, Any]:
    """One device in the format of ComfyUI's /system_stats. Bytes; for a CPU they are the machine's or container's."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device)
        name, spare = torch.cuda.get_device_name(device), held - torch.cuda.memory_allocated(device)
    else:
        total, free = meter.total_ram(), room(device)
        name, held, spare = str(device), total, free
    return {
        "name": name, "type": device.type, "index": device.index, "vram_total": total, "vram_free": free,
        "torch_vram_total": held, "torch_vram_free": spare,
    }  # fmt: skip


def _fastest(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it; other cards are measured for some milliseconds."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # the answer is about the current card
            bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if bfloat16:
            return torch.bfloat16
        half, single = (rates.gemm_rate(device, dtype, *PROBED) for dtype in (torch.float16, torch.float32))
        return torch.float16 if half >= GAIN * single else torch.float32  # the GTX 10 series has float16 at 1/64
    return torch.bfloat16 if device.type == "cpu" and _multiplies_bfloat16() else torch.float32


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions that multiply bfloat16: AVX512-BF16, AMX, or Arm's BF16."""
    flags = _cpu_flags()
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux: PyTorch can tell the two of x86
        known = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
        return {flag for flag, name in known.items() if getattr(torch.cpu, name, lambda: False)()}
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())
