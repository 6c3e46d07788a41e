"""The browser's side: plain functions under node, and the whole first day in a real Chromium on a real server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from doubles.published_flux import flux_workload
from sluice.flux_core.graph.flatten import to_prompt
from sluice.flux_core.io.embedded import read_workflow, read_workflow_bytes
from sluice.flux_core.memory import report
from sluice.flux_core.memory.cards import find_card
from sluice.flux_core.memory.plan import plan
from sluice.flux_core.memory.workload import Budget
from sluice.flux_core.worker.registry import standalone_tables
from sluice.nodes.host import pack_host

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORKFLOWS = ROOT / "workflows"


def test_functions_of_the_panels_under_node(needed: Any) -> None:
    needed(shutil.which("node"), "node")
    files = sorted(str(file) for file in HERE.glob("*.test.mjs"))
    run = subprocess.run(["node", "--test", *files], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_first_day_in_a_browser(server: Any, scene: Any, full_size: Path) -> None:
    output = server.base / "output"
    seen = scene("story.mjs", server.url, WORKFLOWS / "text_to_image.png", output, full_size)
    assert seen["progress"] >= 12 and seen["previews"] >= 1 and seen["shown"] == 1
    assert {"UNETLoader", "DualCLIPLoader", "VAELoader", "CLIPTextEncode"} <= set(seen["cached"])
    assert seen["gallery"] and seen["interrupted"] and seen["managed"] and seen["cells"] == 76
    assert seen["on_a_phone"] == seen["first_visit"]
    assert "https://huggingface.co/black-forest-labs/FLUX.1-dev" in seen["sources"]
    assert "https://huggingface.co/google/t5-v1_1-xxl" in seen["sources"], "tokenizers are listed with the models"
    assert seen["elsewhere"] == [], "nobody but the server is contacted"


def test_the_editor_queues_a_canvas_as_the_command_line_reads_it(server: Any, scene: Any, full_size: Path) -> None:
    files = [*sorted(WORKFLOWS.glob("*.png")), full_size]
    queued = scene("queued.mjs", server.url, *files)
    assert len(files) > 2
    for file in files:
        canvas = read_workflow_bytes(json.dumps(read_workflow(file).workflow).encode())
        ours = to_prompt(canvas, standalone_tables(pack_host())[0])
        read = {node: {"class_type": one["class_type"], "inputs": one["inputs"]} for node, one in ours.items()}
        assert queued[str(file)] == read, file.name


def test_the_recorded_run_has_the_shape_of_what_the_core_tells() -> None:
    recorded = json.loads((HERE / "fixtures" / "recorded_run.json").read_text("utf-8"))
    told: list[dict[str, Any]] = []
    planned = plan(flux_workload("flux1-dev-fp8"), Budget(6 << 30, 8 << 30), find_card("rtx4060").machine(2.5e9))
    made = report.JobReport("transformer", planned, 6 << 30, told.append)
    made.report_ring([1])
    made.step(report.Step(1.0, 0.0, 0))
    made.close()
    assert [event["type"] for event in told] == ["memory.plan", "memory.at", "memory.step", "memory.job"]
    for event in told:
        example = next(one["data"] for one in recorded if one["event"] == f"sluice.{event['type']}")
        assert sorted(example) == sorted(event)
        assert sorted(example.get("plan", {})) == sorted(event.get("plan", {}))
