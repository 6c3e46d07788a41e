"""GGUF files: headers are read as by the gguf package, and hostile files are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice.flux_core.checkpoint.files import open_weights
from sluice.flux_core.checkpoint.gguf_file import TYPES, UNREADABLE
from sluice.flux_core.checkpoint.reader import read_into
from sluice.flux_core.checkpoint.stored import whole
from sluice.flux_core.errors import FileFormatError
from sluice.flux_core.quant.sizes import BLOCK

TYPE = gguf.GGMLQuantizationType
RESHAPED = (3, 2, 5, 1)


def write(path: Path, alignment: int | None = None) -> Path:
    """One tensor of every format that can be read, and metadata of every type."""
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "flux")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_string("general.name", "ein Fluß")
    writer.add_bool("some.truth", True)
    writer.add_float32("some.float", 0.5)
    writer.add_int64("some.large", -(2**40))
    writer.add_uint8("some.small", 255)
    writer.add_array("tokenizer.words", [f"word {number}" for number in range(100)])
    writer.add_array("tokenizer.scores", [float(number) for number in range(100)])
    writer.add_array("comfy.gguf.orig_shape.reshaped", list(RESHAPED))
    for format in TYPES.values():
        values, nbytes = BLOCK[format]
        rows = generator.integers(0, 256, (4, 2 * nbytes), dtype=np.uint8)
        writer.add_tensor(f"blocks.{format}.weight", rows, raw_dtype=getattr(TYPE, format.removesuffix("_GGUF")))
    writer.add_tensor("reshaped", generator.standard_normal((3, 10), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "all.gguf")


@pytest.mark.parametrize("alignment", [None, 64, 256])
def test_names_shapes_formats_and_bytes_are_those_the_package_reads(tmp_path: Path, alignment: int | None) -> None:
    file = open_weights(write(tmp_path / "all.gguf", alignment))
    theirs = gguf.GGUFReader(file.path)
    assert list(file.entries) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        entry = file.entries[tensor.name]
        assert entry.format.removesuffix("_GGUF") == tensor.tensor_type.name
        assert (entry.offset, entry.nbytes) == (tensor.data_offset, tensor.n_bytes)
        if tensor.name != "reshaped":
            assert entry.shape == tuple(reversed(tensor.shape.tolist()))
        buffer = bytearray(entry.nbytes)
        read_into(whole(file, entry), memoryview(buffer))
        assert bytes(buffer) == tensor.data.tobytes()


def test_metadata_is_told_as_text_and_tokenizer_tables_are_left_out(everything: Path) -> None:
    metadata = open_weights(everything).metadata
    assert metadata["general.architecture"] == "flux"
    assert metadata["general.name"] == "ein Fluß"
    assert (metadata["some.truth"], metadata["some.float"], metadata["some.large"]) == ("True", "0.5", str(-(2**40)))
    assert not any(key.startswith("tokenizer") for key in metadata)


def test_a_shape_that_ggml_could_not_hold_is_restored(everything: Path) -> None:
    assert open_weights(everything).entries["reshaped"].shape == RESHAPED


def test_block_sizes_are_ggmls() -> None:
    for format in TYPES.values():
        assert BLOCK[format] == tuple(gguf.GGML_QUANT_SIZES[getattr(TYPE, format.removesuffix("_GGUF"))])
    ours = {number: name.removesuffix("_GGUF") for number, name in {**TYPES, **UNREADABLE}.items()}
    assert ours.items() <= {kind.value: kind.name for kind in TYPE}.items()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def header(tensors: bytes = b"", count: int = 0, pairs: bytes = b"", pair_count: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, count, pair_count) + pairs + tensors


def tensor(name: str = "a", sides: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, offset)


PAD = bytes(4096)
HOSTILE = {
    "nothing but a magic": (b"GGUF", "damaged or cut short"),
    "version 1": (header(version=1), "version 1"),
    "big-endian": (header(version=3 << 24), "big-endian"),
    "a tensor count beyond the file": (header(count=1 << 60), "do not fit"),
    "a pair count beyond the file": (header(pair_count=1 << 60), "do not fit"),
    "a name longer than the file": (header(struct.pack("<Q", 1 << 50) + PAD, 1), "its header declares"),
    "a name that is no UTF-8": (header(struct.pack("<Q", 2) + b"\xff\xfe" + PAD, 1), "not UTF-8"),
    "an unknown metadata type": (header(pairs=text("k") + struct.pack("<I", 99) + PAD, pair_count=1), "type 99"),
    "an array of arrays": (header(pairs=text("k") + struct.pack("<IIQ", 9, 9, 1) + PAD, pair_count=1), "array of"),
    "an array longer than the file": (
        header(pairs=text("k") + struct.pack("<IIQ", 9, 4, 1 << 55) + PAD, pair_count=1),
        "do not fit",
    ),
    "an array of texts longer than the file": (
        header(pairs=text("k") + struct.pack("<IIQ", 9, 8, 1 << 55) + PAD, pair_count=1),
        "do not fit",
    ),
    "a crooked alignment": (
        header(pairs=text("general.alignment") + struct.pack("<II", 4, 24) + PAD, pair_count=1),
        "power of two",
    ),
    "a billion dimensions": (header(text("a") + struct.pack("<I", 10**9) + PAD, 1), "dimensions"),
    "a side of 2^60": (header(tensor(sides=(1 << 60, 1 << 60)) + PAD, 1), "values along one dimension"),
    "an unknown format": (header(tensor(kind=77) + PAD, 1), "number 77"),
    "a known format that cannot be read": (header(tensor(sides=(256,), kind=34) + PAD, 1), "TQ1_0"),
    "rows that are no whole blocks": (header(tensor(sides=(33,), kind=8) + PAD, 1), "blocks of 32"),
    "an offset off the alignment": (header(tensor(offset=5) + PAD, 1), "not a multiple of 32"),
    "a range beyond the file": (header(tensor(sides=(1 << 20,)) + PAD, 1), "cut short"),
    "two tensors in one place": (header(tensor("a") + tensor("b") + PAD, 2), "overlaps"),
    "the same name twice": (header(tensor("a") + tensor("a", offset=128) + PAD, 2), "twice"),
    "another original shape": (
        header(
            tensor("a") + PAD, 1, text("comfy.gguf.orig_shape.a") + struct.pack("<IIQii", 9, 5, 2, 3, 5), pair_count=1
        ),
        "contradicts",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_bad_file_is_refused_in_one_sentence_that_names_it_and_the_fault(tmp_path: Path, case: str) -> None:
    data, fault = HOSTILE[case]
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(FileFormatError, match="bad.gguf") as refusal:
        open_weights(tmp_path / "bad.gguf")
    assert fault in str(refusal.value)


def test_every_truncation_of_a_file_is_refused(everything: Path, tmp_path: Path) -> None:
    whole = everything.read_bytes()
    assert open_weights(everything).entries
    for length in range(0, len(whole) - 32, 97):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(FileFormatError):
            open_weights(tmp_path / "cut.gguf")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_the_header_says_nothing_but_a_refusal_comes_out(
    everything: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = everything.read_bytes()
    at = data.draw(st.integers(4, 3500))
    spoiled = whole[:at] + data.draw(st.binary(max_size=9)) + whole[at + data.draw(st.integers(0, 9)) :]
    path = tmp_path_factory.mktemp("fuzz") / "x.gguf"
    path.write_bytes(data.draw(st.sampled_from([spoiled, b"GGUF\x03\0\0\0" + data.draw(st.binary(max_size=80))])))
    try:
        entries = open_weights(path).entries.values()
    except FileFormatError as refusal:
        str(refusal).encode()
        return
    assert all(entry.offset + entry.nbytes <= path.stat().st_size for entry in entries)
