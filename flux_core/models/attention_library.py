"""Attention of another library: used if the user chooses it, and only after a comparison with PyTorch's.

    sageattention    queries and keys are multiplied as 8-bit integers, values in 8 or 16 bits: NVIDIA cards

It is faster and less exact than PyTorch's, so it is never chosen automatically. The first attention of each kind
(number type, size of a head) is computed by both from the same inputs. If the library fails, or the two results differ
by more than rounding to eight bits explains, it is not used any more by this program, and a warning says so. Attention
with a mask, and attention that has a gradient, is PyTorch's in any case.

Independent of: files, memory, whether a library is installed.
"""

from __future__ import annotations

import logging
from importlib import import_module
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from .attention import attention
from .products import before_product

log = logging.getLogger(__name__)

# Relative norm. Queries, keys and values in eight bits gave 0.01 to 0.05 for random numbers, and up to 0.12 with three
# channels ten times larger than the others; a scale of 1/d in place of its root 0.37 or more, a causal mask 0.9.
NEAR = 0.15


class Library(Protocol):
    """One library's attention, and what it is for."""

    name: str
    version: str
    device: str  # a type of devices
    dtypes: tuple[torch.dtype, ...]
    sizes: tuple[int, ...]  # of a head

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(d)) v, not causal: [B, H, L, d] each -> [B, H, L, d] in the type of q."""
        ...


class SageAttention:
    """`sageattention.sageattn` (Zhang et al. 2024), which chooses a kernel for the card."""

    name = "sageattention"
    device = "cuda"
    dtypes: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16)
    sizes: tuple[int, ...] = (64, 96, 128)

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self.version = str(getattr(module, "__version__", ""))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = self._module.sageattn(q, k, v, tensor_layout="HND", is_causal=False)
        return out


class LibraryAttention:
    """A library with what has been found out about it. One per program; its runs share it.

    problem: why it is not used; "" if it is.
    """

    def __init__(self, library: Library | None, problem: str = "") -> None:
        self.library, self.problem = library, problem
        self._agreed: set[tuple[torch.dtype, int]] = set()

    @classmethod
    def installed(cls) -> LibraryAttention:
        """sageattention, if it can be imported."""
        try:
            return cls(SageAttention(import_module("sageattention")))
        except ImportError as error:
            absent = getattr(error, "name", None) == "sageattention"
            return cls(None, "it is not installed (pip install sageattention)" if absent else f"import failed: {error}")
        except Exception as error:  # noqa: BLE001  another program's code, for other versions of PyTorch
            return cls(None, f"import failed: {type(error).__name__}: {error}")

    def refused(self, device: torch.device, dtype: torch.dtype, size: int) -> str:
        """Why it cannot compute such attention; "" if it can. size: of a head."""
        library = self.library
        if library is None or self.problem:
            return self.problem
        if device.type != library.device:
            return f"it is for {library.device} devices, and this is {device}"
        if dtype not in library.dtypes:
            return f"it computes in {_words(library.dtypes)}, and this model in {_words([dtype])}"
        if size not in library.sizes:
            return f"it has no kernel for heads of {size} numbers"
        return ""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
        """q, k, v [B, L, H, d] -> [B, L, H*d], or None if the library is not used."""
        library = self.library
        if library is None or self.refused(q.device, q.dtype, q.shape[-1]):
            return None
        kind = q.dtype, q.shape[-1]
        if kind in self._agreed:
            return _attend(library, q, k, v)
        try:
            theirs = _attend(library, q, k, v)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001  another program's code: whatever it raises, PyTorch's computes
            self._give_up(f"{type(error).__name__}: {error}")
            return None
        ours = attention(q, k, v)
        problem = _difference(theirs, ours, q.shape[2])
        if problem:
            self._give_up(problem)
            return ours
        self._agreed.add(kind)
        return theirs

    def _give_up(self, problem: str) -> None:
        assert self.library is not None
        self.problem = problem
        log.warning("%s is not used for attention: %s. PyTorch's attention is used.", self.library.name, problem)


class RunAttention:
    """The attention of one run: `models.attention.attention`, by a library where it can.

    refused: why this run does not use the library; "" if it does.
    """

    def __init__(self, source: LibraryAttention, name: str, refused: str = "") -> None:
        self._source, self._name, self._refused = source, name, refused
        self.by_library = self.by_torch = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """q, k, v [B, L, H, d] -> [B, L, H*d]. `mask` as for `attention`."""
        alone = mask is None and not self._refused and not (torch.is_grad_enabled() and q.requires_grad)
        if q.device.type == "meta":
            return _observed(q, k, v, mask) if alone else attention(q, k, v, mask)
        out = self._source.attend(q, k, v) if alone else None
        if out is None:
            self.by_torch += 1
            return attention(q, k, v, mask)
        if self._source.problem:  # found just now
            self.by_torch += 1
        else:
            self.by_library += 1
        return out

    @property
    def identity(self) -> str:
        """What results depend on: equal for runs whose attention has the same bits."""
        library = self._source.library
        return "" if self._refused or self._source.problem or library is None else f"{library.name} {library.version}"

    @property
    def note(self) -> str:
        """What computed the attention of the run, for its report."""
        reason = self._refused or self._source.problem
        if reason:
            return f"attention by PyTorch ({self._name} is not used: {reason})"
        others = f", by PyTorch {self.by_torch} times" if self.by_torch else ""
        return f"attention by {self._name} {self.by_library} times{others}"


def _attend(library: Library, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    before_product()
    with torch.cuda.device_of(q):  # Triton's kernels run on the current card
        return library.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2).flatten(2)


def _observed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """For a dry run: PyTorch's operation, beside the memory of eight-bit queries and keys, centred keys and values."""
    made: list[Tensor] = [torch.empty_like(q, dtype=torch.int8), torch.empty_like(k, dtype=torch.int8)]
    made += [torch.empty_like(k), torch.empty_like(v)]
    out = attention(q, k, v, mask)
    del made
    return out


def _difference(theirs: Tensor, ours: Tensor, heads: int) -> str:
    """Why the two results [B, L, H*d] do not agree; "" if they do. One head at a time, to need little memory."""
    if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
        return f"its result is {theirs.dtype} {list(theirs.shape)} in place of {ours.dtype} {list(ours.shape)}"
    apart = whole = 0.0
    for one, other in zip(theirs.chunk(heads, dim=-1), ours.chunk(heads, dim=-1), strict=True):
        apart += float((one.float() - other.float()).square_().sum())
        whole += float(other.float().square().sum())
    off = (apart / max(whole, 1e-30)) ** 0.5
    return "" if off <= NEAR else f"its first result is off by {off:.2g} of PyTorch's"


def _words(dtypes: tuple[torch.dtype, ...] | list[torch.dtype]) -> str:
    return " and ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
