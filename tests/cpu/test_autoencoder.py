"""The autoencoder equals ComfyUI's and diffusers', whole and in tiles."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from doubles.seeded import Fill, Seeded
from safetensors.torch import load_file, save_file
from sluice.flux_core.errors import FileFormatError
from sluice.flux_core.io.folders import TINY_MODELS
from sluice.flux_core.models.autoencoder import Autoencoder, AutoencoderConfig
from sluice.flux_core.models.tiling import three_tilings, tiled
from sluice.flux_core.runtime.handles import load_autoencoder
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from torch import Tensor
from torch.testing import assert_close

SMALL = AutoencoderConfig(channels=3, ch=32, ch_mult=(1, 2, 2, 4), num_res_blocks=1, z_channels=16)
REFERENCE = load_file(Path(__file__).parents[1] / "fixtures" / "autoencoder.safetensors")


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.fixture
def autoencoder(fill: Fill) -> Autoencoder:
    return fill(Autoencoder(SMALL))


@pytest.fixture
def image(seeded: Seeded) -> Callable[..., Tensor]:
    """image(name, height, width): a picture [1, H, W, 3] in 0..1."""
    return lambda name, *size: seeded(name, size).mul(0.2).add(0.5).clamp(0, 1)


@torch.no_grad()
def test_latents_and_pictures_equal_those_of_comfyui(
    autoencoder: Autoencoder, image: Callable[..., Tensor], seeded: Seeded
) -> None:
    mean = autoencoder.encode_image(image("image", 1, 43, 34, 3))  # cropped to 40 x 32, about the centre
    assert_close(mean, REFERENCE["mean"], rtol=1e-4, atol=1e-5)
    pixels = autoencoder.decode(seeded("latent", (1, 16, 3, 5)))
    assert_close(pixels, REFERENCE["pixels"], rtol=1e-4, atol=1e-5)
    expected = ((REFERENCE["pixels"] + 1) / 2).clamp(0, 1).movedim(1, -1)
    assert_close(autoencoder.decode_image(seeded("latent", (1, 16, 3, 5))), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tiles_equal_those_of_comfyui(autoencoder: Autoencoder, image: Callable[..., Tensor], seeded: Seeded) -> None:
    mean = autoencoder.encode_image_tiled(image("wide image", 1, 3, 80, 104).movedim(1, -1), tile=32, overlap=8)
    assert_close(mean, REFERENCE["tiled_mean"], rtol=1e-4, atol=1e-5)
    decoded = autoencoder.decode_image_tiled(seeded("wide latent", (1, 16, 10, 13)), tile=32, overlap=8)
    expected = ((REFERENCE["tiled_pixels"].float() + 1) / 2).clamp(0, 1).movedim(1, -1)
    assert_close(decoded, expected, rtol=0, atol=1e-3)  # the reference is kept in float16


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_change_nothing(
    autoencoder: Autoencoder,
    image: Callable[..., Tensor],
    seeded: Seeded,
    layout: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
) -> None:
    """Whole and in tiles: a picture is often one of a batch, cut out, or turned, and lies in memory accordingly."""
    autoencoder.to(dtype)
    pictures = image("picture", 2, 35, 24, 4), image("one picture", 1, 8, 24, 3)
    latents = seeded("latents", (2, 16, 3, 5)), seeded("one latent", (1, 16, 1, 4))
    for run, given in ((autoencoder.encode_image, pictures), (autoencoder.decode_image, latents)):
        assert all(torch.equal(run(layout(x)), run(x)) for x in given)
    for run, given in ((autoencoder.encode_image_tiled, pictures), (autoencoder.decode_image_tiled, latents)):
        assert torch.equal(run(layout(given[0]), 16, 8), run(given[0], 16, 8))
    pixels, latent = seeded("pixels", (1, 3, 16, 8)).to(dtype), latents[1].to(dtype)
    assert all(map(torch.equal, autoencoder.moments(layout(pixels)), autoencoder.moments(pixels)))
    assert torch.equal(autoencoder.decode(layout(latent)), autoencoder.decode(latent))


@torch.no_grad()
@pytest.mark.parametrize("asked, taken", [(0, 0), (16, 16), (24, 24), (32, 16), (4096, 16)])
def test_encoding_takes_every_overlap_that_half_a_tile_allows(
    autoencoder: Autoencoder, image: Callable[..., Tensor], asked: int, taken: int
) -> None:
    picture = image("wide image", 1, 3, 80, 104).movedim(1, -1)
    expected = three_tilings(picture.movedim(-1, 1) * 2 - 1, autoencoder.encode, 64, taken, 1 / 8)
    assert_close(autoencoder.encode_image_tiled(picture, tile=64, overlap=asked), expected)


@torch.no_grad()
def test_encoding_and_decoding_equal_diffusers(autoencoder: Autoencoder, seeded: Seeded) -> None:
    config = {
        "block_out_channels": [32, 64, 64, 128], "layers_per_block": 1, "latent_channels": 16, "norm_num_groups": 32,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
        "use_quant_conv": False, "use_post_quant_conv": False, "in_channels": 3, "out_channels": 3,
    }  # fmt: skip
    reference = AutoencoderKL(**config).eval()
    reference.load_state_dict(convert_ldm_vae_checkpoint(autoencoder.state_dict(), config), strict=True)
    pixels, latent = seeded("pixels", (2, 3, 32, 24)), seeded("latent", (2, 16, 4, 3))
    mean, log_variance = autoencoder.moments(pixels)
    expected = reference.encode(pixels).latent_dist
    assert_close(mean, expected.mean, rtol=1e-4, atol=1e-5)
    assert_close(log_variance, expected.logvar, rtol=1e-4, atol=1e-5)
    assert_close(autoencoder.decode(latent), reference.decode(latent).sample, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_only_the_first_three_channels_of_a_picture_are_encoded(
    autoencoder: Autoencoder, image: Callable[..., Tensor]
) -> None:
    rgba = image("rgba", 1, 16, 16, 4)
    assert torch.equal(autoencoder.encode_image(rgba), autoencoder.encode_image(rgba[..., :3]))


@torch.no_grad()
def test_smaller_weights_compute_small_and_return_float32(
    autoencoder: Autoencoder, image: Callable[..., Tensor]
) -> None:
    exact = autoencoder.encode_image(image("image", 1, 16, 16, 3))
    rounded = autoencoder.bfloat16().encode_image(image("image", 1, 16, 16, 3))
    assert rounded.dtype == torch.float32
    assert_close(rounded, exact, rtol=0.1, atol=0.1)


@torch.no_grad()
def test_each_tile_is_reported_with_the_number_of_all(autoencoder: Autoencoder, seeded: Seeded) -> None:
    for batch in (1, 2):
        seen = []
        latent = seeded("latent", (batch, 16, 5, 5))
        autoencoder.decode_image_tiled(latent, tile=32, overlap=8, on_tile=lambda *step: seen.append(step))  # noqa: B023
        assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
        assert {total for _, total in seen} == {len(seen)}


def doubled(part: Tensor) -> Tensor:
    return F.interpolate(part, scale_factor=2.0)


@pytest.mark.parametrize("size", [(7, 9), (12, 5), (30, 31)])
@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_a_function_of_single_cells_does_not_see_the_tiles(seeded: Seeded, size: tuple[int, int], overlap: int) -> None:
    x = seeded("x", (2, 3, *size))
    assert_close(three_tilings(x, doubled, 8, overlap, 2), doubled(x))


def test_what_fits_into_one_tile_is_done_in_one_call() -> None:
    calls = []

    def count(part: Tensor) -> Tensor:
        calls.append(part.shape)
        return part

    tiled(torch.zeros(2, 1, 6, 9), count, (6, 9), 2, 1)
    assert calls == [(1, 1, 6, 9)] * 2


def test_tiles_cover_everything_are_no_larger_than_asked_and_blend_linearly() -> None:
    sizes = []

    def numbered(part: Tensor) -> Tensor:
        sizes.append(tuple(part.shape[-2:]))
        return torch.full_like(part, float(len(sizes) - 1))

    out = tiled(torch.zeros(1, 1, 1, 14), numbered, (4, 8), 2, 1)
    assert sizes == [(1, 8), (1, 8)]
    assert_close(out[0, 0, 0], torch.tensor([0.0] * 6 + [0.5 / 1.5, 1.0 / 1.5] + [1.0] * 6))


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        AutoencoderConfig(3, 64, (1, 2), 3, 4),
        AutoencoderConfig(3, 128, (1, 2, 4, 4), 2, 16),
    ],
)
def test_sizes_are_read_off_the_shapes(config: AutoencoderConfig) -> None:
    with torch.device("meta"):
        autoencoder = Autoencoder(config)
    assert AutoencoderConfig.from_shapes(shapes(autoencoder)) == config
    assert autoencoder.compression == 2 ** (len(config.ch_mult) - 1)


def test_the_released_autoencoder_has_244_tensors() -> None:
    with torch.device("meta"):
        released = Autoencoder(AutoencoderConfig(3, 128, (1, 2, 4, 4), 2, 16))
    assert len(released.state_dict()) == 244
    assert sum(parameter.numel() for parameter in released.parameters()) == 83_819_683
    with pytest.raises(FileFormatError, match="encoder.conv_in.weight"):
        AutoencoderConfig.from_shapes({"decoder.conv_in.weight": (512, 16, 3, 3)})


def test_a_new_model_learns_from_the_first_steps(seeded: Seeded) -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(3, 32, (1, 1, 1, 1), 1, 16)).train()
    autoencoder.init_weights()
    pixels = F.interpolate(seeded("pixels", (2, 3, 4, 4)), scale_factor=8.0).clamp(-1, 1)
    optimiser = torch.optim.Adam(autoencoder.parameters(), 2e-3)
    losses = []
    for _ in range(8):
        losses.append((autoencoder.decode(autoencoder.encode(pixels)) - pixels).square().mean())
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.grad is not None for parameter in autoencoder.parameters())


def test_16_bit_weights_lie_channels_last_and_decode_as_well(seeded: Seeded) -> None:
    """Which is twice as fast on processors that multiply bfloat16; the shipped autoencoder, against float32."""
    path = TINY_MODELS / "vae/sluice-tiny-ae.safetensors"
    loaded = load_autoencoder(Runtime(Settings("cpu", "bf16")), path)
    module = loaded.weights.module(torch.device("cpu"), torch.bfloat16)
    convolutions = [weight for weight in module.parameters() if weight.ndim == 4 and weight[0, 0].numel() > 1]
    assert convolutions and all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)
    exact = load_autoencoder(Runtime(Settings("cpu", "fp32")), path)
    plain = copy.deepcopy(module)
    for weight in plain.parameters():
        weight.data = weight.data.contiguous()
    latent = seeded("latent", (1, 16, 8, 8))
    with torch.no_grad():
        wanted, before, now = (each.decode_image(latent) for each in (exact, plain, module))
    assert (now - wanted).abs().mean() < 1.05 * (before - wanted).abs().mean() < 1 / 255
    assert (now - before).abs().mean() < 1 / 255


@torch.no_grad()
def test_a_scaled_down_autoencoder_gives_the_same_bits(
    autoencoder: Autoencoder, image: Callable[..., Tensor], seeded: Seeded
) -> None:
    picture, latent = image("image", 1, 40, 32, 3), seeded("latent", (1, 16, 3, 5))
    expected = autoencoder.encode_image(picture), autoencoder.decode(latent)
    smaller = copy.deepcopy(autoencoder)
    smaller.scale_down()
    inside = [module for module in smaller.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert torch.equal(smaller.encode_image(picture), expected[0]) and torch.equal(smaller.decode(latent), expected[1])
    assert {module.eps for module in inside} == {1e-6 / 2**14}
    assert torch.equal(smaller.decoder.conv_out.weight, autoencoder.decoder.conv_out.weight)


@pytest.fixture
def large(autoencoder: Autoencoder) -> Autoencoder:
    """One whose activations no float16 holds, as those of FLUX's decoder; its images are like any other's."""
    autoencoder.decoder.conv_in.weight.data.mul_(1 << 16)
    autoencoder.encoder.conv_in.weight.data.mul_(1 << 16)
    return autoencoder


@torch.no_grad()
def test_float16_holds_it_once_it_is_scaled_down(large: Autoencoder, seeded: Seeded) -> None:
    latent = seeded("latent", (1, 16, 3, 5))
    exact = large.decode_image(latent)
    assert not torch.isfinite(copy.deepcopy(large).half().decode_image(latent)).all()
    half = copy.deepcopy(large)
    half.scale_down()
    found = half.half().decode_image(latent)
    assert torch.isfinite(found).all() and (found - exact).abs().max() < 0.01


@pytest.mark.parametrize("ram", [None, "1G"], ids=["whole", "managed"])
@pytest.mark.parametrize("factor", [1, 1 << 12], ids=["held", "exceeded"])
def test_in_float16_it_is_loaded_scaled_down_and_what_exceeds_that_is_computed_in_float32(
    large: Autoencoder, seeded: Seeded, tmp_path: Path, caplog: pytest.LogCaptureFixture, ram: str | None, factor: int
) -> None:
    large.decoder.conv_in.weight.data.mul_(factor)
    save_file(large.state_dict(), tmp_path / "ae.safetensors")
    runtime = Runtime(Settings.parse("cpu", "fp32", ram=ram))
    runtime.autoencoder_dtype = torch.float16  # which a CPU does not choose by itself
    coder, latent = load_autoencoder(runtime, tmp_path / "ae.safetensors"), seeded("latent", (1, 16, 3, 5))
    found = coder.decode_image(latent)
    with torch.no_grad():
        assert (found - large.decode_image(latent)).abs().max() < 0.01
    assert coder.weights.exceeds_half is (factor > 1) and ("float32 from now on" in caplog.text) is (factor > 1)
