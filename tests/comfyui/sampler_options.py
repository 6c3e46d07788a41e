"""Writes tests/fixtures/sampler_options.safetensors: ComfyUI's sampler nodes with options, on a toy denoiser.

    python tests/comfyui/sampler_options.py /path/to/ComfyUI

The cases are those of beside.py; the toy is that of tests/cpu/test_solvers.py. From seed 42 at 8 levels of FLUX.1-dev.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from beside import SAMPLERS, theirs
from inside import enter

FIXTURE = Path(__file__).parents[1] / "fixtures" / "sampler_options.safetensors"


class Toy:
    """D and U as functions of x and sigma, with what samplers ask of a model besides."""

    def __init__(self, sampling: Any) -> None:
        patcher = SimpleNamespace(get_model_object=lambda name: sampling)
        self.inner_model = SimpleNamespace(
            inner_model=SimpleNamespace(model_sampling=sampling), model_patcher=patcher, model_sampling=sampling
        )

    def __call__(self, x: Any, sigma: Any, model_options: dict[str, Any], seed: int | None = None) -> Any:
        import torch

        sigma = sigma.reshape(-1, 1, 1, 1)
        D, U = 0.7 * torch.tanh(x) + 0.2 * sigma, 0.5 * torch.tanh(x) - 0.1 * sigma
        for watch in model_options.get("sampler_post_cfg_function", ()):
            D = watch({"denoised": D, "uncond_denoised": U})
        return D


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comfyui")
    enter(parser.parse_args().comfyui)
    import comfy.model_sampling
    import torch
    from safetensors.torch import save_file

    import nodes

    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))

    bases = (comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST)
    sampling: Any = type("Sampling", bases, {})()
    noise = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(42))
    stride = len(sampling.sigmas) / 8
    sigmas = torch.tensor([float(sampling.sigmas[-(1 + int(j * stride))]) for j in range(8)] + [0.0])
    made: dict[str, Any] = {}
    for name, cases in SAMPLERS.items():
        for number, options in enumerate(cases):
            model = {"model": SimpleNamespace(get_model_object=lambda _: sampling)} if name == "SamplerSASolver" else {}
            node = theirs(name)
            if hasattr(node, "execute"):
                (sampler,) = node.execute(**options).result
            else:
                (sampler,) = getattr(node(), node.FUNCTION)(**options, **model)
            extra = {"seed": 42, "model_options": {}}
            run = sampler.sampler_function
            x = run(
                Toy(sampling),
                noise.clone(),
                sigmas,
                extra_args=extra,
                callback=None,
                disable=True,
                **sampler.extra_options,
            )
            made[f"{name}/{number}"] = x
    metadata = {
        "cases": json.dumps({f"{name}/{i}": one for name, cases in SAMPLERS.items() for i, one in enumerate(cases)})
    }
    save_file({"sigmas": sigmas, **made}, FIXTURE, metadata)


if __name__ == "__main__":
    main()
