"""Where this process computes and in which numbers: chosen once, by the program around the nodes.

    fp32   the reference: equal to ComfyUI on a CPU
    bf16   what FLUX.1 was trained in; fast where the hardware multiplies it
    fp16   for GPUs from before bf16
    auto   the fastest of them without visible loss on the device that is there

Text encoders always compute in float32, as ComfyUI's do: their cost is small and their errors are not.

Does not know: models, files, budgets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..memory import external, meter

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """A device, and "auto" or the number type to compute in on it."""

    device: torch.device
    dtype: str = "auto"

    @property
    def model_dtype(self) -> torch.dtype:
        """For the transformer."""
        return _fastest(self.device) if self.dtype == "auto" else DTYPES[self.dtype]

    @property
    def autoencoder_dtype(self) -> torch.dtype:
        """Never float16, whose range the FLUX autoencoder leaves."""
        return torch.float32 if self.model_dtype is torch.float16 else self.model_dtype

    @property
    def total(self) -> int:
        """Bytes of the device's whole memory; a CPU's is the machine's, or the container's."""
        if self.device.type == "cuda":
            return int(torch.cuda.get_device_properties(self.device).total_memory)
        return meter.total_ram()

    @property
    def text_dtype(self) -> torch.dtype:
        return torch.float32


_current: list[Compute] = []


def configure(device: str | None = None, dtype: str | None = None) -> Compute:
    """Choose for this process. device: "cpu", "cuda", "cuda:1" or None for the best there is; dtype: see above.

    Handles that exist already follow at their next use. Raises InputError for what is not there.
    """
    if dtype not in (None, "auto", *DTYPES):
        raise InputError(f"There is no number type {dtype!r}; choose auto, {', '.join(DTYPES)}.")
    _current[:] = [Compute(_device(device), dtype or "auto")]
    return _current[0]


def current() -> Compute:
    """What was chosen, or what the program around us computes on, or the best there is."""
    around = external.current()
    return _current[0] if _current else configure(around.device if around else None)


def room(device: torch.device) -> int:
    """Bytes that could be allocated on the device now, by its own account and the limits set on this process."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return meter.available_ram()


def device_report() -> list[dict[str, Any]]:
    """The device as ComfyUI's /system_stats tells it. Memory in bytes; on a CPU it is the machine's or container's."""
    device = current().device
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device)
        name, spare = torch.cuda.get_device_name(device), held - torch.cuda.memory_allocated(device)
    else:
        total, free = meter.total_ram(), room(device)
        name, held, spare = str(device), total, free
    return [{
        "name": name, "type": device.type, "index": device.index, "vram_total": total, "vram_free": free,
        "torch_vram_total": held, "torch_vram_free": spare,
    }]  # fmt: skip


def _device(name: str | None) -> torch.device:
    if name in (None, "auto"):
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"There is no device {name!r}; choose cpu, cuda or cuda:N.") from None
    if device.type != "cuda":
        try:  # which of PyTorch's other devices are there, only using them tells
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, ImportError):  # NotImplementedError is a RuntimeError
            raise InputError(f"{name} cannot be computed on here. Choose cpu, cuda or cuda:N.") from None
        return device
    if not torch.cuda.is_available():
        raise InputError(f"There is no {name}: PyTorch {torch.__version__} sees no CUDA or ROCm GPU. Choose cpu.")
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise InputError(f"There is no {name}; this machine has {count} GPU{'s' if count > 1 else ''}, from cuda:0.")
    return torch.device("cuda", device.index or 0)


@cache
def _fastest(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        tensor_cores = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (7, 0)
        return torch.float16 if tensor_cores else torch.float32  # older cards multiply float16 at 1/64 of the speed
    return torch.bfloat16 if device.type == "cpu" and _multiplies_bfloat16() else torch.float32


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions that multiply bfloat16: AVX512-BF16, AMX, or Arm's BF16."""
    flags = _cpu_flags()
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux: PyTorch knows the two of x86
        known = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
        return {flag for flag, name in known.items() if getattr(torch.cpu, name, lambda: False)()}
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())
