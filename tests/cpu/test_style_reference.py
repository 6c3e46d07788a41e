"""Style references of USO: equal to ComfyUI's, and the same bits under a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from doubles.simulated import SimulatedMemory
from safetensors.torch import load_file, save_file
from sluice.flux_core.errors import FileFormatError, InputError
from sluice.flux_core.memory import workload
from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.memory.manager import Manager
from sluice.flux_core.memory.workload import MiB
from sluice.flux_core.models.clip_vision import VisionConfig, VisionEncoder, pixels_for
from sluice.flux_core.models.denoiser_inputs import DenoiserInputs
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.models.style_projector import StyleConfig, StyleProjector
from sluice.flux_core.runtime.handles import load_flux
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.runtime.vision import load_model_patch, load_vision
from sluice.flux_core.sampling.guider import BasicGuider
from sluice.flux_core.sampling.sample import Sampler, sample
from sluice.flux_core.sampling.schedule import simple
from sluice.flux_core.sampling.step_cache import StepCache
from sluice.nodes.redux import CLIPVisionEncode
from sluice.nodes.style_reference import USOStyleReference
from torch import Tensor, nn
from torch.testing import assert_close

Fill = Callable[[nn.Module], nn.Module]
Seeded = Callable[[str, Sequence[int]], Tensor]

CPU = torch.device("cpu")
REFERENCE = load_file(Path(__file__).parents[1] / "fixtures" / "style_reference.safetensors")
SIGLIP = VisionConfig(width=32, mlp=48, layers=21, heads=2, patch=7, size=28, siglip=True, activation="tanh")
PROJECTOR = StyleConfig(seen=16, width=32, made=2, hidden=128)
FLUX = FluxConfig(
    in_channels=16, out_channels=16, hidden=128, heads=1, head_dim=128, mlp=512, depth=1, depth_single=2,
    context_dim=24, vec_dim=16, guidance=True, axes_dim=(16, 56, 56),
)  # fmt: skip
EXACT: Any = {"rtol": 1e-4, "atol": 1e-5}


@torch.no_grad()
def test_style_tokens_and_velocities_are_those_of_comfyui(fill: Fill, seeded: Seeded) -> None:
    encoder, projector, flux = fill(VisionEncoder(SIGLIP)), fill(StyleProjector(PROJECTOR)), fill(Flux(FLUX))
    inputs = DenoiserInputs(
        seeded("x", (2, 16, 8, 6)), torch.tensor([0.73, 0.2]), seeded("context", (2, 5, 24)),
        seeded("y", (2, 16)), torch.tensor([3.5, 2.7]),
    )  # fmt: skip
    style = torch.empty(1, 0, 128)
    for number, name in enumerate(("seen", "seen too")):
        pixels = pixels_for(seeded(name, (1, 40, 25, 3)).sigmoid(), SIGLIP, crop=True)
        *_, depths = encoder(pixels)
        assert_close(depths, REFERENCE[f"depths.{number}"], **EXACT)
        tokens = projector(depths)
        assert_close(tokens, REFERENCE[f"tokens.{number}"], **EXACT)
        style = torch.cat((tokens, style), dim=1)
        assert_close(flux(replace(inputs, style=style)), REFERENCE[f"velocity.{number + 1}"], **EXACT)


@pytest.fixture
def folder(fill: Fill, tmp_path: Path) -> Path:
    for name, module in (("sig", VisionEncoder(SIGLIP)), ("flux", Flux(FLUX))):
        save_file({key: value.half() for key, value in fill(module).state_dict().items()}, tmp_path / name)
    projector = fill(StyleProjector(PROJECTOR)).state_dict()
    save_file({f"feature_embedder.{key}": value.bfloat16() for key, value in projector.items()}, tmp_path / "uso")
    return tmp_path


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    yield Runtime(Settings("cpu", "fp32", budget=Allowed(managed=False)))


def images(runtime: Runtime, folder: Path, seeded: Seeded, cache: StepCache | None = None) -> list[Tensor]:
    """The latents of a plain model, with one reference, with both, and with one again."""
    plain, projector = load_flux(runtime, folder / "flux"), load_model_patch(runtime, folder / "uso")
    vision = load_vision(runtime, folder / "sig")
    seen = [
        CLIPVisionEncode().encode(vision, seeded(name, (1, 40, 25, 3)).sigmoid(), "center")[0]
        for name in ("seen", "seen too")
    ]
    (one,) = USOStyleReference().apply(plain, projector, seen[0])
    (both,) = USOStyleReference().apply(one, projector, seen[1])
    text = [[seeded("p", (1, 5, 24)), {"pooled_output": seeded("p y", (1, 16)), "guidance": 4.0}]]
    noise, made = seeded("noise", (1, 16, 8, 6)), []
    for model in (plain, one, both, one):
        guider = BasicGuider(replace(model, own_step_cache=cache), text)
        made.append(sample(guider, Sampler("euler"), simple(plain.sampling, 3), noise * 0, noise, seed=5)[0])
    return made


def test_files_are_read_and_a_budget_changes_no_bit(
    runtime: Runtime, folder: Path, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "SLOT_BYTES", 4096)
    expected = images(runtime, folder, seeded)
    assert torch.equal(expected[1], expected[3])
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(expected, expected[1:3], strict=False))
    runtime.budget = Allowed(ram=3 * MiB)
    manager = runtime.managers[CPU] = Manager(CPU, runtime.budget, emit=runtime.events.emit)
    manager.memory = SimulatedMemory(130 * MiB)
    jobs: list[str] = []
    runtime.events.listen(lambda event: jobs.append(event["model"]) if event["type"] == "memory.job" else None)
    assert all(torch.equal(*pair) for pair in zip(images(runtime, folder, seeded), expected, strict=True))
    assert {"vision encoder", "style projector", "transformer"} <= set(jobs)


def test_a_step_cache_keeps_nothing_for_another_style(runtime: Runtime, folder: Path, seeded: Seeded) -> None:
    cache = StepCache(10.0, start_percent=0.0)  # computes as little as it can
    together = images(runtime, folder, seeded, cache)
    assert torch.equal(together[1], together[3]) and not torch.allclose(together[0], together[1], atol=1e-3)


def test_what_does_not_fit_says_what_to_load(runtime: Runtime, folder: Path, fill: Fill, seeded: Seeded) -> None:
    projector, image = load_model_patch(runtime, folder / "uso"), seeded("seen", (1, 40, 25, 3)).sigmoid()
    save_file(fill(VisionEncoder(replace(SIGLIP, layers=19))).state_dict(), folder / "shallow")
    with pytest.raises(InputError, match="at least 20 layers.*Load sigclip_vision_patch14_384"):
        projector.tokens(load_vision(runtime, folder / "shallow").encode(image))
    save_file(fill(VisionEncoder(replace(SIGLIP, size=35))).state_dict(), folder / "larger")
    with pytest.raises(InputError, match="needs 16 tokens 32 wide, and this vision encoder makes 25 tokens 32 wide"):
        projector.tokens(load_vision(runtime, folder / "larger").encode(image))
    vision = load_vision(runtime, folder / "sig")
    with pytest.raises(InputError, match="one image, and CLIP Vision Encode was given 2"):
        projector.tokens(vision.encode(image.expand(2, -1, -1, -1)))
    save_file(fill(Flux(replace(FLUX, hidden=256, heads=2))).state_dict(), folder / "wide")
    with pytest.raises(InputError, match="made for a transformer 128 wide, and wide is 256 wide"):
        load_flux(runtime, folder / "wide").styled(projector.tokens(vision.encode(image)))
    for name, said in (("sig", "Load it with the node Load CLIP Vision"), ("qwen", "Qwen-Image, not a style proj")):
        save_file({"controlnet_blocks.0.y_rms.weight": torch.zeros(4)}, folder / "qwen")
        with pytest.raises(FileFormatError, match=said):
            load_model_patch(runtime, folder / name)


def test_states_of_comfyuis_vision_encoder_are_taken_too(runtime: Runtime, folder: Path, seeded: Seeded) -> None:
    projector = load_model_patch(runtime, folder / "uso")
    ours = load_vision(runtime, folder / "sig").encode(seeded("seen", (1, 40, 25, 3)).sigmoid())
    assert ours.depths is not None
    layers = torch.zeros(1, 27, 16, 32)
    for number, depth in enumerate((2, 11, 20)):
        layers[:, -depth] = ours.depths[:, number]
    assert torch.equal(projector.tokens(SimpleNamespace(all_hidden_states=layers)), projector.tokens(ours))
