"""The interface with which several devices compute one image: each has some of the tokens; attention is over all.

The transformer calls it for the tokens of its own device, and for attention over the tokens of all devices. Independent
of: how the devices communicate (parallel/tokens.py).
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
        """All image tokens [B, Li, C], collected from the devices."""
        ...


class Sharing(Protocol):
    """Makes the shares of one evaluation."""

    def __call__(self, text: int, image: int) -> TokenShare:
        """The share of one evaluation with so many tokens in all."""
        ...
