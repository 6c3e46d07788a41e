"""Stored bytes to numbers: every format gives the bits of the reference code of its inventors."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable

import gguf
import numpy as np
import pytest
import torch
from doubles.seeded import Seeded
from sluice.flux_core.errors import FileFormatError
from sluice.flux_core.processor import threads as processor_threads
from sluice.flux_core.quant import lookup, workspace
from sluice.flux_core.quant.encoding import Encoding, Part
from sluice.flux_core.quant.formats import PLAIN, decode, decode_into
from sluice.flux_core.quant.fp8 import FP8, encode_fp8
from sluice.flux_core.quant.gguf_blocks import BLOCKS
from sluice.flux_core.quant.held import packed
from sluice.flux_core.quant.sizes import BLOCK
from torch import Tensor

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(BITS[a.dtype]), b.contiguous().view(BITS[b.dtype]))


def random_blocks(format: str, count: int) -> Tensor:
    """Blocks of arbitrary bytes, but with scales that are numbers: of NaN only the kind is defined."""
    values, nbytes = BLOCK[format]
    raw = torch.randint(0, 256, (count, nbytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    halves = {"Q8_0": [0], "Q4_0": [0], "Q5_0": [0], "Q4_1": [0, 2], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108],
              "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0],
              "MXFP4": [], "NVFP4_GGUF": [], "IQ1_M": [54]}.get(format, [0])  # fmt: skip
    for at in halves:
        raw[:, at + 1] &= 0xBF  # a smaller exponent: neither infinity nor NaN
    return raw


def reference(raw: Tensor, format: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # values that overflow become infinite in NumPy as here
        return _reference(raw, format)


def _reference(raw: Tensor, format: str) -> Tensor:
    return torch.from_numpy(gguf.dequantize(raw.numpy(), gguf.GGMLQuantizationType[format.removesuffix("_GGUF")]))


@pytest.mark.parametrize("format", BLOCKS)
def test_blocks_decode_as_in_the_gguf_package(format: str) -> None:
    raw = random_blocks(format, 1001)
    expected = reference(raw, format)
    for dtype in BITS:
        assert same_bits(decode(raw.view(-1), Encoding(format), expected.shape, dtype), expected.to(dtype)), dtype


@pytest.mark.parametrize("format", BLOCKS)
def test_blocks_with_any_scale_decode_as_in_the_gguf_package(format: str) -> None:
    """Infinities and NaN come out in the same places."""
    raw = torch.randint(0, 256, (4096, BLOCK[format][1]), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        expected = reference(raw, format)
    got = decode(raw.view(-1), Encoding(format), expected.shape, torch.float32)
    assert torch.equal(got.isnan(), expected.isnan())
    assert same_bits(got[~got.isnan()], expected[~got.isnan()])


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("format", FP8)
def test_every_pair_of_fp8_codes_decodes_as_pytorch_converts_it(
    format: str, dtype: torch.dtype, threads: int, computing_threads: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(processor_threads, "FEW", 0)
    monkeypatch.setattr(lookup, "CODES", 1000)
    codes = torch.arange(1 << 16).to(torch.uint16).view(torch.uint8)
    computing_threads(threads)
    with torch.inference_mode(threads == 2):
        got = decode(codes, Encoding(format), codes.shape, dtype)
    assert same_bits(got, codes.view(FP8[format]).to(dtype))


def test_looking_up_leaves_the_number_of_threads_as_it_is(computing_threads: Callable[[int], None]) -> None:
    """Of this thread, and of those that begin later. Waking threads is not worth it for few codes."""
    computing_threads(7)  # as many as no other test, whose threads would still be there
    table, codes = torch.arange(256), torch.arange(256).repeat(1000)
    values = torch.empty_like(codes)
    lookup.look_up(table, codes[:1000], values[:1000])
    began = {thread.name for thread in threading.enumerate() if thread.name.startswith("processor")}
    lookup.look_up(table, codes, values)
    assert torch.equal(values, codes)
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    now = {thread.name for thread in threading.enumerate() if thread.name.startswith("processor")}
    assert (torch.get_num_threads(), later, len(now - began)) == (7, [7], 7)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 255])
@pytest.mark.parametrize("start", [0, 1])
def test_fp8_of_any_length_and_place_decodes(count: int, start: int) -> None:
    codes = torch.randint(0, 127, (300,), dtype=torch.uint8)[start : start + count]
    assert same_bits(decode(codes, Encoding("F8_E4M3"), (count,)), codes.view(torch.float8_e4m3fn).to(torch.bfloat16))


@pytest.mark.parametrize("format", FP8)
@pytest.mark.parametrize("dtype", BITS)
def test_values_are_encoded_as_pytorch_rounds_them(format: str, dtype: torch.dtype) -> None:
    values = torch.arange(1 << 16).to(torch.uint16).view(torch.bfloat16).to(dtype)
    assert torch.equal(encode_fp8(values, format), values.to(FP8[format]).view(torch.uint8))


@pytest.mark.parametrize("format", [name for name, dtype in PLAIN.items() if dtype.is_floating_point])
def test_plain_numbers_are_converted_and_left_alone_if_they_need_not_be(format: str, seeded: Seeded) -> None:
    numbers = seeded("numbers", (7, 5)).to(PLAIN[format])
    raw = numbers.view(-1).view(torch.uint8)
    assert decode(raw, Encoding(format), (7, 5)).data_ptr() == raw.data_ptr()
    for dtype in BITS:
        assert same_bits(decode(raw, Encoding(format), (7, 5), dtype), numbers.to(dtype))


def test_a_scale_multiplies_the_decoded_values() -> None:
    codes = torch.arange(127, dtype=torch.uint8)
    for dtype in BITS:
        expected = codes.view(torch.float8_e4m3fn).float() * torch.tensor(0.0173)
        assert same_bits(decode(codes, Encoding("F8_E4M3", 0.0173), (127,), dtype), expected.to(dtype))


def test_parts_of_a_matrix_are_decoded_each_in_its_own_way(seeded: Seeded) -> None:
    top, middle, below = seeded("top", (2, 32)), random_blocks("Q8_0", 3), seeded("below", (1, 32)).bfloat16()
    parts = [
        (2, top.view(-1).view(torch.uint8), Encoding("F32")),
        (3, middle.view(-1), Encoding("Q8_0")),
        (1, below.view(-1).view(torch.uint8), Encoding("BF16", scale=0.5)),
    ]
    whole = Encoding("F32", parts=tuple(Part(rows, raw.numel(), encoding) for rows, raw, encoding in parts))
    got = decode(torch.cat([raw for _, raw, _ in parts]), whole, (6, 32), torch.float32)
    assert same_bits(got, torch.cat([top, reference(middle, "Q8_0"), below.float() * 0.5]))


def test_the_half_that_is_stored_first_may_be_the_lower_one() -> None:
    raw = random_blocks("Q4_0", 6)
    expected = reference(raw, "Q4_0")
    got = decode(raw.view(-1), Encoding("Q4_0", swapped=True), (6, 32), torch.float32)
    assert same_bits(got, torch.cat([expected[3:], expected[:3]]))


@pytest.mark.parametrize("format", [*PLAIN, *FP8, *BLOCKS])
def test_matrices_larger_than_a_chunk_decode_like_their_parts(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if format == "BOOL":
        raw = torch.ones(5000, dtype=torch.uint8)
    elif format in BLOCKS:
        raw = random_blocks(format, 40).view(-1)
    else:
        raw = torch.randint(0, 63, (8 * 5000,), dtype=torch.uint8)
    count = raw.numel() // BLOCK[format][1] * BLOCK[format][0]
    whole = decode(raw, Encoding(format), (count,), torch.bfloat16)
    for module in ("formats", "fp8"):
        monkeypatch.setattr(f"sluice.flux_core.quant.{module}.chunk_values", lambda _: 1024)
    assert same_bits(decode(raw, Encoding(format), (count,), torch.bfloat16), whole)


@pytest.mark.parametrize("format", ["F8_E4M3", "F16", *BLOCKS])
def test_the_scratch_does_not_grow_with_the_matrix(format: str) -> None:
    """And is the same memory every time."""
    monitor: list[tuple[int, set[int]]] = []

    def work() -> None:
        values, nbytes = BLOCK[format]
        torch.set_num_threads(1)
        for blocks in (1 << 21, 1 << 22, 1 << 22):
            raw = torch.zeros(blocks // values * nbytes, dtype=torch.uint8)
            decode_into(raw, torch.empty(blocks // values * values, dtype=torch.bfloat16), Encoding(format))
            held = workspace._local.__dict__.get("held", {}).values()  # a compiled decoder needs none
            monitor.append((sum(memory.nbytes for memory in held), {memory.data_ptr() for memory in held}))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(monitor) == 3
    assert monitor[0] == monitor[1] == monitor[2]
    assert monitor[0][0] <= 16 << 20


def test_sizes_that_do_not_belong_together_are_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="do not fill"):
        decode_into(torch.zeros(34, dtype=torch.uint8), torch.empty(31), Encoding("Q8_0"))
    with pytest.raises(ValueError, match="do not fill"):
        decode_into(torch.zeros(8, dtype=torch.uint8), torch.empty(2, 8)[:, ::2], Encoding("F8_E4M3"))


def test_a_format_without_a_row_is_named() -> None:
    with pytest.raises(FileFormatError, match="F6_E2M3"):
        decode(torch.zeros(3, dtype=torch.uint8), Encoding("F6_E2M3"), (4,))


def test_packed_weights_are_decoded_into_the_same_memory_again() -> None:
    raw = random_blocks("Q4_K", 8).view(-1)
    weight = packed(raw, Encoding("Q4_K"), (8, 256))
    with weight.dense(torch.float32) as first:
        assert same_bits(first, reference(raw.view(8, -1), "Q4_K"))
    with weight.dense(torch.float32) as second:
        assert second.data_ptr() == first.data_ptr()


def test_plain_numbers_of_the_type_computed_in_are_multiplied_where_they_lie() -> None:
    values = torch.randn(8, 16)
    weight = packed(values.view(torch.uint8).flatten(), Encoding("F32"), (8, 16))
    with weight.dense(torch.float32) as same, weight.dense(torch.bfloat16) as decoded:
        assert same.data_ptr() == values.data_ptr() and torch.equal(decoded, values.bfloat16())


def test_scratch_taken_in_inference_mode_may_be_used_outside_it() -> None:
    seen: list[np.ndarray] = []

    def work() -> None:
        weight = packed(random_blocks("Q8_0", 4).view(-1), Encoding("Q8_0"), (4, 32))
        with torch.inference_mode():
            weight.multiply(torch.ones(1, 32), None)
        with torch.no_grad():
            seen.append(weight.multiply(torch.ones(1, 32), None).numpy())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(seen) == 1
