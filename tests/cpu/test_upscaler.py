"""Upscale models: the whole picture or tiles of it, from any file that spandrel reads, within a budget."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles.simulated import SimulatedMemory
from safetensors.torch import save_file
from sluice.flux_core.errors import BudgetTooSmall, FileFormatError, InputError
from sluice.flux_core.io.folders import Folders
from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.memory.manager import Manager
from sluice.flux_core.memory.workload import MiB
from sluice.flux_core.models.tiling import tiled
from sluice.flux_core.runtime import spandrel, upscaler
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.runtime.upscaler import Upscaler, load_upscaler
from torch import Tensor, nn
from torch.testing import assert_close

CPU = torch.device("cpu")


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    yield Runtime(Settings("cpu", "fp32", budget=Allowed(managed=False)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A small ESRGAN that doubles the size."""
    spandrel.spandrel()
    torch.manual_seed(1)
    module = importlib.import_module("spandrel.architectures.ESRGAN.__arch.RRDB")
    made: nn.Module = module.RRDBNet(in_nc=3, out_nc=3, num_filters=4, num_blocks=1, scale=2)
    return made.eval()


@pytest.fixture
def model(network: nn.Module, runtime: Runtime, tmp_path: Path) -> Upscaler:
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "2x.safetensors")
    return load_upscaler(runtime, tmp_path / "2x.safetensors")


@pytest.fixture
def picture() -> Tensor:
    return torch.rand(2, 100, 140, 4, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_what_fits_in_a_tile_goes_through_at_once(model: Upscaler, network: nn.Module, picture: Tensor) -> None:
    expected = network(picture[..., :3].movedim(-1, 1)).clamp(0, 1).movedim(1, -1)
    assert model.enlarge(picture).shape == (2, 200, 280, 3)
    assert_close(model.enlarge(picture), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_tiles_are_told_of_and_blended(
    model: Upscaler, network: nn.Module, picture: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upscaler, "TILES", (64,))
    steps: list[tuple[int, int]] = []
    made = model.enlarge(picture, lambda done, total: steps.append((done, total)))
    assert steps == [(done, 2 * 3 * 4) for done in range(1, 25)]
    planes = picture[..., :3].movedim(-1, 1)
    expected = tiled(planes, lambda part: network(part).clamp(0, 1), (64, 64), upscaler.OVERLAP, 2).movedim(1, -1)
    assert_close(made, expected, rtol=0, atol=1e-5)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.enlarge(picture, stop)


def test_tiles_are_as_large_as_the_budget_allows(
    model: Upscaler, runtime: Runtime, picture: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upscaler, "TILES", (128, 64))
    used: list[int] = []
    through = Upscaler._through

    def noting(self: Upscaler, planes: Tensor, tile: int, on_tile: Any) -> Tensor:
        used.append(tile)
        return through(self, planes, tile, on_tile)

    monkeypatch.setattr(Upscaler, "_through", noting)
    model.enlarge(picture)
    planes = picture[..., :3].movedim(-1, 1)
    large, small = (model._needed(planes, tile) for tile in (128, 64))
    assert small < large
    for nbytes, tile in ((large, 128), (large - 1, 64), (small, 64)):
        runtime.budget = Allowed(ram=nbytes)
        manager = runtime.managers[CPU] = Manager(CPU, runtime.budget)
        manager.memory = SimulatedMemory(nbytes + 128 * MiB)  # and the workspace
        model.enlarge(picture)
        assert used[-1] == tile
    manager.memory = SimulatedMemory(small - 1 + 128 * MiB)
    with pytest.raises(BudgetTooSmall, match=r"The upscale model 2x\.safetensors needs at least"):
        model.enlarge(picture)


def test_out_of_memory_makes_the_tiles_smaller(
    model: Upscaler, picture: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upscaler, "TILES", (128, 64, 32))
    sizes: list[int] = []
    call = type(model.network.found).__call__

    def cramped(self: Any, part: Tensor) -> Tensor:
        sizes.append(part.shape[-1])
        if part.shape[-1] > 64:
            raise torch.OutOfMemoryError("too much")
        return call(self, part)  # type: ignore[no-any-return]

    monkeypatch.setattr(type(model.network.found), "__call__", cramped)
    assert model.enlarge(picture, None).shape == (2, 200, 280, 3)
    assert sizes[0] == 128 and max(sizes[1:]) == 64


def test_pickles_are_read_without_running_code_and_listed_for_upscalers_only(
    network: nn.Module, runtime: Runtime, tmp_path: Path, picture: Tensor, model: Upscaler
) -> None:
    torch.save({"params_ema": network.state_dict()}, tmp_path / "2x.pth")
    assert torch.equal(load_upscaler(runtime, tmp_path / "2x.pth").enlarge(picture), model.enlarge(picture))

    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"params": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(FileFormatError, match=r"hostile\.pth cannot be read as an upscale model"):
        load_upscaler(runtime, tmp_path / "hostile.pth")
    assert not (tmp_path / "ran").exists()
    folders = Folders(
        {"upscale_models": [tmp_path], "loras": [tmp_path]},
        input=tmp_path,
        output=tmp_path,
        temp=tmp_path,
        user=tmp_path,
    )
    assert folders.filenames("upscale_models") == ["2x.pth", "2x.safetensors", "hostile.pth"]
    assert folders.filenames("loras") == ["2x.safetensors"]


def test_what_is_no_upscaler_says_so(runtime: Runtime, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FileFormatError, match="not an upscale model that spandrel"):
        load_upscaler(runtime, tmp_path / "other.safetensors")


def test_without_the_library_the_error_tells_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spandrel.spandrel.cache_clear()
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(InputError, match="pip install spandrel"):
        spandrel.spandrel()


def test_torchvision_is_stood_in_for_only_while_the_library_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spandrel, "_usable", lambda: False)
    before = set(sys.modules)
    with spandrel._torchvision():
        functional = importlib.import_module("torchvision.transforms.functional")
        with pytest.raises(InputError, match="in the build for this PyTorch"):
            functional.rotate()
    assert set(sys.modules) == before
