"""Workflows in JPEG and AVIF pictures, beside damaged texts, and in bodies of requests that people keep as files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from sluice.flux_core.errors import WorkflowError
from sluice.flux_core.io.embedded import Embedded, read_workflow, read_workflow_bytes

PROMPT: dict[str, Any] = {"3": {"class_type": "KSampler", "inputs": {"steps": 4, "model": ["4", 0]}}}
WORKFLOW: dict[str, Any] = {"nodes": [{"id": 3, "type": "KSampler", "title": "猫"}], "links": [], "version": 0.4}
BOTH = Embedded(PROMPT, WORKFLOW)
USER_COMMENT = 0x9286


def saved(form: str, exif: Image.Exif) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, form, exif=exif)
    return buffer.getvalue()


def entries() -> Image.Exif:
    tags = Image.Exif()
    tags[0x0110], tags[0x010F] = "prompt:" + json.dumps(PROMPT), "workflow:" + json.dumps(WORKFLOW)
    return tags


def comment(raw: bytes) -> Image.Exif:
    tags = Image.Exif()
    tags[0x8769] = {USER_COMMENT: raw}
    return tags


def of(document: object) -> Embedded:
    return read_workflow_bytes(json.dumps(document).encode(), "w.json")


@pytest.mark.parametrize("form", ["JPEG", "AVIF", "WEBP"])
class TestExif:
    def test_entries_are_read(self, form: str) -> None:
        assert read_workflow_bytes(saved(form, entries())) == BOTH

    @pytest.mark.parametrize("coding", ["ascii", "utf-16-be", "utf-16-le"])
    def test_a_comment_with_both_is_read(self, form: str, coding: str) -> None:
        name = b"ASCII\0\0\0" if coding == "ascii" else b"UNICODE\0"
        raw = name + json.dumps({"prompt": PROMPT, "workflow": json.dumps(WORKFLOW)}).encode(coding)
        assert read_workflow_bytes(saved(form, comment(raw))) == BOTH

    def test_a_comment_of_another_program_is_parameters(self, form: str) -> None:
        raw = b"UNICODE\0" + "a cat\nSteps: 20".encode("utf-16-be")
        assert read_workflow_bytes(saved(form, comment(raw))) == Embedded(parameters="a cat\nSteps: 20")

    def test_a_picture_without_is_told(self, form: str) -> None:
        with pytest.raises(WorkflowError, match=r"x\.file carries no workflow.*ask for the original"):
            read_workflow_bytes(saved(form, Image.Exif()), "x.file")

    def test_flipped_bytes_give_a_workflow_or_one_error(self, form: str) -> None:
        data = saved(form, entries())

        @settings(max_examples=60, deadline=None)
        @given(st.integers(0, min(len(data) - 1, 500)), st.binary(min_size=1, max_size=8))
        def flip(at: int, put: bytes) -> None:
            changed = bytearray(data)
            changed[at : at + len(put)] = put
            try:
                assert read_workflow_bytes(bytes(changed)) != Embedded()
            except WorkflowError:
                pass

        flip()

    def test_a_picture_that_ends_early_gives_a_workflow_or_one_error(self, form: str) -> None:
        data = saved(form, entries())
        for end in range(0, len(data), 7):
            try:
                read_workflow_bytes(data[:end])
            except WorkflowError:
                pass


class TestDamagedTexts:
    """A text that is damaged is left out with a note; alone it is an error."""

    def picture(self, **texts: str) -> bytes:
        info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
        for key, text in texts.items():
            info.add_text(key, text)
        Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=info)
        return buffer.getvalue()

    def test_the_prompt_stands_beside_a_workflow_cut_off(self) -> None:
        found = read_workflow_bytes(self.picture(prompt=json.dumps(PROMPT), workflow='{"nodes": ['), "b.png")
        assert (found.prompt, found.workflow) == (PROMPT, None)
        (note,) = found.notes
        assert "The workflow in b.png is not valid JSON" in note and note.endswith("It is left out.")

    def test_the_workflow_stands_beside_a_prompt_of_wrong_shape(self) -> None:
        broken = json.dumps({"1": {"class_type": "A", "inputs": []}})
        found = read_workflow_bytes(self.picture(prompt=broken, workflow=json.dumps(WORKFLOW)), "b.png")
        assert (found.prompt, found.workflow) == (None, WORKFLOW)
        assert "node 1 is not an object with inputs. It is left out." in found.notes[0]

    def test_a_text_that_cannot_be_unpacked_leaves_the_other(self) -> None:
        whole = self.picture(prompt=json.dumps(PROMPT))
        found = read_workflow_bytes(whole[:-12] + self.chunk(b"zTXt", b"workflow\0\0xxxx") + whole[-12:])
        assert found.prompt == PROMPT and "compressed text" in found.notes[0]

    def chunk(self, kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + b"\0\0\0\0"

    def test_alone_it_is_an_error(self) -> None:
        with pytest.raises(WorkflowError, match="not valid JSON"):
            read_workflow_bytes(self.picture(workflow='{"nodes": [', parameters="a cat"))


class TestWrappers:
    @pytest.mark.parametrize(
        ("document", "expected"),
        [
            ({"input": {"workflow": PROMPT, "images": []}}, Embedded(PROMPT)),
            ({"input": {"prompt": PROMPT}}, Embedded(PROMPT)),
            ({"input": {"workflow_json": json.dumps(PROMPT)}}, Embedded(PROMPT)),
            ({"output": PROMPT, "workflow": WORKFLOW}, BOTH),
            ({"prompt": WORKFLOW, "client_id": "x"}, Embedded(None, WORKFLOW)),
            ({"prompt": json.dumps(PROMPT)}, Embedded(PROMPT)),
            ({"prompt": "a cat", "workflow": PROMPT}, Embedded(PROMPT)),
            ({"prompt": PROMPT, "workflow": PROMPT}, Embedded(PROMPT)),
            ({"prompt": PROMPT, "extra_data": {"extra_pnginfo": {"workflow": WORKFLOW}}}, BOTH),
            ({"0c7d": {"prompt": [0, "0c7d", PROMPT, {"extra_pnginfo": {"workflow": WORKFLOW}}, ["3"]]}}, BOTH),
            ({"workflow": {"prompt": PROMPT, "extra_data": {}}, "status": "completed"}, Embedded(PROMPT)),
        ],
        ids=["runpod", "input", "text in text", "graphToPrompt", "canvas as prompt", "prompt as text",
             "a prompt in words", "prompt twice", "request", "history", "job"],
    )  # fmt: skip
    def test_what_surrounds_a_workflow_is_seen_through(self, document: object, expected: Embedded) -> None:
        assert of(document) == expected

    @pytest.mark.parametrize(
        "document", [{"a": 1}, {"prompt": "a cat"}, {"input": {"text": "a cat"}}, {"input": {"workflow": {}}}]
    )
    def test_a_body_without_workflow_is_told(self, document: object) -> None:
        with pytest.raises(WorkflowError, match="neither a canvas workflow"):
            of(document)

    def test_wrappers_without_end_are_not_followed(self) -> None:
        document: Any = PROMPT
        for _ in range(8):
            document = {"input": document}
        with pytest.raises(WorkflowError, match="neither a canvas workflow"):
            of(document)


class TestExtraKeys:
    def test_keys_that_are_no_nodes_are_left_out_and_named(self) -> None:
        found = of({"_meta": {"title": "Fill"}, "_comment": "x", **PROMPT, "version": 1})
        assert found.prompt == PROMPT
        assert found.notes == ("w.json has keys that are no nodes; they are left out: _meta, _comment, version.",)

    def test_a_node_that_lacks_its_class_stays(self) -> None:
        found = of({**PROMPT, "4": {"inputs": {}}})
        assert found.prompt == {**PROMPT, "4": {"inputs": {}}} and found.notes == ()


def test_a_jpeg_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(saved("JPEG", entries()))
    assert read_workflow(tmp_path / "a.jpg") == BOTH
