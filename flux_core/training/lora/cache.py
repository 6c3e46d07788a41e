"""Latents and text embeddings, computed once and stored on disk under a digest of their inputs.

So no encoder is in memory while the transformer is trained, a continued run encodes nothing, and a changed image or
caption is a new entry. The key is a digest of the content: bytes of the image, size, the encoder's file, number type.
Entries may be deleted at any time. Independent of training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...checkpoint.stored import Stored
from ...checkpoint.whole_files import read_tensors, safetensors
from ...conditioning.text import encode_rows, tokenize_clip, tokenize_t5
from ...errors import FileFormatError, MissingFileError
from ...images import files as picture_files
from ...images.resize import resize_image
from ...io.saving import write_whole
from ...models.latents import CELL, process_in
from ...runtime.handles import Autoencoder, TextEncoders
from .buckets import Bucket
from .folder import Picture

SAMPLED = 16  # number of positions in a weight file that its digest reads besides its header
SAMPLE = 1 << 16  # bytes


@dataclass(frozen=True)
class Encoded:
    """An image in the transformer's scale [C, h, w], and the weight of each cell [1, h, w] (None: 1 everywhere)."""

    latent: Tensor
    weights: Tensor | None


class Cache:
    """Entries below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The entry, created if it does not exist or cannot be read."""
        path = self.folder / f"{key}.safetensors"
        if path.is_file():
            try:
                return read_tensors(path)
            except (FileFormatError, MissingFileError):  # damaged, or deleted in the meantime
                pass
        made = {name: tensor.contiguous() for name, tensor in make().items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, safetensors(made, {}))
        return made

    def has(self, key: str) -> bool:
        return (self.folder / f"{key}.safetensors").is_file()


def digest(*parts: object) -> str:
    """A digest of content; bytes are used directly, everything else as JSON."""
    total = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:32]


def digest_in_parts(nbytes: int, parts: Iterable[bytes | memoryview]) -> str:
    """The same digest of one content of `nbytes` bytes that is given in parts."""
    total = hashlib.sha256(nbytes.to_bytes(8, "little"))
    for part in parts:
        total.update(part)
    return total.hexdigest()[:32]


def digest_of_weights(tensors: dict[str, Stored]) -> str:
    """A digest of weights from names, shapes, formats and some of their bytes, without reading all of them."""
    header = sorted((name, stored.format, stored.shape) for name, stored in tensors.items())
    names = [name for name, _, _ in header]
    parts: list[bytes] = []
    for name in names[:: max(1, len(names) // SAMPLED)]:
        stored = tensors[name]
        offset, nbytes = stored.ranges[0]
        path, start = stored.file.locate(offset)
        with path.open("rb") as file:
            file.seek(start)
            parts.append(file.read(min(nbytes, SAMPLE)))
    return digest(header, *parts)


class PictureCache:
    """Latents of images: the mean of the autoencoder's distribution."""

    def __init__(self, cache: Cache, autoencoder: Autoencoder, seen: str) -> None:
        """seen: the digest of the autoencoder's weights."""
        self.cache, self.autoencoder, self.seen = cache, autoencoder, seen

    def key(self, picture: Picture, bucket: Bucket) -> str:
        mask = picture.mask.read_bytes() if picture.mask else b""
        dtype = str(self.autoencoder.runtime.autoencoder_dtype)
        return digest("picture 1", picture.path.read_bytes(), mask, [bucket.width, bucket.height, dtype, self.seen])

    def get(self, picture: Picture, bucket: Bucket, key: str) -> Encoded:
        entry = self.cache.get(key, lambda: self._make(picture, bucket))
        return Encoded(entry["latent"], entry.get("weights"))

    def _make(self, picture: Picture, bucket: Bucket) -> dict[str, Tensor]:
        latent = process_in(self.autoencoder.encode_image(_read(picture.path, bucket)).float())
        made = {"latent": latent[0]}
        if picture.mask is not None:
            mask = picture_files.load_channel(picture.mask, "red")[..., None]
            cells = _fitted(mask, bucket, "bilinear")[..., 0][:, None]
            made["weights"] = F.avg_pool2d(cells, CELL)[0].clamp(0, 1)
        return made


def _read(path: Path, bucket: Bucket) -> Tensor:
    """The first frame in the size of the bucket. The whole picture is not kept: a photograph takes 300 MB."""
    return _fitted(picture_files.load(path)[0][:1], bucket).clone()


def _fitted(image: Tensor, bucket: Bucket, method: str = "lanczos") -> Tensor:
    """[1, H, W, C] scaled until it covers the bucket, and cropped to its centre."""
    _, height, width, _ = image.shape
    scale = max(bucket.width / width, bucket.height / height)
    size = max(bucket.width, round(width * scale)), max(bucket.height, round(height * scale))
    whole = image if size == (width, height) else resize_image(image, *size, method)
    left, top = (size[0] - bucket.width) // 2, (size[1] - bucket.height) // 2
    return whole[:, top : top + bucket.height, left : left + bucket.width]


class TextCache:
    """Embeddings of captions, all of the same length, so that all of them can be in one batch."""

    def __init__(
        self, cache: Cache, text: TextEncoders, seen: str, captions: Sequence[str], dtype: torch.dtype
    ) -> None:
        """dtype: the type in which the tokens are stored. seen: the digest of the encoders' weights."""
        self.captions = list(dict.fromkeys(captions))
        rows = [tokenize_t5(text, caption) for caption in self.captions]
        self.weighted = any(row.weighted for row in rows)  # then T5 encodes the empty row beside it
        self.length = max(len(row.tokens) for row in rows)
        self.cache, self.seen, self.dtype = cache, seen, dtype
        self.text = replace(text, options=replace(text.options, min_length=self.length))
        self._pooled: dict[str, Tensor] = {}

    def missing(self) -> list[str]:
        """The captions that must still be encoded."""
        return [caption for caption in self.captions if not self.cache.has(self.key(caption))]

    def key(self, caption: str) -> str:
        return digest("caption 1", [caption, self.length, str(self.dtype), self.seen])

    def get(self, caption: str) -> tuple[Tensor, Tensor]:
        """Tokens [L, D] and the pooled vector [V]."""
        entry = self.cache.get(self.key(caption), lambda: self._make(caption))
        self._pooled[caption] = entry["pooled"]
        return entry["context"], entry["pooled"]

    def pooled(self, caption: str) -> Tensor:
        """Only the pooled vector, which is kept in memory."""
        return self._pooled[caption] if caption in self._pooled else self.get(caption)[1]

    def _make(self, caption: str) -> dict[str, Tensor]:
        ((context, values),) = encode_rows(
            self.text, tokenize_clip(self.text, caption)[0], tokenize_t5(self.text, caption)
        )
        return {"context": context[0].to(self.dtype), "pooled": values["pooled_output"][0].float()}
