"""The Python API: a model and a workflow as functions, in this process, several at once."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import sluice
import torch
from PIL import Image
from sluice.flux_core.errors import InputError, Interrupted, MissingFileError, PromptError, SluiceError
from sluice.flux_core.io.folders import TINY_MODELS
from sluice.flux_core.memory import rates

ROOT = Path(__file__).parents[2]
PROMPT = "a red circle on the left"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the calls happen; ./models of another folder would be searched."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def pipe() -> sluice.Pipeline:
    return sluice.load(device="cpu", dtype="fp32")


def pixels(images: list[Image.Image]) -> list[bytes]:
    return [image.convert("RGB").tobytes() for image in images]


def test_an_image_carries_the_workflow_that_makes_it_again(pipe: sluice.Pipeline, empty_folder: Path) -> None:
    (image,) = pipe(PROMPT, seed=7, steps=2, progress=False)
    saved = sluice.save(image, "fox.png")
    assert (image.mode, image.size) == ("RGB", (128, 128))
    again = sluice.workflow(saved, device="cpu", dtype="fp32")(progress=False)
    assert pixels(again) == pixels([image])
    assert list(empty_folder.iterdir()) == [empty_folder / "fox.png"]  # neither call leaves files


def test_a_batch_gives_several_images_and_no_seed_gives_new_ones(pipe: sluice.Pipeline) -> None:
    both = pixels(pipe(PROMPT, steps=1, count=2, progress=False))
    assert len(set(both)) == 2 and set(both).isdisjoint(pixels(pipe(PROMPT, steps=1, count=2, progress=False)))


def test_under_a_budget_the_image_is_the_same(pipe: sluice.Pipeline) -> None:
    """The budget switches the memory manager on."""
    managed = sluice.load(device="cpu", dtype="fp32", ram="16G")
    assert pixels(managed(PROMPT, seed=3, steps=2, progress=False)) == pixels(
        pipe(PROMPT, seed=3, steps=2, progress=False)
    )


def test_the_plan_is_the_command_lines(pipe: sluice.Pipeline) -> None:
    small, large = pipe.plan(size=(64, 64)), pipe.plan(size=(512, 512))
    assert 0 < small.seconds_per_step < large.seconds_per_step and small.peak_bytes < large.peak_bytes
    assert "512x512" in str(large) and "a step, bound by" in str(large)
    assert "this processor with" in str(large) and "rates measured on this processor" in str(large)


def test_the_plan_has_the_rates_of_this_processor(pipe: sluice.Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention of narrow heads is slower than of FLUX.1's: the rate is measured with the model's own."""
    asked: list[tuple[torch.dtype, int, int]] = []

    def attention(device: torch.device, dtype: torch.dtype, tokens: int, width: int) -> float:
        asked.append((dtype, tokens, width))
        return 1e9

    monkeypatch.setattr(rates, "gemm_rate", lambda device, dtype, tokens, hidden: 1e12)
    monkeypatch.setattr(rates, "attention_rate", attention)
    planned = pipe.plan(size=(1024, 1024))
    assert asked == [(torch.float32, 1024, 64)]
    attended = 6 * 4 * 3 * 64 * (4096 + 128) ** 2 / 1e9  # blocks, two products, heads, width
    assert planned.seconds_per_step == pytest.approx(attended, rel=0.2)


def test_steps_are_reported_with_previews_and_can_be_cancelled(pipe: sluice.Pipeline) -> None:
    seen: list[sluice.Step] = []
    pipe(PROMPT, seed=1, steps=3, on_step=seen.append, progress=False)
    assert [(step.title, step.done, step.total) for step in seen] == [("Denoise", n, 3) for n in (1, 2, 3)]
    preview = seen[-1].preview()
    assert preview is not None and preview.mode == "RGB"
    stopped: list[sluice.Step] = []

    def stop(step: sluice.Step) -> None:
        stopped.append(step)
        pipe.cancel()

    with pytest.raises(Interrupted):
        pipe(PROMPT, seed=2, steps=9, on_step=stop, progress=False)
    assert len(stopped) == 1
    assert pipe(PROMPT, seed=2, steps=1, progress=False)


def test_two_pipelines_work_at_the_same_time(pipe: sluice.Pipeline) -> None:
    other = sluice.load(device="cpu", dtype="bf16", ram="12G")
    alone = [pixels(each(PROMPT, seed=5, steps=3, progress=False)) for each in (pipe, other)]
    together: dict[int, list[bytes]] = {}

    def run(at: int) -> None:
        together[at] = pixels((pipe, other)[at](PROMPT, seed=5, steps=3, progress=False))

    threads = [threading.Thread(target=run, args=(at,)) for at in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[0], together[1]] == alone


def test_a_workflow_is_a_function_of_its_inputs() -> None:
    flow = sluice.workflow(ROOT / "workflows/text_to_image.png", device="cpu")
    (image,) = flow(prompt="a blue star", seed=3, steps=2, set={"Size.batch_size": 1}, progress=False)
    prompt = json.loads(image.info["prompt"])
    by_class = {node["class_type"]: node["inputs"] for node in prompt.values()}
    assert by_class["CLIPTextEncode"]["text"] == "a blue star"
    assert (by_class["RandomNoise"]["noise_seed"], by_class["BasicScheduler"]["steps"]) == (3, 2)
    assert "a blue star" in image.info["workflow"]
    with pytest.raises(PromptError, match="^stepz=3: no node has an input 'stepz'"):
        flow(stepz=3)


def test_which_text_is_the_prompt_is_asked_if_there_are_several(tmp_path: Path) -> None:
    prompt = json.loads(Image.open(ROOT / "workflows/text_to_image.png").info["prompt"])
    both = {"conditioning_1": ["5", 0], "conditioning_2": ["21", 0]}
    prompt["21"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "a heart", "clip": ["3", 0]}}
    prompt["22"] = {"class_type": "ConditioningCombine", "inputs": both}
    prompt["6"]["inputs"]["conditioning"] = ["22", 0]
    file = tmp_path / "two.json"
    file.write_text(json.dumps(prompt), "utf-8")
    with pytest.raises(PromptError, match="several nodes may hold it"):
        sluice.workflow(file, device="cpu")(prompt="a blue star")


def test_outputs_that_lack_only_a_link_are_left_out_with_a_warning(tmp_path: Path) -> None:
    prompt = json.loads(Image.open(ROOT / "workflows/text_to_image.png").info["prompt"])
    prompt["23"] = {"class_type": "PreviewImage", "inputs": {}, "_meta": {"title": "Loose end"}}
    file = tmp_path / "loose.json"
    file.write_text(json.dumps(prompt), "utf-8")
    with pytest.warns(UserWarning, match="loose.json: .*Loose end.* Outputs that need it are left out."):
        (image,) = sluice.workflow(file, device="cpu")(steps=1, set={"Size.batch_size": 1}, progress=False)
    assert image.size == (128, 128)
    del prompt["23"]["_meta"]
    file.write_text(json.dumps({"23": prompt["23"]}), "utf-8")
    with pytest.raises(PromptError, match="cannot be run"):
        sluice.workflow(file, device="cpu")(progress=False)


def test_files_may_lie_anywhere(tmp_path: Path, pipe: sluice.Pipeline) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    names = ("diffusion_models/sluice-tiny", "text_encoders/sluice-tiny-t5xxl", "text_encoders/sluice-tiny-clip_l")
    model, t5, clip = (
        Path(shutil.copy(TINY_MODELS / f"{name}.safetensors", elsewhere / f"my-{name.rpartition('/')[2]}.safetensors"))
        for name in names
    )
    for kind in ("t5xxl", "clip_l"):
        shutil.copytree(TINY_MODELS / "tokenizers" / kind, tmp_path / "tokenizers" / kind)
    vae = TINY_MODELS / "vae/sluice-tiny-ae.safetensors"
    own = sluice.load(model, device="cpu", dtype="fp32", text_encoders=(t5, clip), vae=vae)
    made, expected = (each(PROMPT, seed=7, steps=1, size=(128, 128), progress=False) for each in (own, pipe))
    assert pixels(made) == pixels(expected)


@pytest.mark.parametrize("prefix", ["", "my-"])
@pytest.mark.parametrize("copied", ["*/sluice-tiny.safetensors", "*/*.safetensors"])
def test_copies_of_the_shipped_files_in_the_models_folder_are_the_shipped_model(
    tmp_path: Path, pipe: sluice.Pipeline, prefix: str, copied: str
) -> None:
    for file in TINY_MODELS.glob(copied):
        target = tmp_path / "models" / file.parent.name / f"{prefix}{file.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    for name in {"sluice-tiny", f"{prefix}sluice-tiny"}:
        own = sluice.load(name, device="cpu", dtype="fp32")
        made, expected = (each(PROMPT, seed=7, steps=1, progress=False) for each in (own, pipe))
        assert pixels(made) == pixels(expected), "in the shipped model's own size"


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="Comfy-Org/flux1-dev; put it into .*checkpoints"):
        sluice.load("flux1-dev-fp8")
    pipe = sluice.load(device="cpu")
    with pytest.raises(MissingFileError, match="loras"):
        pipe(PROMPT, loras=["unheard"])
    with pytest.raises(PromptError, match="steps"):
        pipe(PROMPT, steps=0)
    for asked in (lambda: pipe(PROMPT, size=(100, 7)), lambda: pipe.plan(size=(100, 7))):
        with pytest.raises(InputError, match="multiples of 16 pixels; 100x7 is not. Take 96x16."):
            asked()
    assert repr(pipe) == "<Pipeline sluice-tiny.safetensors: 12 steps, 128x128 unless said otherwise>"
    with pytest.raises(SluiceError, match="fox.png"):
        sluice.save(Image.new("RGB", (8, 8)), tmp_path / "fox.jpg")
    with pytest.raises(InputError, match="number type"):
        sluice.load(dtype="fp64")
