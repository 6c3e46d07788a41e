"""Images, masks and latents cropped, rotated, mixed and combined: laws for all sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sluice.flux_core.errors import InputError
from sluice.flux_core.images import filters, latents, layout, masks
from sluice.flux_core.images.canny import canny
from sluice.nodes import image_layout as layout_nodes
from sluice.nodes import latent_edit as latent_nodes
from sluice.nodes import mask_edit as mask_nodes
from torch import Tensor


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def latent(batch: int = 1, rows: int = 12, columns: int = 16, seed: int = 0) -> dict[str, Tensor]:
    return {"samples": noise(batch, 16, rows, columns, seed=seed) - 0.5}


# Pictures


def test_a_part_outside_of_the_picture_is_its_last_pixel() -> None:
    picture = noise(2, 5, 7, 3)
    assert layout.crop(picture, 3, 2, 1, 2).equal(picture[:, 2:4, 1:4])
    assert layout.crop(picture, 9, 9, 100, 100).equal(picture[:, 4:, 6:])


def test_four_quarter_turns_and_two_mirrors_are_nothing() -> None:
    picture = noise(1, 3, 5, 3)
    turn = layout_nodes.ImageRotate().rotate
    right = turn(picture, "90 degrees")[0]
    assert right.shape == (1, 5, 3, 3) and right[0, 0, -1].equal(picture[0, 0, 0])
    assert turn(turn(right, "180 degrees")[0], "90 degrees")[0].equal(picture)
    assert turn(right, "270 degrees")[0].equal(turn(picture, "none")[0])
    for axis, corner in zip(layout_nodes.FLIPS, (picture[0, -1, 0], picture[0, 0, -1]), strict=True):
        mirrored = layout_nodes.ImageFlip().flip(picture, axis)[0]
        assert mirrored[0, 0, 0].equal(corner)
        assert layout_nodes.ImageFlip().flip(mirrored, axis)[0].equal(picture)


def test_a_latent_turns_as_its_picture_does() -> None:
    picture = noise(1, 3, 5, 16)
    samples = {"samples": picture.movedim(-1, 1), "mine": 1}
    for rotation in layout_nodes.ROTATIONS:
        turned = latent_nodes.LatentRotate().rotate(samples, rotation)[0]
        assert turned["samples"].movedim(1, -1).equal(layout_nodes.ImageRotate().rotate(picture, rotation)[0])
        assert turned["mine"] == 1
    for axis in layout_nodes.FLIPS:
        mirrored = latent_nodes.LatentFlip().flip(samples, axis)[0]["samples"]
        assert mirrored.movedim(1, -1).equal(layout_nodes.ImageFlip().flip(picture, axis)[0])


@pytest.mark.parametrize(("size", "fitting"), [((30, 60), (50, 100)), ((60, 30), (100, 50)), ((7, 7), (100, 100))])
def test_the_longer_side_gets_its_length_and_the_shape_stays(size: tuple[int, int], fitting: tuple[int, int]) -> None:
    assert layout.scale_to_longest(noise(1, *size, 3), 100, "area").shape == (1, *fitting, 3)


def test_a_picture_on_a_ground_is_whole_and_in_the_middle() -> None:
    ground = layout.fit_into(torch.full((1, 10, 20, 3), 0.5), 40, 40, "white", "nearest-exact")[0, :, :, 0]
    assert ground[10:30].eq(0.5).all() and ground[:10].eq(1).all() and ground[30:].eq(1).all()
    with pytest.raises(InputError, match="16384x16384"):
        layout.fit_into(noise(4096, 1, 1, 3), 16384, 16384, "black", "area")


def test_stitched_pictures_stand_where_they_are_told() -> None:
    first, second = torch.zeros(1, 6, 4, 3), torch.ones(2, 2, 2, 3)
    beside = layout.stitch(first, second, "right", True, 0, "white")
    assert beside.shape == (2, 6, 4 + 6, 3) and beside[:, :, 4:].eq(1).all() and not beside[:, :, :4].any()
    assert layout.stitch(first, second, "left", True, 0, "white").equal(beside.flip(2))
    below = layout.stitch(first, second, "down", True, 3, "red")
    assert below.shape == (2, 6 + 4 + 4, 4, 3)  # gaps are even
    assert below[0, 6:10].eq(torch.tensor([1.0, 0.0, 0.0])).all()
    assert layout.stitch(first, second, "up", True, 3, "red").equal(below.flip(1))
    centred = layout.stitch(first, second * 0.5, "right", False, 0, "white")
    assert centred[0, :, 4, 0].tolist() == [1, 1, 0.5, 0.5, 1, 1]
    clear = layout.stitch(first, torch.zeros(1, 6, 4, 4), "right", True, 2, "blue")
    assert clear.shape == (1, 6, 10, 4) and clear[..., :6, 3].eq(1).all() and not clear[..., 6:, 3].any()
    assert layout_nodes.ImageStitch().stitch(first, "up", True, 9, "red")[0] is first


def test_batches_of_pictures() -> None:
    picture = torch.arange(3.0).reshape(3, 1, 1, 1)
    assert layout_nodes.ImageFromBatch().pick(picture, 1, 9)[0].flatten().tolist() == [1, 2]
    assert layout_nodes.ImageFromBatch().pick(picture, 9, 9)[0].flatten().tolist() == [2]
    assert layout_nodes.RepeatImageBatch().repeat(picture, 2)[0].flatten().tolist() == [0, 1, 2, 0, 1, 2]
    assert layout_nodes.GetImageSize().measure(noise(2, 5, 7, 3)) == (7, 5, 2)


# Filters


@pytest.mark.parametrize("radius", [1, 5])
def test_blurring_and_sharpening_leave_a_flat_picture_and_blurring_keeps_the_sum(radius: int) -> None:
    flat = torch.full((1, 9, 11, 3), 0.3)
    torch.testing.assert_close(filters.blur(flat, radius, 0.7), flat)
    torch.testing.assert_close(filters.sharpen(flat, radius, 0.7, 2.0), flat)
    dot = torch.zeros(1, 25, 25, 1)
    dot[0, 12, 12] = 1.0
    spread = filters.blur(dot, radius, 0.7)[0, :, :, 0]
    torch.testing.assert_close(spread.sum(), torch.tensor(1.0))
    assert spread.equal(spread.T) and spread.argmax() == 12 * 25 + 12
    assert spread.count_nonzero() == (2 * radius + 1) ** 2


def test_a_radius_as_large_as_the_picture_is_refused() -> None:
    with pytest.raises(InputError, match="radius is 5, and the image only 5x9"):
        filters.blur(noise(1, 9, 5, 3), 5, 1.0)


@pytest.mark.parametrize("mode", filters.BLEND_MODES)
def test_a_blend_starts_at_the_lower_picture_and_goes_straight_to_the_mixture(mode: str) -> None:
    under, over = noise(1, 6, 8, 3), noise(1, 6, 8, 3, seed=1)
    half, whole = (filters.blend(under, over, share, mode) for share in (0.5, 1.0))
    torch.testing.assert_close(filters.blend(under, over, 0.0, mode), under)
    if mode != "difference":  # which may go below 0 before it is cut
        torch.testing.assert_close(half, (under + whole) / 2)
    neutral = {"normal": under, "multiply": torch.ones_like(under), "screen": torch.zeros_like(under),
               "overlay": torch.full_like(under, 0.5), "soft_light": torch.full_like(under, 0.5),
               "difference": torch.zeros_like(under)}[mode]  # fmt: skip
    torch.testing.assert_close(filters.blend(under, neutral, 1.0, mode), under)
    assert filters.blend(under, noise(1, 9, 4, 4), 0.5, mode).shape == under.shape


def test_edges_are_one_pixel_wide_and_where_the_step_is() -> None:
    picture = torch.zeros(1, 16, 16, 3)
    picture[:, :, 7], picture[:, :, 8:] = 0.4, 1.0
    edges = canny(picture, 0.4, 0.8)
    assert edges.shape == picture.shape and edges[..., 0].equal(edges[..., 2])
    assert edges[0, :, 7].eq(1).all() and edges.sum() == 16 * 3
    assert canny(picture.transpose(1, 2), 0.4, 0.8).equal(edges.transpose(1, 2))
    assert not canny(torch.full((1, 16, 16, 3), 0.7), 0.01, 0.01).any()


def test_a_weak_edge_is_kept_where_it_touches_a_strong_one() -> None:
    picture = torch.zeros(1, 16, 40, 3)
    picture[:, 7], picture[:, 8:] = 0.4, 1.0
    picture[:, :, :20] *= 0.7  # the left half of the step is weak, and so is the one between the halves below
    rows = [canny(picture, low, high)[0, :, :, 0].sum(1) for low, high in ((2.2, 2.2), (0.2, 2.2), (0.2, 0.2))]
    assert [row[7].item() for row in rows] == [20, 40, 40]
    assert [row[12].item() for row in rows] == [0, 0, 1]
    with pytest.raises(InputError, match="low threshold, 0.8, is above"):
        canny(picture, 0.8, 0.3)


@pytest.mark.parametrize(("low", "high"), [(0.4, 1.2), (0.1, 0.8)])
def test_edges_are_those_of_comfyui(low: float, high: float) -> None:
    reference = load_file(Path(__file__).parents[1] / "fixtures" / "image_ops.safetensors")
    stripes = reference["img_37x53"] * 4 % 1
    assert canny(stripes, low, high)[..., 0].bool().equal(reference[f"canny_{low}_{high}"])


# Masks


def test_a_mask_is_laid_over_another_and_cut_at_its_sides() -> None:
    target, source = torch.full((1, 4, 6), 0.75), torch.full((1, 3, 3), 0.5)
    expected = {"multiply": 0.375, "add": 1.0, "subtract": 0.25, "and": 0.0, "or": 1.0, "xor": 1.0}
    for operation in mask_nodes.OPERATIONS:
        laid = masks.combine(target, source, 4, 2, operation)
        assert laid[0, 2:, 4:].eq(expected[operation]).all(), operation
        assert laid[0, :2].eq(0.75).all() and laid[0, :, :4].eq(0.75).all()
        assert masks.combine(target, source, 9, 9, operation).equal(target)


def test_masks_of_values_parts_and_colours() -> None:
    mask = torch.tensor([[[0.2, 0.5, 0.9]]])
    assert mask_nodes.ThresholdMask().cut(mask, 0.5)[0].tolist() == [[[0, 0, 1]]]
    assert mask_nodes.CropMask().crop(mask[0], 1, 0, 9, 9)[0].equal(mask[..., 1:])
    picture = torch.tensor([[[[1.0, 0.5, 0.2], [1.0, 0.5, 0.21]]]])
    assert masks.of_colour(picture, 0xFF8033).tolist() == [[[1, 0]]]


def test_transparency_is_taken_off_and_put_back() -> None:
    picture, mask = noise(2, 6, 8, 3), noise(1, 6, 8)
    (joined,) = mask_nodes.JoinImageWithAlpha().join(picture, mask)
    assert joined.shape == (1, 6, 8, 4)
    colours, clear = mask_nodes.SplitImageWithAlpha().split(joined)
    assert colours.equal(picture[:1])
    torch.testing.assert_close(clear, mask)
    assert not mask_nodes.SplitImageWithAlpha().split(picture)[1].any()
    assert mask_nodes.JoinImageWithAlpha().join(picture, noise(2, 3, 4))[0].shape == (2, 6, 8, 4)


# Latents


def test_a_part_of_a_latent_is_the_part_of_the_picture() -> None:
    whole = latent(rows=12, columns=16)
    assert latents.crop(whole, 64, 32, 24, 16)["samples"].equal(whole["samples"][..., 2:6, 3:11])
    assert latents.crop(whole, 512, 512, 512, 512)["samples"].equal(whole["samples"][..., 4:, 8:])


def test_what_is_laid_over_a_latent_fades_in_at_its_inner_sides() -> None:
    under, over = latent(), {"samples": torch.ones(1, 16, 6, 6)}
    laid = latents.lay_over(under, over, 40, 32, 0)["samples"]
    assert laid[..., 4:10, 5:11].eq(1).all() and laid[..., :4, :].equal(under["samples"][..., :4, :])
    dark = {"samples": torch.zeros(1, 16, 12, 16)}
    inner = latents.lay_over(dark, over, 40, 32, 16)["samples"][0, 0, 4:10, 5:11]
    assert inner[2].tolist() == [0.5, 1, 1, 1, 1, 0.5] and inner[0, 0] == 0.25 and inner.equal(inner.T)
    corner = latents.lay_over(dark, over, 0, 0, 16)["samples"][0, 0, :6, :6]
    assert corner[0].tolist() == [1, 1, 1, 1, 1, 0.5]
    assert not latents.lay_over(dark, over, 8 * 16, 0, 8)["samples"].any()


def test_joined_latents_keep_their_noise() -> None:
    joined = latents.joined({**latent(2), "batch_index": [3, 4]}, latent(2, 4, 4))
    assert joined["samples"].shape == (4, 16, 12, 16) and joined["batch_index"] == [3, 4, 0, 1]


def test_a_batch_has_one_noise_or_one_for_each() -> None:
    choose = latent_nodes.LatentBatchSeedBehavior().choose
    assert choose({**latent(3), "batch_index": [2, 5, 7]}, "fixed")[0]["batch_index"] == [2, 2, 2]
    assert choose(latent(3), "fixed")[0]["batch_index"] == [0, 0, 0]
    assert "batch_index" not in choose({**latent(3), "batch_index": [2, 5, 7]}, "random")[0]


def test_latents_are_calculated_with() -> None:
    one, two = latent(2), latent(1, seed=1)
    total = latent_nodes.LatentAdd().add(one, two)[0]["samples"]
    assert total.equal(one["samples"] + two["samples"])
    torch.testing.assert_close(latent_nodes.LatentSubtract().subtract({"samples": total}, two)[0], one)
    assert latent_nodes.LatentMultiply().multiply(one, -2.0)[0]["samples"].equal(-2 * one["samples"])
    assert latent_nodes.LatentAdd().add(one, latent(3, 5, 9))[0]["samples"].shape == one["samples"].shape
    mixed = latent_nodes.LatentBlend().blend(one, two, 0.25)[0]["samples"]
    torch.testing.assert_close(mixed, 0.25 * one["samples"] + 0.75 * two["samples"])


def test_interpolated_vectors_have_the_length_between() -> None:
    one, two = latent()["samples"], 3 * latent(seed=1)["samples"]
    torch.testing.assert_close(latents.interpolate(one, two, 1.0), one)
    torch.testing.assert_close(latents.interpolate(one, two, 0.0), two)
    half = latents.interpolate(one, two, 0.5)
    torch.testing.assert_close(half.norm(dim=1), (one.norm(dim=1) + two.norm(dim=1)) / 2)
    assert latents.interpolate(one, torch.zeros_like(one), 0.5).isfinite().all()
