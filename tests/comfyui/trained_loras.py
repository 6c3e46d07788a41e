"""A LoRA file as `sluice train lora` writes it, in both kinds of names: the same matrices in ComfyUI and in diffusers.

    python tests/comfyui/trained_loras.py /path/to/ComfyUI

ComfyUI's own `load_lora_for_models` makes patches of each file for its FLUX model, here with two blocks, and its
`calculate_weight` applies them. diffusers' loader, if it is installed, translates both files to its own names. Every
change of a matrix must be alpha / rank B A of what was trained.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from inside import enter

ROOT = Path(__file__).parents[2]
RANK, ALPHA = 4, 2.0
SIZES = {  # FLUX.1's width, which diffusers expects, with one block of each kind
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 64, "context_in_dim": 64, "hidden_size": 3072, "num_heads": 24,
    "mlp_ratio": 4.0, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2,
    "qkv_bias": True, "guidance_embed": True,
}  # fmt: skip
Pair = tuple[torch.Tensor, torch.Tensor]  # B [out, rank] times its factor, and A [rank, in]
CLOSE = 0.02  # of the largest value: the files have bfloat16, and PEFT's names have alpha in B


def package() -> None:
    """Make this repository the package `sluice`."""
    spec = importlib.util.spec_from_file_location(
        "sluice", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["sluice"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def trained(folder: Path) -> tuple[dict[str, Pair], dict[str, Path]]:
    """Random pairs of all layers: the change of each matrix, and files by the kind of their names."""
    from sluice.flux_core.models.flux import Flux
    from sluice.flux_core.models.flux_config import flux1
    from sluice.flux_core.training.lora.adapter import chosen_layers
    from sluice.flux_core.training.lora.lora_file import write_lora
    from sluice.flux_core.training.lora.settings import LoraSettings

    config = replace(flux1(), depth=1, depth_single=1, context_dim=64, vec_dim=64)
    with torch.device("meta"):
        flux = Flux(config)
    generator = torch.Generator().manual_seed(0)
    masters, changes = {}, {}
    for path, (outputs, inputs) in chosen_layers(flux, "all").items():
        down, up = (torch.randn(shape, generator=generator) for shape in ((RANK, inputs), (outputs, RANK)))
        masters[f"{path}.down"], masters[f"{path}.up"] = down, up
        changes[f"{path}.weight"] = ALPHA / RANK * up, down
    shapes = {name: tuple(parameter.shape) for name, parameter in flux.named_parameters()}
    files = {}
    for keys in ("kohya", "peft"):
        files[keys] = folder / f"{keys}.safetensors"
        write_lora(files[keys], masters, LoraSettings(rank=RANK, alpha=ALPHA), shapes, {}, keys)
    return changes, files


def in_comfyui(path: Path, changes: dict[str, Pair]) -> float:
    """The largest difference of a matrix's change there, as a part of its largest value."""
    import comfy.lora
    import comfy.model_base
    import comfy.model_patcher
    import comfy.sd
    import comfy.supported_models
    import comfy.utils

    config = comfy.supported_models.Flux({"image_model": "flux", **SIZES})
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.Flux(config, device=torch.device("cpu"))
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
    changed, _ = comfy.sd.load_lora_for_models(patcher, None, tensors, 1.0, 0.0)
    prefix, worst = "diffusion_model.", 0.0
    assert {name.removeprefix(prefix) for name in changed.patches} == changes.keys(), "other layers are changed"
    for name, (up, down) in changes.items():
        expected = up @ down
        found = comfy.lora.calculate_weight(changed.patches[prefix + name], torch.zeros_like(expected), prefix + name)
        worst = max(worst, apart(found, expected))
    return worst


def in_diffusers(files: dict[str, Path]) -> float:
    """The largest difference between the changes that diffusers reads from the two files."""
    from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin
    from safetensors.torch import load_file

    read = {}
    for keys, path in files.items():
        tensors, alphas = FluxLoraLoaderMixin.lora_state_dict(load_file(path), return_alphas=True)
        read[keys] = products(tensors, alphas or {})
    assert read["kohya"].keys() == read["peft"].keys() and read["peft"], "other layers are changed"
    return max(apart(*(up @ down for up, down in (read[keys][name] for keys in files))) for name in read["peft"])


def products(tensors: dict[str, torch.Tensor], alphas: dict[str, Any]) -> dict[str, Pair]:
    """The pairs by diffusers' names."""
    found: dict[str, Pair] = {}
    for name, down in tensors.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            scale = float(alphas.get(f"{layer}.alpha", down.shape[0])) / down.shape[0]
            found[layer] = scale * tensors[f"{layer}.lora_B.weight"].float(), down.float()
    return found


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", help="a checkout")
    args = parser.parse_args()
    enter(args.comfyui)
    package()
    with tempfile.TemporaryDirectory() as folder:
        changes, files = trained(Path(folder))
        differences = {f"ComfyUI, {keys}": in_comfyui(path, changes) for keys, path in files.items()}
        if importlib.util.find_spec("diffusers"):
            differences["diffusers, kohya beside peft"] = in_diffusers(files)
        else:
            print("diffusers is not installed")
    for place, difference in differences.items():
        print(f"{place}: {len(changes)} matrices, at most {difference:.4f} of the largest value apart")
    return int(max(differences.values()) > CLOSE)


if __name__ == "__main__":
    sys.exit(main())
