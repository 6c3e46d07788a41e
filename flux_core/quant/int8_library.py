"""8-bit integer products of another library, used only after a comparison with ours.

    comfy-kitchen    a requirement of newer ComfyUI versions: kernels for NVIDIA and AMD cards

The first product of each kind (type of the inputs, rotation) is computed by the library and by our code from the same
inputs. If the library fails, or the two results differ by more than two ways of rounding the inputs do, it is not used
any more in this process, and a warning says so. Its speed is measured elsewhere (runtime/integer_products.py).

Independent of: files, devices, whether a library is installed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from .int8 import Integers, Operand

log = logging.getLogger(__name__)

# Relative norm. comfy-kitchen quantises 16-bit inputs in their own type: 0.012 was measured, with an input column 30
# times larger than the others. A wrong scale, order or rotation is off by 0.1 at least.
NEAR = 0.03
SUMS = 1 << 24  # int32 numbers that a library may allocate for one product: 64 MiB


class Library(Protocol):
    """One library's product."""

    name: str

    def multiply(self, x: Tensor, operand: Operand, bias: Tensor | None) -> Tensor:
        """x [M, K] times the operand -> [M, N] in x's type. bias [N] in x's type."""
        ...


class ComfyKitchen:
    """`comfy_kitchen.int8_linear`."""

    name = "comfy-kitchen"

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def multiply(self, x: Tensor, operand: Operand, bias: Tensor | None) -> Tensor:
        group = operand.rotation
        rotation = {"convrot": True, "convrot_groupsize": group} if group else {}
        scales = operand.scales.reshape(-1, 1)
        out: Tensor = self._module.int8_linear(x, operand.codes, scales, bias, x.dtype, **rotation)
        return out


def installed() -> list[Library]:
    """The libraries that can be imported here."""
    try:
        return [ComfyKitchen(import_module("comfy_kitchen"))]
    except ImportError:
        return []
    except Exception as error:  # noqa: BLE001  another program's code, for other versions of PyTorch
        log.info("comfy-kitchen is not used: %s: %s", type(error).__name__, error)
        return []


class LibraryIntegers(Integers):
    """Products of a library, if its first product of each kind agrees with ours; otherwise ours."""

    def __init__(self, library: Library, own: Integers) -> None:
        super().__init__(own.passes, own.quantises)
        self.library: Library | None = library
        self._agreed: set[tuple[torch.dtype, int]] = set()

    @property
    def name(self) -> str:
        return f"int8 products ({self.library.name})" if self.library else super().name

    def quantising(self) -> Integers:
        own = super().quantising()
        return LibraryIntegers(self.library, own) if self.library else own

    def multiply(self, x: Tensor, operands: Sequence[Operand], bias: Tensor | None) -> Tensor:
        if self.library is None or len(operands) != 1:
            return super().multiply(x, operands, bias)
        (operand,) = operands
        kind = x.dtype, operand.rotation
        if kind in self._agreed:
            return self._by_library(self.library, x, operand, bias)
        theirs, problem = self._compared(self.library, x, operand, bias)
        if theirs is None:
            log.warning("%s is not used for 8-bit products: %s. Ours are used.", self.library.name, problem)
            self.library = None
            return super().multiply(x, operands, bias)
        self._agreed.add(kind)
        return theirs  # not ours: the first image of a process has the numbers of the others

    def _compared(
        self, library: Library, x: Tensor, operand: Operand, bias: Tensor | None
    ) -> tuple[Tensor | None, str]:
        """The library's product, or None and what is wrong with it."""
        ours = super().multiply(x, [operand], bias)
        try:
            theirs = self._by_library(library, x, operand, bias)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001  another program's code: whatever it raises, ours computes
            return None, f"{type(error).__name__}: {error}"
        if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
            return (
                None,
                f"its result is {theirs.dtype} {list(theirs.shape)} in place of {ours.dtype} {list(ours.shape)}",
            )
        apart = float((theirs.float() - ours.float()).norm() / ours.float().norm().clamp_(min=1e-30))
        return (theirs, "") if apart <= NEAR else (None, f"its first product is off by {apart:.2g} of ours")

    def _by_library(self, library: Library, x: Tensor, operand: Operand, bias: Tensor | None) -> Tensor:
        """Some rows of x at a time, so that sums take little memory. A row's result does not depend on the others.

        The parts are of about the same size: a last one of a few rows would be too small for cuBLAS.
        """
        count = max(1, SUMS // len(operand.codes))
        bias = None if bias is None else bias.to(x.dtype)
        with torch.cuda.device_of(x):  # Triton's kernels run on the current card
            parts = [library.multiply(rows, operand, bias) for rows in x.tensor_split(-(-len(x) // count))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
