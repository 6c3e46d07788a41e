"""Models by their published names, so that a plan can be made before anything is downloaded. Uses no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..models.flux_config import FluxConfig, flux1
from ..quant.sizes import BLOCK, nbytes_of

TEXT_TOKENS = 512  # of the longest prompts that FLUX.1 dev was trained with
MULTIPLIED_AS_STORED = {"F32", "F16", "BF16"}
COMPARED = ("bf16", "fp8", "int8", "Q8_0", "Q4_K_S")
CHANNELS = {
    "fill": 96,
    "canny": 32,
    "depth": 32,
}  # channels of the latent and what is concatenated to it; 16 for the others
_FORMATS = {"bf16": "BF16", "fp16": "F16", "fp8": "F8_E4M3", "int8": "INT8"}
_KNOWN = "bf16, fp16, fp8, int8, Q8_0, Q6_K, Q5_K_S, Q5_0, Q5_1, Q4_K_S, Q4_0, Q4_1, Q3_K_S, Q2_K"


@dataclass(frozen=True)
class Published:
    """A model with a published name."""

    name: str
    config: FluxConfig
    format: str

    def nbytes(self, shape: Sequence[int]) -> int:
        """Stored bytes of a matrix. Rows that do not divide into blocks are stored in two bytes per value."""
        values, _ = BLOCK[self.format]
        if self.format == "INT8":
            return int8_bytes(shape)
        return nbytes_of("F16" if shape[-1] % values else self.format, shape)

    @property
    def decoded(self) -> bool:
        """Whether stored weights must be decoded before they are multiplied."""
        return self.format not in MULTIPLIED_AS_STORED


def int8_bytes(shape: Sequence[int]) -> int:
    """Bytes of a matrix [out, in] as 8-bit integers with a scale for each row."""
    return nbytes_of("INT8", shape) + 4 * shape[0]


def published(name: str) -> Published | None:
    """The model of `flux1-dev-fp8`, `flux1-schnell` (in bf16), `flux1-dev-Q4_K_S.gguf`, ...; None for any other
    name.
    """
    stem = re.sub(r"\.(safetensors|sft|gguf)$", "", name)
    stem = stem.replace("flux1-dev-kontext_fp8_scaled", "flux1-kontext-dev-fp8")  # as Comfy-Org names its file
    match = re.fullmatch(r"flux1-(dev|schnell|fill|canny|depth|kontext)(?:-dev)?(?:-([A-Za-z0-9_]+))?", stem)
    if not match:
        return None
    variant, label = match[1], match[2] or "bf16"
    stored = _FORMATS.get(label.lower()) or re.sub(r"_[SML]$", "", label.upper())
    if stored not in _FORMATS.values() and not (stored in BLOCK and stored.startswith(("Q", "IQ"))):
        raise InputError(f"{name} does not name a known format. After flux1-{variant}- choose one of: {_KNOWN}.")
    config = flux1(CHANNELS.get(variant, 16), guidance=variant != "schnell")
    return Published(f"flux1-{variant}-{label}", config, stored)


def picture_size(text: str) -> tuple[int, int]:
    """ "1024x768" -> (1024, 768): width and height. Raises InputError."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise InputError(f"{text!r} is not an image size. Write 1024x768, for example.")
    return int(width), int(height)
