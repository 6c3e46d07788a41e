"""A cancelled job ends within one block, tensor or tile, whatever it is doing; afterwards all works as before."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sluice.flux_core.cancel import cancellable, check_cancelled
from sluice.flux_core.commands import workflows
from sluice.flux_core.errors import Interrupted
from sluice.flux_core.graph.execute import Executor, Result
from sluice.flux_core.graph.validate import validate
from sluice.flux_core.io.folders import standard_folders
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.worker.registry import standalone_tables
from sluice.nodes.host import Host

FIRST = Path(__file__).parents[2] / "workflows" / "text_to_image.png"


class Asked:
    """How often somebody asked whether to go on, and the question at which the answer is no."""

    def __init__(self, last: float = float("inf")) -> None:
        self.count, self.last = 0, last

    def __call__(self) -> None:
        self.count += 1
        if self.count >= self.last:
            raise Interrupted("Stopped on request.")


class Studio:
    """The first workflow with three steps; nothing is kept from one run to the next."""

    def __init__(self, base: Path, settings: Settings) -> None:
        self.folders, self.settings = standard_folders(base), settings

    def run(self, asked: Asked) -> Result:
        host = Host(self.folders, make_runtime=lambda: Runtime(self.settings))
        classes = standalone_tables(host)[0]
        prompt = workflows.read(FIRST, classes).prompt
        next(node for node in prompt.values() if node["class_type"] == "BasicScheduler")["inputs"]["steps"] = 3
        found = validate(prompt, classes)
        executor = Executor(classes, around=lambda: cancellable(asked))
        return executor.execute(found.prompt, "job", {}, found.outputs)

    def picture(self, result: Result) -> bytes:
        assert result.status == "success", result.exception
        (shown,) = result.outputs.values()
        with Image.open(self.folders.output / shown["images"][0]["filename"]) as image:
            pixels: bytes = image.convert("RGB").tobytes()
        return pixels


@pytest.fixture(params=["managed", "not managed"])
def studio(request: Any, tmp_path: Path) -> Studio:
    return Studio(tmp_path, Settings.parse("cpu", "fp32", ram="3G" if request.param == "managed" else None))


def test_every_moment_of_a_job_can_be_its_last(studio: Studio) -> None:
    expected = studio.picture(studio.run(Asked()))
    whole = Asked()
    assert studio.picture(studio.run(whole)) == expected
    assert whole.count > 3 * 8 + 20, "every block of every step asks, and text encoders and autoencoder do"
    moments = random.Random(5).sample(range(1, whole.count), 2)
    for moment in moments:
        asked = Asked(moment)
        result = studio.run(asked)
        assert result.status == "interrupted" and asked.count == moment
        del result
    assert studio.picture(studio.run(Asked())) == expected


def test_nobody_is_asked_outside_a_run() -> None:
    check_cancelled()
    with cancellable(Asked(1)), pytest.raises(Interrupted):
        check_cancelled()
    check_cancelled()
