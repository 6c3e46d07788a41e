"""One step of the transformer at FLUX.1's width in bf16: ours beside diffusers', same sizes, same run.

2 + 4 blocks of hidden size 3072, 1024 image tokens (a 512x512 picture) and 512 text tokens, random weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..transformer import Flux, FluxConfig, axes_of

IMAGE_TOKENS, TEXT_TOKENS = 1024, 512
HEADS, HEAD, CONTEXT, POOLED = 24, 128, 4096, 768


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice bench step`."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--depth", type=int, nargs=2, default=(2, 4), metavar=("DOUBLE", "SINGLE"))
    parser.add_argument("--rounds", type=int, default=5, help="steps of each, in turns; the median counts")


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step for each, and the ratio."""
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype]
    device = torch.device(args.device)
    steps = {"ours": _ours(args.depth, device, dtype), "diffusers": _diffusers(args.depth, device, dtype)}
    present = {name: step for name, step in steps.items() if step is not None}
    seconds: dict[str, list[float]] = {name: [] for name in present}
    for counted in [False, *[True] * args.rounds]:
        for name, step in present.items():
            took = _timed(step, device)
            if counted:
                seconds[name].append(took)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    told = ", ".join(f"{name} {median:.3f} s" for name, median in medians.items())
    result: dict[str, Any] = {f"{name}_s": round(median, 4) for name, median in medians.items()}
    if "diffusers" in medians:
        result["ratio"] = round(medians["ours"] / medians["diffusers"], 3)
        told += f": {result['ratio']} of diffusers' time"
    print(f"a step in {args.dtype} on {device}: {told} (median of {args.rounds})")
    return result


def _timed(step: Callable[[], Any], device: torch.device) -> float:
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _ours(depth: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    hidden = HEADS * HEAD
    config = FluxConfig(
        in_channels=16, out_channels=16, hidden=hidden, heads=HEADS, head_dim=HEAD, mlp=4 * hidden, depth=depth[0],
        depth_single=depth[1], context_dim=CONTEXT, vec_dim=POOLED, guidance=True, axes_dim=axes_of(HEAD),
    )  # fmt: skip
    with torch.device("meta"):
        module = Flux(config)
    _fill(module.to(dtype), device)
    side = 2 * int(IMAGE_TOKENS**0.5)
    x = torch.randn(1, 16, side, side, device=device, dtype=dtype)
    context = torch.randn(1, TEXT_TOKENS, CONTEXT, device=device, dtype=dtype)
    pooled = torch.randn(1, POOLED, device=device, dtype=dtype)
    time_, guidance = torch.ones(1, device=device), torch.full((1,), 3.5, device=device, dtype=dtype)
    return lambda: module(x, time_, context, pooled, guidance)


def _diffusers(depth: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Callable[[], Any] | None:
    try:
        from diffusers import FluxTransformer2DModel
    except ModuleNotFoundError:
        return None
    with torch.device("meta"):
        module = FluxTransformer2DModel(
            in_channels=64, num_layers=depth[0], num_single_layers=depth[1], attention_head_dim=HEAD,
            num_attention_heads=HEADS, joint_attention_dim=CONTEXT, pooled_projection_dim=POOLED, guidance_embeds=True,
        )  # fmt: skip
    _fill(module.to(dtype), device)
    side = int(IMAGE_TOKENS**0.5)
    tokens = torch.randn(1, IMAGE_TOKENS, 64, device=device, dtype=dtype)
    rows = torch.arange(float(side))
    ids = torch.cartesian_prod(torch.zeros(1), rows, rows).to(device)
    inputs = {
        "hidden_states": tokens,
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, CONTEXT, device=device, dtype=dtype),
        "pooled_projections": torch.randn(1, POOLED, device=device, dtype=dtype),
        "timestep": torch.ones(1, device=device, dtype=dtype),
        "guidance": torch.full((1,), 3.5, device=device, dtype=dtype),
        "img_ids": ids,
        "txt_ids": torch.zeros(TEXT_TOKENS, 3, device=device),
    }
    return lambda: module(**inputs)


def _fill(module: nn.Module, device: torch.device) -> None:
    """Bring a module from the meta device, with small random weights."""
    module.to_empty(device=device)
    for parameter in module.parameters():
        parameter.normal_(std=0.02)
    module.eval()
