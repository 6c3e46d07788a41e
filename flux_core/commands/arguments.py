"""The options that several commands have in common: folders, models, node packs, devices."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..runtime.settings import ATTENTIONS, CACHES, COMPUTES, LATENT_RGB, NUMBER_TYPES, PREVIEWS, PYTORCH


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """The folders of model files and images."""
    parser.add_argument(
        "--out", "--output-directory", type=Path, metavar="DIR", help="folder for images (default: ./output)"
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
        help="a file in the format of ComfyUI's extra_model_paths.yaml",
    )


def add_pack_arguments(parser: argparse.ArgumentParser) -> None:
    """The folders of node packs."""
    parser.add_argument(
        "--node-packs",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="a folder of ComfyUI node packs; their code is run; may be repeated",
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Device and number types."""
    parser.add_argument(
        "--device",
        metavar="cpu|cuda[:N]",
        help="device to compute on (default: the first GPU, or the CPU if there is none)",
    )
    parser.add_argument(
        "--dtype",
        choices=NUMBER_TYPES,
        default="auto",
        help="number type of the computation; auto chooses the fastest without visible loss (default: auto)",
    )
    parser.add_argument(
        "--compute",
        choices=COMPUTES,
        default="auto",
        help="how the transformer multiplies matrices: int8 multiplies 8-bit integers and converts other files while "
        "loading; 16bit multiplies decoded numbers; fp16-sums adds in float16 (GeForce cards, with --dtype fp16); auto "
        "multiplies integers if the file stores them and this device is faster with them (default: auto)",
    )
    parser.add_argument(
        "--cache",
        choices=CACHES,
        default="off",
        help="reuse the model's output at steps where it changes little: fast computes about half of the steps, faster "
        "computes fewer; images differ slightly from the exact ones (default: off)",
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
        help="pictures shown while an image is made: latent2rgb shows a colour per latent cell; taef1 is sharper and "
        "needs vae_approx/taef1_decoder.safetensors (default: latent2rgb)",
    )
