"""Loops in C give the bits of PyTorch's operations, and everything works without a C compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from sluice.flux_core.models.activations import gelu, gelu_
from sluice.flux_core.models.attention import rotate, rotations
from sluice.flux_core.processor import c_compiler, c_functions
from sluice.flux_core.quant import fp8
from sluice.flux_core.quant.encoding import Encoding
from sluice.flux_core.quant.formats import decode
from sluice.flux_core.quant.fp8 import FP8
from torch import Tensor

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
COMPILERS = [None, "false", "/nowhere/cc"]  # this machine's, one that fails, one that is not there


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions are used for few numbers."""
    for name in ("LOOKED_UP_FROM", "ROTATED_FROM"):
        monkeypatch.setattr(c_functions, name, 1)
    monkeypatch.setattr(fp8, "LARGE", 1)


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | None], None]]:
    """choose(compiler): the functions are compiled by it from now on. None: by the one of this machine."""

    def forget() -> None:
        for kept in (c_functions._library, c_functions._decoders, c_functions._rotates):
            kept.cache_clear()

    def chosen(compiler: str | None) -> None:
        forget()
        if compiler is not None:
            monkeypatch.setenv("CC", compiler)
            monkeypatch.setattr("shutil.which", lambda name: name if name == compiler else None)

    yield chosen
    forget()


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_fp8_is_decoded_with_and_without_a_compiler(
    choose: Callable[[str | None], None],
    computing_threads: Callable[[int], None],
    count: int,
    dtype: torch.dtype,
    compiler: str | None,
) -> None:
    choose(compiler)
    computing_threads(count)
    codes = torch.arange((1 << 16) + 77, dtype=torch.int32).to(torch.uint8)
    got = decode(codes, Encoding("F8_E4M3"), (len(codes),), dtype)
    assert torch.equal(got.view(BITS[dtype]), codes.view(FP8["F8_E4M3"]).to(dtype).view(BITS[dtype]))
    assert compiler is None or c_functions.decoder(dtype) is None


@pytest.mark.parametrize("openmp", [None, "/nowhere/libgomp.so"])
def test_without_pytorch_s_openmp_one_core_computes(
    choose: Callable[[str | None], None], openmp: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(c_compiler, "pytorch_openmp", lambda: openmp)
    choose(None)
    assert set(c_functions._decoders()) == set(BITS), "the bits are compared when they are made"


def test_the_threads_are_those_of_pytorch(choose: Callable[[str | None], None]) -> None:
    """No other OpenMP library is loaded with the functions."""
    before = c_compiler.pytorch_openmp()
    choose(None)
    assert c_functions._library() is not None
    assert before is not None and before.startswith(str(Path(torch.__file__).parent))
    assert set(c_compiler.OPENMP.findall(Path("/proc/self/maps").read_text())) == {before}


@pytest.mark.parametrize("wrong", [0, 0x3D, 0x7F, 0xFF])
def test_a_decoder_with_one_wrong_code_is_not_used(wrong: int) -> None:
    def decoding(codes: Tensor, values: Tensor) -> None:
        values.copy_(codes.view(FP8["F8_E4M3"]))
        values[codes == wrong] = 3.0

    assert not c_functions.agrees(decoding, torch.bfloat16)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 3])
def test_the_gelu_of_all_numbers_is_that_of_pytorch(
    choose: Callable[[str | None], None],
    computing_threads: Callable[[int], None],
    count: int,
    dtype: torch.dtype,
    compiler: str | None,
) -> None:
    """In a part of a wider tensor, whose other numbers stay."""
    choose(compiler)
    computing_threads(1)
    wide = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype).view(1, 256, 256)
    right = torch.cat((wide[..., :3], gelu(wide[..., 3:250].contiguous()), wide[..., 250:]), dim=-1)
    computing_threads(count)
    gelu_(wide[..., 3:250])
    assert torch.equal(wide.view(torch.int16), right.view(torch.int16))


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize(("batch", "count"), [(1, 1), (2, 3)])
def test_rotations_have_the_same_bits_in_every_type(
    choose: Callable[[str | None], None],
    computing_threads: Callable[[int], None],
    count: int,
    dtype: torch.dtype,
    batch: int,
    compiler: str | None,
) -> None:
    choose(compiler)
    computing_threads(count)
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 7, 3, 16, generator=generator)
    rope = rotations(torch.randint(0, 90, (7, 3), generator=generator).float(), (4, 6, 6), 10000.0)
    pairs, rows = x.unflatten(-1, (-1, 2)), rope[:, None].unflatten(-1, (-1, 2)).unbind(1 + 1)
    right = torch.stack([(pairs * row).sum(-1) for row in rows], dim=-1).flatten(-2).to(dtype)
    wide = torch.zeros(batch, 7, 100, dtype=dtype)
    rotate(x, rope, out=wide[..., 20:68].unflatten(-1, (3, 16)))
    assert torch.equal(wide[..., 20:68].view(BITS[dtype]), right.flatten(-2).view(BITS[dtype]))
    assert not wide[..., :20].any() and not wide[..., 68:].any()


def test_rotations_that_are_not_laid_out_for_it_are_left_to_pytorch() -> None:
    x, turns = torch.ones(4, 2, 8), torch.ones(4, 2, 8)
    out = torch.zeros(4, 2, 8, dtype=torch.bfloat16)
    assert not c_functions.rotate(x.transpose(0, 1).contiguous().transpose(0, 1), turns, out)
    assert not c_functions.rotate(x, turns, torch.zeros(4, 2, 16, dtype=torch.bfloat16)[..., ::2])
    assert not c_functions.rotate(x.double(), turns, out)
    assert not out.any()
