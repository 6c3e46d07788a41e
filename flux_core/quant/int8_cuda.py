"""The two passes around an integer product as CUDA kernels, compiled at first use.

PyTorch's CUDA builds contain the compiler (NVRTC, or hipRTC on ROCm), so no toolkit, wheel or C compiler is needed, and
cards without tensor cores are supported too. Inputs are read twice and written once as codes, sums are read once: about
half the traffic of PyTorch's operations. The rules are those of int8.py. Rotated inputs are summed in another order, so
a code may differ by one from that of PyTorch's operations.

`torch.cuda._compile_kernel` is a private name of PyTorch 2.8 and later: if it is missing or fails, `kernel_passes`
returns None.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .encoding import LEVELS
from .int8 import SMALLEST, TorchPasses
from .rotation import root

log = logging.getLogger(__name__)

Kernel = Callable[..., None]

THREADS = 256  # of a block, and columns that are rotated at a time
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SOURCE = r"""
__device__ __forceinline__ float as_float(unsigned bits) { union { unsigned u; float f; } v; v.u = bits; return v.f; }
__device__ __forceinline__ unsigned as_bits(float f) { union { unsigned u; float f; } v; v.f = f; return v.u; }

/* float16 is exact in float32: the exponent is moved by a factor of 2^112. */
__device__ __forceinline__ float from_half(unsigned short h) {
  unsigned magnitude = h & 0x7fffu, sign = (unsigned)(h & 0x8000u) << 16;
  if (magnitude >= 0x7c00u) return as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  return as_float(sign | as_bits(as_float(magnitude << 13) * 5.192296858534828e33f));
}

/* Rounded to the nearest, ties to even: the addition of a power of two drops the digits that have no place. */
__device__ __forceinline__ unsigned short to_half(float f) {
  unsigned bits = as_bits(f), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;
  if (magnitude < 0x38800000u) return sign | (as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u);
  return sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1u)) >> 13) - 0x1c000u;
}

__device__ __forceinline__ unsigned short to_bfloat(float f) {
  unsigned bits = as_bits(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0u;
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

__device__ __forceinline__ float load(const void* x, long long at, int kind) {
  if (kind == 0) return ((const float*)x)[at];
  unsigned short bits = ((const unsigned short*)x)[at];
  return kind == 1 ? from_half(bits) : as_float((unsigned)bits << 16);
}

/* One stage for each digit of the column in base four: H4 is ones, but for -1 where two digits add to three. */
__device__ float rotated(float value, int group, float* here, float* there) {
  for (int step = 1; step < group; step *= 4) {
    here[threadIdx.x] = value;
    __syncthreads();
    int digit = threadIdx.x / step % 4, first = threadIdx.x - digit * step;
    value = here[first] + here[first + step] + here[first + 2 * step] + here[first + 3 * step]
          - 2.0f * here[first + (3 - digit) * step];
    float* other = here; here = there; there = other;
  }
  __syncthreads();
  return value;
}

/* A block for each row. group: columns that are rotated together, 0 for none; columns beyond the row count as 0. */
extern "C" __global__ void quantise_rows(
    const void* x, signed char* codes, float* scales, int columns, int kind, int group, double smallest,
    double divisor) {
  __shared__ float peaks[256], here[256], there[256];
  long long row = (long long)blockIdx.x * columns;
  float peak = (float)smallest;
  for (int start = 0; start < columns; start += 256) {
    int column = start + threadIdx.x;
    float value = column < columns ? load(x, row + column, kind) : 0.0f;
    if (group) value = rotated(value, group, here, there);
    value = value < 0.0f ? -value : value;
    peak = value > peak || value != value ? value : peak;
  }
  peaks[threadIdx.x] = peak;
  __syncthreads();
  for (int half = 128; half; half /= 2) {
    if (threadIdx.x < half) {
      float other = peaks[threadIdx.x + half];
      if (other > peaks[threadIdx.x] || other != other) peaks[threadIdx.x] = other;
    }
    __syncthreads();
  }
  peak = peaks[0];
  if (threadIdx.x == 0) scales[blockIdx.x] = peak / (float)divisor;
  float factor = 127.0f / peak;
  for (int start = 0; start < columns; start += 256) {
    int column = start + threadIdx.x;
    float value = column < columns ? load(x, row + column, kind) : 0.0f;
    if (group) value = rotated(value, group, here, there);
    if (column < columns) codes[row + column] = (signed char)__float2int_rn(value * factor);
  }
}

/* A thread for each sum. stride: of the rows of out. */
extern "C" __global__ void finish_sums(
    const int* sums, const float* rows, const float* columns, const float* bias, void* out, int height, int width,
    int stride, int kind, int biased) {
  long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= (long long)height * width) return;
  int row = (int)(at / width), column = (int)(at % width);
  float value = (float)sums[at] * rows[row] * columns[column];
  if (biased) value += bias[column];
  long long place = (long long)row * stride + column;
  if (kind == 0) ((float*)out)[place] = value;
  else ((unsigned short*)out)[place] = kind == 1 ? to_half(value) : to_bfloat(value);
}
"""


class CudaPasses:
    """`Passes` with kernels of our own. Each is queued on its tensors' card, which need not be the current one."""

    name = "kernels of our own"

    def __init__(self, quantise_rows: Kernel, finish_sums: Kernel) -> None:
        """Each is called with grid, block and args, like PyTorch's compiled kernels."""
        self._quantise_rows, self._finish_sums = quantise_rows, finish_sums
        self._wide = TorchPasses()

    def quantise(self, x: Tensor, rotation: int) -> tuple[Tensor, Tensor]:
        if rotation > THREADS:  # a block of threads rotates no more columns together
            return self._wide.quantise(x, rotation)
        x = x.contiguous()
        codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
        scales = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
        divisor = LEVELS * root(rotation) if rotation else float(LEVELS)
        with torch.cuda.device_of(x):
            self._quantise_rows(
                grid=(x.shape[0], 1, 1),
                block=(THREADS, 1, 1),
                args=[x, codes, scales, x.shape[1], KINDS[x.dtype], rotation, SMALLEST, divisor],
            )
        return codes, scales

    def finish(self, sums: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None, out: Tensor) -> None:
        columns = columns.contiguous()  # a single scale for the whole matrix is an expanded tensor
        height, width = sums.shape
        given = columns if bias is None else bias
        numbers = [height, width, out.stride(0), KINDS[out.dtype], int(bias is not None)]
        with torch.cuda.device_of(out):
            self._finish_sums(
                grid=(-(-height * width // THREADS), 1, 1),
                block=(THREADS, 1, 1),
                args=[sums, rows, columns, given, out, *numbers],
            )


def kernel_passes(device: torch.device) -> CudaPasses | None:
    """The passes compiled for a CUDA device and compared with PyTorch's operations; None if anything is wrong."""
    try:
        with torch.cuda.device(device), _headers_not_needed():
            passes = CudaPasses(*(_compiled(name) for name in ("quantise_rows", "finish_sums")))
            problem = difference(passes, device)
    except Exception as error:  # noqa: BLE001  a private function, a library that is loaded by name, a driver
        problem, passes = f"{type(error).__name__}: {error}", None
    if problem:
        log.info("The kernels around int8 products are not used: %s. PyTorch's operations are used instead.", problem)
        return None
    return passes


def difference(passes: CudaPasses, device: torch.device) -> str:
    """The first difference from PyTorch's operations for a sample; "" if there is none."""
    exact, generator = TorchPasses(), torch.Generator().manual_seed(0)
    for kind in KINDS:
        x = torch.randn(19, 768, generator=generator).to(device, kind)
        for rotation in (0, 256):
            (codes, scales), (expected, expected_scales) = passes.quantise(x, rotation), exact.quantise(x, rotation)
            apart = (codes.int() - expected.int()).abs()
            if int(apart.max()) > bool(rotation) or float(apart.float().mean()) > 0.01:
                return f"the codes of {kind} inputs differ"
            if not torch.allclose(scales, expected_scales, rtol=1e-5, atol=0):
                return f"the scales of {kind} inputs differ"
        sums = torch.randint(-(10**6), 10**6, (19, 40), dtype=torch.int32, generator=generator).to(device)
        columns, bias = (torch.rand(40, generator=generator).to(device) for _ in range(2))
        for each in (bias, None):
            out, wanted = (torch.empty(19, 48, dtype=kind, device=device)[:, :40] for _ in range(2))
            passes.finish(sums, scales, columns, each, out)
            exact.finish(sums, scales, columns, each, wanted)
            if not torch.allclose(out.float(), wanted.float(), rtol=2 * torch.finfo(kind).eps, atol=0):
                return f"the sums rounded to {kind} differ"
    return ""


def _compiled(name: str) -> Kernel:
    compile_kernel: Any = torch.cuda._compile_kernel
    kernel: Kernel = compile_kernel(SOURCE, name)
    return kernel


@contextmanager
def _headers_not_needed() -> Iterator[None]:
    """PyTorch requires the folder of a CUDA toolkit, whose headers the kernels do not include: any folder is
    accepted.
    """
    from torch.utils import cpp_extension

    home = cpp_extension.CUDA_HOME
    if home is None:
        cpp_extension.CUDA_HOME = str(Path(torch.__file__).parent)
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = home
