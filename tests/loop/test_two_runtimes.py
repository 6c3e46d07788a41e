"""Two programs in one process, with different budgets and number types: each gives the same images as alone."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sluice.flux_core.graph.execute import Executor
from sluice.flux_core.io.folders import standard_folders
from sluice.flux_core.memory import meter
from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.memory.ledger import Ledger
from sluice.flux_core.memory.workload import MiB
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.worker.registry import standalone_tables
from sluice.nodes.host import Host
from torch import Tensor

CPU = torch.device("cpu")
WIDE = FluxConfig(
    in_channels=16, out_channels=16, hidden=640, heads=5, head_dim=128, mlp=2560, depth=4, depth_single=8,
    context_dim=32, vec_dim=32, guidance=True, axes_dim=(16, 56, 56),
)  # fmt: skip
SEEDS = (1, 2)
WORKSPACE = 128 * MiB  # what every budget keeps free for what computing takes inside itself
TIGHT, PLENTY = 130 * MiB, 500 * MiB  # for blocks of 157 MB; an autoencoder takes 85


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def prompt(seed: int) -> dict[str, Any]:
    """A whole workflow, from files to a saved picture. Every seed has a text of its own."""
    return {
        "unet": node("UNETLoader", unet_name="wide.safetensors", weight_dtype="default"),
        "clip": node(
            "DualCLIPLoader", clip_name1="clip_l.safetensors", clip_name2="t5xxl_fp16.safetensors", type="flux"
        ),
        "vae": node("VAELoader", vae_name="ae.safetensors"),
        "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "text": node("CLIPTextEncode", text=f"fox {seed}", clip=["clip", 0]),
        "sampler": node(
            "KSampler", seed=seed, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
            model=["unet", 0], positive=["text", 0], negative=["text", 0], latent_image=["latent", 0],
        ),
        "decoded": node("VAEDecode", samples=["sampler", 0], vae=["vae", 0]),
        "saved": node("SaveImage", images=["decoded", 0], filename_prefix="x"),
    }  # fmt: skip


class Program:
    """A host, a runtime and an executor of their own. `at_step` is called at every step."""

    def __init__(
        self, models: list[Path], folder: Path, dtype: str, nbytes: int, at_step: Callable[[], None] = lambda: None
    ) -> None:
        """nbytes: what its budget leaves for weights beside what the process has now."""
        meter.trim()  # else memory that was freed before would make room during the run
        self.base = meter.resident_bytes()
        self.budget = self.base + WORKSPACE + nbytes
        self.folders = standard_folders(folder, models)
        settings = Settings("cpu", dtype, Allowed(ram=self.budget))
        self.host = Host(self.folders, lambda *_: at_step(), make_runtime=lambda: Runtime(settings))
        self.executor = Executor(standalone_tables(self.host)[0], around=torch.inference_mode)
        self.plans: list[Mapping[str, Any]] = []
        self.host.runtime.events.listen(self._note)

    def _note(self, event: dict[str, Any]) -> None:
        if event["type"] == "memory.plan":
            self.plans.append(event)

    def pictures(self, seeds: Sequence[int] = SEEDS) -> list[bytes]:
        made = []
        for seed in seeds:
            result = self.executor.execute(prompt(seed), outputs=["saved"])
            assert result.status == "success", result.exception
            (image,) = result.outputs["saved"]["images"]
            made.append((self.folders.output / image["filename"]).read_bytes())
        return made

    def streamed(self) -> list[int]:
        """Bytes a step of each plan of the transformer."""
        return [plan["plan"]["streamed_bytes_per_step"] for plan in self.plans if plan["model"] == "transformer"]

    def keeps_its_budget(self) -> bool:
        """The plan is within the budget, and so is the measured memory of the weights without that of the process."""
        held = self.host.runtime.managers[CPU].allocator.peak
        planned = all(plan["plan"]["peak_bytes"] <= plan["limit_bytes"] <= self.budget for plan in self.plans)
        return planned and 0 < held <= self.budget - self.base


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, random_weights: Callable[..., dict[str, Tensor]]) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    (folder / "diffusion_models").mkdir()
    weights = {name: value.bfloat16() for name, value in random_weights(Flux(WIDE), "wide").items()}
    save_file(weights, folder / "diffusion_models/wide.safetensors")
    return folder


@pytest.fixture
def few_objects() -> Iterator[None]:
    """What the other tests have left is not looked through for garbage, forty times."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("few_objects")
def test_two_runtimes_at_the_same_time_give_the_pictures_that_each_gives_alone(
    wide: Path, store: Path, tmp_path: Path
) -> None:
    kinds = {"narrow": ("fp32", TIGHT), "roomy": ("bf16", PLENTY)}
    for dtype, _ in kinds.values():  # what imports and first calls take is there before anything is counted
        Program([wide, store], tmp_path / "first", dtype, 1 << 40).pictures(SEEDS[:1])
    gc.collect()
    gc.freeze()  # what a first run imports
    alone = {}
    for name, (dtype, nbytes) in kinds.items():
        program = Program([wide, store], tmp_path / "alone" / name, dtype, nbytes)
        alone[name] = program.pictures()
        assert program.keeps_its_budget()
        del program
        gc.collect()
    assert alone["narrow"] != alone["roomy"], "the number types are seen in the pictures"

    together = threading.Barrier(2, timeout=120)
    met: dict[str, int] = dict.fromkeys(kinds, 0)

    def at_step(name: str) -> None:
        """Both are in the middle of a run at the first steps of each picture."""
        with suppress(threading.BrokenBarrierError):
            together.wait()
            met[name] += 1

    programs = {
        name: Program([wide, store], tmp_path / "both" / name, dtype, nbytes, partial(at_step, name))
        for name, (dtype, nbytes) in kinds.items()
    }

    def pictures(program: Program) -> list[bytes]:
        try:
            return program.pictures()
        except BaseException:
            together.abort()  # the other one need not wait
            raise

    with ThreadPoolExecutor(2) as pool:
        made = dict(zip(programs, pool.map(pictures, programs.values()), strict=True))
    assert met == dict.fromkeys(kinds, 2 * len(SEEDS))
    assert made == alone
    narrow, roomy = programs["narrow"], programs["roomy"]
    assert narrow.keeps_its_budget() and roomy.keeps_its_budget()
    assert all(narrow.streamed()) and not any(roomy.streamed()), "neither lives at the other's expense"
    assert narrow.host.runtime.encodings.nbytes == roomy.host.runtime.encodings.nbytes > 0


def test_a_budget_set_in_one_program_is_not_that_of_the_other() -> None:
    one, other = (Runtime(Settings("cpu", "fp32", Allowed(ram=MiB))) for _ in range(2))
    heard: list[dict[str, Any]] = []
    one.events.listen(heard.append)
    one.budget = Allowed(ram=2 * MiB)
    other.events.emit({"type": "of the other"})
    assert other.budget == Allowed(ram=MiB) and heard == []
    assert one.manager(CPU, MiB) is not other.manager(CPU, MiB)
    assert one.manager(CPU, MiB) is one.manager(CPU, MiB)


def test_what_others_hold_is_left_out_and_what_they_may_hold_is_not_taken_for_free() -> None:
    ledger, weights = Ledger(), [0, 0]
    ours, theirs = (ledger.open(partial(weights.__getitem__, n)) for n in range(2))
    assert ours.own_share(500) == 500
    weights[1] = 200
    assert ours.own_share(700) == 500
    with theirs.running(300, True):
        assert ledger.lasting and theirs.working == 300 and not theirs.disturbed
        assert ours.own_share(700) == 500, "whether they are using it already or not"
        assert ours.own_share(1000) == 500
        assert ours.own_share(1100) == 600
        with ours.running(10, False):
            assert ours.disturbed and theirs.disturbed
            with ours.running(5, False):
                assert ours.working == 5
            assert ours.working == 10 and ours.disturbed
        assert ours.working == 0 and ledger.lasting
    assert not ledger.lasting
    with ours.running(10, False):
        assert not ours.disturbed
    del theirs
    gc.collect()
    assert ours.others_weights == 0, "an account goes with its runtime"
