"""Matrices that are kept as stored bytes and multiplied from them: one class for each kind of storage.

A `StoredWeight` has an encoding, a shape and a function that fetches the bytes. The class determines how a product is
computed from them, the function where they come from (`packed`: they stay on the device; memory/streamed_weight.py:
through a ring of slots). A new format that is decoded before the product needs a row in formats.py and nothing here;
one that is multiplied in another way (integers, four bits, a shard of a matrix) is a class and a row in KINDS.

Uses no files and no devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.linear import HeldWeight
from .encoding import Encoding, multiplied_as_integers
from .formats import PLAIN, decode_into
from .fp8 import FP8, encode_fp8
from .int8 import FEWEST_ROWS, Integers, operands_of
from .workspace import matrix_scratch, scratch

ALIGNED = 16  # bytes: on a CPU the last bits of a product of one row depend on the alignment of the matrix
Fetch = Callable[[], AbstractContextManager[Tensor]]  # the stored bytes, uint8 [n], valid inside the context


class DenseProducts:
    """Products computed from the matrix as numbers, which a subclass provides with `dense`."""

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
        with self.dense(dtype) as matrix:
            weight = Fetched(self, matrix)
            try:
                yield weight
            finally:
                weight.matrix = None


class Fetched(DenseProducts):
    """A weight whose matrix is in memory until `matrix` is set to None; from then on it is fetched for each use."""

    def __init__(self, origin: DenseProducts, matrix: Tensor) -> None:
        """matrix: in the type in which products are computed."""
        self.origin = origin
        self.matrix: Tensor | None = matrix

    def dense(self, dtype: torch.dtype) -> AbstractContextManager[Tensor]:
        return self.origin.dense(dtype) if self.matrix is None else nullcontext(self.matrix)


class StoredWeight(DenseProducts):
    """Decoded for each product, into scratch memory that all matrices of a thread share.

    The bytes are released as soon as they are decoded, before the product is computed.
    """

    def __init__(
        self, encoding: Encoding, shape: Sequence[int], fetch: Fetch, round_to: torch.dtype | None = None
    ) -> None:
        """shape: [out, in]. round_to: the type to which every value is rounded first, as if it were stored in it."""
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
    """Multiplied without decoding, if the bytes are numbers of the type in which the product is computed."""

    @contextmanager
    def dense(self, dtype: torch.dtype) -> Iterator[Tensor]:
        if PLAIN[self.encoding.format] != dtype or not self.encoding.as_is or self.round_to not in (None, dtype):
            with super().dense(dtype) as weight:
                yield weight
            return
        with self.fetch() as raw:
            weight = raw.view(dtype).view(self.shape)
            if raw.device.type == "cpu" and raw.data_ptr() % ALIGNED:  # as it is stored in its file
                weight = matrix_scratch(self.shape, dtype, raw.device).copy_(weight)
            yield weight


class IntegerWeight(StoredWeight):
    """Multiplied in integers: its bytes are used unchanged as the right side of the product.

    It is decoded like any other weight for a few vectors, whose product is limited by the time to read the matrix, and
    where its numbers are required: gradients, and changes that depend on the matrix.
    """

    def __init__(self, encoding: Encoding, shape: Sequence[int], fetch: Fetch, integers: Integers) -> None:
        """integers: the products of the device on which the bytes are."""
        super().__init__(encoding, shape, fetch)
        self.integers = integers

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if x.shape[0] < FEWEST_ROWS:
            return super().multiply(x, bias)
        with self.fetch() as raw:
            return self.integers.multiply(x, operands_of(raw, self.encoding, self.shape), bias)

    @contextmanager
    def fetched(self, dtype: torch.dtype) -> Iterator[HeldWeight]:
        with self.dense(dtype) as matrix:
            weight = _FetchedIntegers(self, matrix)
            try:
                yield weight
            finally:
                weight.matrix = None


class _FetchedIntegers(Fetched):
    """The decoded numbers for a few vectors; products with more vectors are computed in integers."""

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.origin.multiply(x, bias) if x.shape[0] >= FEWEST_ROWS else super().multiply(x, bias)


# The class for each format that is not always decoded first.
KINDS: Mapping[str, type[StoredWeight]] = dict.fromkeys(PLAIN, PlainWeight)


def stored_weight(
    encoding: Encoding,
    shape: Sequence[int],
    fetch: Fetch,
    round_to: torch.dtype | None = None,
    integers: Integers | None = None,
) -> StoredWeight:
    """The weight with this encoding and the bytes that `fetch` returns. shape and round_to as for StoredWeight.

    integers: multiply it in integers if its encoding allows it; None: decode it.
    """
    if integers is not None and round_to is None and multiplied_as_integers(encoding, shape):
        return IntegerWeight(encoding, shape, fetch, integers)
    return KINDS.get(encoding.format, StoredWeight)(encoding, shape, fetch, round_to)


def packed(raw: Tensor, encoding: Encoding, shape: Sequence[int], integers: Integers | None = None) -> StoredWeight:
    """A weight whose bytes `raw` (uint8 [n]) stay where they are."""
    return stored_weight(encoding, shape, lambda: nullcontext(raw), integers=integers)
