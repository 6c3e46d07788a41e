"""From a folder of images to a LoRA file: captions, random choices, caches, and that a kill loses nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tracemalloc
import types
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from doubles.simulated import SimulatedMemory
from PIL import Image
from sluice.flux_core.adapters.lora import parse
from sluice.flux_core.adapters.lora_names import flux_targets
from sluice.flux_core.checkpoint.files import open_weights
from sluice.flux_core.checkpoint.lora_keys import FLUX
from sluice.flux_core.checkpoint.whole_files import read_tensors, safetensors, whole_file
from sluice.flux_core.errors import BudgetTooSmall, FileFormatError, InputError, Interrupted, NotFinite, SluiceError
from sluice.flux_core.graph.execute import Executor, Result
from sluice.flux_core.graph.prompt import JsonPrompt
from sluice.flux_core.io.folders import TINY_MODELS, Folders
from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.memory.manager import Manager
from sluice.flux_core.memory.workload import MiB
from sluice.flux_core.runtime.handles import load_autoencoder, load_flux, load_text
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.training.lora import checkpoint, steps
from sluice.flux_core.training.lora.adapter import TrainedLora
from sluice.flux_core.training.lora.buckets import Bucket, bucket_for, buckets
from sluice.flux_core.training.lora.cache import digest, digest_in_parts
from sluice.flux_core.training.lora.checkpoint import Checkpoints, Saved
from sluice.flux_core.training.lora.folder import read_folder, tag_frequency
from sluice.flux_core.training.lora.lora_file import lora_tensors
from sluice.flux_core.training.lora.node import TrainLora
from sluice.flux_core.training.lora.optimiser import optimiser_for, state_of, update
from sluice.flux_core.training.lora.ready import with_gradients
from sluice.flux_core.training.lora.samples import ModelNames, WorkflowSampler
from sluice.flux_core.training.lora.settings import LoraSettings, settings_from
from sluice.flux_core.training.lora.training import LoraTraining, Parts
from sluice.nodes.binding import bound_to
from sluice.nodes.host import Host

CPU = torch.device("cpu")
QUICK = LoraSettings(
    name="q", trigger="blorp", steps=6, rank=2, size=64, rate=1e-2, save_every=2, sample_every=4, validate=2,
    validate_every=3, warm_up=2,
)  # fmt: skip


def runtime_of(budget: int | None = None) -> Runtime:
    """budget: bytes beside what the workspace is thought to take, so that the model streams."""
    runtime = Runtime(Settings("cpu", "fp32"))
    if budget is not None:
        runtime.budget = Allowed(ram=budget)
        manager = runtime.managers[CPU] = Manager(CPU, runtime.budget)
        manager.memory = SimulatedMemory(budget + 128 * MiB)
    return runtime


def parts_of(runtime: Runtime) -> Parts:
    """The small model."""
    text = [TINY_MODELS / "text_encoders" / f"sluice-tiny-{name}.safetensors" for name in ("clip_l", "t5xxl")]
    return Parts(
        load_flux(runtime, TINY_MODELS / "diffusion_models" / "sluice-tiny.safetensors"),
        load_text(runtime, text, tokenizers=[TINY_MODELS / "tokenizers"]),
        load_autoencoder(runtime, TINY_MODELS / "vae" / "sluice-tiny-ae.safetensors"),
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three, one of them wide, one with a mask, one that is no image."""
    folder = tmp_path / "images"
    (folder / "masks").mkdir(parents=True)
    for number, (colour, size) in enumerate((("red", (64, 64)), ("green", (70, 35)), ("blue", (65, 66)))):
        Image.new("RGB", size, colour).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} thing\n")
    Image.new("L", (32, 32), 128).save(folder / "masks" / "2.png")
    (folder / "3.png").write_bytes(b"none")
    return folder


def training(images: Path, out: Path, settings: LoraSettings = QUICK, budget: int | None = None) -> LoraTraining:
    return LoraTraining(settings, parts_of(runtime_of(budget)), images, out)


# --- what people have -----------------------------------------------------------------------------------------------


def test_a_folder_is_read_as_people_have_it(tmp_path: Path) -> None:
    nested = tmp_path / "10_grey_cat"
    nested.mkdir()
    for name in (
        "a.png",
        "b.JPG",
        "10_grey_cat/c.webp",
        "d.png",
        "e.png",
        "_latent_cache.png",
        "a-masklabel.png",
        "f.png",
    ):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a.txt").write_bytes("﻿ein Bär, {rot|blau}\n\n[trigger] im Wald\n".encode())
    (tmp_path / "d.caption").write_text("d of xyz\n")
    (tmp_path / "e.json").write_text('{"caption": "long e", "caption_short": "e"}')
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "f.png", "text": ["one", "two"]}\n')
    found = read_folder(tmp_path, "xyz", repeats=2)
    told = {picture.path.name: picture.captions for picture in found.pictures}
    assert told == {
        "c.webp": ("xyz, grey cat",), "a.png": ("xyz, ein Bär, rot", "xyz, ein Bär, blau", "xyz im Wald"),
        "b.JPG": ("xyz",), "d.png": ("d of xyz",), "e.png": ("xyz, long e", "xyz, e"),
        "f.png": ("xyz, one", "xyz, two"),
    }  # fmt: skip
    assert {picture.path.name: picture.repeats for picture in found.pictures}["c.webp"] == 20
    assert {picture.path.name for picture in found.pictures if picture.mask} == {"a.png"}
    assert found.without_caption == 2, "that of the folder's name is not its own"
    assert next(iter(tag_frequency(found.pictures, "xyz").items())) == ("xyz", 30)


def test_bad_folders_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(InputError, match="no pictures in .*Put some there"):
        read_folder(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"No picture .* has a caption.*--trigger"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match=r"a\.png is a file\. Give the folder"):
        read_folder(tmp_path / "a.png")
    table = tmp_path / "metadata.jsonl"
    for text, message in (
        ('{"text": "x"}', r"line 1, does not name a picture.*like {.*cat\.png"),
        ('\n{"text": ', r"metadata\.jsonl, line 2, is not JSON: .*Every line is like {.*cat\.png"),
    ):
        table.write_text(text)
        with pytest.raises(FileFormatError, match=message):
            read_folder(tmp_path)
    table.write_text('{"file_name": "b.png", "text": "b"}')
    with pytest.raises(InputError, match=r"metadata\.jsonl names pictures that are not there; the first is b\.png"):
        read_folder(tmp_path)
    assert read_folder(tmp_path, "x").not_there == ("b.png",)
    table.unlink()
    for text, message in (
        ("{", r"a\.json is not JSON: .*Write {\"caption"),
        ("3", r"a\.json should hold an object such"),
    ):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(FileFormatError, match=message):
            read_folder(tmp_path)


def test_files_of_a_training_below_the_images_are_none_of_them(images: Path) -> None:
    """As when the program is started in the folder of the images."""
    short = replace(QUICK, steps=1, validate=0)
    made = training(images, images / "models" / "loras" / "q", short)
    expected = made.run().read_bytes()
    assert (made.out / "loss.png").is_file()
    assert training(images, made.out, short).run().read_bytes() == expected


def test_buckets_have_one_area_and_the_shapes_of_images() -> None:
    made = buckets(512)
    assert (
        Bucket(512, 512) in made and Bucket(384, 640) in made and all(b.width % 64 == b.height % 64 == 0 for b in made)
    )
    assert all(0.8 * 512**2 < b.width * b.height <= 512**2 for b in made)
    assert bucket_for(3000, 2000, made) == Bucket(640, 384) and bucket_for(10, 1000, made) == min(made)
    with pytest.raises(InputError, match="multiple of 64"):
        buckets(500)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"rank": 0}, "at least 1"), ({"rank": 4096}, "at most 512"), ({"rate": 0.0}, "1e-4"), ({"keys": "x"}, "kohya"),
     ({"name": "a/b"}, "name of a file"), ({"shift": "-1"}, "above 0"), ({"dropout": 1.0}, "share")],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings_from({**json.loads(QUICK.to_json()), **wrong})


# --- the training ---------------------------------------------------------------------------------------------------


def test_stopped_and_gone_on_streamed_or_whole_the_file_has_the_same_bytes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = training(images, tmp_path / "whole")
    found = whole.look()
    assert found.foreseen is None and [note.split()[0] for note in found.notes] == ["1", "1"], "unreadable, and small"
    assert found.sizes == {"64x64": 2, "80x48": 1}
    assert not (tmp_path / "whole").exists(), "to look writes nothing"
    expected = whole.run(found).read_bytes()
    names = sorted(path.name for path in whole.out.iterdir())
    assert names == ["cache", "loss.csv", "loss.png", "loss.svg", "q-000002.safetensors", "q-000004.safetensors",
                     "q.safetensors", "settings.json", "state", "validation.csv"]  # fmt: skip
    losses = [float(line.split(",")[1]) for line in (whole.out / "validation.csv").read_text().splitlines()[1:]]
    assert len(losses) == 3 and losses[-1] < losses[0]

    shutil.copytree(whole.out / "cache", tmp_path / "stopped" / "cache")  # so the budget need not hold encoders
    stopped = training(images, tmp_path / "stopped", budget=6 * MiB)
    seen = stopped.look().foreseen
    assert seen is not None and seen.plan.slots and seen.plan.workload.repeats
    monkeypatch.setattr(steps, "LOOK_AHEAD", 2)
    told_of: list[str] = []

    def stops(count: int = 0, told: str = "") -> None:
        told_of.append(told)
        if sum(map(bool, told_of)) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(stopped.watcher, "advance", stops)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert Checkpoints(stopped.out / "state").newest().step == 3  # type: ignore[union-attr]
    (stopped.out / "q-000002.safetensors").unlink()
    shutil.rmtree(stopped.out / "state" / "step-000003")  # as if killed after the checkpoint of step 2
    again = training(images, tmp_path / "stopped")  # whole this time
    assert again.run().read_bytes() == expected
    assert (again.out / "q-000002.safetensors").read_bytes() == (whole.out / "q-000002.safetensors").read_bytes()
    lets_others_go_first(images, whole.out, tmp_path / "aside", expected)


class Told:
    """A watcher that adds up the progress of each phase."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int]] = []

    def phase(self, name: str, total: int, done: int = 0) -> None:
        self.phases.append((name, done))

    def advance(self, count: int = 1, note: str = "") -> None:
        name, done = self.phases[-1]
        self.phases[-1] = name, done + count

    def note(self, text: str) -> None: ...


class StoppedExecutor(Executor):
    """Makes images in three steps each; a stop is asked for before the third one of training step 2."""

    def __init__(self, stop: bool, folder: Path) -> None:
        super().__init__({})
        self.stop, self.folder = stop, folder
        self.report: Callable[[int, int], None] = lambda done, total: None

    def again(self) -> Executor:
        return self

    def execute(self, prompt: JsonPrompt, prompt_id: str = "", *_: object, **__: object) -> Result:
        for done in (1, 2, 3):
            if self.stop and prompt_id == "step-000002" and done == 3:
                return Result({}, {}, "interrupted", (), (), Interrupted("The training was stopped."))
            self.report(done, 3)
        Image.new("RGB", (64, 64)).save(self.folder / f"{prompt['file']['inputs']['filename_prefix']}_00001_.png")
        return Result({}, {}, "success", (), ())


def test_samples_show_their_steps_and_a_stop_while_they_are_made_leaves_no_gap(images: Path, tmp_path: Path) -> None:
    settings = replace(QUICK, steps=4, sample_every=2, sample_steps=3, prompts=("a", "b"), validate=0)
    watcher = Told()
    for stop, budget in ((True, None), (False, 80 * MiB)):
        made = training(images, tmp_path / "out", settings, budget)
        made.watcher = watcher
        executor = StoppedExecutor(stop, made.out / "samples")
        sampler = WorkflowSampler(executor.again, ModelNames("m"), settings, executor.folder, tmp_path, lambda: watcher)
        made.sampler, executor.report = sampler, sampler.report
        with pytest.raises(Interrupted) if stop else nullcontext():
            made.run()
    rows = [row for row in watcher.phases if row[0].startswith("samples")]
    assert rows == [(f"samples of step {step}", done) for step, done in ((0, 6), (2, 2), (2, 6), (4, 6))]
    with Image.open(made.out / "sheet.png") as sheet:
        assert sheet.size == (128, 18 + 3 * (64 + 18))


def lets_others_go_first(images: Path, whole: Path, out: Path, expected: bytes) -> None:
    """Stopped after every step, streamed and whole in turn, it makes all files of the undisturbed one."""
    shutil.copytree(whole / "cache", out / "cache")
    runs = 0
    while not (out / "q.safetensors").exists():
        aside = training(images, out, budget=(6 * MiB, None)[runs % 2])
        aside.others_wait, runs = (lambda: True), runs + 1
        with pytest.raises(Interrupted, match="go first") if runs < 5 else nullcontext():
            aside.run()
    assert runs == 5, "it is not asked where a sample follows, nor at the end"
    early = training(images, out.with_name("early"))
    early.others_wait = lambda: True
    with pytest.raises(Interrupted, match="go first"):
        early.run()
    assert len(list((early.out / "cache").iterdir())) == 1, "also between two captions"
    assert (out / "q.safetensors").read_bytes() == expected
    for name in ("q-000002.safetensors", "q-000004.safetensors", "validation.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_other_settings_other_images_or_an_infinite_loss_are_told(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(QUICK, steps=2, validate=0)
    training(images, tmp_path / "out", short).run()
    with pytest.raises(InputError, match=r"rank 2, now 3.*--fresh"):
        training(images, tmp_path / "out", replace(short, rank=3)).look()
    assert training(images, tmp_path / "out", replace(short, steps=3)).run().is_file(), "more steps may be asked for"
    with pytest.raises(InputError, match=r"has 3 steps already, more than --steps 2\. Give 3 or more"):
        training(images, tmp_path / "out", short).look()
    Image.new("RGB", (32, 32), "pink").save(images / "0.png")
    with pytest.raises(InputError, match="started with other pictures"):
        training(images, tmp_path / "out", replace(short, steps=3)).run()
    wild = training(images, tmp_path / "wild", replace(short, rate=0.9, clip=0.0, steps=9, save_every=1))
    monkeypatch.setattr(wild, "loss", lambda velocity, target: (velocity - target).exp() * 1e38)
    with pytest.raises(NotFinite, match=r"not a finite number at step \d.*--rate 0\.3"):
        wild.run()
    shutil.copytree(tmp_path / "out" / "cache", tmp_path / "tight" / "cache")
    with pytest.raises(BudgetTooSmall, match=r"What does not fit: training steps .* or choose rank \d+"):
        training(images, tmp_path / "tight", replace(short, rank=400), budget=16 * MiB).look()
    with pytest.raises(InputError, match=r"out\.txt is a file, so .* Choose another --out or --name"):
        (tmp_path / "out.txt").write_text("")
        training(images, tmp_path / "out.txt" / "q", short).look()
    (images / "masks" / "2.png").write_bytes(b"none")
    assert "the mask of 2.png: cannot identify" in "".join(training(images, tmp_path / "mask", short).look().notes)
    monkeypatch.setattr("os.access", lambda place, mode: False)
    with pytest.raises(SluiceError, match="allows no new files. Choose another --out"):
        training(images, tmp_path / "closed", short).look()
    monkeypatch.undo()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(SluiceError, match="has room for 0 MiB, and this training will write"):
        training(images, tmp_path / "full", short).look()


def test_every_phase_is_checked_before_anything_is_read_and_what_is_asked_for_suffices(
    images: Path, tmp_path: Path
) -> None:
    short, out = replace(QUICK, steps=2, prompts=("a",)), tmp_path / "out"
    tight = training(images, out, short, budget=8 * MiB)
    with pytest.raises(BudgetTooSmall, match=r"What does not fit: samples .*, encode pictures \(") as told:
        tight.look()
    assert not tight.parts.text.t5_weights.loaded and not out.exists()
    asked = re.search(r"Allow (\d+)M or more \(--ram.*; a smaller rank or size is not enough", str(told.value))
    assert asked is not None
    least = int(asked[1]) * MiB
    enough = training(images, out, short, budget=least - 128 * MiB)
    found = enough.look()
    names = ["encode captions", "encode pictures", "modulation rows", "training steps", "samples", "checkpoints"]
    assert [phase.name for phase in found.phases] == names
    assert all(phase.peak is not None and phase.least <= phase.peak <= least for phase in found.phases)
    assert enough.run(found).is_file()
    again = training(images, out, replace(short, steps=3), budget=least - 128 * MiB).look()
    assert [phase.name for phase in again.phases] == names[2:], "what is in the cache is not encoded again"


def test_models_and_folders_that_cannot_be_trained_on_are_told_before_anything_is_read(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = training(images, tmp_path / "out")
    weights = made.parts.model.weights
    for change, message in (
        ({"in_channels": 96}, "takes 96 channels and gives 16: it is a Fill, Canny or Depth model"),
        ({"guidance": False}, None),
    ):
        monkeypatch.setattr(weights, "config", replace(weights.config, **change))
        if message:
            with pytest.raises(InputError, match=message):
                LoraTraining(QUICK, made.parts, images, tmp_path / "out")
        else:
            assert any("schnell" in note for note in made.look().notes)
        monkeypatch.undo()
    loaded = replace(made.parts.model, loras=("one",))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has LoRAs already"):
        LoraTraining(QUICK, replace(made.parts, model=loaded), images, tmp_path / "out")
    for name in ("0.png", "1.png", "2.png"):
        (images / name).write_bytes(b"none")
    with pytest.raises(InputError, match="No picture in .* can be read, of 4: .*image viewer"):
        made.look()
    with pytest.raises(InputError, match="No layer of this model fits triple_blocks"):
        (tmp_path / "layers.txt").write_text("triple_blocks.*\n")
        Image.new("RGB", (64, 64)).save(images / "0.png")
        training(images, tmp_path / "out", replace(QUICK, layers=str(tmp_path / "layers.txt"))).look()


class EightBits(torch.optim.AdamW):
    """As bitsandbytes has it: moments as bytes, with a scale for each 256 of them."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        super().step()
        for state in self.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                value = state[name]
                scale = value.abs().max().clamp(min=1e-20) / 127
                state[name] = (value / scale).round().clamp(-127, 127) * scale


def test_moments_in_8_bits_come_from_a_library_and_go_on_like_others(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(QUICK, optimiser="adamw8bit", validate=0)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match="pip install bitsandbytes"):
        training(images, tmp_path / "none", settings).look()
    library = types.ModuleType("bitsandbytes")
    library.optim = types.SimpleNamespace(AdamW8bit=EightBits)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    whole = training(images, tmp_path / "whole", settings).run().read_bytes()
    stopped = training(images, tmp_path / "stopped", settings)
    told = [0]

    def stops(count: int = 0, text: str = "") -> None:
        told[0] += bool(text)
        if told[0] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(stopped.watcher, "advance", stops)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert training(images, tmp_path / "stopped", settings).run().read_bytes() == whole
    plain = training(images, tmp_path / "plain", replace(settings, optimiser="adamw")).run()
    assert plain.read_bytes() != whole, "the rounded moments lead elsewhere"


def test_both_kinds_of_names_mean_the_same_change_and_the_header_says_what_it_is(images: Path, tmp_path: Path) -> None:
    made = training(images, tmp_path / "out", replace(QUICK, layers="all", alpha=1.0, steps=2, validate=0))
    file = open_weights(made.run())
    shapes = {name: stored.shape for name, stored in made.parts.model.weights.tensors.items()}
    targets = {FLUX: flux_targets(shapes)}
    kohya = parse("kohya", read_tensors(made.final), targets)[FLUX]
    masters = Checkpoints(made.out / "state").newest().lora  # type: ignore[union-attr]
    peft = parse("peft", lora_tensors(masters, 1.0, "peft", shapes, torch.bfloat16), targets)[FLUX]
    assert not kohya.unmatched and not peft.unmatched and kohya.changes.keys() == peft.changes.keys()
    assert "double_blocks.0.img_mod.lin" in kohya.changes
    for path, (change,) in kohya.changes.items():
        parts = sorted(peft.changes[path], key=lambda part: part.rows or (0, 0))
        joined = torch.cat([part.matrix() for part in parts])  # type: ignore[union-attr]
        torch.testing.assert_close(joined, change.matrix(), rtol=0.02, atol=1e-6)  # type: ignore[union-attr]
        assert change.matrix().count_nonzero()  # type: ignore[union-attr]
    assert file.metadata["modelspec.trigger_phrase"] == "blorp" and file.metadata["ss_network_dim"] == "2"
    assert "blorp" in json.loads(file.metadata["ss_tag_frequency"])["images"]
    assert file.metadata["modelspec.architecture"] == "flux-1-dev/lora"


def test_of_two_generations_a_damaged_one_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        kept.save(Saved(step, {"a": torch.full((2,), float(step))}, {}, {}, {}))
    assert [path.name for path in kept.generations()] == ["step-000002", "step-000003"]
    (tmp_path / "step-000003" / "lora.safetensors").write_bytes(b"cut")
    assert kept.newest().step == 2  # type: ignore[union-attr]
    monkeypatch.setattr(checkpoint, "write_whole", lambda path, data: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(SluiceError, match=r"step 4 could not be written.*No space"):
        kept.save(Saved(4, {}, {}, {}, {}))
    assert kept.newest().step == 2  # type: ignore[union-attr]


def test_a_save_copies_no_tensors(tmp_path: Path) -> None:
    """Copies would be outside the plan: those of moments and LoRA together are larger than the activations of a step.

    tracemalloc counts the memory of bytes, but not that of tensors.
    """
    kept, large = Checkpoints(tmp_path), {f"{n}": torch.randn(1 << 20) for n in range(4)}
    tracemalloc.start()
    try:
        kept.save(Saved(1, large, large, {}, {}))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2 * MiB, f"{most} bytes for 32 MiB of tensors"
    saved = kept.newest()
    assert saved is not None and all(torch.equal(saved.moments[name], large[name]) for name in large)
    mixed = {"b": torch.randn(3, 2).bfloat16(), "a": torch.tensor(1.5), "none": torch.empty(0, 4)}
    content, file = safetensors(mixed, {"x": "y"}), whole_file(mixed, {"x": "y"})
    assert file.nbytes == len(content) and digest_in_parts(file.nbytes, file) == digest(content)


@pytest.mark.parametrize("name", ["adamw", "adam", "rmsprop", "sgd"])
def test_the_moments_exist_before_the_first_update_and_change_nothing(name: str) -> None:
    """The plan is made before the first update, from the memory of the process at that time."""
    settings = replace(QUICK, optimiser=name)
    ours, plain = (TrainedLora({"a": (3, 5)}, 2, 2.0, CPU, torch.float32) for _ in range(2))
    optimiser, lazy = (optimiser_for(settings, lora.masters) for lora in (ours, plain))
    before = {name: value.shape for name, value in state_of(optimiser, ours.names)[0].items()}
    lazy.state.clear()  # as PyTorch would allocate them itself
    for number in range(2):
        for lora, each in ((ours, optimiser), (plain, lazy)):
            for master in lora.masters:
                master.grad = torch.linspace(-1, number, master.numel()).view_as(master)
            update(each, lora.masters, 1e-2, 1.0)
    after, expected = state_of(optimiser, ours.names)[0], state_of(lazy, plain.names)[0]
    assert before == {key: value.shape for key, value in after.items()} and after.keys() == expected.keys()
    assert all(torch.equal(after[key], expected[key]) for key in after)
    assert all(map(torch.equal, ours.masters, plain.masters))


def test_the_plan_contains_the_gradients_of_all_batches_of_an_update() -> None:
    assert with_gradients(1000, 10, torch.float32, 1) == 1000, "those of one walk are in it, and need no copy"
    assert with_gradients(1000, 10, torch.bfloat16, 4) == 1000 + 3 * 20, "those of earlier walks"
    assert with_gradients(30, 10, torch.bfloat16, 2) == 2 * 20 + 40, "all, and their mean in float32"


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def test_a_kill_between_any_two_operations_of_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [0]

    def counted(work: Callable[..., object]) -> Callable[..., object]:
        def operation(*args: object, **options: object) -> object:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return work(*args, **options)

        return operation

    for name in ("write_whole", "replace", "_flush"):
        monkeypatch.setattr(checkpoint, name, counted(getattr(checkpoint, name)))
    monkeypatch.setattr(Path, "mkdir", counted(Path.mkdir))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))

    def saved(step: int) -> Saved:
        return Saved(step, {"a": torch.full((2,), float(step))}, {"m": torch.zeros(1)}, {}, {})

    seen = set()
    for after in range(20):
        kept = Checkpoints(tmp_path / str(after))
        left[0] = 1000
        for step in (1, 2):
            kept.save(saved(step))
        left[0] = after
        try:
            kept.save(saved(3))
        except Killed:
            pass
        left[0] = 1000
        newest = kept.newest()
        assert newest is not None and newest.step in (2, 3) and float(newest.lora["a"][0]) == newest.step
        seen.add(newest.step)
        kept.save(saved(4))
        assert [path.name for path in sorted((tmp_path / str(after)).iterdir())][-1] == "step-000004"
        assert not [path for path in kept.folder.iterdir() if path.name.startswith(".sluice")]
    assert seen == {2, 3}, "kills before the name is given, and after it"


def test_a_killed_program_goes_on_and_ends_in_the_same_bytes(command: list[str], images: Path, tmp_path: Path) -> None:
    words = ["train", "lora", str(images), *"--size 32 --steps 12 --rank 2 --save-every 2 --validate 0".split()]
    words += "--device cpu --dtype fp32 --trigger blorp --rate 1e-2".split()

    def run(folder: Path, kill_at: str = "") -> int:
        process = subprocess.Popen([*command, *words, "--out", str(folder)], stdout=-3, stderr=-3)
        while kill_at and process.poll() is None and not (folder / "images" / "state" / kill_at).exists():
            time.sleep(0.005)
        if kill_at:
            process.kill()
        return process.wait()

    assert run(tmp_path / "killed", "step-000004") in (-9, 0)
    assert run(tmp_path / "killed") == 0 == run(tmp_path / "whole")
    files = [tmp_path / name / "images" / "images.safetensors" for name in ("killed", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not [name for name in os.listdir(files[0].parent / "state") if name.startswith(".sluice")]


def test_as_a_node_it_is_a_job_that_a_cancel_ends_with_a_checkpoint(images: Path, tmp_path: Path) -> None:
    stop = iter((True,))
    runtime = runtime_of()
    folders = Folders(
        {"loras": [tmp_path / "loras"]}, input=tmp_path, output=tmp_path, temp=tmp_path, user=tmp_path
    )  # fmt: skip
    steps_done: list[int] = []
    host = Host(
        folders,
        report=lambda done, total, preview: steps_done.append(done),
        interrupted=lambda: len(steps_done) == 9 and next(stop, False),  # four captions, three images, two steps
        make_runtime=lambda: runtime,
    )
    train = bound_to(host, {"train": TrainLora})["train"]().train
    parts = parts_of(runtime)
    values = {"trigger": "x", "steps": 4, "rank": 2, "size": 64, "batch": 1, "rate": 1e-2, "seed": 0, "save_every": 2}
    with torch.inference_mode():
        parts.model.weights.module(CPU, torch.float32)  # loaded by a job before
        with pytest.raises(Interrupted):
            train(parts.model, parts.text, parts.autoencoder, "images", "mine", **values)
        kept = Checkpoints(tmp_path / "loras" / "mine" / "state").newest()
        assert kept is not None and 0 < kept.step < 4
        with pytest.raises(InputError, match="leads out of the folder"):
            train(parts.model, parts.text, parts.autoencoder, "/etc", "mine", **values)
        with pytest.raises(InputError, match="cannot be the name of a file"):
            train(parts.model, parts.text, parts.autoencoder, "images", "../mine", **values)
        told = train(parts.model, parts.text, parts.autoencoder, "images", "mine", **values)
    assert told["result"] == ("mine/mine.safetensors",) and (tmp_path / "loras" / told["result"][0]).is_file()
    assert steps_done[-1] == 4


def test_diffusers_reads_the_same_matrices_from_both_families_of_names() -> None:
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers as convert
    from sluice.flux_core.models.flux import Flux
    from sluice.flux_core.models.flux_config import flux1
    from sluice.flux_core.training.lora.adapter import TrainedLora, chosen_layers

    with torch.device("meta"):
        flux = Flux(replace(flux1(), depth=1, depth_single=1))  # diffusers expects the published widths
        layers = chosen_layers(flux, "blocks")
        shapes = {name: tuple(value.shape) for name, value in flux.state_dict().items()}
    lora = TrainedLora(layers, 2, 2.0, CPU, torch.float32)
    masters = {name: torch.randn(value.shape, generator=torch.Generator().manual_seed(n))
               for n, (name, value) in enumerate(lora.state().items())}  # fmt: skip
    peft = lora_tensors(masters, 2.0, "peft", shapes, torch.float32)
    read = convert(lora_tensors(masters, 2.0, "kohya", shapes, torch.float32))
    assert read.keys() == peft.keys()
    for name in (name.removesuffix(".lora_A.weight") for name in peft if name.endswith(".lora_A.weight")):
        probe = torch.randn(peft[f"{name}.lora_A.weight"].shape[1], 3, generator=torch.Generator().manual_seed(0))
        one, other = (file[f"{name}.lora_B.weight"] @ (file[f"{name}.lora_A.weight"] @ probe) for file in (peft, read))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-3)
