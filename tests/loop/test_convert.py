"""`sluice convert`: from bf16 to every format, to a picture and back; files others read; never half a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sluice.flux_core import cancel
from sluice.flux_core.checkpoint.detect import detect
from sluice.flux_core.checkpoint.files import open_weights
from sluice.flux_core.checkpoint.load import read
from sluice.flux_core.commands import cli
from sluice.flux_core.convert import convert
from sluice.flux_core.errors import Interrupted
from sluice.flux_core.io.folders import TINY_MODELS
from sluice.flux_core.quant.formats import decode

FLUX = TINY_MODELS / "diffusion_models/sluice-tiny.safetensors"
T5 = TINY_MODELS / "text_encoders/sluice-tiny-t5xxl.safetensors"
Convert = Callable[..., Path]
Picture = Callable[..., list[np.ndarray]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


@pytest.fixture
def converted(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Convert:
    """converted(source, *options, folder): the new file, in the model store."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # half a second each on a busy disk
    number = iter(range(100))

    def run(source: Path, *options: str, folder: str = "diffusion_models") -> Path:
        ending = ".gguf" if any("Q" in option for option in options) else ".safetensors"
        out = here / "models" / folder / f"{next(number)}{ending}"
        capsys.readouterr()
        code = cli.main(["convert", str(source), "--out", str(out), *options])
        told = capsys.readouterr()
        assert code == 0, told.err
        assert told.out.strip() == str(out)
        return out

    return run


@pytest.fixture
def pictures(here: Path, capsys: pytest.CaptureFixture[str]) -> Picture:
    """pictures(unets, t5): the pixels made with each of these files, in float32; encoders are loaded once."""

    def run(unets: list[str], t5: str = "sluice-tiny-t5xxl.safetensors") -> list[np.ndarray]:
        for number, unet in enumerate(unets):
            nodes = {
                "1": node("UNETLoader", unet_name=unet, weight_dtype="default"),
                "2": node("DualCLIPLoader", clip_name1="sluice-tiny-clip_l.safetensors", clip_name2=t5, type="flux"),
                "3": node("VAELoader", vae_name="sluice-tiny-ae.safetensors"),
                "4": node("CLIPTextEncode", text="a red circle", clip=["2", 0]),
                "5": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
                "6": node(
                    "KSampler", seed=7, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
                    model=["1", 0], positive=["4", 0], negative=["4", 0], latent_image=["5", 0],
                ),
                "7": node("VAEDecode", samples=["6", 0], vae=["3", 0]),
                "8": node("SaveImage", filename_prefix="out", images=["7", 0]),
            }  # fmt: skip
            (here / f"{number}.json").write_text(json.dumps(nodes))
        workflows = [f"{number}.json" for number in range(len(unets))]
        capsys.readouterr()
        code = cli.main(["run", *workflows, "--dtype", "fp32", "--device", "cpu", "--compute", "16bit"])
        told = capsys.readouterr()
        assert code == 0, told.err
        names = told.out.splitlines()
        assert len(names) == len(unets)
        return [np.asarray(Image.open(here / name).convert("RGB")).astype(float) for name in names]

    return run


TINY = "sluice-tiny.safetensors"


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = ((a - b) ** 2).mean()
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


# decibels that this picture keeps at least, some below what it was measured to keep
EXACT = float("inf")
KEPT = {
    "bf16": EXACT, "fp32": EXACT, "fp16": 60, "int8 --rotate": 45, "int8": 34, "fp8": 30, "Q8_0": 31, "Q6_K": 28,
    "Q5_K": 26, "Q5_1": 26, "Q5_0": 26, "Q4_K": 25, "Q4_1": 28, "Q4_0": 20,
}  # fmt: skip


def test_from_bf16_to_every_format_to_a_picture_and_back(converted: Convert, pictures: Picture) -> None:
    """A converted file gives the original's picture as nearly as the format allows; bf16 made of it, its numbers."""
    files = {words: converted(FLUX, "--to", *words.split()) for words in KEPT}
    exact, *shown = pictures([TINY, *(file.name for file in files.values())])
    measured = {words: psnr(picture, exact) for words, picture in zip(files, shown, strict=True)}
    assert {words for words, least in KEPT.items() if measured[words] < least} == set(), measured
    for words, file in files.items():
        back = load_file(converted(file, "--to", "bf16"))
        for name, stored in detect(open_weights(file)).parts["flux"].items():
            numbers = decode(read(stored), stored.encoding, stored.shape, torch.float32)
            assert torch.equal(back[name], numbers.bfloat16()), (words, name)


@pytest.mark.parametrize("to", ["int8", "Q8_0", "fp16"])
def test_a_text_encoder_is_converted_too(converted: Convert, pictures: Picture, to: str) -> None:
    file = converted(T5, "--to", to, folder="text_encoders")
    assert psnr(*pictures([TINY], t5=file.name), *pictures([TINY])) > 26


def test_converting_what_is_converted_decodes_it_first(converted: Convert) -> None:
    """int8 made of the rotated int8 is that of its numbers, not of its codes."""
    rotated = converted(converted(FLUX, "--to", "int8", "--rotate"), "--to", "fp32")
    plain, original = load_file(rotated), load_file(FLUX)
    for name, value in original.items():
        assert (plain[name] - value.float()).norm() <= 0.02 * value.float().norm() + 1e-6, name


def test_other_libraries_read_the_files(converted: Convert) -> None:
    original = load_file(FLUX)
    int8 = load_file(converted(FLUX, "--to", "int8"))
    name = "double_blocks.0.img_attn.qkv"
    assert json.loads(bytes(int8[f"{name}.comfy_quant"].tolist())) == {"format": "int8_tensorwise"}
    assert int8[f"{name}.weight"].dtype == torch.int8 and int8[f"{name}.weight_scale"].shape == (576, 1)
    assert torch.equal(int8["img_in.weight"], original["img_in.weight"])
    fp8 = load_file(converted(FLUX, "--to", "fp8"))
    assert fp8[f"{name}.weight"].dtype == torch.float8_e4m3fn and fp8[f"{name}.weight_scale"].shape == ()
    for to, kind in (("Q8_0", "Q8_0"), ("Q4_K", "Q5_0")):  # 192 columns do not divide into blocks of 256
        reader = gguf.GGUFReader(converted(FLUX, "--to", to))
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        assert tensors.keys() == original.keys()
        assert reader.fields["general.architecture"].contents() == "flux"
        tensor = tensors[f"{name}.weight"]
        assert (tensor.tensor_type.name, tuple(reversed(tensor.shape.tolist()))) == (kind, (576, 192))
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        weight = original[f"{name}.weight"].float().numpy()
        assert np.linalg.norm(numbers - weight) < 0.06 * np.linalg.norm(weight)
        assert tensors["img_in.bias"].tensor_type.name == "F32"


def test_the_new_file_is_named_after_the_old_one_and_replaces_none(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(load_file(FLUX), here / "flux.safetensors")
    for code, word in ((0, "flux-fp8.safetensors"), (1, "is there already")):
        assert cli.main(["convert", "flux.safetensors", "--to", "fp8"]) == code
        told = capsys.readouterr()
        assert word in told.out + told.err
    assert sorted(path.name for path in here.iterdir()) == ["flux-fp8.safetensors", "flux.safetensors"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--to", "int3"], "There is no format 'int3' to convert to; choose bf16"),
        (["--to", "fp8", "--rotate"], "--rotate belongs to int8"),
        (["--to", "fp8", "--part", "t5"], "holds no t5, but flux"),
        (["--to", "fp8", "--ram", "100M"], "MiB of RAM, and 100 are allowed"),
    ],
)
def test_what_cannot_be_done_is_told_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    assert cli.main(["convert", str(FLUX), "--out", "out.safetensors", *options]) == 1
    assert told in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_a_lora_is_no_model_to_convert(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"lora_unet_double_blocks_0_img_mlp_0.lora_down.weight": torch.zeros(4, 8)}, here / "l.safetensors")
    assert cli.main(["convert", "l.safetensors", "--to", "fp8"]) == 1
    assert "l.safetensors is a LoRA for FLUX.1" in capsys.readouterr().err


def test_a_job_that_is_cancelled_leaves_no_file(here: Path) -> None:
    asked = iter(range(100))

    def stop() -> None:
        if next(asked) == 20:
            raise Interrupted("stopped")

    with cancel.cancellable(stop), pytest.raises(Interrupted):
        cli._dispatch(["convert", str(FLUX), "--to", "int8", "--out", "out.safetensors"])
    assert next(asked) > 20 and list(here.iterdir()) == []


def test_progress_ends_with_all_bytes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[int, int]] = []
    write: Callable[..., Any] = convert.write

    def hear(done: int, total: int) -> None:
        heard.append((done, total))

    monkeypatch.setattr(convert, "write", lambda *args: write(*args[:-1], hear))
    monkeypatch.setattr("sluice.flux_core.commands.convert._Bar.close", lambda self: None)
    assert cli.main(["convert", str(FLUX), "--to", "int8", "--out", "out.safetensors"]) == 0
    done = [count for count, _ in heard]
    assert done == sorted(done) and heard[-1][0] == heard[-1][1] <= (here / "out.safetensors").stat().st_size
