"""`sluice bench`: both sides compute the same, and a whole run is accounted for."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from doubles.typed import linear_at, matrix_of
from PIL import Image
from sluice.flux_core.bench import products, workflow
from sluice.flux_core.bench.measurements import measure_job, measure_t5
from sluice.flux_core.bench.memory import gains
from sluice.flux_core.bench.peers import NEEDED, PEERS
from sluice.flux_core.bench.run import PARTS
from sluice.flux_core.bench.steps import Setup, SlowlyChanging, sample
from sluice.flux_core.bench.transformer import random_flux, steps_of
from sluice.flux_core.checkpoint.detect import detect
from sluice.flux_core.checkpoint.files import open_weights
from sluice.flux_core.commands import cli
from sluice.flux_core.graph.validate import validate
from sluice.flux_core.sampling.guider import Run
from sluice.flux_core.sampling.step_cache import PRESETS
from sluice.flux_core.worker.registry import standalone_tables
from sluice.nodes.host import pack_host
from torch.testing import assert_close


@torch.inference_mode()
def test_both_transformers_compute_the_same_of_the_same_bytes() -> None:
    flux = random_flux((1, 1), 1, torch.device("cpu"), torch.float32)
    matrix_of(linear_at(flux, "final_layer.adaLN_modulation.1")).mul_(5)  # so that its halves matter
    steps = steps_of(flux, torch.device("cpu"))
    assert_close(steps["ours"](), steps["diffusers"](), rtol=1e-3, atol=1e-4)


def test_a_whole_run_is_split_into_parts_that_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in/p.png")
    copy = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "p.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    (tmp_path / "w.json").write_text(json.dumps(copy))
    assert cli.main(["bench", "run", "w.json", "--input", "in", "--device", "cpu", "--rounds", "1"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["run"]
    assert sum(told[f"{part}_s"] for part in PARTS) == pytest.approx(told["whole_s"], abs=0.01)
    assert told["outside_s"] == pytest.approx(told["python_s"] + told["saving_s"] + told["rest_s"], abs=0.01)
    assert told["saving_s"] > 0 and told["torch_s"] > 0 and told["sampling_s"] == 0
    assert not (tmp_path / "output").exists()


def test_a_run_that_fails_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "run", "nothing.png"]) == 1
    assert "nothing.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--ram", "6G", "much"], "'much' is not a size"), (["--vram", "8 cards"], "'8 cards' is not a size"),
        (["--size", "256x256", "1024"], "Write 1024x768"), (["--device", "abacus"], "no device 'abacus'"),
    ],
)  # fmt: skip
def test_nothing_large_is_written_for_a_measurement_that_cannot_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], told: str
) -> None:
    assert cli.main(["bench", "memory", "--folder", str(tmp_path / "models"), *wrong]) == 1
    assert told in capsys.readouterr().err and not (tmp_path / "models").exists()


def test_memory_is_measured_beside_the_peers_that_are_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--depth", "1", "1", "--hidden", "256", "--size", "64x32", "--tokens", "8", "--steps", "2"]
    command = ["bench", "memory", "--format", "bf16", "--ram", "2G", "--peers", "--folder", str(tmp_path / "m"), *small]
    assert cli.main(command) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["memory"]
    (ours,) = told["measurements"]
    assert ours["peak_bytes"] < 2 << 30 and ours["limit"]["limit_seconds"] > 0
    if all(map(importlib.util.find_spec, NEEDED)):
        assert [peer["peer"] for peer in told["peers"] if peer["step_seconds"] > 0] == list(PEERS)
    else:
        assert [set(peer) for peer in told["peers"]] == [{"part", "peer", "missing"}]
    assert not list((tmp_path / "m").iterdir())


def test_an_encoder_and_whole_jobs_are_measured_under_a_budget(tmp_path: Path) -> None:
    """With the shipped model in place of files of random weights."""
    models = Path(cli.__file__).parents[1] / "tiny/models"
    for name, file in (
        ("flux-bf16", "diffusion_models/sluice-tiny"), ("t5-fp16", "text_encoders/sluice-tiny-t5xxl"),
        ("clip-fp16", "text_encoders/sluice-tiny-clip_l"), ("ae-fp32", "vae/sluice-tiny-ae"),
    ):  # fmt: skip
        shutil.copyfile(models / f"{file}.safetensors", tmp_path / f"{name}.safetensors")
    setup = Setup(str(tmp_path), "flux-bf16", "cpu", "auto", "3G", 64, 64, 16, 2, 1)
    encoder = measure_t5(replace(setup, file="t5-fp16"))
    assert 0 < encoder["peak_bytes"] < 3 << 30 and encoder["actual_seconds"] > 0
    job = measure_job(setup)
    parts = [f"{name}: {part}" for name in ("first", "another prompt") for part in ("encode", "sample", "decode")]
    assert sorted(phase["phase"] for phase in job["phases"]) == sorted(
        [*parts, "another seed: sample", "another seed: decode"]
    )
    assert job["computed"] == 2 and 0 < job["peak_bytes"] < job["limit_bytes"]


def test_the_sampling_of_a_measured_job_may_have_a_step_cache() -> None:
    """A network whose output hardly changes is evaluated at half of the steps or fewer."""
    asked: list[float] = []

    class Slow:
        device, dtype, step_cache = torch.device("cpu"), torch.float32, None

        @contextmanager
        def open(self, run: Run) -> Iterator[Callable[[float], torch.Tensor]]:
            def network(level: float) -> torch.Tensor:
                asked.append(level)
                return torch.ones(1, 16, 8, 8) * (1 + 0.001 * level)

            yield network

    class Noted:
        def inputs(self, x: torch.Tensor, level: float, dtype: torch.dtype) -> float:
            return level

    setup, model = Setup("", "", "cpu", "auto", "auto", 64, 64, 8, 20, 1), Slow()
    exact, computed = sample(model, setup, Noted(), 1)
    assert len(asked) == computed == 20
    asked.clear()
    model.step_cache = PRESETS["fast"]  # type: ignore[assignment]
    cached, computed = sample(model, setup, Noted(), 1)
    assert torch.allclose(cached, exact, atol=0.01) and len(asked) == computed < 12


def test_random_velocities_change_as_slowly_as_those_of_a_trained_model() -> None:
    slowly, generator = SlowlyChanging(), torch.Generator().manual_seed(2)
    made = [slowly(7 * torch.randn(1, 16, 8, 8, generator=generator)) for _ in range(6)]
    for one, following in itertools.pairwise(made[1:]):
        change = float((following - one).abs().mean() / one.abs().mean())
        assert change == pytest.approx(SlowlyChanging.CHANGE, rel=0.1)
    constant = SlowlyChanging()
    assert torch.equal(constant(torch.ones(1, 16, 4, 4)), constant(torch.ones(1, 16, 4, 4)))


def test_each_cached_run_is_compared_with_the_exact_one_before_it() -> None:
    size = {"file": "flux-fp8", "width": 256, "height": 256, "steps": 20}
    off = {**size, "cache": "off", "sampling_seconds": 320.0, "computed": 20}
    fast = {**size, "cache": "fast", "sampling_seconds": 160.0, "computed": 10}
    assert list(gains([off])) == [] and list(gains([fast])) == []
    (line,) = gains([off, fast])
    assert line.endswith("320.0 s without cache, 160.0 s with --cache fast (10 computed): 2.00 x faster")


def test_products_are_measured_in_turns_and_targets_follow_the_processor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["bench", "products", "--narrower", "4", "--size", "64x64", "--tokens", "1", "--rounds", "1"]
    threads = torch.get_num_threads()
    monkeypatch.setattr(products, "instructions", lambda: ("avx512_vnni", "avx512_bf16"))
    for target, code in ((0.0, 0), (1e9, 1)):
        monkeypatch.setattr(products, "INTEGERS_GAIN", target)
        monkeypatch.setattr(products, "AUTOENCODER_GAIN", 0.0)
        assert cli.main([*command, "--decoded", "16x16"]) == code
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["products"]
    assert [each["shape"] for each in told["layers"]] == [f"{n // 4} x {k // 4}" for n, k in products.SHAPES]
    assert all(each["gain"] == each["bf16_s"] / each["int8_s"] and each["tokens"] == 17 for each in told["layers"])
    assert told["autoencoder"]["gain"] > 0 and torch.get_num_threads() == threads
    monkeypatch.setattr(products, "instructions", lambda: ())
    assert cli.main([*command, "--decoded", "16x16"]) == 0  # no target without the instructions


def test_the_files_of_a_measured_workflow_are_what_its_loaders_take(tmp_path: Path) -> None:
    """Found by their tensors alone, as a person's files are; and the workflow lacks nothing but these files."""
    kinds = {
        "flux": "flux", "t5": "t5", "clip": "clip_l", "autoencoder": "autoencoder", "union": "controlnet",
        "xlabs": "controlnet", "vision": "clip_vision", "redux": "redux", "lora": "lora",
    }  # fmt: skip
    files = workflow._files((1, 1), 256)
    for part, kind in kinds.items():
        with torch.device("meta"):
            shapes = {name: tuple(value.shape) for name, value in files[part][1]().state_dict().items()}
        path, header, end = tmp_path / f"{part}.safetensors", {}, 0
        for name, shape in shapes.items():
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end := end + 2 * prod(shape)]}
        text = json.dumps(header).encode()
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        assert detect(open_weights(path)).kind == kind, part
    names = {part: name for part, (name, _, _) in files.items()}
    setup = workflow.Setup("", names, "", "cpu", "auto", "8G", 64, 64, 2)
    found = validate(workflow.prompt_of(setup), standalone_tables(pack_host())[0])
    errors = [error["type"] for node in found.node_errors.values() for error in node["errors"]]
    assert len(errors) == 11 and {*errors} == {"value_not_in_list", "custom_validation_failed"}  # files, and the image
