"""The sizes of one ControlNet for FLUX.1, read off the shapes of its file. Uses no torch: a header is enough."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import FileFormatError
from .flux_config import FluxConfig

LATENT_CHANNELS = 16


@dataclass(frozen=True)
class ControlNetConfig:
    """The sizes of one ControlNet. kind: "latent", "picture" or "mistoline"."""

    body: FluxConfig
    kind: str
    hint_channels: int  # channels before 2x2 patching
    modes: int = 0  # number of kinds of images, each with an embedding

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> ControlNetConfig:
        """Read every size off a file's shapes, blocks in BFL's names. Raises FileFormatError if it is not one."""
        if "pos_embed_input.weight" not in shapes or "img_in.weight" not in shapes:
            raise FileFormatError("This is not a ControlNet for FLUX.1: it has no tensor named pos_embed_input.weight.")
        hidden, columns = shapes["img_in.weight"][0], shapes["pos_embed_input.weight"][1]
        body = FluxConfig.from_shapes({**shapes, "final_layer.linear.weight": (64, hidden)})  # it has no such layer
        kind = "picture" if "input_hint_block.0.weight" in shapes else "latent"
        kind = "mistoline" if "input_cond_block.encoder.0.weight" in shapes else kind
        return cls(body, kind, columns // 4, shapes.get("controlnet_mode_embedder.weight", (0,))[0])

    @property
    def takes_latent(self) -> bool:
        """Whether the image is a latent, encoded by the autoencoder."""
        return self.kind == "latent"

    @property
    def takes_mask(self) -> bool:
        """Whether the latent has a mask as a further channel."""
        return self.takes_latent and self.hint_channels == LATENT_CHANNELS + 1


def controlnet_key(path: Path) -> str:
    """A name for the ControlNet of a file that may stand in the name of a weight: no other file has it."""
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', path.stem)}-{zlib.crc32(str(path).encode()):08x}"
