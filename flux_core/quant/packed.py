"""A matrix kept as it is stored and decoded for each multiplication: the simplest holder of a quantised matrix.

Does not know: files, where its bytes should live, who else holds matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .encoding import Encoding
from .formats import decode, decode_into
from .workspace import scratch


class PackedMatrix:
    """Bytes on a device, lent out as numbers (see `linear.HeldMatrix`).

    All matrices of a thread share the memory they are decoded into, as only one is lent out at a time. While gradients
    are recorded each gets memory of its own, because the backward pass looks at it again.
    """

    def __init__(self, raw: Tensor, encoding: Encoding, shape: Sequence[int]) -> None:
        """raw: uint8 [bytes]; shape [out, in]."""
        self.raw, self.encoding, self.shape = raw, encoding, tuple(shape)

    def take(self, dtype: torch.dtype) -> Tensor:
        if torch.is_grad_enabled():
            return decode(self.raw, self.encoding, self.shape, dtype)
        out = scratch("matrix", self.shape, dtype, self.raw.device)
        decode_into(self.raw, out, self.encoding)
        return out

    def give_back(self) -> None:
        pass

    @property
    def nbytes(self) -> int:
        return self.raw.nbytes
