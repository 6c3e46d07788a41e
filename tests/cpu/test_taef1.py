"""TAEF1, the small autoencoder: ComfyUI's numbers, every form its files have, as a VAE and for previews."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from doubles.seeded import Fill, Seeded
from PIL import Image
from safetensors.torch import load_file, save_file
from sluice.flux_core.checkpoint.detect import detect
from sluice.flux_core.checkpoint.files import open_weights
from sluice.flux_core.errors import FileFormatError, InputError
from sluice.flux_core.images.previews import jpeg
from sluice.flux_core.io.folders import Folders, standard_folders
from sluice.flux_core.memory import meter
from sluice.flux_core.memory.workload import MiB
from sluice.flux_core.models.latents import process_in
from sluice.flux_core.models.taef1 import Taef1, Taef1Config
from sluice.flux_core.runtime import latent_previews
from sluice.flux_core.runtime.handles import load_autoencoder
from sluice.flux_core.runtime.latent_previews import Taef1Previews
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.worker.required_models import as_listed, wanted_files
from sluice.nodes.host import Host
from sluice.nodes.loaders import TAEF1_FILES, VAELoader
from torch import Tensor
from torch.testing import assert_close

REFERENCE = load_file(Path(__file__).parents[1] / "fixtures" / "taef1.safetensors")
SMALL = Taef1Config(width=8, latent_channels=16, encodes=True, decodes=True)
Written = Callable[..., list[Path]]


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(Settings.parse("cpu", "fp32"))


@pytest.fixture
def small(fill: Fill) -> Taef1:
    return fill(Taef1(SMALL))


@pytest.fixture
def written(tmp_path: Path, small: Taef1) -> Written:
    """written(form): the files of `small` in one of the forms that are published."""

    def write(form: str) -> list[Path]:
        files = FORMS[form](small.state_dict())
        for name, tensors in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / name)
        return [tmp_path / name for name in files]

    return write


def halves(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """As in the author's repository: two files, layers by number."""
    return {
        name: {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(name[6:13])}
        for name in TAEF1_FILES
    }


def diffusers(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """One file, where the decoder's clamp is no layer."""

    def renamed(key: str) -> str:
        half, number, rest = key.split(".", 2)
        return f"{half}.layers.{int(number) - (half == 'decoder')}.{rest}"

    return {"diffusion_pytorch_model.safetensors": {renamed(key): value for key, value in tensors.items()}}


def comfyui(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """One file, as ComfyUI's VAESave writes it."""
    scale = {"vae_scale": torch.tensor(0.3611), "vae_shift": torch.tensor(0.1159)}
    return {"saved.safetensors": {f"taesd_{key}": value for key, value in tensors.items()} | scale}


FORMS = {"halves": halves, "diffusers": diffusers, "ComfyUI": comfyui}


@torch.no_grad()
def test_pixels_and_latents_equal_those_of_comfyui(fill: Fill, seeded: Seeded) -> None:
    model = fill(Taef1(Taef1Config(64, 16, True, True)))
    assert_close(model.decode(seeded("latent", (2, 16, 3, 5))), REFERENCE["pixels"], rtol=1e-4, atol=1e-5)
    pixels = seeded("pixels", (2, 3, 24, 40)).mul(0.4).clamp(-1, 1)
    assert_close(model.encode(pixels), REFERENCE["latent"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_strides_change_nothing(small: Taef1, seeded: Seeded, layout: Callable[[Tensor], Tensor]) -> None:
    latent, image = seeded("latent", (2, 16, 3, 5)), seeded("image", (1, 24, 16, 3))
    assert torch.equal(small.decode(layout(latent)), small.decode(latent))
    assert torch.equal(small.encode_image(layout(image)), small.encode_image(image))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("managed", [False, True], ids=["whole", "managed"])
def test_every_published_form_is_recognised_and_gives_the_same_numbers(
    written: Written, small: Taef1, seeded: Seeded, form: str, managed: bool
) -> None:
    latent, image = seeded("latent", (2, 16, 3, 5)), seeded("image", (2, 24, 16, 4))
    ram = f"{meter.resident_bytes() // MiB + 512}M" if managed else None  # beyond what other tests left in the process
    coder = load_autoencoder(Runtime(Settings.parse("cpu", "fp32", ram=ram)), *written(form))
    with torch.no_grad():
        assert_close(coder.decode_image(latent), small.decode_image(latent), rtol=1e-5, atol=1e-6)
        assert_close(coder.encode_image(image), small.encode_image(image), rtol=1e-5, atol=1e-6)
        tiled = coder.decode_image_tiled(seeded("wide", (1, 16, 8, 40)), tile=128, overlap=32)
    assert tiled.shape == (1, 64, 320, 3)


def test_one_half_says_what_it_cannot_do(written: Written, runtime: Runtime, seeded: Seeded) -> None:
    decoder, encoder = written("halves")
    assert detect(open_weights(decoder)).noun == "a small autoencoder for FLUX.1 (TAEF1), its decoder"
    with pytest.raises(InputError, match="decodes only"):
        load_autoencoder(runtime, decoder).encode_image(seeded("image", (1, 8, 8, 3)))
    with pytest.raises(InputError, match="encodes only"):
        load_autoencoder(runtime, encoder).decode_image(seeded("latent", (1, 16, 1, 1)))


def test_a_small_autoencoder_of_another_family_is_told_by_its_channels(
    fill: Fill, tmp_path: Path, runtime: Runtime
) -> None:
    other = fill(Taef1(Taef1Config(8, 4, True, True)))
    for name, tensors in halves(other.state_dict()).items():
        save_file(tensors, tmp_path / name)
        with pytest.raises(FileFormatError, match="TAESD, 4 latent channels; FLUX.1's has 16"):
            load_autoencoder(runtime, tmp_path / name)


@pytest.fixture
def folders(tmp_path: Path, written: Written) -> Folders:
    """A models folder with both halves in vae_approx."""
    (tmp_path / "models/vae_approx").mkdir(parents=True)
    for path in written("halves"):
        path.rename(tmp_path / "models/vae_approx" / path.name)
    return standard_folders(tmp_path, [])


def host_of(folders: Folders, previews: str = "latent2rgb") -> Host:
    return Host(folders, make_runtime=lambda: Runtime(Settings.parse("cpu", "fp32")), previews=previews)


def test_load_vae_offers_it_by_comfyuis_name_and_needs_both_files(
    folders: Folders, small: Taef1, seeded: Seeded
) -> None:
    class Bound(VAELoader):
        host = host_of(folders)

    latent = seeded("latent", (1, 16, 2, 2))
    assert "taef1" in Bound.INPUT_TYPES()["required"]["vae_name"][0]
    (vae,) = Bound().load("taef1")
    with torch.no_grad():
        assert_close(vae.decode_image(latent), small.decode_image(latent), rtol=1e-5, atol=1e-6)
    prompt = {"1": {"class_type": "VAELoader", "inputs": {"vae_name": "taef1"}}}
    wanted = wanted_files(prompt, {"VAELoader": Bound}, folders)
    assert [(one.category, one.name, one.path is not None) for one in wanted] == [
        ("vae_approx", name, True) for name in TAEF1_FILES
    ]
    assert as_listed(prompt, wanted, folders) == prompt
    before = Bound.IS_CHANGED(vae_name="taef1")
    wanted[0].path.unlink()  # type: ignore[union-attr]
    assert "taef1" not in Bound.INPUT_TYPES()["required"]["vae_name"][0]
    assert Bound.IS_CHANGED(vae_name="taef1") != before
    assert [one.path is None for one in wanted_files(prompt, {"VAELoader": Bound}, folders)] == [True, False]


@torch.no_grad()
def test_previews_are_decoded_whatever_their_size(folders: Folders, small: Taef1, seeded: Seeded) -> None:
    host = host_of(folders, previews="taef1")
    latent = seeded("latent", (16, 40, 12))
    shown = host.preview(latent)
    image = np.asarray(shown)
    assert Image.open(io.BytesIO(jpeg(shown))).size == (96, 320), "it is not enlarged, having all pixels"
    whole = small.decode_scaled(latent[None])[0].clamp(0, 1).mul(255).movedim(0, -1)
    assert image.shape == (320, 96, 3)
    apart = np.abs(image - whole.numpy())
    assert apart[:100].max() <= 0.51 and apart.max() < 25  # far from the seam, and near it
    assert small.decode(latent[None]).shape == small.decode_scaled(process_in(latent[None])).shape


def test_a_preview_takes_little_memory_beside_a_large_image(
    folders: Folders, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    previews = Taef1Previews(runtime, folders.path("vae_approx", TAEF1_FILES[0]))
    seen: list[tuple[int, ...]] = []
    decode = Taef1.decode_scaled

    def watched(self: Taef1, latent: Tensor) -> Tensor:
        seen.append(tuple(latent.shape[2:]))
        return decode(self, latent)

    monkeypatch.setattr(Taef1, "decode_scaled", watched)
    monkeypatch.setattr(latent_previews, "TILE", 8)
    monkeypatch.setattr(latent_previews, "OVERLAP", 2)
    assert previews.image(torch.zeros(16, 20, 8)).shape == (160, 64, 3)
    assert len(seen) > 1 and all(max(sides) <= 8 for sides in seen)


def test_without_the_file_previews_are_rough_and_it_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = host_of(standard_folders(tmp_path, []), previews="taef1")
    with caplog.at_level(logging.WARNING):
        images = [host.preview(torch.zeros(16, 4, 6)) for _ in range(2)]
    assert [image.size for image in images] == [(6, 4), (6, 4)]
    assert len(caplog.records) == 1 and "taef1_decoder.safetensors" in caplog.text
