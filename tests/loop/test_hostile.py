"""Bad files, names and sizes on the command line: one clear sentence, a non-zero exit code, no files left."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sluice.flux_core.commands import cli, run

Told = Callable[..., str]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def picture_of(image: str = "p.png", prefix: str = "x") -> dict[str, Any]:
    return {"1": node("LoadImage", image=image), "2": node("SaveImage", images=["1", 0], filename_prefix=prefix)}


def text_to_image(**latent: int) -> dict[str, Any]:
    return {
        "1": node("UNETLoader", unet_name="flux1-schnell.safetensors", weight_dtype="default"),
        "2": node("DualCLIPLoader", clip_name1="clip_l.safetensors", clip_name2="t5xxl_fp16.safetensors", type="flux"),
        "3": node("VAELoader", vae_name="ae.safetensors"),
        "4": node("CLIPTextEncode", text="x", clip=["2", 0]),
        "5": node("EmptySD3LatentImage", **{"width": 32, "height": 32, "batch_size": 1, **latent}),
        "6": node(
            "KSampler",
            seed=1,
            steps=1,
            cfg=1,
            sampler_name="euler",
            scheduler="simple",
            denoise=1,
            model=["1", 0],
            positive=["4", 0],
            negative=["4", 0],
            latent_image=["5", 0],
        ),
        "7": node("VAEDecode", samples=["6", 0], vae=["3", 0]),
        "8": node("SaveImage", images=["7", 0], filename_prefix="x"),
    }


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Told:
    """refused(prompt, *options): the text on stderr, after a check that nothing else was done."""

    def run(prompt: dict[str, Any], *options: str, code: int = 1) -> str:
        (here / "w.json").write_text(json.dumps(prompt))
        before = {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.is_file()}
        assert cli.main(["run", "w.json", "--device", "cpu", *options]) == code
        told = capsys.readouterr()
        assert told.out == "" and "Traceback" not in told.err
        assert {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.is_file()} == before
        return told.err

    return run


@pytest.fixture
def own_store(here: Path, store: Path) -> Path:
    """A copy of the store to spoil."""
    return Path(shutil.copytree(store, here / "models"))


def header(entries: dict[str, Any], size: int) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * size


def f32(start: int, end: int, shape: list[int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


SPOILT = {
    "header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "ranges that overlap": header({"a": f32(0, 8, [2]), "b": f32(4, 12, [2])}, 12),
    "an unknown number type": header({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, 4),
    "a header that is no JSON": struct.pack("<Q", 4) + b"nope",
    "a pickle": pickle.dumps({"img_in.weight": [1.0]}),
    "nothing": b"",
    "a web page": b"<!doctype html><html>sign in</html>",
    "a model of another kind": header({"model.layers.0.weight": f32(0, 4, [1])}, 4),
}


@pytest.mark.parametrize("damage", SPOILT)
def test_a_spoilt_weight_file_is_named_and_explained(refused: Told, own_store: Path, damage: str) -> None:
    (own_store / "diffusion_models/flux1-schnell.safetensors").write_bytes(SPOILT[damage])
    told = refused(text_to_image())
    *before, last = told.strip().splitlines()  # before it: what the run computes on, and the encoders' reports
    assert "flux1-schnell.safetensors" in last and "node 1 (UNETLoader)" in last
    assert not any(line.startswith("sluice:") for line in before)


@pytest.mark.parametrize("file", ["diffusion_models/flux1-schnell", "text_encoders/t5xxl_fp16", "vae/ae"])
def test_a_truncated_weight_file_is_named(refused: Told, own_store: Path, file: str) -> None:
    path = own_store / f"{file}.safetensors"
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 1000)
    assert path.name in refused(text_to_image())


def test_a_file_that_is_replaced_between_two_workflows_is_loaded_anew(
    here: Path, own_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "w.json").write_text(json.dumps(text_to_image()))
    file, began = own_store / "diffusion_models/flux1-schnell.safetensors", []
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)

    def listen(event: str, data: Any) -> None:
        if event == "executing":
            began.append(data["node"])
        if event == "execution_success" and len(began) == 8:
            numbers = bytearray(file.read_bytes())
            start = 8 + struct.unpack("<Q", numbers[:8])[0]
            numbers[start::2] = bytes(byte ^ 0x40 for byte in numbers[start::2])  # half the mantissa of a bfloat16
            file.write_bytes(numbers)

    assert run.run(parser.parse_args(["w.json", "w.json", "--device", "cpu"]), listen) == 0
    assert sorted(began[8:]) == ["1", "6", "7", "8"]
    first, second = (Image.open(here / name).tobytes() for name in capsys.readouterr().out.splitlines())
    assert first != second


def test_files_in_the_wrong_place_are_told_apart(refused: Told, own_store: Path) -> None:
    shutil.copy(own_store / "vae/ae.safetensors", own_store / "diffusion_models/flux1-schnell.safetensors")
    assert "autoencoder" in refused(text_to_image()).lower()


def test_a_missing_tokenizer_says_where_to_get_it(refused: Told, own_store: Path) -> None:
    shutil.rmtree(own_store / "tokenizers/t5xxl")
    told = refused(text_to_image(), code=2)
    assert "tokenizer.json" in told and "google/t5-v1_1-xxl" in told and "tokenizers/t5xxl" in told


@pytest.mark.parametrize("prefix", ["../x", "a/../../x", "/tmp/x", "link/x"])
def test_no_picture_is_saved_outside_the_output_folder(refused: Told, here: Path, prefix: str) -> None:
    (here / "input").mkdir()
    (here / "elsewhere").mkdir()
    (here / "output").mkdir()
    os.symlink(here / "elsewhere", here / "output/link")
    Image.new("RGB", (8, 8)).save(here / "input/p.png")
    assert "outside the output folder" in refused(picture_of(prefix=prefix), code=2)
    assert not list((here / "elsewhere").iterdir())


@pytest.mark.parametrize("prefix, told", [("a\0b", "NUL"), ("x" * 5000, "too long"), ("taken/x", "no folder")])
def test_a_prefix_no_file_can_have_is_told_before_anything_runs(
    refused: Told, here: Path, prefix: str, told: str
) -> None:
    (here / "input").mkdir()
    (here / "output").mkdir()
    (here / "output/taken").touch()
    Image.new("RGB", (8, 8)).save(here / "input/p.png")
    found = refused(picture_of(prefix=prefix), code=2)
    assert told in found and len(found) < 500


def test_a_file_in_place_of_the_output_folder_is_told_before_anything_runs(refused: Told, here: Path) -> None:
    (here / "input").mkdir()
    (here / "out").touch()
    Image.new("RGB", (8, 8)).save(here / "input/p.png")
    assert "out is a file. Choose another --out." in refused(picture_of(), "--out", "out")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "link/secret.png", "../secret.png [output]"])
def test_no_picture_is_loaded_from_outside_its_folder(refused: Told, here: Path, name: str) -> None:
    (here / "input").mkdir()
    (here / "output").mkdir()
    Image.new("RGB", (8, 8)).save(here / "secret.png")
    os.symlink(here, here / "input/link")
    assert "leads out of the folder" in refused(picture_of(image=name), code=2)


def test_a_picture_that_is_not_there_is_told_before_anything_runs(refused: Told, here: Path) -> None:
    told = refused(picture_of(image="girl.png"), code=2)
    assert "'girl.png' is not in the input folder" in told and str(here / "input") in told


@pytest.mark.parametrize("option", ["--input", "--input-directory", "--models"])
def test_a_folder_that_is_named_exists(refused: Told, here: Path, option: str) -> None:
    (here / "input").mkdir()
    Image.new("RGB", (8, 8)).save(here / "input/p.png")
    for wrong in ("nowhere", "input/p.png"):
        assert f"There is no folder {here / wrong}" in refused(picture_of(), option, wrong)


def test_a_damaged_picture_is_told(refused: Told, here: Path) -> None:
    (here / "input").mkdir()
    Image.effect_noise((64, 64), 9).save(here / "input/p.png")
    (here / "input/p.png").write_bytes((here / "input/p.png").read_bytes()[:500])
    assert "p.png is not an image that can be read" in refused(picture_of())
    for content, wrong in ((b"", "is empty."), (b"<html>", "is not an image of a known format.")):
        (here / "input/p.png").write_bytes(content)
        assert f"p.png {wrong}" in refused(picture_of())


@pytest.mark.parametrize(
    "size", [{"width": 16384, "height": 16384, "batch_size": 4096}, {"width": 16384, "height": 16384, "batch_size": 64}]
)
def test_a_size_that_needs_a_terabyte_is_refused_before_anything_is_allocated(
    refused: Told, store: Path, size: dict[str, int]
) -> None:
    told = refused(text_to_image(**size), "--models", str(store))
    assert "GiB" in told and "Choose a smaller size or a smaller batch" in told


def test_a_prompt_whose_attention_needs_a_terabyte_is_refused(refused: Told, store: Path) -> None:
    endless = text_to_image()
    endless["4"]["inputs"]["text"] = "a " * 150_000
    told = refused(endless, "--models", str(store))
    assert "tokens needs" in told and "GiB" in told and "Write a shorter one" in told


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 bytes")])
def test_where_memory_fails_the_run_tells_what_to_do(
    refused: Told, store: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(self: Any, **inputs: Any) -> Any:
        raise error

    monkeypatch.setattr("sluice.nodes.vae.VAEDecode.decode", fails)
    told = refused(text_to_image(), "--models", str(store))
    assert "node 7 (VAEDecode) failed: The memory did not suffice." in told and "choose a smaller image" in told


def test_a_constant_in_place_of_a_model_is_told(refused: Told, store: Path) -> None:
    wrong = text_to_image()
    wrong["6"]["inputs"]["model"] = 5
    assert "input model: it takes MODEL, but 5 cannot be converted to that type" in refused(
        wrong, "--models", str(store), code=2
    )


def test_what_a_checkpoint_lacks_is_told_when_it_is_used(refused: Told, own_store: Path) -> None:
    shutil.copy(own_store / "diffusion_models/flux1-schnell.safetensors", own_store / "checkpoints/bare.safetensors")
    whole = text_to_image() | {"1": node("CheckpointLoaderSimple", ckpt_name="bare.safetensors")}
    whole["4"]["inputs"]["clip"] = ["1", 1]
    del whole["2"]
    assert "contains no text encoders" in refused(whole)


def test_a_wrong_type_of_text_encoders_is_told(refused: Told, store: Path) -> None:
    wrong = text_to_image()
    wrong["2"]["inputs"]["type"] = "sdxl"
    assert "Choose type flux" in refused(wrong, "--models", str(store))


def test_ctrl_c_stops_at_once_and_leaves_nothing(here: Path, store: Path, prologue: str) -> None:
    endless = text_to_image(width=256, height=256)
    endless["6"]["inputs"]["steps"] = 10000
    (here / "w.json").write_text(json.dumps(endless))
    code = (
        "from sluice.nodes import host\n"
        "step = host.Host.step\n"
        "def told(self, *args):\n"
        "    print('stepping', flush=True)\n"
        "    step(self, *args)\n"
        "host.Host.step = told\n"
        "from sluice.flux_core.commands.cli import main\n"
        f"sys.exit(main(['run', 'w.json', '--models', {str(store)!r}, '--device', 'cpu']))"
    )
    command = [sys.executable, "-c", prologue + code]
    with subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stepping\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.strip().splitlines()[-1] == "Stopped." and "Traceback" not in told
    assert not (here / "output").exists()
