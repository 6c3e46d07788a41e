"""Matrices that are multiplied from the bytes they are stored as: one class for each kind of storage.

A `StoredWeight` is an encoding, a shape and a function that fetches the bytes: the class says how they become a
product, the function where they come from (`packed`: they are there; memory/streamed_weight.py: through a ring).
Another format that is decoded first needs a row in formats.py and nothing here; one that is multiplied in another way
(integers, four bits, a shard of a matrix) is a class and a row in KINDS.

Knows no files and no devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.linear import HeldWeight
from .encoding import Encoding
from .formats import PLAIN, decode_into
from .fp8 import FP8, encode_fp8
from .workspace import matrix_scratch, scratch

Fetch = Callable[[], AbstractContextManager[Tensor]]  # the stored bytes, uint8 [n], on the device while it lasts


class DenseProducts:
    """Products of the matrix as numbers. A subclass says with `dense` how it has them."""

    def dense(self, dtype: torch.dtype) -> AbstractContextManager[Tensor]:
        raise NotImplementedError

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        with self.dense(x.dtype) as weight:
            return F.linear(x, weight, bias)

    def multiply_transposed(self, grad: Tensor) -> Tensor:
        with self.dense(grad.dtype) as weight:
            return grad @ weight

    @contextmanager
    def fetched(self, dtype: torch.dtype) -> Iterator[HeldWeight]:
        with self.dense(dtype) as weight:
            yield Dense(weight)


class Dense(DenseProducts):
    """A matrix that is there as numbers, of the type that products are computed in."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def dense(self, dtype: torch.dtype) -> AbstractContextManager[Tensor]:
        return nullcontext(self.weight)


class StoredWeight(DenseProducts):
    """Decoded for each product, into scratch memory that all matrices of a thread share.

    The bytes are let go as soon as they are decoded, before the product has begun.
    """

    def __init__(
        self, encoding: Encoding, shape: Sequence[int], fetch: Fetch, round_to: torch.dtype | None = None
    ) -> None:
        """shape: [out, in]. round_to: the type every value passes through first, as if it were stored in it."""
        self.encoding, self.shape, self.fetch, self.round_to = encoding, tuple(shape), fetch, round_to

    @contextmanager
    def dense(self, dtype: torch.dtype) -> Iterator[Tensor]:
        with self.fetch() as raw:
            weight = matrix_scratch(self.shape, dtype, raw.device)
            self._decode_into(raw, weight)
        yield weight

    def _decode_into(self, raw: Tensor, out: Tensor) -> None:
        if self.round_to is None:
            decode_into(raw, out, self.encoding)
            return
        exact = scratch("exact", self.shape, PLAIN.get(self.encoding.format, torch.float32), raw.device)
        decode_into(raw, exact, self.encoding)
        if self.round_to in FP8.values():
            name = next(name for name, fp8 in FP8.items() if fp8 == self.round_to)
            decode_into(encode_fp8(exact, name), out, Encoding(name))
        else:
            out.copy_(exact.to(self.round_to))


class PlainWeight(StoredWeight):
    """Multiplied as the bytes lie, if they are numbers of the type that is computed in."""

    @contextmanager
    def dense(self, dtype: torch.dtype) -> Iterator[Tensor]:
        if PLAIN[self.encoding.format] != dtype or not self.encoding.as_is or self.round_to not in (None, dtype):
            with super().dense(dtype) as weight:
                yield weight
            return
        with self.fetch() as raw:
            yield raw.view(dtype).view(self.shape)


# How a format is multiplied, for those that are not decoded first.
KINDS: Mapping[str, type[StoredWeight]] = dict.fromkeys(PLAIN, PlainWeight)


def stored_weight(
    encoding: Encoding, shape: Sequence[int], fetch: Fetch, round_to: torch.dtype | None = None
) -> StoredWeight:
    """The weight of this encoding whose bytes `fetch` brings. shape and round_to as for StoredWeight."""
    return KINDS.get(encoding.format, StoredWeight)(encoding, shape, fetch, round_to)


def packed(raw: Tensor, encoding: Encoding, shape: Sequence[int]) -> StoredWeight:
    """A weight whose bytes `raw` (uint8 [n]) stay where they are."""
    return stored_weight(encoding, shape, lambda: nullcontext(raw))
