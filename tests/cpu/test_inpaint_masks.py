"""Masks, fills and colours for inpainting, beside statements of the same rules pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch
from doubles.seeded import Seeded
from sluice.flux_core.images.inpaint_masks import (
    blend_blurred,
    blend_neutral,
    expand,
    from_lab,
    match_colours,
    odd,
    shrink,
    to_lab,
)
from torch import Tensor


@pytest.fixture
def mask() -> Tensor:
    """Two blocks, one at an edge, and a single pixel."""
    mask = torch.zeros(1, 20, 24)
    mask[0, 3:9, 0:6] = mask[0, 10:19, 12:20] = mask[0, 2, 20] = 1.0
    return mask


def around(mask: Tensor, y: int, x: int, radius: int) -> Tensor:
    return mask[0, max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_masks_grow_and_shrink_by_squares(mask: Tensor, radius: int) -> None:
    grown, shrunk = expand(mask, radius, 0, "box"), shrink(mask, radius, 0, "box")
    for y in range(20):
        for x in range(24):
            assert grown[0, y, x] == around(mask, y, x, radius).max()
            assert shrunk[0, y, x] == around(mask, y, x, radius).min(), "beyond the edges everything counts as masked"


def weights(kind: str, size: int) -> list[float]:
    half = size // 2
    line = {
        "box": [1.0] * size,
        "linear": [1 / half + (half - 2) / half * i / (half - 1) for i in range(half)] + [1.0],
        "gaussian": [math.exp(-0.5 * ((i - half) / (0.3 * (size - 1) + 0.8)) ** 2) for i in range(size)],
    }[kind]
    line = line if len(line) == size else line + line[:half][::-1]
    return [weight / sum(line) for weight in line]


@pytest.mark.parametrize("kind", ["box", "linear", "gaussian"])
def test_blurs_are_weighted_means(mask: Tensor, kind: str) -> None:
    blurred, line = expand(mask, 0, 6, kind), weights(kind, odd(6))
    assert odd(6) == 7 and odd(7) == 7 and odd(0) == 0
    for y in range(3, 17):
        for x in range(3, 21):
            mean = sum(line[i] * line[j] * mask[0, y + i - 3, x + j - 3].item() for i in range(7) for j in range(7))
            assert blurred[0, y, x].item() == pytest.approx(mean, abs=1e-5)
    assert torch.allclose(expand(torch.ones(1, 9, 9), 0, 5, kind), torch.ones(1, 9, 9), atol=1e-5)


def test_fills_leave_what_is_not_masked_and_end_within_it(seeded: Seeded) -> None:
    image, mask = seeded("image", (1, 30, 30, 3)).sigmoid(), torch.zeros(1, 30, 30)
    mask[:, 8:26, 8:26] = 1
    outside = mask[0] == 0
    hard, soft, blurred = blend_neutral(image, mask, 0), blend_neutral(image, mask, 3), blend_blurred(image, mask, 5, 3)
    for made in (hard, soft, blurred):
        assert torch.allclose(made[0][outside], image[0][outside], atol=1e-6)
    assert torch.allclose(hard[0][~outside], torch.tensor(0.5))
    assert torch.allclose(soft[0, 16, 16], torch.tensor(0.5), atol=1e-5), "grey in the middle"
    assert torch.allclose(soft[0, 8, 8], image[0, 8, 8], atol=1e-6), "untouched at the edge of the mask"
    line = torch.tensor(weights("gaussian", 5))
    mean = torch.einsum("i,j,ijc->c", line, line, image[0, 14:19, 14:19])
    assert torch.allclose(blurred[0, 16, 16], mean, atol=1e-5)


def test_lab_has_the_published_numbers_and_leads_back(seeded: Seeded) -> None:
    colours = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]]).T[None, :, :, None]
    expected = torch.tensor([[100.0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [0, 0, 0]])
    assert torch.allclose(to_lab(colours)[0, :, :, 0].T, expected, atol=0.05)
    planes = seeded("colours", (2, 3, 8, 8)).sigmoid()
    assert torch.allclose(from_lab(to_lab(planes)), planes, atol=1e-4)


def test_colours_take_the_mean_and_the_spread_of_a_reference(seeded: Seeded) -> None:
    target = 0.4 + 0.1 * seeded("target", (1, 16, 16, 3)).tanh()
    reference = 0.55 + 0.05 * seeded("reference", (1, 16, 16, 3)).tanh()
    made = match_colours(target, reference, None, 1.0)
    ours, wanted = (to_lab(image.movedim(-1, 1)).flatten(2) for image in (made, reference))
    assert torch.allclose(ours.mean(-1), wanted.mean(-1), atol=0.05)
    assert torch.allclose(ours.std(-1), wanted.std(-1), atol=0.05)
    assert torch.equal(match_colours(target, reference, None, 0.0), target)
    half = match_colours(target, reference, None, 0.5)
    assert torch.allclose(half, (target + made) / 2, atol=1e-5)
    # What is excluded has no part in mean and spread: the same colours there in both images change nothing.
    mask = torch.zeros(1, 16, 16)
    mask[:, :, 8:] = 1
    spoiled = reference.clone()
    spoiled[:, :, 8:] = 0.0
    assert torch.allclose(
        match_colours(target, spoiled, mask, 1.0), match_colours(target, reference, mask, 1.0), atol=1e-5
    )
