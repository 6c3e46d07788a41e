"""Safetensors files: headers are read as by the library, and hostile files are refused."""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from sluice.flux_core.checkpoint.files import open_weights
from sluice.flux_core.checkpoint.reader import read_into
from sluice.flux_core.checkpoint.stored import stack, whole
from sluice.flux_core.errors import FileFormatError, MissingFileError, SluiceError
from sluice.flux_core.io import descriptors


def written(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def line(start: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


def raw(path: Path, name: str) -> bytes:
    file = open_weights(path)
    buffer = bytearray(file.entries[name].nbytes)
    read_into(whole(file, file.entries[name]), memoryview(buffer))
    return bytes(buffer)


def raw_by_library(path: Path, name: str) -> bytes:
    with safe_open(path, "np") as library:
        numbers: bytes = library.get_tensor(name).tobytes()
        return numbers


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A file of three tensors of 400 bytes."""
    generator = np.random.default_rng(0)
    path = tmp_path / "numbers.safetensors"
    save_file({name: generator.standard_normal((10, 10), np.float32) for name in "abc"}, path, {"by": "us"})
    return path


def test_names_shapes_and_bytes_are_those_the_library_reads(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "scalar": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 4), np.float32),
        "bytes": np.arange(5, dtype=np.uint8),
    }
    save_file(arrays, tmp_path / "some.safetensors", {"format": "np"})
    file = open_weights(tmp_path / "some.safetensors")
    with safe_open(tmp_path / "some.safetensors", "np") as library:
        assert file.metadata == library.metadata()
        assert set(file.entries) == set(library.keys())
    for name, array in arrays.items():
        assert file.entries[name].shape == array.shape
        assert raw(tmp_path / "some.safetensors", name) == array.tobytes()


HOSTILE = {
    "nothing in it": (b"", "empty"),
    "a few bytes": (b"\x05\x00", "too short"),
    "a header longer than the file": (written(b'{"a":1}', length=5000), "cut short"),
    "a header of a terabyte": (written({}, length=1 << 40), "first 8 bytes"),
    "a header of 100 MB and one": (written(b" " * 20, length=100_000_001), "first 8 bytes"),
    "no JSON": (written(b"{nonsense: yes]"), "not valid JSON"),
    "no UTF-8": (written(b'{"\xff\xfe": 1}'), "not valid JSON"),
    "a list": (written([1, 2]), "not a table"),
    "JSON nested 100,000 deep": (written(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "too deep"),
    "a number of 10,000 digits": (written(b'{"a": ' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "an overlap": (written({"a": line(0, 8), "b": line(4, 12)}, bytes(12)), "overlaps"),
    "two tensors in one place": (written({"a": line(0, 8), "b": line(0, 8)}, bytes(8)), "overlaps"),
    "a gap": (written({"a": line(0, 8), "b": line(9, 12)}, bytes(12)), "gap"),
    "a range beyond the file": (written({"a": line(0, 8), "b": line(8, 1 << 30)}, bytes(8)), "cut short"),
    "bytes left over": (written({"a": line(0, 8)}, bytes(9)), "after its last tensor"),
    "a range that runs backwards": (written({"a": line(8, 0, [8])}, bytes(8)), "not data_offsets"),
    "a range below zero": (written({"a": line(-8, 0)}, bytes(8)), "not data_offsets"),
    "an unknown dtype": (written({"a": line(0, 8, dtype="F7")}, bytes(8)), "unknown dtype 'F7'"),
    "a dtype that is a list": (written({"a": {**line(0, 8), "dtype": ["U8"]}}, bytes(8)), "unknown dtype"),
    "a shape that is too large": (written({"a": line(0, 8, [4, 4])}, bytes(8)), "takes 16 bytes"),
    "a shape of astronomic size": (written({"a": line(0, 8, [1 << 60] * 9)}, bytes(8)), "not a shape"),
    "a shape with a side below zero": (written({"a": line(0, 8, [-1, -8])}, bytes(8)), "not a shape"),
    "a shape of truths": (written({"a": {**line(0, 1), "shape": [True]}}, bytes(1)), "not a shape"),
    "a line without a shape": (written({"a": {"dtype": "U8", "data_offsets": [0, 8]}}, bytes(8)), "not a shape"),
    "a line that is text": (written({"a": "tensor"}), "no dtype, shape"),
    "the same name twice": (written(b'{"a": {}, "a": {}}'), "twice"),
    "a pickle": (pickle.dumps({"state": list(range(50))}, 2), "pickle"),
    "a newer pickle": (pickle.dumps({"state": list(range(50))}, 4), "pickle"),
    "a web page": (b"<!DOCTYPE html><html><body>Log in to continue</body></html>", "web page"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "Git LFS"),
    "zeros, as a broken download leaves": (bytes(4096), "zero bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_bad_file_is_refused_in_one_sentence_that_names_it_and_the_fault(tmp_path: Path, case: str) -> None:
    data, fault = HOSTILE[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match="bad.safetensors") as refusal:
        open_weights(path)
    assert fault in str(refusal.value)
    assert len(str(refusal.value)) < 600


def test_a_pytorch_zip_under_a_safetensors_name_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    with pytest.raises(FileFormatError, match="run code"):
        open_weights(tmp_path / "model.safetensors")


def test_every_truncation_of_a_file_is_refused(numbers: Path) -> None:
    whole = numbers.read_bytes()
    for length in range(0, len(whole), 37):
        numbers.write_bytes(whole[:length])
        with pytest.raises(FileFormatError):
            open_weights(numbers)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_the_header_says_nothing_but_a_refusal_comes_out(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    good = written({"a": line(0, 8), "b": line(8, 16, [2, 2], "F16")}, bytes(16))
    at = data.draw(st.integers(0, len(good)))
    spoiled = good[:at] + data.draw(st.binary(max_size=12)) + good[at + data.draw(st.integers(0, 12)) :]
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    path.write_bytes(data.draw(st.sampled_from([spoiled, written(data.draw(st.binary(max_size=60)))])))
    try:
        entries = open_weights(path).entries.values()
    except FileFormatError:
        return
    assert all(0 <= entry.offset and entry.offset + entry.nbytes <= path.stat().st_size for entry in entries)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)
LINES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F16", "F4"]) | JSON,
        "shape": st.lists(st.integers(-1, 9), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 40), max_size=3) | JSON,
    }
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=5), LINES | JSON, max_size=4), st.binary(max_size=40))
def test_whatever_json_the_header_is_nothing_but_a_refusal_comes_out(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any], data: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    path.write_bytes(written(table, data))
    try:
        open_weights(path)
    except FileFormatError as refusal:
        str(refusal).encode()


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere.safetensors"):
        open_weights(tmp_path / "nowhere.safetensors")


Read = Callable[[memoryview, Callable[[memoryview], int]], int]
System = Callable[[Read], None]


@pytest.fixture(params=["one descriptor", "own handles"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> System:
    """system(read): `read(destination, how)` is asked for every read, on a system with preadv and on one without.

    `how(destination)` reads there and returns the number of bytes.
    """
    positional = request.param == "one descriptor"
    monkeypatch.setattr(descriptors, "POSITIONAL", positional)

    def through(read: Read) -> None:
        preadv: Any = getattr(os, "preadv", None)

        class Handle(io.FileIO):
            def readinto(self, buffer: Any) -> int:
                return read(buffer, super().readinto)

        monkeypatch.setattr(io, "FileIO", Handle)
        if positional:
            monkeypatch.setattr(
                os, "preadv", lambda fd, buffers, at: read(buffers[0], lambda part: preadv(fd, [part], at))
            )

    return through


def test_short_reads_are_continued(numbers: Path, system: System) -> None:
    system(lambda destination, how: how(destination[:7]))
    with safe_open(numbers, "np") as library:
        assert raw(numbers, "b") == library.get_tensor("b").tobytes()


def test_a_file_that_ends_early_is_an_error_that_names_the_place(numbers: Path, system: System) -> None:
    file = open_weights(numbers)
    system(lambda destination, how: 0)
    place = file.entries["c"].offset
    with pytest.raises(FileFormatError, match=f"numbers.safetensors ended at byte {place}, but 400"):
        read_into(whole(file, file.entries["c"]), memoryview(bytearray(400)))


@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize("spoil", [lambda path: os.truncate(path, 700), lambda path: os.utime(path, ns=(1, 1))])
def test_a_file_that_changed_since_its_header_was_read_is_refused(
    numbers: Path, system: System, spoil: Callable[[Path], None], read_before: bool
) -> None:
    file = open_weights(numbers)
    tensor = whole(file, file.entries["a"])
    if read_before:
        read_into(tensor, memoryview(bytearray(400)))
    spoil(numbers)
    with pytest.raises(FileFormatError, match="numbers.safetensors was replaced"):
        read_into(tensor, memoryview(bytearray(400)))


def test_a_file_that_was_replaced_is_read_on_as_it_was(numbers: Path, tmp_path: Path) -> None:
    file = open_weights(numbers)
    tensor, before, after = whole(file, file.entries["a"]), bytearray(400), bytearray(400)
    read_into(tensor, memoryview(before))
    (tmp_path / "other").write_bytes(bytes(5000))
    os.replace(tmp_path / "other", numbers)
    read_into(tensor, memoryview(after))
    assert before == after


def test_a_failing_disk_is_named_with_file_and_place(numbers: Path, system: System) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    file = open_weights(numbers)
    system(fail)
    with pytest.raises(SluiceError, match=rf"numbers.safetensors failed at byte {file.entries['a'].offset}"):
        read_into(whole(file, file.entries["a"]), memoryview(bytearray(400)))


def test_ranges_arrive_one_after_the_other_in_any_kind_of_buffer(numbers: Path, system: System) -> None:
    file = open_weights(numbers)
    joined = stack("abc", [whole(file, file.entries[name]) for name in "cab"])
    assert joined.shape == (30, 10)
    out = np.empty((30, 10), np.float32)
    read_into(joined, out.data)
    with safe_open(numbers, "np") as library:
        assert (out == np.concatenate([library.get_tensor(name) for name in "cab"])).all()
    with pytest.raises(ValueError, match="1200 bytes"):
        read_into(joined, memoryview(bytearray(1199)))


def test_many_threads_may_read_one_file_at_once(numbers: Path, system: System) -> None:
    file = open_weights(numbers)
    with safe_open(numbers, "np") as library:
        expected = {name: library.get_tensor(name).tobytes() for name in "abc"}
    wrong: list[str] = []

    def work() -> None:
        for number in range(60):
            name = "abc"[number % 3]
            buffer = bytearray(400)
            read_into(whole(file, file.entries[name]), memoryview(buffer))
            if bytes(buffer) != expected[name]:
                wrong.append(name)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_reads_wait_for_no_other_and_land_where_they_are_to_go(numbers: Path, system: System) -> None:
    file, both = open_weights(numbers), threading.Barrier(2)
    buffers = [bytearray(400), bytearray(400)]
    landed = []

    def meet(destination: memoryview, how: Callable[[memoryview], int]) -> int:
        both.wait(20)  # breaks, and fails the read, unless two reads are on their way at the same time
        landed.append(destination.obj)
        return how(destination)

    system(meet)
    with ThreadPoolExecutor(2) as pool:
        entries = [whole(file, file.entries[name]) for name in "ab"]
        list(pool.map(read_into, entries, map(memoryview, buffers)))
    assert {id(buffer) for buffer in landed} == {id(buffer) for buffer in buffers}
    assert [bytes(buffer) for buffer in buffers] == [raw_by_library(numbers, name) for name in "ab"]


def test_files_are_closed_with_the_last_who_knows_them(numbers: Path, system: System) -> None:
    def opened() -> list[Any]:
        return [one for one in psutil.Process().open_files() if one.path == str(numbers)]

    file = open_weights(numbers)
    for name in "abc":
        read_into(whole(file, file.entries[name]), memoryview(bytearray(400)))
    assert len(opened()) == 1
    del file
    gc.collect()
    assert not opened()


def test_a_folder_of_shards_reads_as_one_file(tmp_path: Path) -> None:
    arrays = {name: np.full((4, 4), number, np.float32) for number, name in enumerate("abcd")}
    save_file({name: arrays[name] for name in "ab"}, tmp_path / "m-00001-of-00002.safetensors")
    save_file({name: arrays[name] for name in "cd"}, tmp_path / "m-00002-of-00002.safetensors")
    where = {name: f"m-0000{1 + (name in 'cd')}-of-00002.safetensors" for name in "abcd"}
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    for path in (tmp_path, index, *tmp_path.glob("*.safetensors")):
        file = open_weights(path)
        out = np.empty((16, 4), np.float32)
        read_into(stack("all", [whole(file, file.entries[name]) for name in "dbca"]), out.data)
        assert out[::4, 0].tolist() == [3, 1, 2, 0]
        assert file.locate(file.entries["c"].offset)[0].name.startswith("m-00002")


@pytest.mark.parametrize("named", ["m-00001-of-00003.safetensors", "m-00003-of-00003.safetensors", ""])
def test_a_shard_that_is_missing_is_named(tmp_path: Path, named: str) -> None:
    for number in (1, 3):
        save_file({f"t{number}": np.zeros(1)}, tmp_path / f"m-0000{number}-of-00003.safetensors")
    with pytest.raises(MissingFileError, match="only 2 of the 3 files of this model; m-00002-of-00003.safetensors is"):
        open_weights(tmp_path / named)


def test_what_each_shard_says_of_its_layers_is_put_together(tmp_path: Path) -> None:
    for number, layer in ((1, "a"), (2, "b")):
        said = {"_quantization_metadata": json.dumps({"layers": {layer: {"format": "nvfp4"}}}), "format": "pt"}
        save_file({layer: np.zeros(1)}, tmp_path / f"m-0000{number}-of-00002.safetensors", said)
    metadata = open_weights(tmp_path).metadata
    assert json.loads(metadata["_quantization_metadata"])["layers"].keys() == {"a", "b"}
    assert metadata["format"] == "pt"


@pytest.mark.parametrize("index", ["[]", '{"weight_map": {"a": "../secret.safetensors"}}', "nonsense", "{}"])
def test_an_index_that_names_no_files_of_its_folder_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "m.safetensors.index.json").write_text(index)
    with pytest.raises(FileFormatError):
        open_weights(tmp_path)


def test_a_folder_with_several_models_asks_for_one(tmp_path: Path) -> None:
    for name in "ab":
        save_file({name: np.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(FileFormatError, match="2 weight files"):
        open_weights(tmp_path)
