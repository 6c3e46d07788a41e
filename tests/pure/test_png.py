"""Workflows in images: they are read as they were written, and hostile files are refused in one sentence."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sluice.flux_core.errors import InputError, MissingFileError, SluiceError, WorkflowError
from sluice.flux_core.io import exif as exif_file
from sluice.flux_core.io import png, saving, strict_json
from sluice.flux_core.io.embedded import Embedded, read_workflow, read_workflow_bytes

PROMPT = {"3": {"class_type": "KSampler", "inputs": {"steps": 4, "model": ["4", 0]}, "_meta": {"title": "Grüße"}}}
WORKFLOW = {"nodes": [{"id": 3, "type": "KSampler", "title": "猫"}], "links": [], "version": 0.4}


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def picture(*chunks: bytes, after: bytes = b"") -> bytes:
    """A 1x1 picture with chunks put before its pixels and `after` between pixels and end."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0"))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + pixels + after + chunk(b"IEND")


def exif(order: str, *texts: bytes) -> bytes:
    """A TIFF block with one ASCII entry for each text."""
    mark = {"<": b"II", ">": b"MM"}[order]
    start = 8 + 2 + 12 * len(texts) + 4
    entries, body = b"", b""
    for i, text in enumerate(texts):
        entries += struct.pack(order + "HHII", 0x0110 - i, 2, len(text) + 1, start + len(body))
        body += text + b"\0"
    return mark + struct.pack(order + "HIH", 42, 8, len(texts)) + entries + b"\0\0\0\0" + body


def webp(exif_data: bytes) -> bytes:
    chunks = b"VP8L" + struct.pack("<I", 1) + b"x\0" + b"EXIF" + struct.pack("<I", len(exif_data)) + exif_data
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def read(data: bytes) -> Embedded:
    return read_workflow_bytes(data, "x.png")


class TestWriting:
    def test_what_is_written_is_read_back_and_the_pixels_stay(self) -> None:
        image = Image.effect_noise((33, 17), 80).convert("RGB")
        data = png.encode(image, PROMPT, {"workflow": WORKFLOW})
        assert read(data) == Embedded(PROMPT, WORKFLOW)
        assert Image.open(io.BytesIO(data)).tobytes() == image.tobytes()

    def test_the_text_is_ascii_json_before_the_pixels(self) -> None:
        data = png.with_workflow(picture(), PROMPT, {"workflow": WORKFLOW})
        texts, pixels = data[: data.index(b"IDAT")], data[data.index(b"IDAT") :]
        assert b"tEXtprompt\0" in texts and b"tEXtworkflow\0" in texts and b"tEXt" not in pixels
        assert texts[33:].isascii() or b"Gr\\u00fc\\u00dfe" in texts
        assert json.loads(Image.open(io.BytesIO(data)).info["prompt"]) == PROMPT

    def test_numbers_that_javascript_cannot_read_become_null(self) -> None:
        prompt = {"1": {"class_type": "A", "inputs": {"x": float("nan"), "y": [float("inf"), 1.5]}}}
        assert read(png.with_workflow(picture(), prompt)).prompt == {
            "1": {"class_type": "A", "inputs": {"x": None, "y": [None, 1.5]}}
        }

    def test_writing_again_replaces_what_was_there(self) -> None:
        once = png.with_workflow(picture(), PROMPT, {"workflow": WORKFLOW, "note": 1})
        twice = png.with_workflow(once, PROMPT, {"workflow": {"nodes": []}, "note": 2})
        assert twice.count(b"prompt\0") == twice.count(b"workflow\0") == twice.count(b"note\0") == 1
        assert read(twice).workflow == {"nodes": []}

    def test_keys_that_no_chunk_can_have_are_left_out(self) -> None:
        extra = {"workflow": WORKFLOW, "": 1, " a": 2, "b\0c": 3, "é": 4, "x" * 80: 5, "prompt": 6}
        data = png.with_workflow(picture(), PROMPT, extra)
        assert data.count(b"tEXt") == 2 and read(data).prompt == PROMPT


class TestReading:
    @pytest.mark.parametrize(
        "chunks",
        [
            chunk(b"tEXt", b"prompt\0" + json.dumps(PROMPT).encode()),
            chunk(b"tEXt", b"prompt\0" + json.dumps(PROMPT, ensure_ascii=False).encode("utf-8")),
            chunk(b"tEXt", b"prompt\0" + json.dumps(PROMPT, ensure_ascii=False).encode("latin-1")),
            chunk(b"iTXt", b"prompt\0\0\0de\0Eingabe\0" + json.dumps(PROMPT, ensure_ascii=False).encode()),
            chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(json.dumps(PROMPT).encode())),
            chunk(b"zTXt", b"prompt\0\0" + zlib.compress(json.dumps(PROMPT).encode())),
            chunk(b"comf", b"prompt\0" + json.dumps(PROMPT).encode()),
        ],
        ids=["ascii", "utf-8 in tEXt", "latin-1", "iTXt", "iTXt packed", "zTXt", "comf"],
    )
    def test_every_kind_of_text_chunk_is_read_wherever_it_stands(self, chunks: bytes) -> None:
        assert read(picture(chunks)).prompt == PROMPT
        assert read(picture(after=chunks)).prompt == PROMPT

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
    def test_webp_carries_it_in_exif(self, order: str, prefix: bytes) -> None:
        texts = b"Prompt:" + json.dumps(PROMPT).encode(), b"workflow:" + json.dumps(WORKFLOW).encode()
        assert read(webp(prefix + exif(order, *texts))) == Embedded(PROMPT, WORKFLOW)

    def test_webp_of_pillow_is_read(self) -> None:
        tags = Image.Exif()
        tags[0x0110], tags[0x010F] = "prompt:" + json.dumps(PROMPT), "workflow:" + json.dumps(WORKFLOW)
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "WEBP", exif=tags)
        assert read(buffer.getvalue()) == Embedded(PROMPT, WORKFLOW)

    @pytest.mark.parametrize(
        ("document", "expected"),
        [
            (PROMPT, Embedded(prompt=PROMPT)),
            (WORKFLOW, Embedded(workflow=WORKFLOW)),
            ({"prompt": PROMPT, "client_id": "x"}, Embedded(prompt=PROMPT)),
            (
                {"prompt": PROMPT, "extra_data": {"extra_pnginfo": {"workflow": WORKFLOW}}},
                Embedded(PROMPT, WORKFLOW),
            ),
        ],
        ids=["api", "canvas", "request", "request with canvas"],
    )
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
    def test_json_files_of_each_format_are_read(
        self, tmp_path: Path, document: object, expected: Embedded, encoding: str
    ) -> None:
        path = tmp_path / "w.json"
        path.write_text("\ufeff" + json.dumps(document), encoding=encoding)
        assert read_workflow(path) == expected

    def test_only_class_inputs_and_meta_are_believed(self) -> None:
        node = {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "is_changed": ["old"], "evil": 1}
        node["_meta"] = {"title": "T", "cnr_id": "core", "deep": {"x": 1}}
        found = read(png.with_workflow(picture(), {"1": node})).prompt
        expected = {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "_meta": {"title": "T", "cnr_id": "core"}}
        assert found == {"1": expected}

    def test_nan_and_half_characters_from_other_writers_are_repaired(self) -> None:
        text = b'prompt\0{"1": {"class_type": "A", "inputs": {"x": NaN, "y": -Infinity, "z": 1e999, "t": "\\ud83d"}}}'
        prompt = read(picture(chunk(b"tEXt", text))).prompt
        assert prompt is not None and prompt["1"]["inputs"] == {"x": None, "y": None, "z": None, "t": "\ufffd"}

    def test_other_programs_parameters_are_found_and_told(self) -> None:
        found = read(picture(chunk(b"tEXt", b"parameters\0a cat\nSteps: 20")))
        assert found == Embedded(parameters="a cat\nSteps: 20")

    def test_no_pixel_is_decoded(self) -> None:
        whole = picture(chunk(b"tEXt", b"prompt\0" + json.dumps(PROMPT).encode()))
        assert read(whole.replace(zlib.compress(b"\0\0"), b"1" * 10)).prompt == PROMPT


class TestHostileFiles:
    """Each gives one clear sentence."""

    def refused(self, data: bytes, *words: str) -> None:
        with pytest.raises(WorkflowError) as caught:
            read(data)
        text = str(caught.value)
        assert all(word in text for word in words), text
        assert "\n" not in text and len(text) < 300

    def test_a_picture_without_workflow_hints_at_stripped_metadata(self) -> None:
        self.refused(picture(), "x.png", "no workflow", "strip")
        self.refused(webp(exif("<", b"Make:Canon")), "no workflow", "strip")
        self.refused(b"\xff\xd8\xff\xe0\0\4jp\xff\xd9", "no workflow", "strip")

    @pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
    def test_a_truncated_picture_is_recognised_wherever_it_ends(self, share: float) -> None:
        whole = png.encode(Image.effect_noise((64, 64), 80), PROMPT, {"workflow": WORKFLOW})
        self.refused(whole[: max(16, int(len(whole) * share))], "cut off")

    def test_a_truncated_webp_is_recognised(self) -> None:
        self.refused(webp(exif("<", b"prompt:" + json.dumps(PROMPT).encode()))[:-30], "cut off")

    @pytest.mark.parametrize("kind", [b"iTXt", b"zTXt"])
    def test_a_zip_bomb_is_not_unpacked(self, kind: bytes) -> None:
        bomb = zlib.compress(b"[" * (200 * 2**20), 9)
        start = b"prompt\0\1\0\0\0" if kind == b"iTXt" else b"prompt\0\0"
        self.refused(picture(chunk(kind, start + bomb)), "16 MiB")

    def test_too_much_text_is_refused_before_it_is_parsed(self) -> None:
        self.refused(picture(chunk(b"tEXt", b"prompt\0" + b" " * (17 * 2**20))), "16 MiB")
        half = chunk(b"tEXt", b"prompt\0" + b" " * (9 * 2**20))
        self.refused(picture(half, half), "16 MiB")

    @pytest.mark.parametrize("opening", [b"[", b'{"a":'])
    def test_json_nested_100000_deep_is_refused(self, opening: bytes) -> None:
        self.refused(picture(chunk(b"tEXt", b"prompt\0" + opening * 100_000)), "nested too deep")
        self.refused(b'{"nodes": ' + opening * 100_000, "nested too deep")
        self.refused(b'{"nodes": ' + b"[" * 150 + b"]" * 150 + b"}", "nested too deep")

    def test_more_nodes_than_anyone_draws_are_refused(self) -> None:
        many = {str(i): {"class_type": "A", "inputs": {}} for i in range(10_001)}
        self.refused(json.dumps(many).encode(), "10001 nodes")
        self.refused(json.dumps({"nodes": [{}] * 10_001}).encode(), "10001 nodes")

    @pytest.mark.parametrize(
        "text",
        [b"", b"{", b"{]", b"\xff\xfe\x00", b'{"1": {"class_type": 5}}', b'{"1": {"class_type": "A", "inputs": []}}'],
    )
    def test_broken_json_is_told(self, text: bytes) -> None:
        self.refused(picture(chunk(b"tEXt", b"prompt\0" + text)), "x.png")

    def test_a_number_of_thousands_of_digits_is_refused(self) -> None:
        self.refused(b'{"nodes": [' + b"9" * 5000 + b"]}", "not valid JSON")

    @pytest.mark.parametrize("data", [b"", b"hello", b"MZ\x90", b"[1, 2]", b'{"a": 1}', b"\x89PNG\r\n\x1a\n"])
    def test_what_is_no_workflow_at_all_is_told(self, data: bytes) -> None:
        self.refused(data)

    def test_a_missing_file_and_a_folder_are_told(self, tmp_path: Path) -> None:
        with pytest.raises(MissingFileError, match=r"nothere\.png"):
            read_workflow(tmp_path / "nothere.png")
        with pytest.raises(WorkflowError, match="cannot be read"):
            read_workflow(tmp_path)

    def test_exif_entries_that_share_a_text_do_not_multiply_it(self) -> None:
        text = b"prompt:" + b" " * 10**6
        block = bytearray(exif("<", *[b"x" * 8] * 100) + text)
        for i in range(100):
            struct.pack_into("<II", block, 10 + 12 * i + 4, len(text), len(block) - len(text))
        assert sum(len(text) for _, text in exif_file.texts(bytes(block))) <= exif_file.MAX_TEXT

    @settings(max_examples=150, deadline=None)
    @given(st.binary(max_size=200), st.sampled_from([b"prompt", b"workflow", b"parameters"]), st.integers(0, 3))
    def test_any_bytes_in_any_chunk_give_a_workflow_or_one_error(self, body: bytes, keyword: bytes, kind: int) -> None:
        name = [b"tEXt", b"iTXt", b"zTXt", b"comf"][kind]
        for data in (picture(chunk(name, keyword + b"\0" + body)), webp(body), body, b"RIFF1234WEBP" + body):
            try:
                assert read(data) != Embedded()
            except WorkflowError:
                pass

    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
    def test_flipped_bytes_give_a_workflow_or_one_error(self, at: int, put: bytes) -> None:
        data = bytearray(png.with_workflow(picture(), PROMPT, {"workflow": WORKFLOW}))
        data[at : at + len(put)] = put
        try:
            read(bytes(data))
        except WorkflowError:
            pass


class TestFileNames:
    def names(self, folder: Path) -> list[str]:
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def test_the_counter_goes_on_after_the_highest_number(self, tmp_path: Path) -> None:
        for name in ("a_00007_.png", "a_3.png", "a_x_.png", "ab_00099_.png", "a_0_00050_.png", "b_00020_.png"):
            (tmp_path / name).touch()
        place = saving.place("a", tmp_path)
        assert [place.save(b"1"), place.save(b"2")] == ["a_00008_.png", "a_00009_.png"]
        assert saving.place("new", tmp_path).save(b"") == "new_00001_.png"

    def test_the_prefix_may_hold_folders_and_variables(self, tmp_path: Path) -> None:
        place = saving.place("sub/%year%/x_%width%x%height%_%batch_num%_%foo%", tmp_path, 64, 48)
        assert place.save(b"", batch_number=1).startswith("x_64x48_1_%foo%_00001_")
        assert place.subfolder == os.path.join("sub", time.strftime("%Y"))

    def test_a_free_number_is_found_even_where_the_counter_cannot_see_it(self, tmp_path: Path) -> None:
        for content in (b"one", b"two"):
            saving.place("x%batch_num%", tmp_path).save(content, batch_number=5)
        assert [(tmp_path / name).read_bytes() for name in self.names(tmp_path)] == [b"one", b"two"]

    @pytest.mark.parametrize("prefix", ["../evil", "a/../../evil", "/etc/evil", "link/evil", "a\0b", "x" * 300 + "/y"])
    def test_no_prefix_leaves_the_output_folder(self, tmp_path: Path, prefix: str) -> None:
        root = tmp_path / "output"
        root.mkdir()
        (root / "link").symlink_to(tmp_path)
        with pytest.raises(InputError) as caught:
            saving.place(prefix, root).save(b"x")
        assert "\n" not in str(caught.value)
        assert self.names(tmp_path) == []

    def test_a_folder_that_refuses_files_is_told_before_there_is_a_picture(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path or not mode & os.W_OK)
        with pytest.raises(
            InputError, match=f"{tmp_path} cannot be written to. Allow this user .* another output folder"
        ):
            saving.check_prefix("sub/a", tmp_path / "out")
        monkeypatch.undo()
        saving.check_prefix("sub/a", tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_a_name_the_disk_refuses_is_one_sentence_and_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(SluiceError, match="Nothing could be saved"):
            saving.place("x" * 300, tmp_path).save(b"x")
        assert self.names(tmp_path) == []

    def test_an_output_folder_behind_a_link_is_fine(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "out").symlink_to(tmp_path / "real")
        saving.place("a/b", tmp_path / "out").save(b"x")
        assert self.names(tmp_path / "real") == [os.path.join("a", "b_00001_.png")]

    def test_new_files_have_the_permissions_of_any_new_file(self, tmp_path: Path) -> None:
        (tmp_path / "plain").touch()
        name = saving.place("p", tmp_path).save(b"")
        assert (tmp_path / name).stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_nothing_is_overwritten_where_there_are_no_hard_links(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: object) -> None:
            raise PermissionError(1, "no links here")

        monkeypatch.setattr(os, "link", refuse)
        (tmp_path / "a_00002_.png").write_bytes(b"mine")
        (tmp_path / ".sluice-a_00003_.png.claim").touch()  # left by a process that was killed
        place = saving.Place(tmp_path, "", "a", 1)
        assert [place.save(b"1"), place.save(b"4")] == ["a_00001_.png", "a_00004_.png"]
        assert (tmp_path / "a_00002_.png").read_bytes() == b"mine"

    def test_write_whole_replaces_and_leaves_no_other_file(self, tmp_path: Path) -> None:
        saving.write_whole(tmp_path / "f", b"old")
        saving.write_whole(tmp_path / "f", b"new")
        assert self.names(tmp_path) == ["f"] and (tmp_path / "f").read_bytes() == b"new"


def test_two_processes_saving_at_once_lose_no_picture(prologue: str, tmp_path: Path) -> None:
    code = (
        "from sluice.flux_core.io import saving\n"
        "for _ in range(60): saving.place('race', sys.argv[1]).save(bytes([int(sys.argv[2])]) * 1000)\n"
    )
    arguments = [sys.executable, "-c", prologue + code, str(tmp_path)]
    workers = [subprocess.Popen([*arguments, mark]) for mark in "12"]
    assert [worker.wait() for worker in workers] == [0, 0]
    contents = [path.read_bytes() for path in tmp_path.iterdir()]
    assert sorted(set(contents)) == [b"\1" * 1000, b"\2" * 1000]
    assert contents.count(b"\1" * 1000) == contents.count(b"\2" * 1000) == 60


def test_a_kill_at_any_moment_leaves_whole_pictures_only(prologue: str, tmp_path: Path) -> None:
    code = (
        "from sluice.flux_core.io import saving\n"
        "place = saving.place('k', sys.argv[1]); print('on', flush=True)\n"
        "for _ in range(300): place.save(b'x' * 3_000_000)\n"
    )
    for _ in range(5):
        arguments = [sys.executable, "-c", prologue + code, str(tmp_path)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"on\n"
            before = len(list(tmp_path.glob("k_*.png")))
            while len(list(tmp_path.glob("k_*.png"))) < before + 2:
                time.sleep(0.002)
            process.kill()
    assert {path.stat().st_size for path in tmp_path.glob("k_*.png")} == {3_000_000}
    leftovers = [path.name for path in tmp_path.iterdir() if not path.name.startswith("k_")]
    assert all(name.startswith(saving.TEMPORARY_PREFIX) for name in leftovers)
    assert saving.place("k", tmp_path).save(b"") not in leftovers


def test_dumps_gives_what_loads_takes() -> None:
    value = {"a": [1, 2.5, None, True, "ä\ud800"], "b": float("inf")}
    assert strict_json.loads(strict_json.dumps(value)) == {"a": [1, 2.5, None, True, "ä\ufffd"], "b": None}
