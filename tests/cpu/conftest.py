"""Numbers that follow from a name, and tensors whose memory is laid out in other ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import pytest
import torch
from doubles.seeded import Fill, Seeded, fill_module, seeded_tensor
from torch import Tensor

# An optional package, which .ci/run installs by itself because of what it requires; it then runs these tests.
collect_ignore = [] if find_spec("spandrel") else ["test_upscaler.py"]
# The compiler of CUDA alone, 62 MB without a card: pip install --no-deps nvidia-cuda-nvrtc-cu12
collect_ignore += [] if find_spec("nvidia") and find_spec("nvidia.cuda_nvrtc") else ["test_nvrtc.py"]


@pytest.fixture
def seeded() -> Seeded:
    """seeded("any name", shape): standard normal numbers that follow from the name."""
    return seeded_tensor


@pytest.fixture
def fill() -> Fill:
    """fill(module): the module, with weights that follow from its keys."""
    return fill_module


def _axes_reversed(x: Tensor) -> Tensor:
    back = tuple(reversed(range(x.ndim)))
    return x.permute(back).contiguous().permute(back)


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.ndim > 2 else x


def _part_of_something_wider(x: Tensor) -> Tensor:
    return torch.stack((x, x + 1), dim=-1)[..., 0]


def _other_strides_where_the_length_is_one(x: Tensor) -> Tensor:
    strides = [7 if length == 1 else stride for length, stride in zip(x.shape, x.contiguous().stride(), strict=True)]
    return x.contiguous().as_strided(x.shape, strides)


_LAYOUTS = (_axes_reversed, _channels_last, _part_of_something_wider, _other_strides_where_the_length_is_one)


@pytest.fixture(params=_LAYOUTS, ids=lambda layout: layout.__name__.strip("_"))
def layout(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    """layout(x): the same numbers in memory of another order."""

    def change(x: Tensor) -> Tensor:
        changed: Tensor = request.param(x)
        assert torch.equal(changed, x)
        return changed

    return change


@pytest.fixture
def computing_threads() -> Iterator[Callable[[int], None]]:
    """computing_threads(n): PyTorch computes with n threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
