"""Workflow files as people keep them: canvas and prompt that differ, templates with gaps, parts that cannot run."""

from __future__ import annotations

import copy
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin
from sluice.flux_core.commands import cli, workflows
from sluice.flux_core.commands.overrides import apply
from sluice.flux_core.errors import PromptError
from sluice.flux_core.graph.canvas import read_canvas
from sluice.flux_core.graph.disagreement import differences
from sluice.flux_core.graph.partial import runnable_part
from sluice.flux_core.graph.templates import gaps, unfilled, with_defaults
from sluice.flux_core.io.embedded import read_workflow
from sluice.flux_core.worker.registry import standalone_tables
from sluice.nodes.host import pack_host

CLASSES, _ = standalone_tables(pack_host())
SHIPPED = Path(__file__).parents[2] / "workflows" / "text_to_image.png"
Prompt = dict[str, Any]


def of_class(prompt: Prompt, class_type: str) -> str:
    return next(node_id for node_id, node in prompt.items() if node["class_type"] == class_type)


@pytest.fixture
def carried() -> tuple[Prompt, Prompt]:
    """The prompt and the canvas of a picture of ours."""
    found = read_workflow(SHIPPED)
    assert found.prompt is not None and found.workflow is not None
    return copy.deepcopy(found.prompt), copy.deepcopy(found.workflow)


def picture(path: Path, prompt: Any, workflow: Any) -> Path:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", json.dumps(prompt))
    texts.add_text("workflow", workflow if isinstance(workflow, str) else json.dumps(workflow))
    Image.new("RGB", (8, 8)).save(path, pnginfo=texts)
    return path


class TestCanvasAndPrompt:
    def test_a_picture_of_ours_agrees_with_itself(self, carried: tuple[Prompt, Prompt]) -> None:
        prompt, canvas = carried
        assert differences(prompt, read_canvas(canvas), CLASSES) == []

    def test_the_canvas_counts_where_they_differ_and_that_is_told(
        self, carried: tuple[Prompt, Prompt], tmp_path: Path
    ) -> None:
        prompt, canvas = carried
        loader = of_class(prompt, "UNETLoader")
        shown = prompt[loader]["inputs"]["unet_name"]
        prompt[loader]["inputs"]["unet_name"] = "flux1-dev.safetensors"
        file = picture(tmp_path / "a.png", prompt, canvas)
        read = workflows.read(file, CLASSES)
        assert read.prompt[loader]["inputs"]["unet_name"] == shown
        assert len(read.notes) == 1 and "'flux1-dev.safetensors'" in read.notes[0] and "--as-made" in read.notes[0]
        made = workflows.read(file, CLASSES, as_made=True)
        assert made.prompt[loader]["inputs"]["unet_name"] == "flux1-dev.safetensors" and made.notes == ()

    def test_inputs_that_a_node_has_got_since_take_the_values_of_the_canvas(
        self, carried: tuple[Prompt, Prompt], tmp_path: Path
    ) -> None:
        prompt, canvas = carried
        loader = of_class(prompt, "UNETLoader")
        del prompt[loader]["inputs"]["weight_dtype"]
        read = workflows.read(picture(tmp_path / "a.png", prompt, canvas), CLASSES)
        assert read.prompt[loader]["inputs"]["weight_dtype"] == "default" and read.notes == ()

    def test_what_a_canvas_cannot_tell_is_no_difference(self, carried: tuple[Prompt, Prompt]) -> None:
        prompt, canvas = carried
        text = of_class(prompt, "CLIPTextEncode")
        box = next(one for one in canvas["nodes"] if str(one["id"]) == text)
        box["widgets_values"] = ["a {red|green} circle"]
        prompt[text]["inputs"]["text"] = "a green circle"
        prompt[of_class(prompt, "SaveImage")]["inputs"]["filename_prefix"] = "2026-03-01/x"
        prompt[text]["inputs"]["upload"] = "image"
        assert differences(prompt, read_canvas(canvas), CLASSES) == []

    def test_nodes_that_only_one_of_them_has_are_told(self, carried: tuple[Prompt, Prompt]) -> None:
        prompt, canvas = carried
        prompt["77"] = {"class_type": "VAELoader", "inputs": {"vae_name": "x"}}
        saver = of_class(prompt, "SaveImage")
        del prompt[saver]
        told = differences(prompt, read_canvas(canvas), CLASSES)
        assert len(told) == 2 and told[0] == "node 77 (VAELoader) is not on the canvas"
        assert told[1].startswith(f"node {saver} ") and told[1].endswith("(SaveImage) is only on the canvas")

    def test_a_canvas_that_is_cut_off_is_told_and_the_prompt_read(
        self, carried: tuple[Prompt, Prompt], tmp_path: Path
    ) -> None:
        prompt, _ = carried
        read = workflows.read(picture(tmp_path / "a.png", prompt, '{"nodes": ['), CLASSES)
        assert read.prompt.keys() == prompt.keys() and "It is left out." in read.notes[0]

    @pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
    def test_a_prompt_in_exif_is_read_from_every_kind_of_picture(
        self, carried: tuple[Prompt, Prompt], tmp_path: Path, kind: str
    ) -> None:
        prompt, canvas = carried
        exif, file = Image.Exif(), tmp_path / "a.jpg"
        exif[0x010F], exif[0x0110] = f"workflow:{json.dumps(canvas)}", f"prompt:{json.dumps(prompt)}"
        data = BytesIO()
        Image.new("RGB", (8, 8)).save(data, kind, exif=exif)
        file.write_bytes(data.getvalue())
        assert workflows.read(file, CLASSES).embedded.prompt == prompt


class TestTemplates:
    TEMPLATE: Prompt = {
        "1": {"class_type": "RandomNoise", "inputs": {"noise_seed": "{{SEED}}"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "{{PROMPT}}, {{STYLE}} style", "clip": ["9", 0]}},
        "3": {"class_type": "UNETLoader", "inputs": {"unet_name": "${model}", "weight_dtype": "{{ TYPE }}"}},
    }

    def test_gaps_for_numbers_and_choices_take_defaults_and_the_rest_is_asked_for(self) -> None:
        made, notes = with_defaults(self.TEMPLATE, CLASSES)
        assert made["1"]["inputs"]["noise_seed"] == 0 and made["3"]["inputs"]["weight_dtype"] == "default"
        assert len(notes) == 2 and "{{SEED}}" in notes[0]
        asked = unfilled(made)
        assert [("{{PROMPT}}" in one, "{{STYLE}}" in one, "${model}" in one) for one in asked] == [
            (True, False, False),
            (False, True, False),
            (False, False, True),
        ]

    def test_a_seed_that_packs_write_for_a_new_one_takes_a_new_one(self) -> None:
        prompt = {
            "1": {"class_type": "RandomNoise", "inputs": {"noise_seed": -1}},
            "2": {"class_type": "Seed (rgthree)", "inputs": {"seed": -1}},  # has a meaning of its own
            "3": {"class_type": "ConditioningSetArea", "inputs": {"x": -1}},
        }
        made, notes = with_defaults(prompt, CLASSES)
        seed = made["1"]["inputs"]["noise_seed"]
        assert 0 <= seed < 1 << 32 and len(notes) == 1 and str(seed) in notes[0]
        assert made["2"]["inputs"]["seed"] == made["3"]["inputs"]["x"] == -1

    def test_gaps_are_filled_by_name_wherever_they_stand(self) -> None:
        settings = ["{{SEED}}=7", "{{PROMPT}}=a cat", "{{STYLE}}=oil", "${model}=flux.safetensors", "{{TYPE}}=default"]
        made = apply(self.TEMPLATE, CLASSES, settings, None)
        assert made["1"]["inputs"]["noise_seed"] == 7
        assert made["2"]["inputs"]["text"] == "a cat, oil style"
        assert list(gaps(made)) == []

    def test_a_gap_that_is_not_there_is_told(self) -> None:
        with pytest.raises(PromptError, match=r"no \{\{HEIGHT\}\}. It has: .*\{\{PROMPT\}\}"):
            apply(self.TEMPLATE, CLASSES, ["{{HEIGHT}}=7"], None)

    def test_choices_in_prompts_are_no_gaps(self) -> None:
        prompt = {"1": {"class_type": "CLIPTextEncode", "inputs": {"text": "a {red|{dark|light} green} ball", "n": 5}}}
        assert list(gaps(prompt)) == []

    def test_the_command_line_says_what_to_fill(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "t.json").write_text(json.dumps(self.TEMPLATE))
        assert cli.main(["run", "t.json"]) == 2
        assert '--set "{{PROMPT}}=VALUE"' in capsys.readouterr().err


class TestParts:
    def test_what_needs_an_unknown_node_is_left_out_and_told(self, carried: tuple[Prompt, Prompt]) -> None:
        prompt, _ = carried
        decoded = of_class(prompt, "VAEDecode")
        prompt["50"] = {"class_type": "Alien", "inputs": {"image": [decoded, 0]}}
        prompt["51"] = {"class_type": "PreviewImage", "inputs": {"images": ["50", 0]}}
        part = runnable_part(prompt, CLASSES)
        assert part.prompt.keys() == prompt.keys() - {"50", "51"}
        assert part.lost == (
            "Node 51 (PreviewImage) does not run: it needs node 50 (Alien), whose class is not known here.",
        )

    def test_circles_end(self) -> None:
        prompt = {
            "1": {"class_type": "Alien", "inputs": {"image": ["2", 0]}},
            "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        }
        assert runnable_part(prompt, CLASSES).prompt == {}

    def test_a_person_is_offered_the_part_that_runs(
        self,
        carried: tuple[Prompt, Prompt],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        prompt, _ = carried
        prompt["51"] = {"class_type": "PreviewImage", "inputs": {"images": ["50", 0]}}
        prompt["50"] = {"class_type": "Alien", "inputs": {}}
        (tmp_path / "w.json").write_text(json.dumps(prompt))
        assert cli.main(["run", "w.json"]) == 2
        told = capsys.readouterr().err
        assert "'Alien'" in told and "--partial" in told
        del prompt[of_class(prompt, "SaveImage")]
        (tmp_path / "w.json").write_text(json.dumps(prompt))
        assert cli.main(["run", "w.json", "--partial"]) == 2  # nothing is left
        assert "'Alien'" in capsys.readouterr().err
