"""One image on several devices, as processes: the numbers of one, budgets kept, errors with the device's name."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from doubles import adapter_files
from doubles.seeded import fill_module, seeded_tensor
from PIL import Image, ImageChops
from safetensors.torch import save_file
from sluice.flux_core.cancel import cancellable
from sluice.flux_core.commands import cli
from sluice.flux_core.errors import InputError, SluiceError
from sluice.flux_core.memory import meter
from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.models import flux_blocks
from sluice.flux_core.models.autoencoder import Autoencoder, AutoencoderConfig
from sluice.flux_core.models.clip_text import ClipConfig, ClipTextModel
from sluice.flux_core.models.controlnet import ControlNet
from sluice.flux_core.models.controlnet_config import ControlNetConfig
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.models.t5 import T5Config, T5Encoder
from sluice.flux_core.parallel.split import Split
from sluice.flux_core.runtime.autoencoder_handle import OnTile
from sluice.flux_core.runtime.controlnets import load_controlnet
from sluice.flux_core.runtime.handles import FluxModel, TextEncoders, load_autoencoder, load_flux, load_text
from sluice.flux_core.runtime.lora_files import read_lora
from sluice.flux_core.runtime.model_weights import ControlNetWeights
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.runtime.team import Team, TeamSettings
from sluice.flux_core.sampling.conditions import Condition
from sluice.flux_core.sampling.controls import Control
from sluice.flux_core.sampling.guider import CFGGuider, Denoiser, Run, cached_evaluations
from sluice.flux_core.sampling.step_cache import StepCache
from torch import Tensor

CONFIG = replace(FluxConfig(**adapter_files.SIZES), hidden=256, heads=2, mlp=1024)
T5 = T5Config(vocabulary=64, width=64, inner=64, heads=2, mlp=128, layers=3)
CLIP = ClipConfig(vocabulary=60, positions=77, width=64, mlp=128, layers=3, heads=2, eos_token_id=59)
DEEP = replace(CONFIG, depth=4, depth_single=12)  # half of its matrices are 28 MiB
NET = ControlNetConfig(replace(CONFIG, depth=1, depth_single=1), "latent", 16, 4)
TIMES = (0.9, 0.5)
WORKFLOW = Path(__file__).parents[2] / "workflows" / "text_to_image.png"
ROOM = 400 << 20  # bytes for models, beside what this process has in memory already


def allowed() -> Allowed:
    """A budget that the tests which ran before in this process have not used up."""
    return Allowed(None, meter.resident_bytes() + ROOM)


Made = Callable[..., Runtime]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer and a LoRA."""
    folder = tmp_path_factory.mktemp("team")
    state = fill_module(Flux(CONFIG)).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "flux.safetensors")
    for name, kind in (("lora", adapter_files.plain), ("lokr", adapter_files.lokr), ("dora", adapter_files.dora)):
        save_file(kind(state), folder / f"{name}.safetensors")
    net = fill_module(ControlNet(NET)).state_dict()
    save_file({name: value.contiguous() for name, value in net.items()}, folder / "net.safetensors")
    for name, encoder in (("t5", T5Encoder(T5)), ("clip", ClipTextModel(CLIP))):
        tensors = {key: value.contiguous() for key, value in fill_module(encoder).state_dict().items()}
        save_file(tensors, folder / f"{name}.safetensors")
    coder = fill_module(Autoencoder(AutoencoderConfig(3, 32, (1, 2, 2, 4), 1, 16))).state_dict()
    save_file({name: value.contiguous() for name, value in coder.items()}, folder / "autoencoder.safetensors")
    return folder / "flux.safetensors"


@pytest.fixture
def team() -> Iterator[Made]:
    """team(split, budget, seconds): a runtime on as many processors as the split has, ended afterwards."""
    teams: list[Team] = []

    def make(split: Split, budget: Allowed | None = None, seconds: float = 30.0) -> Runtime:
        budget = budget or allowed()
        runtime = Runtime(Settings("cpu", "fp32", budget))
        options: dict[str, Any] = {"device": "cpu", "dtype": "fp32", "threads": 1, **budget.words}
        names = tuple(f"cpu:{number}" for number in range(split.size))
        shares = 2 if split.sp == 2 else 1
        settings = TeamSettings(names, (options,) * (split.size - 1), split, shares, seconds)
        runtime.team = Team(settings, runtime.device, runtime.events.emit)
        teams.append(runtime.team)
        return runtime

    yield make
    for one in teams:
        one.close()


def model_of(runtime: Runtime, file: Path, lora: str = "lora") -> FluxModel:
    model = load_flux(runtime, file)
    return read_lora(model, None, file.with_name(f"{lora}.safetensors")).added_to(model, None, 0.7)[0]


def look(
    model: FluxModel, between: Callable[[], object] = lambda: None, net: ControlNetWeights | None = None
) -> list[Tensor]:
    """The velocities of two steps. net: a ControlNet to follow."""
    x = seeded_tensor("x", (1, 16, 10, 6))
    condition = Condition(seeded_tensor("c", (1, 5, CONFIG.context_dim)), seeded_tensor("y", (1, CONFIG.vec_dim)), 4.0)
    if net is not None:
        control = Control(net, (1,), seeded_tensor("hint", (1, 16, 10, 6)), 0.8, math.inf, -math.inf)
        condition = replace(condition, controls=(control,))
    found = []
    with torch.inference_mode(), model.open(Run(tuple(x.shape), TIMES, (condition,))) as network:
        for time in TIMES:
            found.append(network(condition.inputs(x, time, model.dtype)))
            between()
    return found


def encoders(runtime: Runtime, file: Path) -> TextEncoders:
    return load_text(runtime, [file.with_name("clip.safetensors"), file.with_name("t5.safetensors")])


def encoded(runtime: Runtime, file: Path) -> list[Tensor]:
    """What T5 and CLIP make of a text."""
    both = encoders(runtime, file)
    with torch.no_grad():
        text = both.t5()(seeded_tensor("t5 text", (1, 7, T5.width)), None)
        pooled = both.clip()(seeded_tensor("clip text", (1, 6, CLIP.width)), torch.tensor([4]))[1]
    return [text, pooled]


def rows_sent(layers: int, width: int, inner: int, mlp: int, tokens: int) -> int:
    """Bytes that leave each of two devices: half of what each matrix of a block gives for each token, in float32."""
    return 4 * layers * tokens * (3 * inner + width + mlp + width) // 2


def tiled(runtime: Runtime, file: Path, on_tile: OnTile = None) -> list[Tensor]:
    """Two images to latents and back, in tiles."""
    coder = load_autoencoder(runtime, file.with_name("autoencoder.safetensors"))
    images, latents = seeded_tensor("images", (2, 48, 80, 3)).abs(), seeded_tensor("latents", (2, 16, 5, 9))
    return [coder.encode_image_tiled(images, 32, 8, on_tile), coder.decode_image_tiled(latents, 32, 8, on_tile)]


def same_bits(got: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def guided(model: FluxModel, on_call: Callable[[int], object] = lambda number: None) -> list[Tensor]:
    """The images D of two steps with a prompt and a negative prompt. on_call: of each evaluation in this process."""
    x = seeded_tensor("x", (1, 16, 10, 6))
    prompt, negative = (
        Condition(
            seeded_tensor(f"c {n}", (1, n, CONFIG.context_dim)), seeded_tensor(f"y {n}", (1, CONFIG.vec_dim)), 4.0
        )
        for n in (5, 3)
    )
    counter = itertools.count()
    with (
        pytest.MonkeyPatch.context() as patch,
        torch.inference_mode(),
        model.open(Run(tuple(x.shape), TIMES, (prompt, negative))) as network,
    ):
        forward = flux_blocks.DoubleStreamBlock.forward

        def heard(block: flux_blocks.DoubleStreamBlock, *args: Any) -> Any:
            if next(counter) % CONFIG.depth == 0:
                on_call(1)
            return forward(block, *args)

        patch.setattr(flux_blocks.DoubleStreamBlock, "forward", heard)
        guider = CFGGuider(model, [], [], 3.0)
        denoise = Denoiser(guider, network, [[prompt], [negative]], model.dtype, cached_evaluations(model))
        return [denoise(x, time) for time in TIMES]


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "team_member.py" in " ".join(child.cmdline())]


def distance(got: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, expected, strict=True))


def counted(method: Callable[..., Tensor], calls: list[int]) -> Callable[..., Tensor]:
    """The method, with the batch of each call that computes noted in `calls`."""

    def call(module: Autoencoder, x: Tensor) -> Tensor:
        if x.device.type != "meta":
            calls.append(len(x))
        return method(module, x)

    return call


class FailsOnce:
    """The second double block runs out of memory in this process, once, when its attention has been exchanged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failed = False
        self._forward = flux_blocks.Mlp.forward
        monkeypatch.setattr(flux_blocks.Mlp, "forward", lambda mlp, x: self._fail_or(mlp, x))

    def _fail_or(self, mlp: flux_blocks.Mlp, x: Tensor) -> Tensor:
        if not self.failed and x.device.type != "meta":
            self.failed = True
            raise torch.OutOfMemoryError("injected")
        return self._forward(mlp, x)


@pytest.mark.parametrize("split", [Split(2, 1), Split(1, 2)], ids=["tokens", "rows"])
def test_two_processes_stream_the_velocity_of_one(
    team: Made, file: Path, split: Split, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With LoRA, LoKr, DoRA, a ControlNet, memory that runs out on one device, and a budget that is changed. And two
    without a budget, which load it whole. The autoencoder's tiles are those of one process to the last bit."""
    limit = allowed()
    alone, two = Runtime(Settings("cpu", "fp32", limit)), team(split, limit)
    plans: list[list[dict[str, Any]]] = [[], []]
    for heard, runtime in zip(plans, (alone, two), strict=True):
        runtime.events.listen(heard.append)
    expected, model = look(model_of(alone, file)), model_of(two, file)
    got, again = look(model), look(model)
    assert distance(got, expected) < 5e-6 and all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    first_plan, plan = (next(e["plan"] for e in heard if e["type"] == "memory.plan") for heard in plans)
    whole, part = (sum(unit["bytes"] for unit in one["units"]) for one in (first_plan, plan))
    assert part == whole if split.sp == 2 else part <= 0.51 * whole
    assert limit.ram is not None and plan["peak_bytes"] <= limit.ram
    nets = [load_controlnet(runtime, file.with_name("net.safetensors")).weights for runtime in (alone, two)]
    controlled = look(model_of(alone, file), net=nets[0])
    assert distance(look(model, net=nets[1]), controlled) < 5e-6 < distance(expected, controlled)
    for kind in ("lokr", "dora"):
        changed = look(model_of(alone, file, kind))
        assert distance(look(model_of(two, file, kind)), changed) < 5e-6 < distance(expected, changed)
    once = FailsOnce(monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(look(model), got, strict=True)) and once.failed
    two.budget = Allowed(None, limit.ram - (64 << 20))
    (member,) = children()
    assert distance(look(model), got) == 0 and member.is_running()
    assert two.team is not None
    texts, told = encoded(alone, file), len(plans[1])
    sent = dict(two.team.share.weights.wire.sent) if two.team and two.team.share and two.team.share.weights else None
    if sent is None:
        assert same_bits(encoded(two, file), texts)
    else:
        assert distance(encoded(two, file), texts) < 5e-6
        gathered = rows_sent(T5.layers, T5.width, T5.inner, 2 * T5.mlp, 7)
        gathered += rows_sent(CLIP.layers, CLIP.width, CLIP.width, CLIP.mlp, 6)
        assert two.share is not None and two.share.weights is not None
        assert two.share.weights.wire.sent["gather"] == sent["gather"] + gathered
        parts = [event["plan"] for event in plans[1][told:] if event["type"] == "memory.plan"]
        wholes = [event["plan"] for event in plans[0] if event["type"] == "memory.plan"][-2:]
        for part, whole in zip(parts, wholes, strict=True):
            assert 2 * sum(unit["bytes"] for unit in part["units"]) == sum(unit["bytes"] for unit in whole["units"])
    in_tiles, here = tiled(alone, file), list[int]()
    monkeypatch.setattr(Autoencoder, "decode", counted(Autoencoder.decode, here))
    totals: list[int] = []
    assert same_bits(tiled(two, file, lambda done, total: totals.append(total)), in_tiles)
    assert len(here) == totals[-1]  # which counts the tiles of one of the two latents: half of all
    two.team.tell_budget(Allowed(None, 100 << 20).words)  # as for all of them, but only the other one is to fail
    assert same_bits(tiled(two, file), in_tiles) and "cpu:1 leaves its tiles to cpu:0" in caplog.text
    with pytest.raises(SluiceError, match="The device cpu:1: .*budget is 100 MiB"):
        look(model)
    reports = [event for event in plans[1] if event["type"] == "device.job" and "transformer" in event["line"]]
    assert {report["device"] for report in reports} == {"cpu:1"}
    assert all(0 < report["peak_bytes"] <= report["limit_bytes"] for report in reports)
    free = team(split, Allowed(managed=False))
    assert distance(look(model_of(free, file)), expected) < 5e-6 and same_bits(tiled(free, file), in_tiles)
    net = load_controlnet(free, file.with_name("net.safetensors")).weights
    assert distance(look(model_of(free, file), net=net), controlled) < 5e-6
    assert distance(encoded(free, file), texts) < 5e-6
    (last,) = children()
    if split.tp == 2:
        encode = encoders(free, file).t5()
        last.kill()
        with pytest.raises(SluiceError, match=rf"device cpu:1 \(pid {last.pid}\) was killed by signal 9"):
            encode(seeded_tensor("t5 text", (1, 7, T5.width)), None)
    assert free.team is not None
    free.team.close()
    assert not last.is_running()


def test_each_device_evaluates_another_condition(team: Made, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each has the whole model under its own budget: the same bits, whether a step cache decides or not."""
    limit = allowed()
    alone, two = Runtime(Settings("cpu", "fp32", limit)), team(Split(cfg=2), limit)
    expected, here = guided(model_of(alone, file)), list[int]()
    model = model_of(two, file)
    assert same_bits(guided(model, on_call=here.append), expected) and len(here) == len(TIMES)
    cached = replace(model, own_step_cache=StepCache(0.0, 0.0, 1.0))
    assert same_bits(guided(cached, on_call=here.append), expected) and len(here) == 2 * len(TIMES)
    assert "compute nothing" not in caplog.text and distance(look(model), look(model_of(alone, file))) == 0
    assert "1 condition for the 2 groups of devices of --split cfg2" in caplog.text
    (member,) = children()
    with pytest.raises(SluiceError, match=rf"device cpu:1 \(pid {member.pid}\) was killed by signal 9"):
        guided(model, on_call=lambda number: member.kill())


def test_a_device_that_fails_or_hangs_is_named_and_the_next_image_is_made(
    team: Made, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = team(Split(2, 1), Allowed(managed=False), seconds=2.0)
    model = model_of(runtime, file)
    expected = look(model)
    (before,) = children()
    with pytest.raises(SluiceError, match=rf"device cpu:1 \(pid {before.pid}\) was killed by signal 9"):
        look(model, between=before.kill)
    assert not children() and distance(look(model), expected) == 0
    in_tiles, (between,) = tiled(runtime, file), children()
    with pytest.raises(SluiceError, match=rf"device cpu:1 \(pid {between.pid}\) was killed by signal 9"):
        tiled(runtime, file, on_tile=lambda done, total: between.kill())
    assert not children() and same_bits(tiled(runtime, file), in_tiles)
    assert runtime.team is not None
    with monkeypatch.context() as patch, pytest.raises(SluiceError, match="The device cpu:1: RuntimeError: mat1 and"):
        tell = runtime.team.tell_inputs
        patch.setattr(
            runtime.team,
            "tell_inputs",
            lambda given, group: tell(replace(given, context=given.context[..., 1:]), group),
        )
        look(model)  # the other device is given a text of another width
    assert not children() and distance(look(model), expected) == 0
    (other,) = children()
    with pytest.raises(SluiceError, match="cpu:1 did not answer for 2 seconds"):
        look(model, between=other.suspend)
    assert not other.is_running() and distance(look(model), expected) == 0

    class Stopped(Exception):
        pass

    asked: list[None] = []

    def ask() -> None:
        if asked:
            raise Stopped

    with pytest.raises(Stopped), cancellable(ask):
        look(model, between=lambda: asked.append(None))
    (third,) = children()
    with pytest.raises(Stopped):
        tiled(runtime, file, on_tile=lambda done, total: ask())
    assert same_bits(tiled(runtime, file), in_tiles)
    assert distance(look(model), expected) == 0 and children() == [third]  # cancelling costs no restart


def test_another_device_refuses_with_its_name_and_streams_with_what_it_asked_for(
    team: Made, file: Path, tmp_path: Path
) -> None:
    runtime = team(Split(1, 2))
    assert runtime.team is not None
    told: list[dict[str, Any]] = []
    runtime.events.listen(told.append)
    runtime.team.tell_budget(Allowed(None, 100 << 20).words)
    state = fill_module(Flux(DEEP)).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "deep.safetensors")
    with pytest.raises(SluiceError, match="The device cpu:1: .*budget is 100 MiB") as refused:
        look(load_flux(runtime, tmp_path / "deep.safetensors"))
    least = re.search(r"Allow (\d+) MiB or more", str(refused.value))
    assert least
    runtime.team.tell_budget(Allowed(None, int(least[1]) + 10 << 20).words)
    alone = Runtime(Settings("cpu", "fp32", allowed()))
    two, one = (look(load_flux(each, tmp_path / "deep.safetensors")) for each in (runtime, alone))
    assert distance(two, one) < 5e-6
    (report,) = (event for event in told if event["type"] == "device.job" and "transformer" in event["line"])
    assert " · stream " in report["line"] and report["peak_bytes"] <= report["limit_bytes"]
    with pytest.raises(InputError, match="2 heads, too few for 64 devices"):
        look(model_of(team(Split(64, 1)), file))


def test_an_image_of_several_devices_says_so_and_is_the_same_on_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()

    def run(source: Path, *options: str) -> Path:
        where = ["--out", str(tmp_path), "--set", "steps=2", "--dtype", "fp32", "--json", *options]
        assert cli.main(["run", str(source), *where]) == 0
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        return Path(told["workflows"][0]["images"][0])

    together = run(WORKFLOW, "--devices", "cpu:0+cpu:1")
    torch.set_num_threads(threads)  # of this process, which the command ends with otherwise
    for member in children():
        member.kill()
    with Image.open(together) as made, Image.open(run(together)) as alone:
        assert json.loads(made.info["sluice_devices"]) == "cpu:0 and cpu:1 as sp2 ulysses"
        assert "sluice_devices" not in alone.info
        far = ImageChops.difference(made.convert("RGB"), alone.convert("RGB")).getextrema()
    assert all(isinstance(band, tuple) and band[1] <= 1 for band in far)
