"""What people stumbled over in the browser, each as they meet it: in a real Chromium, on a real server.

A server and its worker take five seconds of a processor to start, and the editor three: a scene is played in both
windows on one page, and servers are shared where their state allows it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from doubles.client import Door
from doubles.comparison import NAMES, comparison, setting_of, wilson
from doubles.zeros_file import lora_shapes, zeros_file
from PIL import Image
from sluice.flux_core.graph.canvas_edit import with_loras
from sluice.flux_core.graph.flatten import to_prompt
from sluice.flux_core.io.embedded import read_workflow, read_workflow_bytes
from sluice.flux_core.worker.registry import standalone_tables
from sluice.nodes.host import pack_host

WORKFLOWS = Path(__file__).parents[2] / "workflows"
WINDOWS = {"1440x900": "dark", "400x800": "light"}  # as in browser/page.mjs: each scene is played in both


def canvases_of_flux1() -> list[Path]:
    return [file for file in sorted((WORKFLOWS / "flux1").glob("*.json")) if file.name != "index.json"]


def test_errors_are_told_on_the_page_in_the_terminal_and_in_the_log_panel(
    serving: Any, scene: Any, tmp_path: Path
) -> None:
    with serving(tmp_path, "--ram", "100M") as server:
        seen = scene("errors.mjs", server.url)
    for told in (seen["logs"], "".join(server.lines)):
        assert re.search(r"The job failed in node 13 .*\(SamplerCustomAdvanced\): Making an image of 128x128", told)
        assert "there are 100 MiB of RAM for it" in told
        assert "A workflow was not queued: " in told and "'nonsense' is not available" in told
    assert seen["elsewhere"] == []


def test_a_job_that_is_to_stop_says_so_until_it_has(server: Any, scene: Any) -> None:
    scene("stopping.mjs", server.url)


def test_each_tab_shows_its_own_panel_however_often_they_are_changed(server: Any, scene: Any) -> None:
    scene("tabs.mjs", server.url)


def test_the_memory_tab_tells_of_every_model_and_budgets_are_answered_and_kept(
    serving: Any, scene: Any, tmp_path: Path
) -> None:
    with serving(tmp_path) as server:
        seen = scene("memory.mjs", server.url)
        assert any(line.startswith("Computes on ") and "float" in line for line in server.lines)
    assert len(seen["seen"]) == len(WINDOWS)
    for shown in seen["seen"]:
        assert shown["models"] == ["transformer", "CLIP-L", "T5"]
        assert shown["figures"] and all("–" not in figure for figure in shown["figures"])
    with serving(tmp_path) as server:
        assert any("Memory as set in the page: VRAM auto, RAM 3G" in line for line in server.lines)
        assert scene("budget.mjs", server.url) == {"rams": ["3G", "3G"], "elsewhere": []}


def test_two_workers_stand_side_by_side_in_the_memory_tab_each_with_its_job(
    serving: Any, scene: Any, tmp_path: Path
) -> None:
    with serving(tmp_path, "--devices", "cpu:0,cpu:1", "--ram", "2G,3G") as server:
        seen = scene("devices.mjs", server.url)
    assert len(seen["seen"]) == len(WINDOWS) and seen["elsewhere"] == []
    for shown in seen["seen"]:
        assert shown["limits"] == ["2G", "3G"] and len(set(shown["jobs"])) == 2


def test_the_shipped_workflows_fit_the_screen_and_the_sketch_is_shown(server: Any, scene: Any) -> None:
    files = [*sorted(WORKFLOWS.glob("*.png")), *canvases_of_flux1()]
    seen = scene("layout.mjs", server.url, *files)["boxes"]
    assert seen.keys() == WINDOWS.keys()
    for size, boxes in seen.items():
        width, height = map(int, size.split("x"))
        assert len(boxes) == 1 + len(files) > 15
        for name, (left, top, right, bottom) in boxes.items():
            assert left >= 56 and top >= 80 and right <= width and bottom <= height, (name, size)


def test_a_visitor_without_the_token_is_asked_for_it_and_search_finds_each_node_once(
    serving: Any, scene: Any, tmp_path: Path
) -> None:
    with serving(tmp_path, "--token", "open sesame") as server:
        address = server.url.split("?")[0].rstrip("/")
        assert scene("token.mjs", address, "open sesame")["elsewhere"] == []


def test_the_gallery_with_many_pictures_of_several_kinds(server: Any, scene: Any) -> None:
    output = server.base / "output"
    output.mkdir(exist_ok=True)
    for number in range(30):
        Image.new("RGB", (64, 32 + 8 * number), (8 * number, 80, 160)).save(output / f"copy_{number:02}.png")
    Image.new("RGB", (80, 40), "orange").save(output / "plain.png")
    Image.new("RGB", (80, 40), "teal").save(output / "photo.jpg")
    scene("gallery.mjs", server.url)
    assert (output / "copy_01.png").is_file() and list((output / ".trash").iterdir()) == []


@pytest.fixture
def foreign(server: Any) -> bytes:
    """An image that the server of this module, not the one that opens it, has made with three LoRAs."""
    names = [f"{name}.safetensors" for name in ("style", "mine", "FLUX.1-Turbo-Alpha")]
    for rank, name in enumerate(names, 4):
        zeros_file(server.base / "models" / "loras" / name, lora_shapes(rank=rank))
    classes = standalone_tables(pack_host())[0]
    shipped = read_workflow(WORKFLOWS / "text_to_image.png").workflow
    canvas = with_loras(shipped, [(name, 1.0) for name in names], classes)
    prompt = to_prompt(read_workflow_bytes(json.dumps(canvas).encode()), classes)
    door = Door(server.url)
    entry, _ = door.made(prompt, extra_data={"extra_pnginfo": {"workflow": canvas}})
    (image,) = [image for node in entry["outputs"].values() for image in node.get("images", ())]
    made: bytes = door.get(f"/view?filename={image['filename']}&subfolder={image['subfolder']}").body
    door.close()
    return made


def test_our_own_tabs_and_dialogs_are_accessible(
    serving: Any, scene: Any, tmp_path: Path, full_size: Path, foreign: bytes
) -> None:
    (tmp_path / "output").mkdir()
    Image.new("RGB", (80, 40), "teal").save(tmp_path / "output" / "photo.jpg")
    zeros_file(tmp_path / "models" / "loras" / "style.safetensors", lora_shapes(rank=7))  # another one than elsewhere
    zeros_file(tmp_path / "models" / "loras" / "renamed.safetensors", lora_shapes(rank=5))  # mine.safetensors there
    (tmp_path / "foreign.png").write_bytes(foreign)
    with serving(tmp_path) as server:
        seen = scene("access.mjs", server.url, full_size, tmp_path / "foreign.png")
    assert seen["found"] == {name: [] for name in seen["found"]} and len(seen["found"]) == 8 * len(WINDOWS)
    told = {name: words for name, (words, _) in seen["used"].items()}
    assert told == {
        **dict.fromkeys([f"sluice-tiny{part}.safetensors" for part in ("", "-ae", "-clip_l", "-t5xxl")], "same file"),
        "style.safetensors": "another file of this name",
        "mine.safetensors": "here as renamed.safetensors", "FLUX.1-Turbo-Alpha.safetensors": "missing",
    }  # fmt: skip
    absent = seen["used"]["FLUX.1-Turbo-Alpha.safetensors"][1]
    assert "alimama-creative/FLUX.1-Turbo-Alpha (694 MB)" in absent and str(tmp_path / "models/loras") in absent
    assert seen["elsewhere"] == [], "nobody but the server is contacted"


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_one_thumb_on_a_phone_prompts_runs_looks_varies_and_shares(
    server: Any, scene: Any, tmp_path: Path, palette: str
) -> None:
    loras = server.base / "models" / "loras"
    zeros_file(loras / "fits.safetensors", lora_shapes(), {"modelspec.trigger_phrase": "my cat"})
    zeros_file(loras / "large.safetensors", lora_shapes(3072, 16))
    Image.new("RGB", (128, 128), "teal").save(tmp_path / "teal.png")
    seen = scene("phone.mjs", server.url, "400x800", palette, tmp_path / "teal.png", tmp_path)
    assert seen["found"] == {name: [] for name in seen["found"]} and len(seen["found"]) == 9, "axe-core"
    assert seen["small"] == {name: [] for name in seen["small"]}, "everything that is touched has 44 pixels"
    assert seen["previews"] >= 1 and seen["elsewhere"] == []
    shared = read_workflow(Path(seen["downloaded"]))
    for carried in (shared.prompt, shared.workflow):
        assert "a green heart on the left, white background" in str(carried)


def test_two_people_judge_sixty_pairs_blindly_on_the_page(server: Any, scene: Any) -> None:
    comparison(server.base / "output", 20)  # 3 pairs of settings for each prompt: 60 pairs
    score = Counter[tuple[str, str]]()
    for voter, (size, palette) in zip(("Ada", "Ben"), WINDOWS.items(), strict=True):
        seen = scene("votes.mjs", server.url, size, palette, voter)
        assert seen["found"] == {"voting": [], "votes": []} and seen["small"] == [] and seen["elsewhere"] == []
        judged = set[tuple[str, frozenset[str]]]()
        for prompt, left, right, choice in seen["votes"]:
            shown = {"left": setting_of(tuple(left)), "right": setting_of(tuple(right))}
            judged.add((prompt, frozenset(shown.values())))
            for side, setting in shown.items():
                score[setting, "tie" if choice == "same" else "win" if choice == side else "loss"] += 1
        assert len(judged) == len(seen["votes"]) == 60, "nobody is asked twice"
    assert seen["told"] == "Votes of 2 people."
    expected = [["setting", "preferred", "95 % interval", "wins", "ties", "losses"]]
    for name in NAMES:
        wins, losses, ties = (score[name, outcome] for outcome in ("win", "loss", "tie"))
        assert wins + losses + ties == 80
        share = Fraction(2 * wins + ties, 160)
        low, high = (percent(Fraction(bound)) for bound in wilson(float(share), 80))
        expected.append([name, percent(share), f"{low} to {high}", str(wins), str(ties), str(losses)])
    assert seen["table"] == expected


def percent(share: Fraction) -> str:
    """In tenths, halves rounded up."""
    tenths = (1000 * share + Fraction(1, 2)).__floor__()
    return f"{tenths // 10}.{tenths % 10} %"
