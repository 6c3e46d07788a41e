"""comfy.model_management: devices, number types, free memory, and a way to stop.

Our own memory manager holds the weights of our models. It loads and unloads them when needed, so packs' calls to load
or unload them do nothing. A pack's own network is moved to its device, and the manager makes room for it there.
"""

from __future__ import annotations

import contextlib
import enum
import gc
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor

from ....errors import BudgetTooSmall, Interrupted
from ....limits import is_out_of_memory
from ....memory import meter
from ....runtime.device import room, total_bytes
from ....runtime.runtime import Runtime
from ...engine import current

__all__ = [
    "CPUState", "DISABLE_SMART_MEMORY", "EXTRA_RESERVED_VRAM", "FLOAT8_TYPES", "InterruptProcessingException",
    "OOM_EXCEPTION", "VRAMState", "XFORMERS_IS_AVAILABLE", "cast_to", "cast_to_device", "cleanup_models",
    "cleanup_models_gc", "cpu_mode", "current_loaded_models", "device_should_use_non_blocking",
    "device_supports_non_blocking", "directml_enabled", "dtype_size", "extra_reserved_memory",
    "flash_attention_enabled", "force_channels_last", "force_upcast_attention_dtype", "free_memory",
    "get_autocast_device", "get_free_memory", "get_offload_stream", "get_supported_float8_types",
    "get_torch_device", "get_torch_device_name", "get_total_memory", "in_training", "intermediate_device",
    "intermediate_dtype", "interrupt_current_processing", "is_amd", "is_ascend_npu", "is_device_cpu",
    "is_device_cuda", "is_device_mps", "is_device_type", "is_device_xpu", "is_directml_enabled", "is_intel_xpu",
    "is_mlu", "is_nvidia", "load_model_gpu", "load_models_gpu", "loaded_models", "lowvram_available",
    "maximum_vram_for_weights", "minimum_inference_memory", "module_size", "mps_mode", "pick_weight_dtype",
    "processing_interrupted", "pytorch_attention_enabled", "raise_non_oom", "sage_attention_enabled",
    "should_use_bf16", "should_use_fp16", "soft_empty_cache", "supports_cast", "supports_dtype",
    "supports_fp8_compute", "sync_stream", "text_encoder_device", "text_encoder_dtype",
    "text_encoder_offload_device", "throw_exception_if_processing_interrupted", "unet_dtype",
    "unet_inital_load_device", "unet_manual_cast", "unet_offload_device", "unload_all_models",
    "unload_model_clones", "vae_device", "vae_dtype", "vae_offload_device", "xformers_enabled",
    "xformers_enabled_vae", "xpu_available",
]  # fmt: skip

InterruptProcessingException = Interrupted
OOM_EXCEPTION = torch.cuda.OutOfMemoryError
EXTRA_RESERVED_VRAM = 400 << 20
FLOAT8_TYPES = [torch.float8_e4m3fn, torch.float8_e5m2]
XFORMERS_IS_AVAILABLE = DISABLE_SMART_MEMORY = in_training = False
xpu_available = directml_enabled = False
lowvram_available = True
current_loaded_models: list[Any] = []  # our models are in our own ledger
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def compute() -> Runtime:
    """The device on which models are loaded, and its number types."""
    return current().runtime


class VRAMState(enum.Enum):
    DISABLED, NO_VRAM, LOW_VRAM, NORMAL_VRAM, HIGH_VRAM, SHARED = range(6)


class CPUState(enum.Enum):
    GPU, CPU, MPS = range(3)


COMPUTED = ("cpu_state", "total_ram", "total_vram", "vram_state")


def __getattr__(name: str) -> Any:
    """Values that are known only once the device is known."""
    values: dict[str, Callable[[], Any]] = {
        "vram_state": lambda: VRAMState.DISABLED if cpu_mode() else VRAMState.NORMAL_VRAM,
        "cpu_state": lambda: CPUState.CPU if cpu_mode() else CPUState.GPU,
        "total_vram": lambda: total_bytes(compute().device) / (1 << 20),
        "total_ram": lambda: psutil.virtual_memory().total / (1 << 20),
    }
    if name in values:
        return values[name]()
    raise AttributeError(name)


# -- devices and number types ------------------------------------------------------------------------------------------


def get_torch_device() -> torch.device:
    return compute().device


def unet_offload_device() -> torch.device:
    return torch.device("cpu")


text_encoder_offload_device = vae_offload_device = intermediate_device = unet_offload_device


def text_encoder_device() -> torch.device:
    return compute().device


vae_device = text_encoder_device


def unet_inital_load_device(parameters: int, dtype: torch.dtype) -> torch.device:
    return torch.device("cpu")


def get_torch_device_name(device: Any) -> str:
    device = torch.device(device)
    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def get_autocast_device(dev: Any) -> str:
    return torch.device(dev).type


def is_device_type(device: Any, type: str) -> bool:
    return bool(getattr(device, "type", device) == type)


def is_device_cpu(device: Any) -> bool:
    return is_device_type(device, "cpu")


def is_device_cuda(device: Any) -> bool:
    return is_device_type(device, "cuda")


def is_device_mps(device: Any) -> bool:
    return is_device_type(device, "mps")


def is_device_xpu(device: Any) -> bool:
    return is_device_type(device, "xpu")


def cpu_mode() -> bool:
    return compute().device.type == "cpu"


def mps_mode() -> bool:
    return compute().device.type == "mps"


def is_nvidia() -> bool:
    return compute().device.type == "cuda" and torch.version.hip is None


def is_amd() -> bool:
    return compute().device.type == "cuda" and torch.version.hip is not None


def _no(*args: Any, **kwargs: Any) -> bool:
    """The answer False for anything that does not exist here."""
    return False


is_intel_xpu = supports_fp8_compute = is_ascend_npu = is_mlu = is_directml_enabled = _no
xformers_enabled = xformers_enabled_vae = sage_attention_enabled = flash_attention_enabled = force_channels_last = _no


def pytorch_attention_enabled() -> bool:
    return True


def force_upcast_attention_dtype() -> dict[torch.dtype, torch.dtype] | None:
    return None


def dtype_size(dtype: torch.dtype) -> int:
    return dtype.itemsize


def unet_dtype(
    device: Any = None,
    model_params: int = 0,
    supported_dtypes: Sequence[torch.dtype] = _DTYPES,
    weight_dtype: torch.dtype | None = None,
) -> torch.dtype:
    """The number type of this program, if the model supports it."""
    wanted = compute().model_dtype
    return wanted if wanted in supported_dtypes else torch.float32


def vae_dtype(device: Any = None, allowed_dtypes: Sequence[torch.dtype] = ()) -> torch.dtype:
    wanted = compute().autoencoder_dtype
    return wanted if not allowed_dtypes or wanted in allowed_dtypes else torch.float32


def text_encoder_dtype(device: Any = None) -> torch.dtype:
    return compute().text_dtype


def intermediate_dtype() -> torch.dtype:
    return torch.float32


def unet_manual_cast(
    weight_dtype: torch.dtype, inference_device: Any, supported_dtypes: Sequence[torch.dtype] = _DTYPES
) -> torch.dtype | None:
    """The type to compute in, if it differs from that of the weights."""
    wanted = unet_dtype(inference_device, supported_dtypes=supported_dtypes)
    return None if wanted == weight_dtype else wanted


def pick_weight_dtype(dtype: torch.dtype | None, fallback_dtype: torch.dtype, device: Any = None) -> torch.dtype:
    return fallback_dtype if dtype is None else dtype


def should_use_fp16(
    device: Any = None, model_params: int = 0, prioritize_performance: bool = True, manual_cast: bool = False
) -> bool:
    return not is_device_cpu(device) and compute().model_dtype is torch.float16


def should_use_bf16(
    device: Any = None, model_params: int = 0, prioritize_performance: bool = True, manual_cast: bool = False
) -> bool:
    return compute().model_dtype is torch.bfloat16


def supports_dtype(device: Any, dtype: torch.dtype) -> bool:
    return dtype is torch.float32 or (not is_device_cpu(device) and dtype in _DTYPES)


def supports_cast(device: Any, dtype: torch.dtype) -> bool:
    return dtype in (*_DTYPES, *FLOAT8_TYPES)


def device_supports_non_blocking(device: Any) -> bool:
    return is_device_cuda(device)


device_should_use_non_blocking = device_supports_non_blocking


def get_supported_float8_types() -> list[torch.dtype]:
    """All types with eight bits, which only store weights here."""
    return FLOAT8_TYPES


def get_offload_stream(device: Any) -> None:
    """None: packs' own modules are moved on the stream that computes."""


def sync_stream(device: Any, stream: Any) -> None:
    """Does nothing: see `get_offload_stream`."""


def cast_to(
    weight: Tensor,
    dtype: torch.dtype | None = None,
    device: Any = None,
    non_blocking: bool = False,
    copy: bool = False,
    stream: Any = None,
) -> Tensor:
    return weight.to(device=device, dtype=dtype, non_blocking=non_blocking, copy=copy)


def cast_to_device(tensor: Tensor, device: Any, dtype: torch.dtype, copy: bool = False) -> Tensor:
    return tensor.to(device=device, dtype=dtype, copy=copy)


# -- memory ------------------------------------------------------------------------------------------------------------


def get_total_memory(dev: Any = None, torch_total_too: bool = False) -> Any:
    """Bytes of the device's whole memory."""
    device = compute().device if dev is None else torch.device(dev)
    total = total_bytes(compute().device) if device == compute().device else meter.total_ram()
    return (total, total) if torch_total_too else total


def get_free_memory(dev: Any = None, torch_free_too: bool = False) -> Any:
    """Bytes that could be allocated now."""
    free = room(compute().device if dev is None else torch.device(dev))
    return (free, free) if torch_free_too else free


def maximum_vram_for_weights(device: Any = None) -> float:
    return float(get_total_memory(device) * 0.88 - minimum_inference_memory())


def extra_reserved_memory() -> int:
    return EXTRA_RESERVED_VRAM


def minimum_inference_memory() -> int:
    return (1 << 30) * 8 // 10 + EXTRA_RESERVED_VRAM


def module_size(module: Any) -> int:
    return sum(tensor.nelement() * tensor.element_size() for tensor in module.state_dict().values())


def _done_when_needed(*args: Any, **kwargs: Any) -> None:
    """Our models are moved to the device when they compute, and freed when others need the memory."""


cleanup_models = cleanup_models_gc = unload_model_clones = _done_when_needed


def free_memory(memory_required: float, device: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """Free this many bytes of the device, as far as our models hold them. No model of a pack is unloaded."""
    manager = compute().managers.get(torch.device(device))
    if manager is not None:
        with contextlib.suppress(BudgetTooSmall):
            manager.reclaim("A node pack", int(min(memory_required, total_bytes(compute().device))))
    return []


def load_models_gpu(models: Sequence[Any], memory_required: float = 0, *args: Any, **kwargs: Any) -> None:
    """Move packs' own networks (model_patcher.ModelPatcher) to their devices, after making room there."""
    for model in models:
        if getattr(model, "_handle", True) is None and model.current_loaded_device() != model.load_device:
            free_memory(model.model_size() + memory_required, model.load_device)
            model.patch_model(model.load_device)


def load_model_gpu(model: Any) -> None:
    load_models_gpu([model])


def loaded_models(only_currently_used: bool = False) -> list[Any]:
    return []


def soft_empty_cache(force: bool = False) -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def unload_all_models() -> None:
    """Free everything that models hold and nothing uses now."""
    current().free()
    gc.collect()
    soft_empty_cache()


def raise_non_oom(error: Exception) -> None:
    """Raises the error again, unless memory ran out."""
    if not is_out_of_memory(error):
        raise error


# -- stopping ----------------------------------------------------------------------------------------------------------


def interrupt_current_processing(value: bool = True) -> None:
    if value:
        current().stop()


def processing_interrupted() -> bool:
    try:
        current().check_interrupted()
    except Interrupted:
        return True
    return False


def throw_exception_if_processing_interrupted() -> None:
    current().check_interrupted()
