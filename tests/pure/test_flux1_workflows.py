"""The workflows of FLUX.1 itself: drawn as shipped, valid here, and planned before anything is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sluice.flux_core.commands import cli
from sluice.flux_core.commands.flux1_workflows import ALL, FOLDER, canvas_of, files_of, index
from sluice.flux_core.commands.sketch import sketch
from sluice.flux_core.graph.flatten import canvas_to_prompt
from sluice.flux_core.graph.object_info import object_info
from sluice.flux_core.io.folders import standard_folders
from sluice.flux_core.worker.prompt_check import check_prompt
from sluice.flux_core.worker.registry import standalone_tables
from sluice.nodes.host import Host


@pytest.mark.parametrize("name", ALL)
def test_each_is_drawn_anew_as_it_is_shipped_with_its_sketch(name: str) -> None:
    drawn = canvas_of(name).json()
    assert json.loads((FOLDER / f"{name}.json").read_text("utf-8")) == drawn
    picture = (FOLDER / f"{name}.svg").read_text("utf-8")
    assert picture == sketch(drawn, ALL[name].title) and len(picture) < 4000
    assert ElementTree.fromstring(picture).attrib["viewBox"]


def test_the_index_lists_every_file_with_its_size_and_where_it_is_published() -> None:
    told = json.loads((FOLDER / "index.json").read_text("utf-8"))
    assert told == index() and [one["name"] for one in told] == list(ALL)
    for one in told:
        assert one["files"] and all(file["size"] and file["repository"] and file["folder"] for file in one["files"])
        [note] = [node for node in canvas_of(one["name"]).nodes if node["type"] == "MarkdownNote"]
        assert all(file["name"] in note["widgets_values"][0] for file in one["files"])


@pytest.mark.parametrize("name", ALL)
def test_each_is_valid_where_its_files_are(name: str, tmp_path: Path) -> None:
    canvas = canvas_of(name).json()
    for file in files_of(canvas["nodes"]):
        place = tmp_path / "models" / file["folder"] / file["name"]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"")
    folders = standard_folders(tmp_path)
    classes, titles = standalone_tables(Host(folders))
    declared = object_info(classes, titles)
    prompt = canvas_to_prompt(canvas, classes)
    for node in prompt.values():
        inputs = declared[node["class_type"]]["input"]
        assert node["inputs"].keys() <= {**inputs["required"], **inputs.get("optional", {})}.keys()
    found = check_prompt(prompt, classes, folders).found
    told = [problem.sentence for problem in found.problems if problem.kind != "missing_tokenizer"]
    assert told == [] and len(canvas["extra"]["linearData"]["inputs"]) >= 4
    shown = [prompt[str(node)]["class_type"] for node in canvas["extra"]["linearData"]["outputs"]]
    assert shown == ["SaveImage"]


@pytest.mark.slow
def test_the_model_of_each_is_planned_for_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    files = [file for name in ALL for file in files_of(canvas_of(name).nodes)]
    models = dict.fromkeys(file["name"] for file in files if file["folder"] in ("diffusion_models", "checkpoints"))
    assert len(models) == 6
    for model in models:
        assert cli.main(["plan", model, "--card", "rtx4060", "--vram", "8G", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["seconds_per_step"] > 0 and told["card"]
