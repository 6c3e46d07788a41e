"""The options that several commands have in common: folders, models, node packs, devices."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..runtime.settings import ATTENTIONS, CACHES, COMPUTES, LATENT_RGB, NUMBER_TYPES, PREVIEWS, PYTORCH


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """The folders of model files and images."""
    parser.add_argument(
        "--out", "--output-directory", type=Path, metavar="DIR", help="where images go (default: ./output)"
    )
    parser.add_argument(
        "--input", "--input-directory", type=Path, metavar="DIR", help="the folder of LoadImage (default: ./input)"
    )
    add_model_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The folders of model files."""
    parser.add_argument(
        "--models",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="a models folder laid out as ComfyUI's; may be repeated (default: ./models)",
    )
    parser.add_argument(
        "--extra-model-paths",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="a file like ComfyUI's extra_model_paths.yaml",
    )


def add_pack_arguments(parser: argparse.ArgumentParser) -> None:
    """The folders of node packs."""
    parser.add_argument(
        "--node-packs",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="a folder of ComfyUI node packs, whose code is run; may be repeated",
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Device and number types."""
    parser.add_argument("--device", metavar="cpu|cuda[:N]", help="default: the first GPU, or else the CPU")
    parser.add_argument(
        "--dtype",
        choices=NUMBER_TYPES,
        default="auto",
        help="number type of the computation; auto takes the fastest without visible loss",
    )
    parser.add_argument(
        "--compute",
        choices=COMPUTES,
        default="auto",
        help="products of the transformer: int8 multiplies 8-bit integers, which any file is made into while it is "
        "loaded; 16bit decodes; fp16-sums sums in float16 (GeForce cards, with --dtype fp16); auto multiplies integers "
        "where the file stores them and that is faster here "
        "(default: auto)",
    )
    parser.add_argument(
        "--cache",
        choices=CACHES,
        default="off",
        help="reuse the model's output at steps where it changes little: fast computes about half of the steps, faster "
        "fewer still; images differ slightly from the exact ones (default: off)",
    )
    parser.add_argument(
        "--attention",
        choices=ATTENTIONS,
        default=PYTORCH,
        help="of the transformer: sage computes it in 8 bits with the package sageattention on an NVIDIA card, if that "
        "is installed and its first result is near PyTorch's; images differ slightly (default: pytorch)",
    )


def add_preview_argument(parser: argparse.ArgumentParser) -> None:
    """The kind of previews."""
    parser.add_argument(
        "--previews",
        choices=PREVIEWS,
        default=LATENT_RGB,
        help="of an image while it is made: latent2rgb shows the colours of its cells; taef1 decodes it with "
        "vae_approx/taef1_decoder.safetensors, sharper (default: latent2rgb)",
    )
