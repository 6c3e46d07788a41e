"""The same step by others, on the same weights and the same GPU under the same cap: diffusers and accelerate.

Whatever is installed is measured, each in a process of its own; what does not fit says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .budget import AUTO, parse_size
from .units import picture_size
from .workload import MiB


def measure_peers(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds a step of every peer at every size."""
    found = []
    for size in args.size:
        width, height = picture_size(size)
        for name, (package, work) in PEERS.items():
            if importlib.util.find_spec(package) is None:
                continue
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                told = pool.apply(_measure, (work, str(args.folder), args.vram, width, height, args.tokens, args.steps))
            record = {"peer": name, "width": width, "height": height} | told
            seconds = f"{record['seconds']:.2f} s" if "seconds" in record else record["error"]
            print(f"{name} {size}: {seconds}, peak {record['peak_bytes'] / MiB:.0f} MiB", flush=True)
            found.append(record)
    return found


def _measure(
    work: Callable[[Any, torch.device], None], folder: str, vram: str, width: int, height: int, tokens: int, steps: int
) -> dict[str, Any]:
    device = torch.device("cuda")
    if vram != AUTO:
        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, parse_size(vram) / total), device)
    try:
        model = _diffusers_model(Path(folder) / "flux-bf16.safetensors")
        work(model, device)
        step = _step(model, device, width, height, tokens)
        seconds = [_timed(step) for _ in range(steps + 1)][1:]
        return {"seconds": min(seconds), "peak_bytes": torch.cuda.max_memory_reserved(device)}
    except (torch.OutOfMemoryError, MemoryError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        return {"error": told, "peak_bytes": torch.cuda.max_memory_reserved(device)}


def _diffusers_model(path: Path) -> Any:
    """The file's weights in diffusers' transformer, in RAM."""
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
    from safetensors.torch import load_file

    state = convert_flux_transformer_checkpoint_to_diffusers(load_file(path))
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _step(model: Any, device: torch.device, width: int, height: int, tokens: int) -> Callable[[], Any]:
    count, made = (width // 16) * (height // 16), {"device": device, "dtype": torch.bfloat16}
    ids = torch.zeros(count, 3, device=device)
    ids[:, 1], ids[:, 2] = torch.arange(count) // (width // 16), torch.arange(count) % (width // 16)
    inputs = {
        "hidden_states": torch.randn(1, count, 64, **made),
        "encoder_hidden_states": torch.randn(1, tokens, 4096, **made),
        "pooled_projections": torch.randn(1, 768, **made),
        "timestep": torch.ones(1, **made),
        "guidance": torch.full((1,), 3.5, **made),
        "img_ids": ids,
        "txt_ids": torch.zeros(tokens, 3, device=device),
    }

    @torch.inference_mode()
    def step() -> Any:
        return model(**inputs, return_dict=False)[0]

    return step


def _timed(step: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def group_blocks(model: Any, device: torch.device) -> None:
    model.enable_group_offload(
        onload_device=device, offload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1,
        use_stream=True, record_stream=True,
    )  # fmt: skip


def group_leaves(model: Any, device: torch.device) -> None:
    model.enable_group_offload(
        onload_device=device, offload_device=torch.device("cpu"), offload_type="leaf_level", use_stream=True,
        record_stream=True,
    )  # fmt: skip


def sequential(model: Any, device: torch.device) -> None:
    from accelerate import cpu_offload

    cpu_offload(model, device)


def whole_model(model: Any, device: torch.device) -> None:
    from accelerate import cpu_offload_with_hook

    cpu_offload_with_hook(model, device)


PEERS: dict[str, tuple[str, Callable[[Any, torch.device], None]]] = {
    "diffusers group offload, blocks, streams": ("diffusers", group_blocks),
    "diffusers group offload, leaves, streams": ("diffusers", group_leaves),
    "accelerate sequential offload": ("accelerate", sequential),
    "accelerate model offload": ("accelerate", whole_model),
}
