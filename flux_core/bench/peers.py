"""The same step by diffusers and accelerate, on the same weights and the same GPU under the same cap.

Each is a part of `sluice bench gpu`, measured in a process of its own; one that does not fit is reported so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..memory.usage import CONTEXT_BYTES
from ..runtime import handles
from ..runtime.runtime import Runtime
from ..runtime.settings import Settings
from .files import path_of
from .gpu_parts import Part, Tell
from .transformer import diffusers_twin

WARM = 1  # steps that are not timed


def measure_peer(part: Part, tell: Tell) -> None:
    """Seconds of a step of the peer that `part.files` names after the file, at every size."""
    runtime = Runtime(Settings(part.setup.device, "bf16"))
    device = runtime.device
    file, name = part.files
    if part.cap is not None and device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, (part.cap - CONTEXT_BYTES) / total), device)
    ours = handles.load_flux(runtime, path_of(part.setup.folder, file)).weights.module(
        torch.device("cpu"), torch.bfloat16
    )
    model = diffusers_twin(ours)
    assert model is not None
    PEERS[name](model.requires_grad_(False), device)
    for width, height in part.sizes:
        record: dict[str, Any] = {"peer": name, "file": file, "width": width, "height": height}
        try:
            step = _step(model, device, width, height, part.setup.tokens)
            seconds = [_timed(step, device) for _ in range(WARM + part.setup.steps)][WARM:]
            record |= {"step_seconds": sum(seconds) / len(seconds), "best_seconds": min(seconds)}
        except (torch.OutOfMemoryError, MemoryError) as error:
            record |= {"failed": str(error).splitlines()[0] if str(error) else type(error).__name__}
        if device.type == "cuda":
            record["peak_bytes"] = torch.cuda.max_memory_reserved(device)
        tell(record)


def _step(model: nn.Module, device: torch.device, width: int, height: int, tokens: int) -> Callable[[], Any]:
    columns, rows = width // 16, height // 16
    count = columns * rows
    made = torch.empty(0, device=device, dtype=torch.bfloat16)
    ids = torch.zeros(count, 3, device=device)
    ids[:, 1], ids[:, 2] = torch.arange(count) // columns, torch.arange(count) % columns
    inputs = {
        "hidden_states": torch.randn(1, count, 64).to(made),
        "encoder_hidden_states": torch.randn(1, tokens, 4096).to(made),
        "pooled_projections": torch.randn(1, 768).to(made),
        "timestep": made.new_ones(1),
        "guidance": made.new_full((1,), 3.5),
        "img_ids": ids,
        "txt_ids": torch.zeros(tokens, 3, device=device),
    }

    @torch.inference_mode()
    def step() -> Any:
        return model(**inputs, return_dict=False)[0]

    return step


def _timed(step: Callable[[], Any], device: torch.device) -> float:
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def group_blocks(model: Any, device: torch.device) -> None:
    _group(model, device, offload_type="block_level", num_blocks_per_group=1)


def group_leaves(model: Any, device: torch.device) -> None:
    _group(model, device, offload_type="leaf_level")


def _group(model: Any, device: torch.device, **how: Any) -> None:
    streams = device.type == "cuda"
    model.enable_group_offload(
        onload_device=device, offload_device=torch.device("cpu"), use_stream=streams, record_stream=streams, **how
    )


def sequential(model: Any, device: torch.device) -> None:
    from accelerate import cpu_offload

    cpu_offload(model, device)


def whole_model(model: Any, device: torch.device) -> None:
    from accelerate import cpu_offload_with_hook

    cpu_offload_with_hook(model, device)


GROUPS = "diffusers group offload, "  # the one of the target
NEEDED = ("diffusers", "accelerate")  # group offloading uses the latter as well
PEERS: dict[str, Callable[[Any, torch.device], None]] = {
    GROUPS + "leaves, streams": group_leaves,
    GROUPS + "blocks, streams": group_blocks,
    "accelerate sequential offload": sequential,
    "accelerate model offload": whole_model,
}
