"""Texts, batches and files of nodes: the results of ComfyUI's (tests/comfyui/beside.py runs both)."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sluice.flux_core.errors import FileFormatError, InputError
from sluice.flux_core.images import batches, encode
from sluice.flux_core.io.embedded import read_workflow
from sluice.flux_core.io.folders import standard_folders
from sluice.nodes import NODE_CLASSES
from sluice.nodes.binding import bound_to
from sluice.nodes.host import Host


def returned(name: str, classes: Mapping[str, type[Any]] = NODE_CLASSES, /, **values: Any) -> Any:
    node_class = classes["Sluice" + name]
    return getattr(node_class(), node_class.FUNCTION)(**values)


def called(name: str, classes: Mapping[str, type[Any]] = NODE_CLASSES, /, **values: Any) -> Any:
    return returned(name, classes, **values)[0]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The folders of a run in an empty directory."""
    (tmp_path / "input").mkdir()
    return tmp_path


@pytest.fixture
def classes(here: Path) -> dict[str, type[Any]]:
    """The nodes of a program that works in these folders."""
    return bound_to(Host(standard_folders(here)), NODE_CLASSES)


class TestTexts:
    def test_joined_cut_and_trimmed(self) -> None:
        assert called("StringConcatenate", string_a="a", string_b="b", delimiter=", ") == "a, b"
        assert called("StringSubstring", string="abcdef", start=-3, end=5) == "de"
        assert called("StringLength", string="äöü") == 3
        assert [called("StringTrim", string=" a ", mode=mode) for mode in ("Both", "Left", "Right")] == [
            "a",
            "a ",
            " a",
        ]
        assert called("StringReplace", string="a cat", find="a", replace="o") == "o cot"

    def test_letters(self) -> None:
        modes = "UPPERCASE", "lowercase", "Capitalize", "Title Case"
        assert [called("CaseConverter", string="a Cat", mode=mode) for mode in modes] == [
            "A CAT", "a cat", "A cat", "A Cat",
        ]  # fmt: skip

    @pytest.mark.parametrize(("mode", "other"), [("Starts With", "a "), ("Ends With", "cat"), ("Equal", "a cat")])
    def test_compared(self, mode: str, other: str) -> None:
        for strict in (True, False):
            same = called("StringCompare", string_a="A Cat", string_b=other, mode=mode, case_sensitive=strict)
            assert same is not strict
        assert called("StringContains", string="A Cat", substring="cat", case_sensitive=False) is True

    def test_expressions(self) -> None:
        options = {"case_insensitive": True, "multiline": False, "dotall": False}
        assert called("RegexMatch", string="a\nCAT", regex_pattern="^cat$", **options) is False
        assert called("RegexMatch", string="a\nCAT", regex_pattern="^cat$", **{**options, "multiline": True}) is True
        assert called("RegexMatch", string="a", regex_pattern="(", **options) is False
        assert called("RegexReplace", string="a1 b2", regex_pattern=r"([a-z])(\d)", replace=r"\2\1", count=1) == "1a b2"
        with pytest.raises(InputError, match="not a regular expression"):
            called("RegexReplace", string="a", regex_pattern="(", replace="")

    @pytest.mark.parametrize(
        ("mode", "group", "expected"),
        [
            ("First Match", 1, "a1"), ("All Matches", 1, "a\nb"), ("First Group", 2, "1"), ("All Groups", 2, "1\n22"),
            ("First Group", 3, ""), ("All Groups", 0, "a1\nb22"),
        ],
    )  # fmt: skip
    def test_what_an_expression_finds(self, mode: str, group: int, expected: str) -> None:
        options = {"case_insensitive": True, "multiline": False, "dotall": False, "group_index": group}
        given = {"string": "a1 b22 c", "regex_pattern": r"([a-z])(\d+)", "mode": mode}
        assert called("RegexExtract", **given, **options) == expected
        assert called("RegexExtract", **{**given, "regex_pattern": "("}, **options) == ""

    def test_any_value_is_shown_as_text(self) -> None:
        for value, text in ((None, "None"), ("a", "a"), (1.5, "1.5"), ([1, "b"], '[1, "b"]'), ({1}, "{1}")):
            assert returned("PreviewAny", source=value)["ui"]["text"] == (text,)


class TestBatches:
    def test_pictures_are_cut_into_equal_batches(self) -> None:
        images = [torch.rand(count, 4, 6, 3) for count in (2, 1, 4)]
        made = called("RebatchImages", images=images, batch_size=[3])
        assert [len(batch) for batch in made] == [3, 3, 1]
        assert torch.equal(torch.cat(made), torch.cat(images))

    def test_latents_keep_their_noise_and_their_masks(self) -> None:
        first = {"samples": torch.rand(2, 16, 4, 3), "other": 1}
        second = {"samples": torch.rand(2, 16, 4, 3), "noise_mask": torch.rand(1, 32, 24), "batch_index": [7, 8]}
        made = called("RebatchLatents", latents=[first, second], batch_size=[3])
        assert [latent["batch_index"] for latent in made] == [[0, 1, 7], [8]]
        assert made[0]["noise_mask"].shape == (3, 1, 32, 24) and made[0]["noise_mask"][:2].eq(1).all()
        assert made[0].keys() == {"samples", "noise_mask", "batch_index"}

    def test_another_size_begins_another_batch(self) -> None:
        latents = [{"samples": torch.rand(1, 16, rows, 3)} for rows in (4, 4, 5)]
        made = called("RebatchLatents", latents=latents, batch_size=[8])
        assert [tuple(latent["samples"].shape) for latent in made] == [(2, 16, 4, 3), (1, 16, 5, 3)]
        assert [latent["batch_index"] for latent in made] == [[0, 1], [2]] and "noise_mask" not in made[0]

    def test_what_is_joined_takes_the_first_size(self) -> None:
        pictures = batches.join([torch.zeros(1, 4, 6, 3), torch.ones(2, 8, 12, 4)])
        assert pictures.shape == (3, 4, 6, 4) and pictures[0, ..., 3].eq(1).all()
        assert batches.join([torch.zeros(1, 4, 6), torch.ones(2, 8, 12)]).shape == (3, 4, 6)
        latents = batches.join([{"samples": torch.zeros(1, 16, 4, 4)}, {"samples": torch.ones(2, 16, 8, 8)}])
        assert latents["samples"].shape == (3, 16, 4, 4) and latents["batch_index"] == [0, 0, 1]


class TestFiles:
    def test_a_latent_is_saved_and_loaded(self, here: Path, classes: dict[str, type[Any]]) -> None:
        latent = {"samples": torch.rand(1, 16, 4, 3)}
        metadata = {"prompt": {"1": {}}, "extra_pnginfo": {"workflow": {"nodes": []}}}
        shown = returned("SaveLatent", classes, samples=latent, filename_prefix="a/b", **metadata)["ui"]["latents"]
        assert shown == [{"filename": "b_00001_.latent", "subfolder": "a", "type": "output"}]
        theirs = load_file(here / "output" / "a" / "b_00001_.latent")
        assert torch.equal(theirs["latent_tensor"], latent["samples"]) and "latent_format_version_0" in theirs
        back = called("LoadLatent", classes, latent="a/b_00001_.latent [output]")
        assert torch.equal(back["samples"], latent["samples"])

    def test_latents_are_listed_and_old_ones_unscaled(self, here: Path, classes: dict[str, type[Any]]) -> None:
        save_file({"latent_tensor": torch.ones(1, 4, 2, 2)}, here / "input" / "old.latent")
        loader = classes["SluiceLoadLatent"]
        assert loader.INPUT_TYPES()["required"]["latent"][0] == ["old.latent"]
        assert called("LoadLatent", classes, latent="old.latent")["samples"].mean().item() == pytest.approx(1 / 0.18215)
        assert loader.VALIDATE_INPUTS("gone.latent") == (
            f"The file 'gone.latent' is not in the input folder {here / 'input'}. Put it there."
        )
        assert loader.IS_CHANGED("old.latent") == loader.IS_CHANGED("old.latent")

    def test_a_file_without_a_latent_is_told(self, here: Path, classes: dict[str, type[Any]]) -> None:
        save_file({"other": torch.ones(1)}, here / "input" / "other.latent")
        with pytest.raises(FileFormatError, match="holds no latent_tensor"):
            called("LoadLatent", classes, latent="other.latent")

    @pytest.mark.parametrize(
        ("name", "options", "suffix"),
        [
            ("SaveAnimatedWEBP", {"lossless": True, "quality": 80, "method": "fastest"}, "webp"),
            ("SaveAnimatedPNG", {"compress_level": 1}, "png"),
        ],
    )
    def test_an_animation_carries_pictures_and_workflow(
        self, here: Path, classes: dict[str, type[Any]], name: str, options: dict[str, Any], suffix: str
    ) -> None:
        images = torch.stack([torch.full((8, 8, 3), value) for value in (0.0, 0.5, 1.0)])
        prompt = {"1": {"class_type": "A", "inputs": {}}}
        metadata = {"prompt": prompt, "extra_pnginfo": {"workflow": {"nodes": []}}}
        shown = returned(name, classes, images=images, filename_prefix="x", fps=4.0, **options, **metadata)["ui"]
        assert shown == {
            "images": [{"filename": f"x_00001_.{suffix}", "subfolder": "", "type": "output"}],
            "animated": (True,),
        }
        file = here / "output" / f"x_00001_.{suffix}"
        with Image.open(file) as picture:
            assert picture.n_frames == 3
            picture.seek(1)
            assert picture.convert("RGB").getpixel((0, 0)) == (127, 127, 127)
            assert picture.info["duration"] == 250
        assert read_workflow(file).prompt == prompt and read_workflow(file).workflow == {"nodes": []}

    def test_two_pictures_are_shown_side_by_side(self, here: Path, classes: dict[str, type[Any]]) -> None:
        one = torch.zeros(1, 8, 8, 3)
        shown = returned("ImageCompare", classes, compare_view=None, image_a=one)["ui"]
        assert shown["b_images"] == [] and shown["a_images"][0]["type"] == "temp"
        assert (here / "temp" / shown["a_images"][0]["filename"]).is_file()
        names = [
            returned("ImageCompare", classes, compare_view=None, image_a=one)["ui"]["a_images"][0]["filename"]
            for _ in "ab"
        ]
        assert len({*names, shown["a_images"][0]["filename"]}) == 3

    def test_a_picture_of_the_output_folder(self, here: Path, classes: dict[str, type[Any]]) -> None:
        (here / "output").mkdir()
        Image.new("RGB", (4, 2), "red").save(here / "output" / "a.png")
        image, mask = returned("LoadImageOutput", classes, image="a.png [output]")
        assert image.shape == (1, 2, 4, 3) and mask.shape == (1, 64, 64)
        check = classes["SluiceLoadImageOutput"].VALIDATE_INPUTS
        assert check("a.png [output]") is True
        assert "not in the output folder" in str(check("b.png [output]"))
        assert check(5) == "5 is not the name of a file"


class TestLogic:
    def test_a_switch_asks_for_the_branch_that_is_on(self) -> None:
        switch = NODE_CLASSES["SluiceComfySwitchNode"]()
        assert switch.check_lazy_status(True, on_false=None, on_true=None) == ["on_true"]
        assert switch.check_lazy_status(False, on_false=None, on_true=None) == ["on_false"]
        assert switch.check_lazy_status(False, on_false=5, on_true=None) == []
        assert switch.check_lazy_status(True, on_false=None) == []
        assert switch.pick(True, on_false=1, on_true=2) == (2,) and switch.pick(True, on_false=1) == (None,)

    def test_conditions(self) -> None:
        assert called("ComfyNotNode", value=0) is True
        assert called("ComfyAndNode", values={"value0": 1, "value1": ""}) is False
        assert called("ComfyOrNode", values={"value0": 1, "value1": ""}) is True
        assert returned("ComfyPassOrNoneNode", default=3) == (3, False)
        assert returned("ComfyPassOrNoneNode") == (None, True)
        assert returned("CustomCombo", choice="b", index=1, option1="a") == ("b", 1)

    def test_formulas(self) -> None:
        assert returned("ComfyMathExpression", expression="(a // 32) * 32", values={"a": 100}) == (96.0, 96, True)
        assert called("ComfyMathExpression", expression="sum(values) / max(a, b)", values={"a": 1, "b": 3}) == 4 / 3
        for expression, reason in (
            (" ", "is empty"), ("a +", "cannot be computed"), ("'x'", "not a number"),
            ("10.0 ** 308 * 100", "not finite"),
            ("pow(2, 5000)", "larger than"), ("().__class__", "cannot be computed"), ("a", "cannot be computed"),
        ):  # fmt: skip
            with pytest.raises(InputError, match=reason):
                called("ComfyMathExpression", expression=expression, values={})

    def test_sizes_of_a_shape(self) -> None:
        assert returned("ResolutionSelector", aspect_ratio="1:1 (Square)", megapixels=1.0) == (1024, 1024)
        assert returned("ResolutionSelector", aspect_ratio="16:9 (Widescreen)", megapixels=1.0) == (1368, 768)
        assert returned("ResolutionSelector", aspect_ratio="16:9 (Widescreen)", megapixels=1.0, multiple=64) == (
            1344,
            768,
        )


class TestSizes:
    @pytest.mark.parametrize(
        ("options", "size"),
        [
            ({"resize_type": "scale dimensions", "width": 20, "height": 0, "crop": "center"}, (20, 10)),
            ({"resize_type": "scale dimensions", "width": 0, "height": 0, "crop": "center"}, (40, 20)),
            ({"resize_type": "scale by multiplier", "multiplier": 1.5}, (60, 30)),
            ({"resize_type": "scale longer dimension", "longer_size": 30}, (30, 15)),
            ({"resize_type": "scale shorter dimension", "shorter_size": 30}, (60, 30)),
            ({"resize_type": "scale width", "width": 10}, (10, 5)),
            ({"resize_type": "scale height", "height": 10}, (20, 10)),
            ({"resize_type": "scale total pixels", "megapixels": 0.01, "multiple": 8}, (144, 72)),
            ({"resize_type": "match size", "match": torch.zeros(1, 7, 9), "crop": "disabled"}, (9, 7)),
            ({"resize_type": "scale to multiple", "multiple": 16}, (32, 16)),
            ({"resize_type": "scale to multiple", "multiple": 64}, (40, 20)),
        ],
    )
    @pytest.mark.parametrize("method", ["area", "lanczos"])
    def test_a_picture_and_a_mask_take_the_size(
        self, options: dict[str, Any], size: tuple[int, int], method: str
    ) -> None:
        for given in (torch.rand(2, 20, 40, 3), torch.rand(2, 20, 40)):
            made = called("ResizeImageMaskNode", input=given, resize_type=options, scale_method=method)
            assert (made.shape[2], made.shape[1]) == size and made.shape[3:] == given.shape[3:]

    def test_an_unknown_way_is_refused(self) -> None:
        with pytest.raises(InputError, match="no way to resize called 'x'"):
            called(
                "ResizeImageMaskNode", input=torch.rand(1, 2, 2), resize_type={"resize_type": "x"}, scale_method="area"
            )

    def test_as_many_pixels_in_multiples(self) -> None:
        values = {"upscale_method": "area", "megapixels": 0.01, "resolution_steps": 16}
        assert called("ImageScaleToTotalPixels", image=torch.rand(1, 20, 40, 3), **values).shape == (1, 80, 144, 3)


class TestFormats:
    PROMPT = {"1": {"class_type": "A", "inputs": {}}}
    METADATA = {"prompt": PROMPT, "extra_pnginfo": {"workflow": {"nodes": []}}}

    def saved(self, here: Path, classes: dict[str, type[Any]], images: Any, **format: Any) -> list[Path]:
        shown = returned(
            "SaveImageAdvanced", classes, images=images, filename_prefix="x", format=format, **self.METADATA
        )
        assert shown["result"][0] is images
        return [here / "output" / told["filename"] for told in shown["ui"]["images"]]

    def test_sixteen_bits(self, here: Path, classes: dict[str, type[Any]]) -> None:
        ramp = torch.linspace(0, 1, 64 * 8 * 3).reshape(1, 8, 64, 3)
        (file,) = self.saved(here, classes, ramp, format="png", bit_depth="16-bit", input_color_space="sRGB")
        assert file.name == "x_00001.png" and file.read_bytes()[24:26] == b"\x10\x02"
        assert read_workflow(file).prompt == self.PROMPT and read_workflow(file).workflow == {"nodes": []}
        raw = zlib.decompress(b"".join(data for kind, data in chunks(file.read_bytes()) if kind == b"IDAT"))
        rows = np.frombuffer(raw, np.uint8).reshape(8, -1)
        assert not rows[:, 0].any()  # no filter
        values = rows[:, 1:].copy().view(">u2").reshape(8, 64, 3)
        assert (values == (ramp[0] * 65535).to(torch.int32).numpy()).all()
        with Image.open(file) as picture:
            assert picture.size == (64, 8)

    def test_eight_bits_grey_and_with_alpha(self, here: Path, classes: dict[str, type[Any]]) -> None:
        for channels, mode in ((1, "L"), (3, "RGB"), (4, "RGBA")):
            images = torch.full((2, 4, 4, channels), 0.5)
            files = self.saved(here, classes, images, format="png", bit_depth="8-bit", input_color_space="sRGB")
            with Image.open(files[1]) as picture:
                assert picture.mode == mode and picture.getpixel((0, 0)) in (127, (127,) * channels)

    def test_linear_light(self, here: Path, classes: dict[str, type[Any]]) -> None:
        OpenEXR = pytest.importorskip("OpenEXR")
        images = torch.full((1, 4, 4, 3), 0.5)
        (file,) = self.saved(here, classes, images, format="exr", bit_depth="32-bit float", input_color_space="sRGB")
        with OpenEXR.File(str(file)) as picture:
            channels = picture.channels()
            values = channels["RGB"].pixels if "RGB" in channels else channels["R"].pixels
            assert float(values.flat[0]) == pytest.approx(0.21404114)
            assert json.loads(picture.header()["prompt"]) == self.PROMPT
            assert picture.header()["chromaticities"][0] == pytest.approx(0.64)

    def test_hybrid_log_gamma_is_that_of_its_recommendation(self) -> None:
        light = torch.tensor([0.0, 0.5, 0.75, 1.0])
        assert encode.hlg_to_linear(light).tolist() == pytest.approx([0, 1 / 12, 0.26496, 1.0], abs=1e-4)

    def test_avif(self, here: Path, classes: dict[str, type[Any]]) -> None:
        images = torch.rand(3, 32, 32, 3)
        options = {"bit_depth": "auto", "input_color_space": "sRGB", "crf": 10}
        still = self.saved(here, classes, images, format="avif", **options, save_mode={"save_mode": "still images"})
        moving = {"save_mode": "animated", "fps": 4.0, "loop_count": 0}
        (film,) = self.saved(here, classes, images, format="avif", **options, save_mode=moving)
        assert len(still) == 3
        with Image.open(film) as picture:
            assert picture.n_frames == 3
        assert read_workflow(still[0]).prompt == self.PROMPT and read_workflow(film).workflow == {"nodes": []}
        with pytest.raises(InputError, match="8 bits in sRGB"):
            self.saved(
                here, classes, images, format="avif", **{**options, "bit_depth": "10-bit YUV420"}, save_mode=moving
            )


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    return found
