"""XLabs' nodes: their sampler with its schedule and guidance from a step on, ControlNets by steps, the IP-Adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles.network import NetworkModel
from doubles.simulated import SimulatedMemory
from safetensors.torch import save_file
from sluice.flux_core.errors import FileFormatError, InputError
from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.memory.manager import Manager
from sluice.flux_core.memory.workload import MiB
from sluice.flux_core.models import latents
from sluice.flux_core.models.attention import attention, rotations
from sluice.flux_core.models.clip_vision import VisionConfig, VisionEncoder
from sluice.flux_core.models.denoiser_inputs import DenoiserInputs
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_blocks import DoubleStreamBlock
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.models.image_adapter import ImageAdapter, ImageAdapterConfig
from sluice.flux_core.runtime.handles import load_flux
from sluice.flux_core.runtime.image_adapters import load_image_adapter
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.runtime.vision import load_vision
from sluice.flux_core.sampling.schedule import FluxShift
from sluice.flux_core.sampling.xlabs import ControlCondition, XlabsRun, sample_xlabs, xlabs_levels
from sluice.nodes.other_packs import xlabs as nodes
from torch import Tensor, nn
from torch.testing import assert_close

Seeded = Callable[[str, Sequence[int]], Tensor]
Fill = Callable[[nn.Module], Any]


class Net:
    """A ControlNet that is shown pixels."""

    class Weights:
        key = "net"

    weights = Weights()
    modes = ()

    def hint(self, picture: Tensor, mask: Any, autoencoder: Any, height: int, width: int) -> Tensor:
        assert picture.shape[1:3] == (8 * height, 8 * width)
        return picture.movedim(-1, 1)


@pytest.fixture
def given() -> list[DenoiserInputs]:
    return []


@pytest.fixture
def model(given: list[DenoiserInputs]) -> NetworkModel:
    def velocity(inputs: DenoiserInputs) -> Tensor:
        given.append(inputs)
        return torch.tanh(inputs.x) + inputs.context.mean() * inputs.timesteps[0]

    return NetworkModel(velocity, FluxShift())


def prompt(name: str, seeded: Seeded, **values: Any) -> list[Any]:
    return [[seeded(name, (1, 5, 12)), {"pooled_output": seeded(f"{name} y", (1, 9)), **values}]]


def test_the_schedule_is_shifted_by_the_number_of_tokens() -> None:
    levels = xlabs_levels(4, 4096)
    assert levels[0] == 1 and levels[-1] == 0
    assert_close(levels[2], math.exp(1.15) / (math.exp(1.15) + 1), rtol=1e-6, atol=0)
    assert_close(xlabs_levels(2, 256)[1], math.exp(0.5) / (math.exp(0.5) + 1), rtol=1e-6, atol=0)


def test_steps_are_eulers_and_guided_from_a_step_on(
    model: NetworkModel, given: list[DenoiserInputs], seeded: Seeded
) -> None:
    positive, negative = prompt("p", seeded, guidance=4.0), prompt("n", seeded)
    steps: list[tuple[int, int]] = []
    run = XlabsRun(seed=3, steps=4, guided_from=2, cfg=2.5)
    made = sample_xlabs(model, positive, negative, {"samples": torch.zeros(1, 4, 8, 6)}, run,
                        callback=lambda step, D, x, total: steps.append((step, total)))  # fmt: skip
    levels, x = xlabs_levels(4, 12), latents.noise(3, (1, 16, 8, 6), None)
    for number, (now, then) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        ahead, away = (torch.tanh(x) + text[0][0].mean() * now for text in (positive, negative))
        x = x + (then - now) * (away + 2.5 * (ahead - away) if number >= 2 else ahead)
    assert_close(made["samples"], latents.process_out(x), rtol=1e-4, atol=1e-5)
    assert steps == [(0, 4), (1, 4), (2, 4), (3, 4)] and len(given) == 6
    assert all(each.guidance is not None and each.guidance.item() == 4.0 for each in given)


def test_a_picture_is_changed_by_its_share_of_the_steps_and_some_steps_may_be_left_out(
    model: NetworkModel, given: list[DenoiserInputs], seeded: Seeded
) -> None:
    positive, negative = prompt("p", seeded), prompt("n", seeded)
    picture = {"samples": seeded("picture", (1, 16, 8, 6))}
    kept = sample_xlabs(model, positive, negative, picture, XlabsRun(3, 4, 9, 1.0, picture_strength=0.0))
    assert torch.equal(kept["samples"], picture["samples"]) and not given
    sample_xlabs(model, positive, negative, picture, XlabsRun(3, 4, 9, 1.0, picture_strength=0.5))
    levels, noise = xlabs_levels(4, 12), latents.noise(3, (1, 16, 8, 6), None)
    start = levels[2] * noise + (1 - levels[2]) * latents.process_in(picture["samples"])
    assert_close(given[0].x, start, rtol=1e-5, atol=1e-5)
    given.clear()
    sample_xlabs(model, positive, negative, {"samples": torch.zeros(1, 16, 8, 6)}, XlabsRun(3, 9, 9, 1.0, share=0.5))
    assert len(given) == 4


def test_controlnets_follow_pictures_in_their_steps(
    model: NetworkModel, given: list[DenoiserInputs], seeded: Seeded
) -> None:
    control = ControlCondition(Net(), seeded("control", (1, 30, 20, 3)).sigmoid(), 0.7, start=0.2, end=0.4)
    empty = {"samples": torch.zeros(1, 16, 8, 6)}
    sample_xlabs(model, prompt("p", seeded), prompt("n", seeded), empty, XlabsRun(3, 5, 9, 1.0), [control])
    assert [[each.strength for each in inputs.controls] for inputs in given] == [[], [0.7], [0.7], [], []]


# -- the IP-Adapter ----------------------------------------------------------------------------------------------------

SIZES = FluxConfig(
    in_channels=16, out_channels=16, hidden=128, heads=1, head_dim=128, mlp=256, depth=2, depth_single=1,
    context_dim=24, vec_dim=16, guidance=True, axes_dim=(16, 56, 56),
)  # fmt: skip
VISION = VisionConfig(32, 48, 2, 2, 7, 28, siglip=False, activation="quick", projection=16)
ADAPTER = ImageAdapterConfig(embedding=16, tokens=4, context_dim=24, hidden=128, blocks=2)


@torch.no_grad()
def test_image_tokens_attend_to_what_is_seen_with_queries_that_have_no_position(fill: Fill, seeded: Seeded) -> None:
    """The formula of x-flux: softmax(q k) v of the normalised queries, added to the image stream after the block."""
    block = fill(DoubleStreamBlock(128, 2, 256))
    img, txt, mods = seeded("img", (1, 6, 128)), seeded("txt", (1, 3, 128)), seeded("mods", (1, 12, 128))
    rope = rotations(torch.arange(27).reshape(9, 3).float(), (8, 28, 28), 10_000)
    seen = seeded("seen", (2, 2, 4, 128))
    plain_img, plain_txt = block(img, txt, mods, rope)
    found_img, found_txt = block(img, txt, mods, rope, None, attention, seen)
    shift, scale = mods[:, 0:1], mods[:, 1:2]
    x = shift + torch.nn.functional.layer_norm(img, (128,), eps=1e-6) * (1 + scale)
    q = block.img_attn.norm.query_norm(block.img_attn.qkv(x)[..., :128].unflatten(-1, (2, 64))).transpose(1, 2)
    found = torch.zeros_like(img)
    for k, v in zip(*seen, strict=True):
        heads = (part[None].unflatten(-1, (2, 64)).transpose(1, 2) for part in (k, v))
        found += torch.nn.functional.scaled_dot_product_attention(q, *heads).transpose(1, 2).flatten(2) / 2
    assert_close(found_img - plain_img, found, rtol=1e-3, atol=1e-4)
    assert torch.equal(found_txt, plain_txt)


@pytest.fixture
def folder(fill: Fill, tmp_path: Path) -> Path:
    modules = {"flux": Flux(SIZES), "clip": VisionEncoder(VISION), "adapter": ImageAdapter(ADAPTER)}
    for name, module in modules.items():
        save_file({key: value.half() for key, value in fill(module).state_dict().items()}, tmp_path / name)
    return tmp_path


def images(runtime: Runtime, folder: Path, seeded: Seeded) -> tuple[Any, Any]:
    """A model, and the same with two images that it looks at."""
    adapter = load_image_adapter(runtime, folder / "adapter", load_vision(runtime, folder / "clip"))
    plain = load_flux(runtime, folder / "flux")
    two = seeded("two", (2, 40, 30, 3)).sigmoid()
    (model,) = nodes.ApplyFluxIPAdapter().apply(plain, adapter, two, 0.9)
    (model,) = nodes.ApplyAdvancedFluxIPAdapter().apply(model, adapter, two, 0.2, 1.0, "Linear")
    return plain, model


def test_a_model_looks_at_images_and_under_a_budget_at_the_same(folder: Path, seeded: Seeded, fill: Fill) -> None:
    runtime = Runtime(Settings("cpu", "fp32", budget=Allowed(managed=False)))
    positive = [[seeded("p", (1, 5, 24)), {"pooled_output": seeded("p y", (1, 16)), "guidance": 4.0}]]
    negative = [[seeded("n", (1, 5, 24)), {"pooled_output": seeded("n y", (1, 16))}]]
    empty, run = {"samples": torch.zeros(1, 16, 8, 6)}, XlabsRun(3, 3, guided_from=1, cfg=2.0)

    def made() -> list[Tensor]:
        return [
            sample_xlabs(model, positive, negative, empty, run)["samples"] for model in images(runtime, folder, seeded)
        ]

    expected = made()
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)
    runtime.budget = Allowed(ram=3 * MiB)
    manager = runtime.managers[torch.device("cpu")] = Manager(
        torch.device("cpu"), runtime.budget, emit=runtime.events.emit
    )
    manager.memory = SimulatedMemory(131 * MiB)
    jobs: list[str] = []
    runtime.events.listen(lambda event: jobs.append(event["model"]) if event["type"] == "memory.job" else None)
    assert all(torch.equal(*pair) for pair in zip(made(), expected, strict=True))
    assert {"IP-Adapter", "vision encoder", "transformer"} <= set(jobs)


def test_a_negative_prompt_of_xlabs_sampler_is_shown_a_black_image(
    folder: Path, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(Settings("cpu", "fp32", budget=Allowed(managed=False)))
    _, model = images(runtime, folder, seeded)
    given: list[DenoiserInputs] = []
    forward = Flux.forward

    def noting(self: Flux, inputs: DenoiserInputs, **more: Any) -> Tensor:
        given.append(inputs)
        return forward(self, inputs, **more)

    monkeypatch.setattr(Flux, "forward", noting)
    text = [[seeded("p", (1, 5, 24)), {"pooled_output": seeded("p y", (1, 16))}]]
    sample_xlabs(model, text, text, {"samples": torch.zeros(1, 16, 8, 6)}, XlabsRun(3, 1, guided_from=0, cfg=2.0))
    shown, black = (each.seen for each in given)
    assert [torch.equal(*pair) for pair in zip(shown[0], model.seen[0].keys_and_values, strict=True)] == [True] * 2
    assert [torch.equal(*pair) for pair in zip(black[1], model.seen[1].nothing, strict=True)] == [True] * 2
    assert shown[1][0].shape == (2, 1, 4, 128), "one mean image"


def test_strengths_change_over_the_blocks(folder: Path) -> None:
    runtime = Runtime(Settings("cpu", "fp32"))
    adapter = load_image_adapter(runtime, folder / "adapter", load_vision(runtime, folder / "clip"))
    assert adapter.strengths(0.0, 1.0, "Linear") == [0.0, 1.0]
    assert adapter.strengths(0.2, 1.0, "First half") == [0.2, 1.0]
    assert adapter.strengths(0.2, 1.0, "Second half") == [0.2, 0.2]
    first, second = adapter.strengths(0.0, 1.0, "Sigmoid")
    assert_close(first, 1 / (1 + math.exp(4)) - 0.5, rtol=1e-5, atol=0) and second == 0.0


def test_an_adapter_for_another_model_is_refused(folder: Path, seeded: Seeded, fill: Fill) -> None:
    runtime = Runtime(Settings("cpu", "fp32"))
    vision = load_vision(runtime, folder / "clip")
    other = ImageAdapterConfig(16, 4, 24, 128, blocks=3)
    save_file(fill(ImageAdapter(other)).state_dict(), folder / "other")
    seen = load_image_adapter(runtime, folder / "other", vision).see(seeded("two", (1, 40, 30, 3)), 1.0, False)
    with pytest.raises(InputError, match="3 double blocks"):
        load_flux(runtime, folder / "flux").seeing(seen)
    with pytest.raises(FileFormatError, match="not an IP-Adapter for FLUX"):
        load_image_adapter(runtime, folder / "clip", vision)
