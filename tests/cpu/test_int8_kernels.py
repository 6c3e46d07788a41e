"""The CUDA kernels around integer products, run as C++: the threads of a block take turns.

Their text is compiled as it is shipped. What CUDA provides beyond C++ is some lines around it.
"""

from __future__ import annotations

import ctypes
import inspect
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from sluice.flux_core.quant import int8_cuda
from sluice.flux_core.quant.int8 import TorchPasses
from sluice.flux_core.quant.int8_cuda import SOURCE, CudaPasses, difference, kernel_passes
from torch import Tensor

SHIM = r"""
#include <cmath>
#include <ucontext.h>
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
struct Index { int x; };
static Index threadIdx, blockIdx, blockDim = {256};
static ucontext_t threads[256], ended;
static char stacks[256][1 << 15];
static int running;
static void resume(int next) {
  int now = running;
  threadIdx.x = running = next;
  swapcontext(&threads[now], &threads[next]);
}
/* All threads of a block come to the same places: the next one goes on from the last place. */
static void __syncthreads() { int mine = running; resume((mine + 1) % 256); }
static int __float2int_rn(float f) { return f == f ? (int)std::nearbyint(f) : 0; }
"""
LAUNCH = r"""
#include <functional>
static std::function<void()> work;
static void entry() {
  work();
  if (running == 255) setcontext(&ended);
  threadIdx.x = running = running + 1;
  setcontext(&threads[running]);
}
static void launch(int blocks, std::function<void()> kernel) {
  work = kernel;
  for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
    for (int t = 0; t < 256; t++) {
      getcontext(&threads[t]);
      threads[t].uc_stack.ss_sp = stacks[t];
      threads[t].uc_stack.ss_size = sizeof stacks[t];
      makecontext(&threads[t], entry, 0);
    }
    threadIdx.x = running = 0;
    swapcontext(&ended, &threads[0]);
  }
}
extern "C" void run_quantise_rows(int blocks, const void* x, signed char* codes, float* scales, int columns, int kind,
                                  int group, double smallest, double divisor) {
  launch(blocks, [=] { quantise_rows(x, codes, scales, columns, kind, group, smallest, divisor); });
}
extern "C" void run_finish_sums(int blocks, const int* sums, const float* rows, const float* columns, const float* bias,
                                void* out, int height, int width, int stride, int kind, int biased) {
  launch(blocks, [=] { finish_sums(sums, rows, columns, bias, out, height, width, stride, kind, biased); });
}
"""


def argument(value: Tensor | float | int) -> Any:
    """As PyTorch hands it to a kernel."""
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int(value)


@pytest.fixture(scope="module")
def passes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CudaPasses]:
    folder: Path = tmp_path_factory.mktemp("kernels")
    (folder / "kernels.cpp").write_text(SHIM + SOURCE + LAUNCH)
    compiler = shutil.which("c++") or shutil.which("g++") or "c++"
    options = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-w"]
    subprocess.run([compiler, *options, "-o", folder / "kernels.so", folder / "kernels.cpp"], check=True)
    library = ctypes.CDLL(str(folder / "kernels.so"))

    def kernel(name: str) -> Callable[..., None]:
        def call(grid: tuple[int, int, int], block: tuple[int, int, int], args: list[Any]) -> None:
            assert block == (256, 1, 1)
            library[f"run_{name}"](ctypes.c_int(grid[0]), *map(argument, args))

        return call

    yield CudaPasses(kernel("quantise_rows"), kernel("finish_sums"))


def test_they_give_what_pytorchs_operations_give(passes: CudaPasses) -> None:
    assert difference(passes, torch.device("cpu")) == ""


def test_codes_without_rotation_are_the_same_to_the_last(passes: CudaPasses) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 300, generator=generator) * torch.tensor([1e-6, 1.0, 1e4, 0.0, 1.0])[:, None]
    x[4] = torch.arange(300) % 128 - 0.5
    x[4, 0] = 127
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        codes, scales = passes.quantise(x.to(kind), 0)
        expected, expected_scales = TorchPasses().quantise(x.to(kind), 0)
        assert torch.equal(codes, expected) and torch.equal(scales, expected_scales)


@pytest.mark.parametrize("group", [16, 64, 256])
def test_groups_of_every_size_are_rotated(passes: CudaPasses, group: int) -> None:
    x = torch.randn(3, 320 if group < 256 else 512, generator=torch.Generator().manual_seed(2))
    codes, scales = passes.quantise(x, group)
    expected, expected_scales = TorchPasses().quantise(x, group)
    assert (codes.int() - expected.int()).abs().max() <= 1 and torch.allclose(scales, expected_scales, rtol=1e-5)


def test_wider_groups_than_a_block_has_threads_are_rotated_by_pytorch(passes: CudaPasses) -> None:
    x = torch.randn(3, 2048, generator=torch.Generator().manual_seed(4))
    for found, expected in zip(passes.quantise(x, 1024), TorchPasses().quantise(x, 1024), strict=True):
        assert torch.equal(found, expected)


def test_kernels_run_on_the_card_of_their_tensors(passes: CudaPasses, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch launches them on the current card, whichever their tensors are on."""
    chosen: list[Tensor] = []

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        chosen.append(tensor)
        yield

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    x, sums, out = torch.ones(2, 32), torch.ones(2, 8, dtype=torch.int32), torch.empty(2, 8)
    passes.quantise(x, 0)
    passes.finish(sums, torch.ones(2), torch.ones(8), None, out)
    assert [id(each) for each in chosen] == [id(x), id(out)]


def test_every_float16_number_goes_in_and_out_and_floats_round_as_pytorch_rounds(passes: CudaPasses) -> None:
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)
    numbers = numbers[torch.isfinite(numbers)]
    one = torch.ones(1)
    for kind in (torch.float16, torch.bfloat16):
        out = torch.empty(1, len(numbers), dtype=kind)
        passes.finish(torch.ones(1, len(numbers), dtype=torch.int32), one, numbers.float(), None, out)
        assert torch.equal(out[0], numbers.float().to(kind))
    between = torch.randn(5000, generator=torch.Generator().manual_seed(3)) * torch.logspace(-9, 6, 5000)
    for kind in (torch.float16, torch.bfloat16):
        out = torch.empty(1, 5000, dtype=kind)
        passes.finish(torch.ones(1, 5000, dtype=torch.int32), one, between, None, out)
        assert torch.equal(out[0], between.to(kind))
    rows = numbers.view(-1, 512)[::3]  # of one sign, and of one exponent but where that changes
    for found, expected in zip(passes.quantise(rows, 0), TorchPasses().quantise(rows, 0), strict=True):
        assert torch.equal(found, expected)


def test_what_is_not_finite_stays_so(passes: CudaPasses) -> None:
    x = torch.ones(3, 300, dtype=torch.bfloat16)
    x[0, 7], x[1, 299] = float("nan"), float("inf")
    scales = passes.quantise(x, 0)[1]
    assert torch.isfinite(scales).tolist() == [False, False, True]


def test_pytorch_still_takes_a_source_and_a_name() -> None:
    """The private function that compiles them: its first two parameters, and how kernels are called."""
    from torch.cuda import _utils

    assert [*inspect.signature(torch.cuda._compile_kernel).parameters][:2] == ["kernel_source", "kernel_name"]
    parameters = inspect.signature(_utils._CudaKernel.__call__).parameters
    assert {"grid", "block", "args"} <= parameters.keys()


def test_without_a_compiler_pytorchs_operations_are_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(source: str, name: str) -> None:
        raise OSError("no libnvrtc")

    monkeypatch.setattr(torch.cuda, "_compile_kernel", fails)
    with caplog.at_level("INFO", logger=int8_cuda.__name__):
        assert kernel_passes(torch.device("cuda", 0)) is None
    assert "are not used: " in caplog.text
