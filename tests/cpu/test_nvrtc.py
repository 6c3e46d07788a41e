"""Our CUDA kernels compile for every generation of cards, with the compiler that PyTorch's CUDA builds bring along.

The compiler needs no card. tests/cpu/test_int8_kernels.py shows that what is compiled computes the right numbers.
"""

from __future__ import annotations

import ctypes
from importlib import import_module
from pathlib import Path

import pytest
from sluice.flux_core.quant.int8_cuda import SOURCE

FOLDER = Path(next(iter(import_module("nvidia.cuda_nvrtc").__path__))) / "lib"
KERNELS = (b"quantise_rows", b"finish_sums")


@pytest.fixture(scope="module")
def nvrtc() -> ctypes.CDLL:
    for library in FOLDER.glob("libnvrtc-builtins.so*"):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(next(FOLDER.glob("libnvrtc.so*"))))


@pytest.mark.parametrize("architecture", ["sm_61", "sm_75", "sm_86", "sm_89", "sm_90"])
def test_the_kernels_compile_to_machine_code(nvrtc: ctypes.CDLL, architecture: str) -> None:
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), SOURCE.encode(), b"int8.cu", 0, None, None) == 0
    options = (ctypes.c_char_p * 1)(f"--gpu-architecture={architecture}".encode())
    code = nvrtc.nvrtcCompileProgram(program, 1, options)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert code == 0, log.value.decode()
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    assert cubin.raw[:4] == b"\x7fELF" and all(name in cubin.raw for name in KERNELS)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
