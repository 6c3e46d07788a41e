"""The seam by which several devices compute one picture: each has some of the tokens, and they meet in attention.

The transformer asks whoever shares the tokens for its own ones, and for attention over all of them. This file does not
know how the devices talk (parallel/tokens.py does).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class TokenShare(Protocol):
    """The tokens of one device: a run of the text's, followed by a run of the image's. Either run may be empty."""

    def text(self, tokens: Tensor) -> Tensor:
        """Its own of all text tokens [B, Lt, C]."""
        ...

    def image(self, tokens: Tensor) -> Tensor:
        """Its own of all image tokens [B, Li, C], or of the first ones: then fewer, or none."""
        ...

    def positions(self, rope: Tensor) -> Tensor:
        """Its own rows of [Lt + Li, ...], text first."""
        ...

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `models.attention.attention`, of its own queries over the keys and values of all devices.

        q, k, v [B, own, H, d]; mask [B, L, L] or broadcastable, of all tokens.
        """
        ...

    def whole_image(self, own: Tensor) -> Tensor:
        """All image tokens [B, Li, C] of everybody's own ones."""
        ...


class Sharing(Protocol):
    """Makes the shares of one evaluation."""

    def __call__(self, text: int, image: int) -> TokenShare:
        """For so many tokens in all."""
        ...
