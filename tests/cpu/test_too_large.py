"""A job that is too large for the memory is refused before any node runs, with the needs and advice."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sluice.flux_core.commands import workflows
from sluice.flux_core.errors import BudgetTooSmall, InputError
from sluice.flux_core.graph.execute import Executor, Result
from sluice.flux_core.io.folders import standard_folders
from sluice.flux_core.models.denoiser_inputs import DenoiserInputs
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.runtime.slow_steps import slow_steps
from sluice.flux_core.worker.registry import standalone_tables
from sluice.flux_core.worker.too_large import too_large
from sluice.nodes.host import Host

FIRST = Path(__file__).parents[2] / "workflows" / "text_to_image.png"
Change = Callable[[dict[str, Any]], None]


def sized(width: int, height: int, batch: int = 1) -> Change:
    def change(prompt: dict[str, Any]) -> None:
        latent = next(node for node in prompt.values() if node["class_type"].startswith("Empty"))
        latent["inputs"] |= {"width": width, "height": height, "batch_size": batch}

    return change


def by_a_number_node(prompt: dict[str, Any]) -> None:
    sized(64, 8192)(prompt)
    prompt["number"] = {"class_type": "PrimitiveInt", "inputs": {"value": 8192}}
    latent = next(node for node in prompt.values() if node["class_type"].startswith("Empty"))
    latent["inputs"]["width"] = ["number", 0]


def from_a_file(prompt: dict[str, Any]) -> None:
    sized(8192, 8192)(prompt)
    name = next(name for name, node in prompt.items() if node["class_type"].startswith("Empty"))
    prompt[name] = {"class_type": "VAEEncode", "inputs": {}}


def told(prompt: dict[str, Any]) -> None:
    """A prompt of more tokens than FLUX.1 was trained with, for one step."""
    next(node for node in prompt.values() if node["class_type"] == "CLIPTextEncode")["inputs"]["text"] = (
        "a star, " * 400
    )
    next(node for node in prompt.values() if node["class_type"] == "BasicScheduler")["inputs"]["steps"] = 1


def run(tmp_path: Path, settings: Settings, change: Change) -> Result:
    def runtime() -> Runtime:
        made = Runtime(settings)
        made.events.listen(lambda event: None)  # runs of models are reported to listeners
        return made

    folders = standard_folders(tmp_path)
    host = Host(folders, make_runtime=runtime)
    classes = standalone_tables(host)[0]
    prompt = workflows.read(FIRST, classes).prompt
    change(prompt)
    executor = Executor(classes, refused=lambda asked: too_large(asked, classes, folders, host.runtime))
    outputs = [node_id for node_id, node in prompt.items() if node["class_type"] == "SaveImage"]
    return executor.execute(prompt, "job", {}, outputs)


@pytest.mark.parametrize("change", [sized(8192, 8192), sized(1024, 1024, 64), by_a_number_node])
def test_it_says_what_is_needed_what_is_there_and_what_to_do(tmp_path: Path, change: Change) -> None:
    result = run(tmp_path, Settings.parse("cpu", "fp32", ram="1G"), change)
    assert (result.status, result.executed) == ("error", ())
    assert isinstance(result.exception, BudgetTooSmall)
    needed = re.match(
        r"Making (?:an image|a batch of 64 images) of \d+x\d+ pixels with sluice-tiny.safetensors needs at least "
        r"(\d+\.\d+) GiB, and there are 1.00 GiB of RAM for it. Choose a smaller size or batch, or allow ",
        str(result.exception),
    )
    assert needed and float(needed[1]) > 1
    kind, told = result.messages[-1]
    assert (kind, told["about"], told["node_type"]) == ("execution_error", "memory", "SamplerCustomAdvanced")


def test_more_than_the_machine_has_is_refused_without_a_budget_too(tmp_path: Path) -> None:
    result = run(tmp_path, Settings.parse("cpu", "fp32"), sized(16384, 16384, 4096))
    assert result.executed == () and isinstance(result.exception, InputError)
    assert re.search(r"needs [\d,]+ GiB or more of memory, and there are \d+ GiB", str(result.exception))


def test_what_fits_or_is_not_known_before_is_not_refused(tmp_path: Path) -> None:
    settings = Settings.parse("cpu", "fp32", ram="8G")
    folders = standard_folders(tmp_path)
    host = Host(folders, make_runtime=lambda: Runtime(settings))
    classes = standalone_tables(host)[0]
    for change in (sized(1024, 1024), from_a_file):
        prompt = workflows.read(FIRST, classes).prompt
        change(prompt)
        assert list(too_large(prompt, classes, folders, host.runtime)) == []


@pytest.mark.parametrize("ram", ["auto", "4G"])  # what the tests before it left in this process counts too
def test_a_long_prompt_is_told_before_its_first_step(
    tmp_path: Path, ram: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(tmp_path, Settings.parse("cpu", "fp32", ram=ram), told).status == "success"
    said = next(record.getMessage() for record in caplog.records if "predicted to take" in record.getMessage())
    found = re.search(r"computes ([\d,]+) tokens, ([\d,]+) of the prompt and 64 of the image", said)
    assert found and "a shorter prompt is faster" in said
    tokens, prompt = (int(number.replace(",", "")) for number in found.groups())
    assert tokens == prompt + 64 and prompt > 512


def test_long_steps_are_told_with_their_time_and_usual_ones_are_not() -> None:
    one = torch.empty(1, device="meta")
    text, pooled = torch.empty(1, 512, 4096, device="meta"), torch.empty(1, 768, device="meta")
    usual = DenoiserInputs(torch.empty(1, 16, 128, 128, device="meta"), one, text, pooled, one)
    assert slow_steps(usual, 59.0) is None
    assert "take 12 minutes: it computes 4,608 tokens, 512 of the prompt" in (slow_steps(usual, 720.0) or "")
    assert "take 52 hours" in (slow_steps(usual, 188_684.0) or "")
