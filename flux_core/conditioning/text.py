"""Encodes prompts to conditioning: tokens through both encoders, prompt weights, and a cache for later runs.

FLUX.1 uses T5's hidden states as its text and CLIP-L's pooled vector as a summary. T5's padding is part of the text:
there is no attention mask. Depends on rows of tokens and the two encoders; uses no file, no device and no node.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InputError, NotFinite
from .tokenizer import ClipTokenizer, Lookup, Row, T5Tokenizer, Vector

log = logging.getLogger(__name__)

CACHED_BYTES = 256 * 2**20  # 64 prompts of the full-size T5


@dataclass(frozen=True)
class TextOptions:
    """Settings of encoding that nodes change. None means FLUX.1's own rule."""

    last_layer: int | None = None  # T5's hidden state after this block, counted from the end: -1 is the last
    min_padding: int | None = None  # pad tokens that are always added after T5's end token
    min_length: int | None = None  # the length to which T5's row is padded


class ClipEncoder(Protocol):
    """CLIP's text model: see models/clip_text.py."""

    config: Any

    def embed(self, ids: Tensor) -> Tensor: ...
    def __call__(self, tokens: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]: ...


class T5Encoder(Protocol):
    """T5's encoder: see text/t5.py."""

    config: Any

    def embed(self, ids: Tensor) -> Tensor: ...
    def __call__(self, tokens: Tensor, layer: int | None) -> Tensor: ...


class Encoders(Protocol):
    """Both encoders and what belongs to them. Modules are used only if the cache has no result."""

    @property
    def clip_identity(
        self,
    ) -> Hashable: ...  # everything besides tokens that its numbers depend on: file, LoRAs, device
    @property
    def t5_identity(self) -> Hashable: ...
    @property
    def encodings(self) -> Cache: ...  # rows that were encoded before, by these or by other encoders
    @property
    def options(self) -> TextOptions: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def clip_tokenizer(self) -> ClipTokenizer: ...
    @property
    def t5_tokenizer(self) -> T5Tokenizer: ...
    def clip(self) -> ClipEncoder: ...
    def t5(self) -> T5Encoder: ...
    def embeddings(self, encoder: str) -> Lookup | None: ...  # encoder: "clip_l" or "t5xxl"
    def unsound(
        self, encoder: str
    ) -> str | None: ...  # called when its numbers are not finite: returns what is wrong with it


class Cache:
    """Encoded rows; the least recently used are dropped when they take more than `limit` bytes.

    Values are shared and must not be modified.
    """

    def __init__(self, limit: int = CACHED_BYTES) -> None:
        self._limit = limit
        self._values: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = compute()
        with self._lock:
            self._values[key] = value
            while self.nbytes > self._limit and len(self._values) > 1:
                self._values.popitem(last=False)
        return value

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._values.values())

    def clear(self) -> None:
        with self._lock:
            self._values.clear()


def encode_prompt(encoders: Encoders, clip_text: str, t5_text: str) -> list[list[Any]]:
    """One conditioning entry: [[text [1, L, context], {"pooled_output": [1, vec]}]], float32 on the CPU.

    Raises InputError if a tokenizer and its encoder do not belong together, NotFinite if an encoder returns numbers
    that are not finite.
    """
    return encode_rows(encoders, tokenize_clip(encoders, clip_text)[0], tokenize_t5(encoders, t5_text))


def tokenize_clip(encoders: Encoders, text: str) -> list[Row]:
    """CLIP-L's rows of a prompt, at least one; FLUX.1 uses the first."""
    return encoders.clip_tokenizer.rows(text, encoders.embeddings("clip_l"))


def tokenize_t5(encoders: Encoders, text: str) -> Row:
    """T5's row of a prompt, padded according to the encoders' options."""
    options = encoders.options
    return encoders.t5_tokenizer.row(
        text, encoders.embeddings("t5xxl"), min_padding=options.min_padding or 0, min_length=options.min_length
    )


def encode_rows(encoders: Encoders, clip_row: Row, t5_row: Row) -> list[list[Any]]:
    """`encode_prompt` for rows of tokens."""
    options, cache = encoders.options, encoders.encodings
    text = cache.get(
        ("t5xxl", encoders.t5_identity, t5_row, options.last_layer),
        lambda: _finite(
            encode_t5(encoders.t5(), encoders.t5_tokenizer, t5_row, encoders.device, options.last_layer),
            encoders,
            "t5xxl",
        ),
    )
    pooled = cache.get(
        ("clip_l", encoders.clip_identity, clip_row),
        lambda: _finite(
            pool_clip(encoders.clip(), encoders.clip_tokenizer, clip_row, encoders.device), encoders, "clip_l"
        ),
    )
    return [[text, {"pooled_output": pooled}]]


def _finite(encoded: Tensor, encoders: Encoders, encoder: str) -> Tensor:
    if torch.isfinite(encoded).all():
        return encoded
    name = {"t5xxl": "T5", "clip_l": "CLIP-L"}[encoder]
    reason = (
        encoders.unsound(encoder) or "Remove very large weights from the prompt, or compute the encoder in float32."
    )
    raise NotFinite(
        f"The output of {name} for this text contains numbers that are not finite (NaN or infinity). {reason}"
    )


@torch.no_grad()
def encode_t5(
    encoder: T5Encoder, tokenizer: T5Tokenizer, row: Row, device: torch.device, last_layer: int | None = None
) -> Tensor:
    """Hidden states of a row, with prompt weights: z <- (z - z_empty) w + z_empty. [1, L, D] float32 on the CPU.

    z_empty are the hidden states of the empty prompt, position by position. A layer that the encoder does not have
    counts as the last.
    """
    if last_layer is not None and abs(last_layer) > encoder.config.layers:
        last_layer = None
    batch = [row, tokenizer.empty_row(len(row.tokens))] if row.weighted else [row]
    embedded = [_embed(encoder, each, tokenizer.pad, device)[0] for each in batch]
    states = encoder(torch.cat(embedded), last_layer).float().cpu()  # [1 or 2, L, D]
    if not row.weighted:
        return states
    z, z_empty = states
    w = torch.tensor(row.weights)[:, None]  # [L, 1]
    return torch.where(w == 1.0, z, (z - z_empty) * w + z_empty)[None]


@torch.no_grad()
def pool_clip(encoder: ClipEncoder, tokenizer: ClipTokenizer, row: Row, device: torch.device) -> Tensor:
    """The hidden state at the row's first end token; prompt weights do not affect it. [1, D] float32 on the CPU."""
    embedded, kept = _embed(encoder, row, tokenizer.pad, device)
    ends = torch.tensor([kept.index(tokenizer.end)], device=device)
    return encoder(embedded, ends)[1].float().cpu()


def _embed(
    encoder: ClipEncoder | T5Encoder, row: Row, pad: int, device: torch.device
) -> tuple[Tensor, list[int | Vector]]:
    """A row's embeddings [1, L, D] float32, and its tokens: vectors of another width are replaced by padding."""
    width, rows = encoder.config.width, encoder.config.vocabulary
    kept = [token for token in row.tokens if not isinstance(token, Vector) or len(token.values) == width]
    if len(kept) < len(row.tokens):
        log.warning("An embedding is not %d wide, which is the width of this text encoder. It is left out.", width)
        kept += [pad] * (len(row.tokens) - len(kept))
    ids = [pad if isinstance(token, Vector) else token for token in kept]
    if max(ids) >= rows:
        raise InputError(
            f"The tokenizer produces the token {max(ids)}, but the text encoder has only {rows} tokens: they do not "
            "belong together. Put the tokenizer published with this encoder beside it."
        )
    embedded = encoder.embed(torch.tensor([ids], device=device)).float()
    for position, token in enumerate(kept):
        if isinstance(token, Vector):
            embedded[0, position] = token.values.to(embedded)
    return embedded, kept
