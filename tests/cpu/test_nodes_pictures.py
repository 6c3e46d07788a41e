"""Resizing, padding and masking give ComfyUI's pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sluice.flux_core.conditioning import entries as cond
from sluice.flux_core.errors import FileFormatError, InputError, MissingFileError
from sluice.flux_core.images import files, latents, masks, resize
from sluice.flux_core.limits import check_room
from sluice.nodes import image as image_nodes
from sluice.nodes import latent as latent_nodes
from sluice.nodes import mask as mask_nodes
from torch import Tensor


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    return load_file(Path(__file__).parents[1] / "fixtures" / "image_ops.safetensors")


@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"])
def test_pictures_are_resized_as_in_comfyui(reference: dict[str, Tensor], method: str) -> None:
    (ours,) = image_nodes.ImageScale().upscale(reference["img_37x53"], method, 40, 24, "center")
    assert torch.equal(ours, reference[f"scale_{method}_center_40x24"])


def test_a_size_of_zero_follows_the_other(reference: dict[str, Tensor]) -> None:
    picture = reference["img_37x53"]
    assert torch.equal(resize.resize_image(picture, 0, 20, "bilinear"), reference["scale_bilinear_w0_h20"])
    assert resize.resize_image(picture, 0, 0, "bilinear") is picture
    (ours,) = image_nodes.ImageScaleBy().upscale(picture, "lanczos", 0.5)
    assert torch.equal(ours, reference["scaleby_lanczos_0.5"])


@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic", "bislerp"])
def test_latents_are_resized_as_in_comfyui(reference: dict[str, Tensor], method: str) -> None:
    latent = {"samples": reference["lat"], "noise_mask": torch.ones(1), "mine": 1}
    (ours,) = latent_nodes.LatentUpscale().upscale(latent, method, 160, 96, "center")
    torch.testing.assert_close(ours["samples"], reference[f"latup_{method}_160x96_center"], rtol=0, atol=2e-6)
    assert ours["mine"] == 1 and ours["noise_mask"] is latent["noise_mask"]


def test_bislerp_survives_zeros_and_equal_vectors() -> None:
    samples = torch.zeros(1, 16, 2, 2)
    samples[..., 0] = 1.0
    grown = resize.resize(samples, 5, 5, "bislerp")
    assert grown.isfinite().all() and grown[..., 0].eq(1).all() and grown[..., -1].eq(0).all()


def test_a_latent_side_of_zero_follows_the_other_and_is_at_least_64() -> None:
    latent = {"samples": torch.zeros(1, 16, 4, 8)}
    assert latents.upscale(latent, 0, 0, "area", "disabled") is latent
    assert latents.upscale(latent, 256, 0, "area", "disabled")["samples"].shape[-2:] == (16, 32)
    assert latents.upscale(latent, 0, 16, "area", "disabled")["samples"].shape[-2:] == (8, 16)


def test_padding_for_outpainting(reference: dict[str, Tensor]) -> None:
    canvas, mask = resize.pad_for_outpaint(reference["img_37x53"], 8, 0, 16, 24, 10)
    assert torch.equal(canvas, reference["pad_img"])
    torch.testing.assert_close(mask, reference["pad_mask"])
    _, hard = resize.pad_for_outpaint(reference["img_37x53"], 8, 0, 0, 0, 19)
    assert set(hard.unique().tolist()) == {0.0, 1.0}, "no feathering wider than half the picture"


def test_inpainting_models_see_grey_where_the_mask_is(reference: dict[str, Tensor]) -> None:
    picture, seen = reference["img_37x53"], []

    class Autoencoder:
        def encode_image(self, image: Tensor) -> Tensor:
            seen.append(image)
            return torch.zeros(1, 16, 4, 6)

    from sluice.nodes.editing import InpaintModelConditioning, InstructPixToPixConditioning

    text: list[list[Any]] = [[torch.zeros(1, 2, 4), {}]]
    positive, _, latent = InpaintModelConditioning().encode(text, text, Autoencoder(), picture, reference["mask_in"])
    torch.testing.assert_close(seen[0], reference["inpaint_pixels_masked"])
    torch.testing.assert_close(positive[0][1]["concat_mask"], reference["inpaint_concat_mask"])
    torch.testing.assert_close(latent["noise_mask"], reference["inpaint_concat_mask"])
    positive, _, latent = InstructPixToPixConditioning().encode(text, text, Autoencoder(), picture)
    assert positive[0][1]["concat_latent_image"].shape == latent["samples"].shape
    assert text[0][1] == {}, "what flows on a wire is never changed"


@pytest.mark.parametrize(
    ("size", "best"),
    [((1024, 1024), (1024, 1024)), ((1920, 1080), (1392, 752)), ((800, 600), (1184, 880)), ((1000, 3000), (672, 1568))],
)
def test_kontext_picks_the_nearest_trained_size(size: tuple[int, int], best: tuple[int, int]) -> None:
    assert resize.kontext_size(*size) == best


def test_megapixels_keep_the_shape() -> None:
    assert resize.size_for_pixels(1920, 1080, 1.0) == (1365, 768)
    assert resize.size_for_pixels(333, 777, 0.5) == (474, 1106)


def test_a_composite_is_clipped_and_covers_only_where_masked() -> None:
    target, source = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 3, 3)
    laid = resize.composite(target, source, 2, 3, None, fit=False)
    assert laid.sum() == 3 * 2 * 1 and target.sum() == 0
    mask = torch.zeros(1, 3, 3)
    mask[:, 0, 0] = 1
    assert resize.composite(target, source, 0, 0, mask, fit=False).sum() == 3
    assert resize.composite(target, source, 0, 0, None, fit=True).sum() == 48
    with_alpha = resize.composite(torch.zeros(1, 4, 4, 4), source, 0, 0, None, fit=False)
    assert with_alpha[:, 3, :3, :3].eq(1).all()


# Masks


def neighbours(mask: Tensor, corners: bool) -> Tensor:
    """The maximum of each cell's neighbourhood, the plain way."""
    grown = mask.clone()
    height, width = mask.shape
    for y in range(height):
        for x in range(width):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if (corners or not (dy and dx)) and 0 <= y + dy < height and 0 <= x + dx < width:
                        grown[y, x] = max(grown[y, x], mask[y + dy, x + dx])
    return grown


@pytest.mark.parametrize("tapered", [True, False])
def test_growing_takes_the_largest_neighbour_and_shrinking_the_smallest(tapered: bool) -> None:
    mask = torch.rand(7, 9, generator=torch.Generator().manual_seed(0))
    twice = neighbours(neighbours(mask, not tapered), not tapered)
    assert torch.equal(masks.grow(mask, 2, tapered)[0], twice)
    assert torch.equal(masks.grow(mask, -2, tapered)[0], 1 - masks.grow(1 - mask, 2, tapered)[0])
    assert masks.grow(mask, 16384, tapered).eq(mask.max()).all()


def test_feathering_keeps_comfyuis_odd_right_and_bottom_ramps() -> None:
    faded = masks.feather(torch.ones(1, 5, 4), 2, 0, 0, 0)[0]
    assert faded[0].tolist() == [0.5, 1, 1, 1]
    assert masks.feather(torch.ones(1, 5, 4), 0, 0, 2, 0)[0, 0].tolist() == [0.5, 1, 1, 1]
    fading = masks.feather(torch.ones(1, 5, 4), 0, 0, 0, 99)[0, :, 0]
    torch.testing.assert_close(fading, torch.tensor([0.2, 1.0, 0.8, 0.6, 0.4]))


def test_a_thickened_mask_covers_what_the_square_touches() -> None:
    mask = torch.zeros(1, 1, 9, 9)
    mask[..., 4, 4] = 1
    assert masks.thicken(mask, 3).sum() == 9
    assert masks.thicken(mask, 0) is mask
    assert masks.thicken(mask, 4).shape == mask.shape


def test_masks_and_pictures_turn_into_each_other() -> None:
    mask = torch.rand(1, 3, 4)
    (picture,) = mask_nodes.MaskToImage().convert(mask)
    assert picture.shape == (1, 3, 4, 3)
    assert torch.equal(mask_nodes.ImageToMask().convert(picture, "green")[0], mask)
    with pytest.raises(InputError, match="no alpha"):
        mask_nodes.ImageToMask().convert(picture, "alpha")


# Batches of latents


def test_a_picked_latent_keeps_its_noise() -> None:
    latent = {"samples": torch.arange(4.0).reshape(4, 1, 1, 1)}
    picked = latents.from_batch(latent, 2, 9)
    assert picked["batch_index"] == [2, 3] and picked["samples"].flatten().tolist() == [2, 3]
    again = latents.from_batch(picked, 1, 1)
    assert again["batch_index"] == [3]
    masked = {**latent, "noise_mask": torch.arange(2.0).reshape(2, 1, 1, 1)}
    assert latents.from_batch(masked, 2, 2)["noise_mask"].flatten().tolist() == [0, 1]


def test_repeated_latents_get_noise_of_their_own() -> None:
    latent = {"samples": torch.zeros(2, 1, 1, 1), "batch_index": [3, 5], "noise_mask": torch.zeros(1, 1, 1, 1)}
    repeated = latents.repeat(latent, 3)
    assert repeated["batch_index"] == [3, 5, 6, 8, 9, 11]
    assert len(repeated["samples"]) == 6 and len(repeated["noise_mask"]) == 1


# Conditioning


def entry(value: float, length: int = 2, **values: Any) -> list[list[Any]]:
    return [[torch.full((1, length, 3), value), {"pooled_output": torch.full((1, 4), value), **values}]]


def test_zeroing_keeps_what_is_not_text() -> None:
    ((tokens, values),) = cond.zero_out(entry(2.0, guidance=7.0))
    assert not tokens.any() and not values["pooled_output"].any() and values["guidance"] == 7.0


def test_an_average_fits_the_other_text_to_the_first() -> None:
    ((tokens, values),) = cond.average(entry(1.0, length=3, guidance=1.0), entry(3.0, length=2, guidance=9.0), 0.25)
    assert tokens[0, :, 0].tolist() == [2.5, 2.5, 0.25]
    assert values["pooled_output"].eq(2.5).all() and values["guidance"] == 1.0


def test_concatenating_appends_the_first_entry() -> None:
    ((tokens, values),) = cond.concatenate(entry(1.0), entry(2.0) + entry(3.0))
    assert tokens[0, :, 0].tolist() == [1, 1, 2, 2] and values["pooled_output"].eq(1).all()


# Files


def test_alpha_becomes_the_mask_and_camera_rotation_is_applied(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGBA", (6, 4), (255, 0, 0, 51)).save(tmp_path / "alpha.png")
    picture, mask = files.load(tmp_path / "alpha.png")
    assert picture.shape == (1, 4, 6, 3) and picture[0, 0, 0].tolist() == [1, 0, 0]
    torch.testing.assert_close(mask, torch.full((1, 4, 6), 0.8))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "turned.jpg", exif=turned)
    picture, mask = files.load(tmp_path / "turned.jpg")
    assert picture.shape == (1, 6, 4, 3) and mask.shape == (1, 64, 64) and not mask.any()


def test_frames_become_a_batch_and_16_bits_are_read(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    frames = [Image.new("RGB", (5, 3), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert files.load(tmp_path / "film.gif")[0].shape == (3, 3, 5, 3)
    deep = np.array([[0, 255 * 128, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    values = files.load(tmp_path / "deep.png")[0][0, 0, :, 0]
    torch.testing.assert_close(values, torch.tensor([0, 128 / 255, 1.0]))


def test_a_channel_as_a_mask(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGBA", (2, 2), (255, 51, 0, 255)).save(tmp_path / "x.png")
    assert files.load_channel(tmp_path / "x.png", "red").eq(1).all()
    assert files.load_channel(tmp_path / "x.png", "alpha").eq(0).all()
    torch.testing.assert_close(files.load_channel(tmp_path / "x.png", "green"), torch.full((1, 2, 2), 0.2))


def test_pixels_are_cut_to_the_range_and_truncated() -> None:
    values = torch.tensor([-1.0, 0.0, 0.999, 1.0, 2.0]).reshape(1, 5, 1).expand(1, 5, 3)
    assert files.to_pil(values).getchannel(0).tobytes() == bytes([0, 0, 254, 255, 255])


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "bomb"])
def test_what_is_no_picture_is_told(tmp_path: Path, damage: str) -> None:
    from PIL import Image

    path = tmp_path / "x.png"
    Image.effect_noise((64, 64), 50).save(path)
    whole = path.read_bytes()
    if damage == "bomb":  # a header that promises 2^31 pixels a side
        whole = whole[:16] + b"\x7f\xff\xff\xff\x7f\xff\xff\xff" + whole[24:]
    path.write_bytes({"truncated": whole[:900], "text": b"hello", "empty": b"", "bomb": whole}[damage])
    with pytest.raises(FileFormatError, match=r"x\.png"):
        files.load(path)
    with pytest.raises(MissingFileError, match="nothing"):
        files.load(tmp_path / "nothing.png")


def test_what_no_memory_could_hold_is_refused_before_it_is_allocated() -> None:
    with pytest.raises(InputError, match="GiB"):
        latent_nodes.EmptySD3LatentImage().generate(16384, 16384, 4096)
    with pytest.raises(InputError, match="GiB"):
        image_nodes.EmptyImage().generate(16384, 16384, 4096, 0)
    check_room("A thimble", 1)
