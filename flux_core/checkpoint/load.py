"""Loads stored tensors into modules: reads, decodes, and sets parameters.

A module is created on the meta device, where it has shapes and no memory. `bind` goes through its parameters and calls
a `Holder` for each. The holder returns a tensor, which becomes the parameter, or, for the matrix of a `Linear`, a
`HeldWeight` that computes its products. `Resident` is the holder that puts everything on one device.

Independent of: which model it loads, where files come from.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor, nn

from ..cancel import check_cancelled
from ..errors import FileFormatError
from ..models.linear import HeldWeight, Linear
from ..quant.encoding import Encoding, multiplied_as_integers
from ..quant.formats import PLAIN, decode, stored_dtype
from ..quant.fp8 import FP8, encode_fp8
from ..quant.held import packed
from ..quant.int8 import Integers
from .integers import as_integers, quantised
from .reader import read_into
from .stored import Stored

log = logging.getLogger(__name__)

Tensors = Mapping[str, Stored]


class Holder(Protocol):
    def __call__(self, stored: Stored, raw: Tensor, matrix: bool) -> Tensor | HeldWeight:
        """Keep the bytes `raw` of `stored` (uint8, on the CPU; they belong to the holder now). `matrix`: whether it may
        be held.
        """
        ...


class Resident:
    """Keeps everything on one device.

    dtype      the type of the parameters; None keeps the stored type (two bytes for fp8 and GGUF)
    round_to   the type to which every value is rounded first, as if the file were stored in it
    packed     matrices of fp8 and GGUF stay in their format and are decoded at each use
    integers   multiplies matrices that are stored as integers; None: such matrices are decoded
    quantised  names of matrices that are converted to integers first, if they are stored otherwise
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype | None,
        *,
        round_to: torch.dtype | None = None,
        packed: bool = False,
        integers: Integers | None = None,
        quantised: Collection[str] = (),
    ) -> None:
        self.device, self.dtype, self.round_to, self.packed = device, dtype, round_to, packed
        self.integers, self.quantised = integers, quantised

    def __call__(self, stored: Stored, raw: Tensor, matrix: bool) -> Tensor | HeldWeight:
        raw = raw.to(self.device)
        encoding = stored.encoding
        round_to = rounding(stored, self.round_to)
        if matrix and self.integers is not None and stored.name in self.quantised:
            wanted = as_integers(stored)
            if wanted is not stored:
                through = round_to if round_to is not None and _rounds(stored, round_to) else None
                return packed(quantised(stored, raw, through), wanted.encoding, stored.shape, self.integers)
        if round_to is not None and _rounds(stored, round_to):
            exact = torch.float32 if stored.format not in PLAIN else PLAIN[stored.format]
            values = decode(raw, encoding, stored.shape, exact)
            if round_to not in FP8.values():
                return values.to(round_to).to(self.dtype or round_to)
            encoding = Encoding(_name_of(round_to))
            raw = encode_fp8(values, encoding.format)
        if matrix and self.integers is not None and multiplied_as_integers(encoding, stored.shape):
            return packed(raw, encoding, stored.shape, self.integers)
        numbers = PLAIN.get(encoding.format) if encoding.as_is else None
        if matrix and self.packed and numbers != (self.dtype or stored_dtype(encoding.format)):
            return packed(raw, encoding, stored.shape)
        return decode(raw, encoding, stored.shape, self.dtype)


def rounding(stored: Stored, chosen: torch.dtype | None) -> torch.dtype | None:
    """The type to which a tensor's values are rounded: the file's rule takes precedence over the chosen one."""
    return FP8[stored.through] if stored.through else chosen


def _rounds(stored: Stored, to: torch.dtype) -> bool:
    """Whether rounding to `to` changes values. Quantised tensors are not rounded: they keep their format."""
    if not stored.encoding.as_is or (stored.format not in PLAIN and stored.format not in FP8):
        return False
    exact = stored.format in FP8 and to not in FP8.values()  # two bytes hold every fp8 number
    return not exact and (PLAIN.get(stored.format) or FP8[stored.format]) != to


def _name_of(fp8: torch.dtype) -> str:
    return next(name for name, dtype in FP8.items() if dtype == fp8)


@torch.no_grad()
def bind(module: nn.Module, tensors: Tensors, hold: Holder) -> None:
    """Fill a module on the meta device with the tensors of a file, in the order of the module's parameters.

    Raises FileFormatError if tensors are missing or of another shape; unused tensors are not read.
    """
    parameters = dict(module.named_parameters())
    _check(parameters, tensors)
    with torch.inference_mode(False):
        for stored, raw in _read_ahead(tensors[name] for name in parameters):
            check_cancelled()
            path, _, name = stored.name.rpartition(".")
            owner = module.get_submodule(path)
            matrix = isinstance(owner, Linear) and name == "weight"
            value = hold(stored, raw, matrix)
            if isinstance(value, Tensor):
                setattr(owner, name, nn.Parameter(value, requires_grad=False))
            elif isinstance(owner, Linear):
                owner.weight, owner.held = None, value
    module.eval()


def _check(parameters: Mapping[str, Tensor], tensors: Tensors) -> None:
    file = next(iter(tensors.values())).file.path.name
    missing = [name for name in parameters if name not in tensors]
    if missing:
        raise FileFormatError(
            f"{file} is incomplete: {len(missing)} of {len(parameters)} tensors are missing, the first is "
            f"{missing[0]}. Fetch it again, or choose another file."
        )
    for name, parameter in parameters.items():
        if tensors[name].shape != tuple(parameter.shape):
            raise FileFormatError(
                f"{file}: {name} has the shape {list(tensors[name].shape)}, but the rest of the file requires "
                f"{list(parameter.shape)}. Fetch it again, or choose another file."
            )
    unused = [name for name in tensors if name not in parameters]
    if unused:
        log.info("%s: %d tensors are not used, the first is %s", file, len(unused), unused[0])


def _read_ahead(tensors: Iterable[Stored]) -> Iterator[tuple[Stored, Tensor]]:
    """Each tensor with its raw bytes; the next one is read while the caller processes one."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights") as pool:
        waiting = None
        for stored in tensors:
            reading = stored, pool.submit(read, stored)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = reading
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def read(stored: Stored) -> Tensor:
    """The raw bytes of a tensor, uint8 [bytes] on the CPU."""
    with torch.inference_mode(False):
        raw = torch.empty(stored.nbytes, dtype=torch.uint8)
    read_into(stored, raw.numpy().data)
    return raw
