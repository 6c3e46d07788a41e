"""A cancelled job ends within one product of matrices or one tensor that is read; afterwards all works as before."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
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
from sluice.flux_core.memory import stream
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.worker.registry import standalone_tables
from sluice.nodes.host import Host
from torch.utils._python_dispatch import TorchDispatchMode

FIRST = Path(__file__).parents[2] / "workflows" / "text_to_image.png"


class Asked:
    """The number of checks for cancelling, and the check at which the run is cancelled."""

    def __init__(self, last: float = float("inf"), listener: Callable[[], object] = lambda: None) -> None:
        self.count, self.last, self.listener = 0, last, listener

    def __call__(self) -> None:
        self.listener()
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
    assert whole.count > 3 * 8 + 20, "every product of every step asks, and text encoders and autoencoder do"
    moments = random.Random(5).sample(range(1, whole.count), 2)
    for moment in moments:
        asked = Asked(moment)
        result = studio.run(asked)
        assert result.status == "interrupted" and asked.count == moment
        del result
    assert studio.picture(studio.run(Asked())) == expected


class Products(TorchDispatchMode):
    """Counts products, convolutions and attentions since the last check; `most` is the largest count."""

    PARTS = ("mm", "bmm", "linear", "matmul", "conv", "scaled_dot_product")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # a class of torch's without annotations
        self.since = self.most = self.all = 0

    def asked(self) -> None:
        self.since = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, out = func.overloadpacket.__name__, func(*args, **(kwargs or {}))
        plain = out[0] if isinstance(out, (tuple, list)) else out
        if any(part in name for part in self.PARTS) and not plain.is_meta and plain.numel() > 4096:
            self.since, self.all = self.since + 1, self.all + 1
            self.most = max(self.most, self.since)
        return out


def test_between_two_questions_lies_one_product_at_most(studio: Studio) -> None:
    products = Products()
    with products:
        result = studio.run(Asked(listener=products.asked))
    assert studio.picture(result)
    assert products.all > 3 * 8 * 4 and products.most == 1


def test_a_wait_for_weights_asks_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "ASK_SECONDS", 0.001)
    wait = stream.Until(threading.Condition(), lambda: False, check_cancelled)
    with cancellable(Asked(3)), pytest.raises(Interrupted):
        wait()


def test_nobody_is_asked_outside_a_run() -> None:
    check_cancelled()
    with cancellable(Asked(1)), pytest.raises(Interrupted):
        check_cancelled()
    check_cancelled()
