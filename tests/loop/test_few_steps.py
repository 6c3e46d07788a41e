"""The shipped workflows with LoRAs for few steps, on a dev of random weights under the published names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sluice.flux_core.commands.flux1_workflows import FOLDER, KINDS

Run = Callable[..., list[Path]]
SMALL = ("--set", "Size.width=64", "--set", "Size.height=64")


@pytest.mark.parametrize(("name", "strength"), [("turbo_8_steps", 1.0), ("hyper_8_steps", 0.125)])
def test_they_run_with_the_lora_at_its_strength(
    name: str, strength: float, here: Path, store: Path, sluice_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """The image is that of weights with the LoRA added at this strength; dev alone gives another one."""
    weights = load_file(store / "diffusion_models/flux1-dev.safetensors")
    generator, module = torch.Generator().manual_seed(1), "double_blocks.0.img_attn.proj"
    rows, columns = weights[f"{module}.weight"].shape
    down, up = torch.randn(4, columns, generator=generator), torch.randn(rows, 4, generator=generator) / 4
    target = "transformer.transformer_blocks.0.attn.to_out.0"
    mine = here / "models"
    (mine / "loras").mkdir(parents=True)
    save_file({f"{target}.lora_A.weight": down, f"{target}.lora_B.weight": up}, mine / "loras" / KINDS[name].file)
    [made] = sluice_run(FOLDER / f"{name}.json", "--models", str(mine), *SMALL)
    merged = {key: value.float() for key, value in weights.items()}
    merged[f"{module}.weight"] += strength * up @ down
    (mine / "diffusion_models").mkdir()
    save_file(merged, mine / "diffusion_models/merged.safetensors")
    shutil.copy(store / "diffusion_models/flux1-dev.safetensors", mine / "diffusion_models/plain.safetensors")
    without = ("--set", "LoraLoaderModelOnly.strength_model=0")
    images = [made, *(
        sluice_run(FOLDER / f"{name}.json", "--models", str(mine), *SMALL, *without, "--set", f"unet_name={unet}")[0]
        for unet in ("merged.safetensors", "plain.safetensors")
    )]  # fmt: skip
    found, expected, plain = (np.asarray(Image.open(image).convert("RGB")).astype(int) for image in images)
    assert abs(found - expected).max() <= 1 < abs(found - plain).max()
