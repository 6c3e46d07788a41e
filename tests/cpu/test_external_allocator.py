"""Sharing a device: memory is requested before it is used, grants are not exceeded, reclaimed memory is freed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file
from sluice.flux_core.memory import meter
from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.memory.workload import MiB
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.runtime import device, handles
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.sampling.guider import BasicGuider
from sluice.flux_core.sampling.sample import Sampler, sample
from torch import Tensor

SMALL = FluxConfig(
    in_channels=16, out_channels=16, hidden=256, heads=2, head_dim=128, mlp=1024, depth=2, depth_single=4,
    context_dim=32, vec_dim=32, guidance=True, axes_dim=(16, 56, 56),
)  # fmt: skip
ENDLESS = 2**40


class House:
    """An allocator that grants `granted` bytes of weights to each client, and records the requests."""

    device, spare_bytes = "cpu", 0

    def __init__(self, granted: int = ENDLESS) -> None:
        self.granted = granted
        self.client: list[Any] = []
        self.asked: list[tuple[str, int, int, int]] = []  # who, weights, working, and what it held then

    def admit(self, client: Any) -> int:
        self.client.append(client)
        return len(self.client) - 1

    def make_room(self, allocation: int, weights: int, working: int) -> int:
        client = self.client[allocation]
        self.asked.append((client.label, weights, working, client.held_bytes))
        return self.granted

    def free(self, nbytes: int) -> None:
        pass

    def take_everything(self) -> None:
        for client in self.client:
            held = client.held_bytes
            assert client.release(held) == held and client.held_bytes == 0


@pytest.fixture
def flux_file(fill: Callable[..., Any], tmp_path: Path) -> Path:
    path = tmp_path / "flux.safetensors"
    save_file({name: value.bfloat16() for name, value in fill(Flux(SMALL)).state_dict().items()}, path)
    return path


@pytest.fixture
def picture(seeded: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def make(model: Any, after_step: Callable[[], None] = lambda: None) -> Tensor:
        values = {"pooled_output": seeded("y", (1, 32)), "guidance": 3.5}
        noise = seeded("noise", (1, 16, 8, 6))
        levels = torch.tensor([1.0, 0.8, 0.4, 0.0])
        guider = BasicGuider(model, [[seeded("text", (1, 9, 32)), values]])

        def step(*_: Any) -> None:
            after_step()

        return sample(guider, Sampler("heun"), levels, torch.zeros_like(noise), noise, seed=1, callback=step)[0]

    return make


def runtime_in(house: House | None, managed: bool = True) -> Runtime:
    allowed = Allowed(ram=ENDLESS) if managed else Allowed(managed=False)
    return Runtime(Settings("cpu", "fp32", allowed), house)


def test_without_a_manager_the_weights_of_a_file_lodge_whole(flux_file: Path, picture: Callable[..., Tensor]) -> None:
    house = House()
    model = handles.load_flux(runtime_in(house, managed=False), flux_file)
    first = picture(model)
    assert house.asked == [("FluxWeights", model.weights.nbytes, 0, 0)]
    assert model.weights.held_bytes == model.weights.nbytes
    house.take_everything()
    assert torch.equal(picture(model), first)


def test_room_for_the_transformer_is_asked_before_it_is_taken(flux_file: Path, picture: Callable[..., Tensor]) -> None:
    house = House()
    model = handles.load_flux(runtime_in(house), flux_file)
    picture(model)
    assert {label for label, *_ in house.asked} == {"transformer", "modulation"}
    (transformer,) = [asked for asked in house.asked if asked[0] == "transformer"]
    _, weights, working, held = transformer
    assert weights >= next(one.total_bytes for one in house.client if one.label == "transformer")
    assert working >= 128 * MiB and held == 0


@pytest.mark.parametrize("share", (0.6, 0.0))
def test_what_is_granted_is_not_exceeded_but_by_what_must_be(
    flux_file: Path, picture: Callable[..., Tensor], share: float
) -> None:
    expected = picture(handles.load_flux(runtime_in(None, managed=False), flux_file))
    house = House()
    model = handles.load_flux(runtime_in(house), flux_file)
    house.granted = granted = int(share * model.weights.nbytes)
    held: list[int] = []
    made = picture(model, lambda: held.append(sum(one.held_bytes for one in house.client)))
    assert torch.equal(made, expected)
    least = min(weights for label, weights, *_ in house.asked if label == "modulation")
    assert 0 < max(held) <= max(granted, 4 * least)


def test_between_two_steps_everything_may_be_taken(flux_file: Path, picture: Callable[..., Tensor]) -> None:
    house = House()
    model = handles.load_flux(runtime_in(house), flux_file)
    expected = picture(model)
    assert torch.equal(picture(model, house.take_everything), expected)
    asked = [weights for label, weights, *_ in house.asked if label == "transformer"]
    assert len(asked) > 2 and max(asked[2:]) < max(asked[:2]), "in the middle of a run only the least is asked for"


def test_a_cpu_has_the_room_its_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "_container_limits", lambda: [])
    assert device.room(torch.device("cpu")) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    told = device.device_report(torch.device("cpu"))
    assert told["vram_total"] == psutil.virtual_memory().total
