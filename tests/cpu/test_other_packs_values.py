"""Nodes for texts, numbers, images and files with the ids of other packs: their results follow those packs' rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sluice.flux_core.errors import InputError
from sluice.flux_core.graph.calls import ExecutionBlocker
from sluice.flux_core.graph.execute import Executor
from sluice.flux_core.graph.flatten import canvas_to_prompt
from sluice.flux_core.graph.validate import validate
from sluice.flux_core.io.embedded import read_workflow
from sluice.flux_core.io.folders import standard_folders
from sluice.flux_core.worker.registry import standalone_tables
from sluice.nodes.host import Host
from torch import Tensor

from .test_other_packs import CLASSES, given


def ramp(height: int, width: int, channels: int = 3) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(1, height, width, channels)


@pytest.mark.parametrize(
    ("name", "values", "outputs"),
    [
        ("easy int", {"value": 7}, (7,)),
        ("INTConstant", {"value": 7}, (7,)),
        ("String Literal", {"string": "a"}, ("a",)),
        ("CR Text", {"text": "a"}, ("a", "")),
        ("Constant Number", {"number_type": "integer", "number": 2.7}, (2, 2.0, 2)),
        ("Constant Number", {"number_type": "bool", "number": 0.7}, (1, 1.0, 1)),
        ("Constant Number", {"number_type": "float", "number": 0, "number_as_text": "1.5"}, (1.5, 1.5, 1)),
        ("Number to Text", {"number": 3}, ("3",)),
        ("Seed", {"seed": 5}, ({"seed": 5}, 5, 5.0, 5)),
        ("Seed (rgthree)", {"seed": 5}, (5,)),
        ("SimpleMath+", {"value": "a * 2 + b", "a": 3, "b": "0.5"}, (6, 6.5)),
        ("SimpleMath+", {"value": "max(a[1], a[2]) / 2", "a": torch.zeros(1, 8, 20, 3)}, (10, 10.0)),
        ("SimpleMath+", {"value": "a > b", "a": 3, "b": 1}, (1, 1.0)),
        ("SimpleComparison+", {"a": 1, "b": 2, "comparison": "<="}, (True,)),
        ("SimpleCondition+", {"evaluate": 1, "on_true": "x"}, ("x",)),
        ("SimpleCondition+", {"evaluate": 0, "on_true": "x", "on_false": "y"}, ("y",)),
        ("Any Switch (rgthree)", {"any_02": 5, "any_01": None, "any_10": 6}, (5,)),
        ("ImpactSwitch", {"select": 2, "input1": 1, "input2": 5}, (5, "input2", 2)),
        ("Text Concatenate", {"delimiter": "\\n", "text_b": "b ", "text_a": " a", "text_c": " "}, ("a\nb",)),
        ("Text Concatenate", {"delimiter": "-", "clean_whitespace": "false", "text_a": "a ", "text_b": "b"}, ("a -b",)),
        ("Text Concatenate (JPS)", {"delimiter": "comma", "text3": "c", "text1": "a", "text2": None}, ("a, c",)),
        ("Text Multiline", {"text": "a\n# note\nb"}, ("a\nb",)),
        ("CR Text Concatenate", {"text1": "a", "text2": "b", "separator": "-"}, ("a-b", "")),
        ("CR Float To String", {"float_": 1.5}, ("1.5", "")),
        ("JoinStrings", {"string1": "a", "string2": "b"}, ("a b",)),
        ("JoinStringMulti", {"inputcount": 3, "string_1": "a", "string_3": "c", "string_4": "d"}, ("a c",)),
        ("JoinStringMulti", {"return_list": True, "string_1": "a", "string_2": "b"}, (["a", "b"],)),
        ("StringConstantMultiline", {"string": "a\nb "}, ("ab",)),
        ("SomethingToString", {"input": [1, 2], "prefix": "<", "suffix": ">"}, ("<1, 2>",)),
        ("easy promptConcat", {"prompt1": ["a", "b"], "prompt2": "c", "separator": "-"}, ("a, b-c",)),
        ("Text _O", {"text": "a"}, ("a ",)),
        ("Replace Text _O", {"text": "a b a", "old": "a", "new": "c"}, ("c b c",)),
        ("StringFunction|pysssss", {"action": "append", "text_a": "a", "text_c": "c"}, ("a, c",)),
        (
            "StringFunction|pysssss",
            {"action": "replace", "text_a": "a1 b2", "text_b": "/[0-9]/", "text_c": ""},
            ("a b",),
        ),
        ("ShowText|pysssss", {"text": ["a", "b"]}, (["a", "b"],)),
        ("SDXL Resolutions (JPS)", {"resolution": "portrait - 832x1216 (2:3)"}, (832, 1216)),
        ("CM_NearestSDXLExtendedResolution", {"image": torch.zeros(1, 1000, 1800, 3)}, (1024, 960)),
        ("CM_NearestSDXLExtendedResolution", {"image": torch.zeros(1, 1000, 1000, 3)}, (1024, 1024)),
        ("GetImageSize+", {"image": torch.zeros(2, 8, 20, 3)}, (20, 8, 2)),
    ],
)
def test_values_are_those_of_the_pack(name: str, values: dict[str, Any], outputs: tuple[Any, ...]) -> None:
    assert given(name, **values) == outputs


def test_without_a_second_value_nothing_runs_on() -> None:
    (blocked,) = given("SimpleCondition+", evaluate=False, on_true="x")
    assert isinstance(blocked, ExecutionBlocker)


def test_a_context_collects_and_gives() -> None:
    first = given("Context (rgthree)", model="m", seed=5)[0]
    second = given("Context (rgthree)", base_ctx=first, seed=6)
    assert second[1] == "m" and second[-1] == 6 and first["seed"] == 5


def test_a_seed_of_minus_one_is_drawn_for_every_run_and_written_into_the_prompt(tmp_path: Path) -> None:
    classes, _ = standalone_tables(Host(standard_folders(tmp_path)))
    executor = Executor(classes)
    prompt = {
        "1": {"class_type": "Seed (rgthree)", "inputs": {"seed": -1}},
        "2": {"class_type": "ShowText|pysssss", "inputs": {"text": ["3", 0]}},
        "3": {"class_type": "SomethingToString", "inputs": {"input": ["1", 0]}},
    }
    drawn = []
    for number in "ab":
        asked = json.loads(json.dumps(prompt))
        result = executor.execute(asked, number, {}, ("2",))
        assert result.exception is None
        drawn.append(result.outputs["2"]["text"][0])
        assert str(asked["1"]["inputs"]["seed"]) == drawn[-1]
    assert drawn[0] != drawn[1]


def test_switches_and_lists_are_read_from_a_canvas() -> None:
    boxes = [
        {"id": 1, "type": "easy int", "widgets_values": [3], "outputs": [{"name": "int", "type": "INT"}]},
        {
            "id": 2,
            "type": "Any Switch (rgthree)",
            "inputs": [{"name": "any_01", "type": "INT", "link": None}, {"name": "any_02", "type": "INT", "link": 1}],
            "outputs": [{"name": "*", "type": "*"}],
        },
        {"id": 3, "type": "Display Any (rgthree)", "inputs": [{"name": "source", "type": "*", "link": 2}]},
    ]
    prompt = canvas_to_prompt({"nodes": boxes, "links": [[1, 1, 0, 2, 1, "INT"], [2, 2, 0, 3, 0, "*"]]}, CLASSES)
    assert prompt["2"]["inputs"] == {"any_02": ["1", 0]}
    assert not validate(prompt, CLASSES).problems
    result = Executor(CLASSES).execute(prompt, "a", {}, ("3",))
    assert result.outputs["3"]["text"] == ("3",) or result.outputs["3"]["text"] == ["3"]


class TestSizes:
    @pytest.mark.parametrize(
        ("values", "size"),
        [
            ({"width": 20, "height": 30}, (20, 30)),
            ({"width": 0, "height": 30}, (40, 30)),
            ({"width": 20, "height": 30, "method": "keep proportion"}, (20, 10)),
            ({"width": 0, "height": 10, "method": "keep proportion"}, (20, 10)),
            ({"width": 33, "height": 30, "method": "fill / crop"}, (33, 30)),
            ({"width": 20, "height": 30, "method": "pad"}, (20, 30)),
            ({"width": 33, "height": 33, "multiple_of": 8}, (32, 32)),
            ({"width": 40, "height": 16, "method": "keep proportion", "multiple_of": 8}, (32, 16)),
            ({"width": 80, "height": 80, "condition": "downscale if bigger"}, (40, 20)),
            ({"width": 80, "height": 80, "condition": "upscale if smaller"}, (80, 80)),
            ({"width": 10, "height": 10, "condition": "if bigger area"}, (10, 10)),
            ({"width": 10, "height": 10, "condition": "if smaller area"}, (40, 20)),
        ],
    )
    def test_essentials_resizing(self, values: dict[str, Any], size: tuple[int, int]) -> None:
        made, width, height = given("ImageResize+", image=ramp(20, 40), **values)
        assert (made.shape[2], made.shape[1]) == (width, height) == size

    def test_padding_is_black_and_filling_keeps_the_middle(self) -> None:
        image = torch.ones(1, 20, 40, 3)
        made, _, _ = given("ImageResize+", image=image, width=40, height=40, method="pad")
        assert made[0, :10].max() == 0 and made[0, 10:30].min() == 1 and made[0, 30:].max() == 0
        image[:, :, :10], image[:, :, 30:] = 0, 0
        made, _, _ = given("ImageResize+", image=image, width=20, height=20, method="fill / crop")
        assert made.min() == 1

    @pytest.mark.parametrize(
        ("position", "corner"),
        [("top-left", (0, 0)), ("center", (15, 5)), ("bottom-right", (30, 10)), ("right-center", (30, 5))],
    )
    def test_essentials_cutting(self, position: str, corner: tuple[int, int]) -> None:
        image = ramp(20, 40)
        made, x, y = given("ImageCrop+", image=image, width=10, height=10, position=position)
        assert (x, y) == corner and torch.equal(made, image[:, y : y + 10, x : x + 10])

    @pytest.mark.parametrize(
        ("proportion", "size", "frame"),
        [
            ("stretch", (30, 30), (30, 30)),
            ("resize", (30, 30), (30, 14)),  # 15 is no multiple of 2
            ("resize", (0, 10), (20, 10)),
            ("pad", (30, 30), (30, 30)),
            ("crop", (30, 30), (30, 30)),
            ("total_pixels", (20, 40), (40, 20)),
        ],
    )
    def test_kjnodes_resizing(self, proportion: str, size: tuple[int, int], frame: tuple[int, int]) -> None:
        sides = {"width": size[0], "height": size[1]}
        made, width, height, mask = given("ImageResizeKJv2", image=ramp(20, 40), keep_proportion=proportion, **sides)
        assert (made.shape[2], made.shape[1]) == (width, height) == frame
        assert mask.shape[1:] == ((30, 30) if proportion == "pad" else (64, 64))

    def test_a_ground_has_its_colour_and_its_mask(self) -> None:
        values = {"width": 40, "height": 40, "keep_proportion": "pad", "pad_color": "255, 0, 0"}
        made, _, _, mask = given("ImageResizeKJv2", image=torch.ones(1, 20, 40, 3), **values, crop_position="top")
        assert made[0, :20].min() == 1 and made[0, 20:].flatten(0, 1).unique(dim=0).tolist() == [[1.0, 0.0, 0.0]]
        assert mask[0, :20].max() == 0 and mask[0, 20:].min() == 1
        with pytest.raises(InputError, match="no colour"):
            given("ImageResizeKJv2", image=torch.ones(1, 20, 40, 3), **{**values, "pad_color": "nothing"})

    def test_a_mask_goes_with_its_image(self) -> None:
        mask = torch.zeros(1, 20, 40)
        mask[:, :, 20:] = 1
        values = {"width": 20, "height": 20, "keep_proportion": "crop", "crop_position": "right"}
        _, _, _, made = given("ImageResizeKJv2", image=ramp(20, 40), mask=mask, **values)
        assert made.shape == (1, 20, 20) and made.min() == 1

    def test_kjnodes_older_resizing(self) -> None:
        image = ramp(20, 40)
        assert given("ImageResizeKJ", image=image, width=30, height=30, keep_proportion=True)[1:] == (30, 14)
        assert given("ImageResizeKJ", image=image, get_image_size=ramp(7, 9))[1:] == (9, 7)
        assert given("ImageResizeKJ", image=image, width=31, height=31)[1:] == (30, 30)

    @pytest.mark.parametrize(
        ("name", "values", "size"),
        [
            ("SDXLEmptyLatentSizePicker+", {"resolution": "832x1216 (0.68)"}, (832, 1216)),
            ("SDXLEmptyLatentSizePicker+", {"resolution": "832x1216 (0.68)", "width_override": 64}, (64, 1216)),
            ("SDXL Empty Latent Image (rgthree)", {"dimensions": " 832 x 1216  (portrait)"}, (832, 1216)),
        ],
    )
    def test_latents_of_listed_sizes(self, name: str, values: dict[str, Any], size: tuple[int, int]) -> None:
        latent = given(name, **values)[0]["samples"]
        assert latent.shape == (1, 4, size[1] // 8, size[0] // 8)

    def test_comfyrolls_sizes(self) -> None:
        values = {"aspect_ratio": "SDXL - 3:2 landscape 1216x832", "swap_dimensions": "On", "prescale_factor": 0.5}
        assert given("CR Aspect Ratio", **values)[:2] == (416, 608)
        custom = given("CR Aspect Ratio", aspect_ratio="custom", width=640, height=320)
        assert custom[:2] == (640, 320) and custom[5]["samples"].shape == (1, 4, 40, 80)


class TestPictures:
    def test_batches_take_the_first_size_and_the_most_channels(self) -> None:
        made = given("ImageBatchMulti", inputcount=3, image_1=ramp(8, 8), image_2=ramp(16, 16, 4))[0]
        assert made.shape == (3, 8, 8, 4) and made[0, ..., 3].min() == 1 and made[2, ..., :3].max() == 0
        assert given("ImageBatchMultiple+", image_1=ramp(8, 8), image_3=ramp(4, 4))[0].shape == (2, 8, 8, 3)
        assert given("ImageListToBatch+", image=[ramp(8, 8), ramp(4, 8)])[0].shape == (2, 8, 8, 3)
        (listed,) = given("easy imageBatchToImageList", image=torch.cat((ramp(8, 8), ramp(8, 8))))
        assert [one.shape for one in listed] == [(1, 8, 8, 3)] * 2

    def test_images_stand_side_by_side(self) -> None:
        one, two = ramp(8, 8), ramp(8, 4)
        (made,) = given("ImageConcanate", image1=one, image2=two, direction="right", match_image_size=False)
        assert torch.equal(made, torch.cat((one, two), 2))
        (made,) = given("ImageConcatMulti", inputcount=3, image_1=one, image_2=two, image_3=one, direction="right")
        assert made.shape == (1, 8, 20, 3)

    def test_mirrors(self) -> None:
        image = ramp(8, 8)
        assert torch.equal(given("ImageFlip+", image=image, axis="x")[0], image.flip(2))
        assert torch.equal(given("MaskFlip+", mask=image[..., 0], axis="xy")[0], image[..., 0].flip(1, 2))

    def test_masks_grow_by_their_number_and_are_blurred(self) -> None:
        mask = torch.zeros(2, 9, 9)
        mask[:, 4, 4] = 1
        grown, inverted = given("GrowMaskWithBlur", mask=mask, expand=1, incremental_expandrate=1.0)
        assert [int(one.sum()) for one in grown] == [5, 13] and torch.equal(inverted, 1 - grown)
        square, _ = given("GrowMaskWithBlur", mask=mask[:1], expand=1, tapered_corners=False)
        assert int(square.sum()) == 9
        soft, _ = given("GrowMaskWithBlur", mask=mask[:1], expand=2, blur_radius=1.0)
        assert soft.shape == (1, 9, 9) and 0 < soft[0, 4, 6] < 1
        ring = torch.zeros(1, 9, 9)
        ring[:, 2:7, 2:7], ring[:, 3:6, 3:6] = 1, 0
        assert int(given("GrowMaskWithBlur", mask=ring, fill_holes=True)[0].sum()) == 25

    def test_a_blurred_mask_keeps_its_sum(self) -> None:
        mask = torch.zeros(1, 21, 21)
        mask[:, 10, 10] = 1
        (soft,) = given("MaskBlur+", mask=mask, amount=6)
        assert soft.sum() == pytest.approx(1, abs=1e-5) and (soft > 0).sum() == 49

    def test_a_blank_image(self) -> None:
        (made,) = given("Image Blank", width=20, height=16, red=255, green=0, blue=0)
        assert made.shape == (1, 16, 16, 3) and made[0, 0, 0].tolist() == [1, 0, 0]


class TestFiles:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Any:
        classes, _ = standalone_tables(Host(standard_folders(tmp_path)))

        def save(name: str, **inputs: Any) -> Path:
            prompt = {
                "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 255}},
                "2": {"class_type": name, "inputs": {"images": ["1", 0], **inputs}},
            }
            checked = validate(prompt, classes)
            assert not checked.problems
            result = Executor(classes).execute(checked.prompt, "a", {}, ("2",))
            assert result.exception is None, result.exception
            (told,) = result.outputs["2"]["images"]
            return Path(tmp_path, "output", told["subfolder"], told["filename"])

        return save

    @pytest.mark.parametrize(
        ("name", "values", "form"),
        [
            ("SaveImagePlus", {"file_type": "JPEG", "remove_metadata": False}, "JPEG"),
            ("SaveImagePlus", {"file_type": "WEBP (lossless)", "remove_metadata": False}, "WEBP"),
            (
                "SaveImageWithMetaDataUniversal",
                {"file_format": "png", "sampler_selection_method": "Farthest", "sampler_selection_node_id": 0},
                "PNG",
            ),
        ],
    )
    def test_images_are_saved_with_their_workflow(self, run: Any, name: str, values: Any, form: str) -> None:
        file = run(name, filename_prefix="a/b", **values)
        assert Image.open(file).format == form and file.parent.name == "a"
        prompt = read_workflow(file).prompt
        assert prompt is not None and prompt["2"]["class_type"] == name

    def test_the_workflow_can_be_left_out(self, run: Any) -> None:
        file = run("SaveImagePlus", filename_prefix="x", file_type="PNG", remove_metadata=True)
        assert Image.open(file).info == {}
