"""A model store as ComfyUI's users have it, with the published names and formats, filled with small random weights."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sluice.flux_core.commands import cli
from sluice.flux_core.models.autoencoder import Autoencoder, AutoencoderConfig
from sluice.flux_core.models.clip_text import ClipConfig, ClipTextModel
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig, axes_of
from sluice.flux_core.models.t5 import T5Config, T5Encoder
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

WIDTH = 32
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `models` folder: dev and schnell in parts and in one file, text encoders, autoencoder, tokenizers."""
    models_folder = tmp_path_factory.mktemp("comfyui") / "models"
    _tokenizers(models_folder / "tokenizers")
    clip = _random(ClipTextModel(ClipConfig(2 * len(LETTERS) + 2, 77, WIDTH, 64, 2, 2)), "clip_l")
    t5 = _random(T5Encoder(T5Config(512, WIDTH, WIDTH, 2, 64, 2)), "t5")
    vae = _random(Autoencoder(AutoencoderConfig(3, 32, (1, 1, 1, 1), 1, 16)), "ae")
    dev, schnell = (_random(Flux(_flux_config(guidance)), "flux") for guidance in (True, False))

    bf16, fp16, fp8 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
    _save(models_folder / "diffusion_models/flux1-dev.safetensors", _as(dev, bf16))
    _save(models_folder / "diffusion_models/flux1-schnell.safetensors", _as(schnell, bf16))
    _save(models_folder / "text_encoders/t5xxl_fp16.safetensors", _as(t5, fp16))
    _save(models_folder / "text_encoders/clip_l.safetensors", _as(clip, fp16))
    _save(models_folder / "vae/ae.safetensors", vae)
    for name, flux in (("dev", dev), ("schnell", schnell)):
        whole = {f"model.diffusion_model.{key}": value for key, value in _as(flux, fp8).items()}
        whole |= {f"vae.{key}": value for key, value in vae.items()}
        whole |= {f"text_encoders.clip_l.transformer.{key}": value for key, value in _as(clip, fp16).items()}
        whole |= {f"text_encoders.t5xxl.transformer.{key}": value for key, value in _as(t5, fp8).items()}
        whole["text_encoders.clip_l.logit_scale"] = torch.tensor(4.6, dtype=fp16)
        _save(models_folder / f"checkpoints/flux1-{name}-fp8.safetensors", whole)
    return models_folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLUICE_DEBUG", raising=False)
    return tmp_path


@pytest.fixture
def sluice_run(here: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[Path]]:
    """sluice_run(file, *options): the pictures it printed, computed in float32."""

    def run(file: Path, *options: str) -> list[Path]:
        capsys.readouterr()
        code = cli.main(["run", str(file), "--models", str(store), "--dtype", "fp32", "--device", "cpu", *options])
        told = capsys.readouterr()
        assert code == 0, told.err
        return [here / line for line in told.out.splitlines()]

    return run


@pytest.fixture(scope="session")
def random_weights() -> Callable[[nn.Module, str], dict[str, Tensor]]:
    """random_weights(module, salt): a state dict that follows from its keys."""
    return _random


def _flux_config(guidance: bool) -> FluxConfig:
    return FluxConfig(
        in_channels=16,
        out_channels=16,
        hidden=WIDTH,
        heads=1,
        head_dim=WIDTH,
        mlp=64,
        depth=1,
        depth_single=1,
        context_dim=WIDTH,
        vec_dim=WIDTH,
        guidance=guidance,
        axes_dim=axes_of(WIDTH),
    )


def _random(module: nn.Module, salt: str) -> dict[str, Tensor]:
    """Weights that follow from their names: matrices of variance 1 / fan-in, scales about 1, small biases."""
    weights = {}
    for name, value in module.state_dict().items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{salt} {name}".encode()))
        numbers = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            weights[name] = numbers * value[0].numel() ** -0.5
        else:
            weights[name] = numbers * 0.1 + (0 if name.endswith("bias") else 1)
    return weights


def _as(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) for name, value in weights.items()}


def _save(path: Path, weights: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in weights.items()}, path)


def _tokenizers(folder: Path) -> None:
    """CLIP's of single bytes; T5's of single characters."""
    clip, t5 = folder / "clip_l", folder / "t5xxl"
    clip.mkdir(parents=True)
    t5.mkdir()
    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (clip / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (clip / "merges.txt").write_text("#version: 0.2\n")
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *map(chr, range(33, 500))]
    vocabulary = Tokenizer(models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], unk_id=2))
    vocabulary.pre_tokenizer = pre_tokenizers.Metaspace()
    vocabulary.add_special_tokens(["<pad>", "</s>"])
    vocabulary.save(str(t5 / "tokenizer.json"))
