"""Previews for people: they have the size of the unfinished image, within bounds."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from sluice.flux_core.images.previews import SIZE, jpeg


@pytest.mark.parametrize(
    "latent, shown",
    [((16, 16), (128, 128)), ((64, 64), (SIZE, SIZE)), ((128, 128), (SIZE, SIZE)), ((1024, 512), (SIZE, SIZE // 2)),
     ((1, 3), (8, 24)), ((4000, 1), (SIZE, 1))],
)  # fmt: skip
def test_a_preview_is_as_large_as_its_picture_but_not_larger_than_a_bound(
    latent: tuple[int, int], shown: tuple[int, int]
) -> None:
    assert Image.open(io.BytesIO(jpeg(Image.new("RGB", latent)))).size == shown
