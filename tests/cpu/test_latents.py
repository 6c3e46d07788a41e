"""Latents: scaling, noise, patches and positions, and the preview."""

from __future__ import annotations

import hashlib

import pytest
import torch
from doubles.seeded import Seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice.flux_core.errors import InputError
from sluice.flux_core.models import latents
from torch.testing import assert_close

sizes = st.integers(1, 9)


def sha(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


# sha256 of ComfyUI's noise for a 1024x1024 picture, float32, little endian
@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (0, "dce02e02da56c18c"),
        (42, "9d775f7135ddb2c8"),
        (219670278747233, "7aad6ae4cfc179b9"),
        (972054013131368, "d9f5c17a97ed86bd"),
        (2**64 - 1, "ad8ae78cf5e669f9"),
    ],
)
def test_a_seed_gives_the_noise_it_gives_everywhere(seed: int, expected: str) -> None:
    assert sha(latents.noise(seed, (1, 16, 128, 128))) == expected


def test_only_the_low_half_of_a_seed_counts() -> None:
    assert torch.equal(latents.noise(5, (1, 16, 4, 4)), latents.noise(5 + 2**32, (1, 16, 4, 4)))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_an_item_keeps_its_noise_in_every_batch(seed: int, wanted: list[int]) -> None:
    batch = latents.noise(seed, (7, 16, 4, 4))  # 4 x 4 x 16 values an item: no rest to carry from one draw to the next
    assert torch.equal(latents.noise(seed, (len(wanted), 16, 4, 4), wanted), batch[wanted])


def test_noise_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    latents.noise(7, (1, 16, 4, 4))
    assert torch.equal(torch.rand(3), expected)


def test_scaling_out_undoes_scaling_in(seeded: Seeded) -> None:
    x = seeded("x", (1, 16, 3, 3))
    assert_close(latents.process_out(latents.process_in(x)), x)
    assert_close(latents.process_in(torch.full((1,), 0.1159)), torch.zeros(1))


def test_an_empty_latent_of_another_family_is_widened_and_a_full_one_refused() -> None:
    assert latents.fix_channels(torch.zeros(2, 4, 8, 8)).shape == (2, 16, 8, 8)
    full = torch.ones(1, 16, 2, 2)
    assert latents.fix_channels(full) is full
    with pytest.raises(InputError, match="4 channels"):
        latents.fix_channels(torch.ones(1, 4, 8, 8))


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, st.integers(1, 3))
def test_unpacking_undoes_packing(height: int, width: int, batch: int) -> None:
    x = torch.randn(batch, 3, height, width)
    tokens = latents.pack(x)
    assert tokens.shape == (batch, latents.patches(height) * latents.patches(width), 12)
    assert torch.equal(latents.unpack(tokens, height, width), x)


def test_a_patch_holds_channels_then_rows_then_columns_and_odd_sizes_wrap_around() -> None:
    x = torch.arange(2 * 3 * 3).reshape(1, 2, 3, 3).float()
    tokens = latents.pack(x)
    assert tokens[0, 0].tolist() == [0, 1, 3, 4, 9, 10, 12, 13]
    assert tokens[0, 3].tolist() == [8, 6, 2, 0, 17, 15, 11, 9]  # the far corner continues with the near one


def test_positions_count_patches_row_by_row() -> None:
    ids = latents.image_ids(3, 6, index=2, top=5, left=2)
    assert ids.tolist() == [[2, row, column] for row in (3, 4) for column in (1, 2, 3)]


def test_references_do_not_overlap_on_their_sheet() -> None:
    sizes = [(8, 14), (13, 6), (20, 20), (3, 40), (9, 9)]
    for method in ("offset", "uxo"):
        cells: set[tuple[int, int, int]] = set()
        for (rows, columns), (index, top, left) in zip(
            sizes, latents.place_references(12, 10, sizes, method), strict=True
        ):
            mine = {(index, y, x) for y in range(top, top + rows) for x in range(left, left + columns)}
            assert not cells & mine
            cells |= mine
    assert [index for index, *_ in latents.place_references(12, 10, sizes, "index")] == [1, 2, 3, 4, 5]


def test_a_preview_has_one_pixel_a_cell_and_its_grey_is_the_bias() -> None:
    picture = latents.preview(torch.zeros(16, 5, 7))
    assert picture.dtype == torch.uint8 and picture.shape == (5, 7, 3)
    assert picture[0, 0].tolist() == [int((1 - bias) / 2 * 255) for bias in (0.0329, 0.0718, 0.0851)]
    channel = torch.zeros(16, 1, 1)
    channel[9] = 4.0
    red, green, blue = latents.preview(channel)[0, 0].tolist()
    assert red > green > picture[0, 0, 1] and blue < picture[0, 0, 2]
