"""Whether a device multiplies 8-bit integers exactly, with which passes, and whether that is faster than decoding.

Exactness is checked once for each device, with the codes that give the largest sums: some libraries and processors
saturate intermediate results. On a card, products of an installed library are used where they are faster and agree with
ours. Speed is measured in a fraction of a second, because no property of a device gives it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import nn

from ..checkpoint.integers import as_integers
from ..checkpoint.stored import Stored
from ..memory import meter, rates
from ..memory.budget import AUTO, format_size
from ..memory.manager import Manager
from ..models.flux import Flux
from ..models.linear import Linear
from ..quant.encoding import LEVELS
from ..quant.held import IntegerWeight
from ..quant.int8 import Integers
from ..quant.int8_cuda import kernel_passes
from ..quant.int8_library import Library, LibraryIntegers, installed
from .modulation import modulators
from .settings import HALF_SUMS, INT8, SIXTEEN_BIT

log = logging.getLogger(__name__)

GAIN = 1.1  # speedup of int8 products from which "auto" uses them
_IN_BLOCKS = ("double_blocks.", "single_blocks.", "controlnet_blocks.", "controlnet_single_blocks.")
PROBED = 256, 2048  # rows and columns of the inputs in the measurement


def integers_for(device: torch.device, dtype: torch.dtype, compute: str) -> Integers | None:
    """The object that multiplies matrices stored as integers; None: they are decoded to `dtype`.

    compute: one of settings.COMPUTES. "auto" uses integers if they are faster, except for float32 on a CPU, which is
    the reference for all comparisons; "int8" uses them wherever they are exact.
    """
    if compute in (SIXTEEN_BIT, HALF_SUMS) or (compute == AUTO and device.type == "cpu" and dtype is torch.float32):
        return None
    found = _integers(device, compute == INT8)
    if found is None:
        if compute == INT8:
            log.warning("%s does not multiply 8-bit integers exactly: matrices of integers are decoded.", device)
        return None
    if compute == INT8 or rates.integer_gain(found, device, dtype, *PROBED) >= GAIN:
        return found
    log.info("8-bit integers are not faster than %s on %s: matrices of integers are decoded.", dtype, device)
    return None


def block_matrices(tensors: Mapping[str, Stored]) -> tuple[str, ...]:
    """The names of the matrices that a step multiplies with all tokens: those of blocks, except adaLN's.

    In a ControlNet also those after its blocks. They are the streamed ones (flux_needs.py) without adaLN's.
    """
    return tuple(
        name
        for name, stored in tensors.items()
        if name.startswith(_IN_BLOCKS) and len(stored.shape) == 2 and ".lin." not in name
    )


def within_ram(integers: Integers | None, manager: Manager, tensors: Mapping[str, Stored]) -> Integers | None:
    """`integers`, if all matrices that it must quantise fit in memory; otherwise each step would quantise them again.

    In that case quantising is disabled with a message, and only matrices stored as integers are multiplied as integers.
    """
    if integers is None or not integers.quantises:
        return integers
    names = block_matrices(tensors)
    if not any(as_integers(tensors[name]) is not tensors[name] for name in names):
        return integers
    needed = sum(as_integers(tensors[name]).nbytes for name in names)
    allowed = manager.limit
    if manager.device.type == "cuda":
        allowed += meter.automatic_ram() if manager.allowed.ram is None else manager.allowed.ram
    if needed <= allowed:
        return integers
    file = next(iter(tensors.values())).file.path.name
    log.warning(
        "%s takes %s as 8-bit integers, but only %s of memory are allowed, so it is not quantised while it is loaded. "
        "`sluice convert %s --to int8 --rotate` makes a file that streams as integers.",
        *(file, format_size(needed), format_size(allowed), file),
    )
    return _integers(manager.device)


def products_of(module: nn.Module) -> str:
    """How many matrices of a model are multiplied in integers, as a text; "" if there are none.

    Those of adaLN are not counted: they multiply one vector per step.
    """
    once = set(modulators(module)) if isinstance(module, Flux) else set()
    linears = [part for part in module.modules() if isinstance(part, Linear) and part not in once]
    kept = [(part, part.held.integers) for part in linears if isinstance(part.held, IntegerWeight)]
    if not kept:
        return ""
    changed = sum(bool(part.reweighings) for part, _ in kept)
    aside = f", {changed} decoded because a LoRA changes the matrix itself (DoRA)" if changed else ""
    return f"{kept[0][1].name} for {len(kept) - changed} matrices{aside}"


def integers_of(module: nn.Module) -> Integers | None:
    """The object that multiplies a model's integer matrices; None if it has none."""
    held = (part.held for part in module.modules() if isinstance(part, Linear))
    return next((weight.integers for weight in held if isinstance(weight, IntegerWeight)), None)


@cache
def _integers(device: torch.device, quantises: bool = False) -> Integers | None:
    """The integer products of a device; None if it has none or they are not exact."""
    if quantises:
        plain = _integers(device)
        return plain and plain.quantising()
    if not _exact(device):
        return None
    if device.type != "cuda":
        return Integers()
    return fastest(Integers(kernel_passes(device)), installed(), device)


def fastest(own: Integers, libraries: Sequence[Library], device: torch.device) -> Integers:
    """Our products, or those of a library that agrees with them and is faster for bfloat16 inputs."""
    best, rate = own, 0.0
    for library in libraries:
        theirs = LibraryIntegers(library, own)
        rate = rate or rates.integer_rate(own, device, torch.bfloat16, *PROBED)
        measured = rates.integer_rate(theirs, device, torch.bfloat16, *PROBED)
        if theirs.library is not None and measured > rate:
            best, rate = theirs, measured
    return best


def _exact(device: torch.device) -> bool:
    """Compares the product with sums in int64, for the largest codes, a long row and odd sizes."""
    for rows, columns, outputs in ((17, 64, 24), (33, 15360, 16)):
        generator = torch.Generator().manual_seed(rows)
        a = torch.randint(-LEVELS, LEVELS + 1, (rows, columns), dtype=torch.int8, generator=generator)
        b = torch.randint(-LEVELS, LEVELS + 1, (outputs, columns), dtype=torch.int8, generator=generator)
        a[0], b[0], a[1], b[1] = LEVELS, LEVELS, -LEVELS, LEVELS
        try:
            sums = torch._int_mm(a.to(device), b.to(device).t()).cpu()
        except (RuntimeError, AttributeError):  # this device has no such product
            return False
        if not torch.equal(sums.long(), a.long() @ b.long().t()):
            return False
    return True
