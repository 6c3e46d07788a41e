"""One step of the transformer at FLUX.1's width, ours and diffusers', on the same weights, in turns, in one process.

2 + 4 blocks of hidden size 3072, 1024 image tokens (a 512x512 image) and 512 text tokens, guidance, random weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..checkpoint.names import FUSED, SWAPPED, flux_diffusers
from ..models import latents
from ..models.denoiser_inputs import DenoiserInputs
from ..models.flux import Flux
from ..models.flux_config import FluxConfig, axes_of
from ..runtime.device import DTYPES
from .table import table

IMAGE_TOKENS, TEXT_TOKENS = 1024, 512
HEADS, HEAD, CONTEXT, POOLED = 24, 128, 4096, 768

Step = Callable[[], Tensor]  # -> the velocity in patches [1, image tokens, 64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice bench transformer`."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--depth", type=int, nargs=2, default=(2, 4), metavar=("DOUBLE", "SINGLE"))
    parser.add_argument(
        "--heads", type=int, default=HEADS, help="attention heads of 128 numbers each; fewer for a quick try"
    )
    parser.add_argument("--rounds", type=int, default=5, help="steps of each program, measured alternately")


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step for each, best and median, and the ratios."""
    device = torch.device(args.device)
    flux = random_flux(args.depth, args.heads, device, DTYPES[args.dtype])
    steps = steps_of(flux, device)
    results = {name: step() for name, step in steps.items()}  # this round is the warm-up too
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(args.rounds):
        for name, step in steps.items():
            seconds[name].append(_timed(step, device))
        told = ", ".join(f"{name} {each[-1]:.3f} s" for name, each in seconds.items())
        print(f"round {number + 1} of {args.rounds}: {told}", file=sys.stderr)
    best = {name: min(each) for name, each in seconds.items()}
    median = {name: statistics.median(each) for name, each in seconds.items()}
    print(
        f"a transformer step: {args.depth[0]}+{args.depth[1]} blocks of width {flux.config.hidden}, "
        f"{IMAGE_TOKENS} image and {TEXT_TOKENS} text tokens, {args.dtype} on {device}, "
        f"{torch.get_num_threads()} threads, {args.rounds} rounds"
    )
    print(table([("", "best", "median"), *((name, f"{best[name]:.3f} s", f"{median[name]:.3f} s") for name in steps)]))
    found: dict[str, Any] = {}
    for name in steps:
        found |= {f"{name}_best_s": round(best[name], 4), f"{name}_median_s": round(median[name], 4)}
    if "diffusers" not in steps:
        print("diffusers is not installed, so there is nothing to compare with: pip install diffusers transformers")
        return found
    ratios = {kind: round(each["ours"] / each["diffusers"], 3) for kind, each in (("best", best), ("median", median))}
    distance = float((results["ours"] - results["diffusers"]).norm() / results["diffusers"].norm())
    print(table([("ours / diffusers", *(f"{ratio:.3f}" for ratio in ratios.values()))]))
    print(f"the two results differ by {distance:.1%}")
    return {**found, "ratio_best": ratios["best"], "ratio": ratios["median"], "difference": round(distance, 5)}


def _timed(step: Step, device: torch.device) -> float:
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def random_flux(depth: tuple[int, int], heads: int, device: torch.device, dtype: torch.dtype) -> Flux:
    """A FLUX.1 of so many blocks, with small random matrices, norms of 1 and biases of 0."""
    hidden = heads * HEAD
    config = FluxConfig(
        in_channels=16, out_channels=16, hidden=hidden, heads=heads, head_dim=HEAD, mlp=4 * hidden, depth=depth[0],
        depth_single=depth[1], context_dim=CONTEXT, vec_dim=POOLED, guidance=True, axes_dim=axes_of(HEAD),
    )  # fmt: skip
    with torch.device("meta"):
        flux = Flux(config)
    flux.to(dtype).to_empty(device=device)
    for name, parameter in flux.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02)
        else:
            parameter.fill_(1.0 if name.endswith("scale") else 0.0)
    return flux.eval()


def steps_of(flux: Flux, device: torch.device) -> dict[str, Step]:
    """Our step and, where diffusers is installed, theirs, on the same weights and inputs."""
    dtype = next(flux.parameters()).dtype
    side = 2 * int(IMAGE_TOKENS**0.5)  # of the latent, in cells
    x = torch.randn(1, 16, side, side, device=device, dtype=dtype)
    context = torch.randn(1, TEXT_TOKENS, CONTEXT, device=device, dtype=dtype)
    pooled = torch.randn(1, POOLED, device=device, dtype=dtype)
    moment, guidance = torch.full((1,), 0.5, device=device), torch.full((1,), 3.5, device=device, dtype=dtype)
    asked = DenoiserInputs(x, moment, context, pooled, guidance)
    steps: dict[str, Step] = {"ours": lambda: latents.pack(flux(asked))}
    theirs = diffusers_twin(flux)
    if theirs is not None:
        rows = torch.arange(side / 2)
        inputs = {
            "hidden_states": latents.pack(x),
            "encoder_hidden_states": context,
            "pooled_projections": pooled,
            "timestep": moment.to(dtype),
            "guidance": guidance,
            "img_ids": torch.cartesian_prod(torch.zeros(1), rows, rows).to(device),
            "txt_ids": torch.zeros(TEXT_TOKENS, 3, device=device),
        }
        steps["diffusers"] = lambda: theirs(**inputs, return_dict=False)[0]
    return steps


def diffusers_twin(flux: Flux) -> nn.Module | None:
    """diffusers' transformer with the same memory as ours for its weights; None if it is not installed."""
    try:
        from diffusers import FluxTransformer2DModel
    except ModuleNotFoundError:
        return None
    config = flux.config
    with torch.device("meta"):
        module = cast(Callable[..., nn.Module], FluxTransformer2DModel)(
            in_channels=64, num_layers=config.depth, num_single_layers=config.depth_single, attention_head_dim=HEAD,
            num_attention_heads=config.heads, joint_attention_dim=CONTEXT, pooled_projection_dim=POOLED,
            guidance_embeds=True,
        )  # fmt: skip
    ours = flux.state_dict()
    module.load_state_dict({name: _theirs(name, ours) for name in module.state_dict()}, assign=True)
    return module.eval()


def _theirs(name: str, ours: Mapping[str, Tensor]) -> Tensor:
    """The tensor that diffusers calls `name`: a view of ours, except that of the last modulation."""
    target = flux_diffusers(name)
    assert target is not None, name
    tensor, part = ours[target[0]], target[1]
    if target[0].startswith(SWAPPED):
        return torch.cat(tensor.chunk(2)[::-1])
    module = target[0].rpartition(".")[0]
    if not module.endswith(tuple(FUSED)):
        return tensor
    hidden = ours["img_in.bias"].shape[0]
    rows = tensor[part * hidden :]
    return rows if part == 3 else rows[:hidden]  # the fourth part of linear1, the MLP's, is the rest
