"""The output of `sluice plan --train lora`: from the training step at FLUX.1's width; refusals name what fits."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod

import pytest
import torch
from sluice.flux_core.commands.cli import main
from sluice.flux_core.io.folders import TINY_MODELS
from sluice.flux_core.memory.rates import call_seconds, few_rows
from sluice.flux_core.memory.workload import FewRows, Machine, Use
from sluice.flux_core.models.flux_config import flux1
from sluice.flux_core.runtime.flux_needs import Job
from sluice.flux_core.training.lora.kept import DEVICE, RAM
from sluice.flux_core.training.lora.needs import training_needs
from sluice.flux_core.training.lora.settings import LoraSettings

TINY = str(TINY_MODELS / "diffusion_models" / "sluice-tiny.safetensors")
SHORT = replace(flux1(16, guidance=True), depth=2, depth_single=3)  # FLUX.1 with fewer blocks


@pytest.mark.parametrize("side", (512, 1024))
def test_memory_and_work_of_a_step_are_those_of_arithmetic(side: int) -> None:
    job = Job(side, side)
    found, moved = (training_needs(SHORT, job, LoraSettings(), place) for place in (DEVICE, RAM))
    tokens = side * side // 256 + 512
    unit = tokens * 3072 * 2
    numbers = found.numbers * 2  # bytes of the gradients
    assert found.kept_bytes == 5 * unit
    assert 20 * unit < moved.needs.run.peak - numbers < found.needs.run.peak < 45 * unit + numbers
    transposed = sum(use.transposed for use in found.needs.run.uses)
    products = transposed + sum(use.products for use in found.needs.run.uses)
    linear = 2 * tokens * sum(prod(found.needs.matrices[name]) for name in found.needs.streamed)
    linear -= sum(tokens_unused(name, found.needs.matrices[name], side) for name in found.needs.streamed)
    assert 2.5 * linear < products < 2.75 * linear, "forward, again without the last products, and back"
    assert 0.9 * linear < transposed <= linear, "the way back is products with the transposed matrices"
    uses = [use.name for use in found.needs.run.uses]
    assert uses.count("single_blocks.0.linear2.weight") == 2 and uses.count("single_blocks.0.linear1.weight") == 3


def test_the_bytes_of_other_operations_and_of_lora_products_are_counted() -> None:
    job = Job(128, 128, text_tokens=64)
    small, large = (training_needs(SHORT, job, LoraSettings(rank=rank), DEVICE) for rank in (4, 8))
    uses, more = small.needs.run.uses, large.needs.run.uses
    streams = 5 * 128 * 3072 * 2  # bytes of the streams of all blocks
    assert 3 * 27 * streams < sum(use.moved for use in uses) < 15 * 27 * streams, "forward, again, and back"
    assert sum(use.moved for use in more) == pytest.approx(sum(use.moved for use in uses), rel=0.02)
    calls = sum(use.calls for use in uses)
    assert 5 * 150 < calls == sum(use.calls for use in more), "operations, however large they are"
    matrices = 2 * small.numbers  # bytes by which the pairs are larger
    read = sum(use.side for use in more) - sum(use.side for use in uses)
    assert 4 * matrices < read < 6 * matrices, "read forward, again, and back; their gradients written"


def test_a_product_with_few_rows_takes_longer_than_its_flop() -> None:
    few = FewRows(1e-10, 2e11)
    machine = Machine(1e11, 1e11, 1e10, 1e9, few_rows=few, elementwise=1e9, side=2e9)
    numbers = 1e6
    assert machine.seconds(Use(0, products=2 * 48 * numbers, numbers=numbers), 0) == 2 * 48 * numbers / 1e11
    assert machine.seconds(Use(0, products=2 * numbers, numbers=numbers), 0) == pytest.approx(1e-4 + 1e-5)
    assert machine.seconds(Use(0, moved=1e9, side=1e9), 0) == 1.5
    assert machine.seconds(Use(0, calls=100), 0) == 0
    assert (call_seconds(torch.device("cpu")) or 0) > 0
    assert replace(machine, call=1e-5).seconds(Use(0, calls=100), 0) == pytest.approx(1e-3)


def test_the_line_through_two_times_is_that_of_few_rows() -> None:
    def rate(rows: int, hidden: int) -> float:
        return 2 * 4 * hidden**2 * rows / (1e-3 + 1e-4 * rows)

    found = few_rows(rate, tokens=48, hidden=64)
    assert found.number * 4 * 64**2 == pytest.approx(1e-3)
    assert found.seconds(4 * 64**2, 2 * 4 * 64**2 * 10) == pytest.approx(2e-3)
    assert few_rows(lambda rows, hidden: 1e9 / rows, tokens=48, hidden=64).flop > 0, "a disturbed measurement"


def tokens_unused(name: str, shape: tuple[int, int], side: int) -> int:
    """In double blocks each stream has matrices of its own."""
    other = {"img": 512, "txt": side * side // 256}.get(name.split(".")[2][:3], 0)
    return 2 * prod(shape) * other if name.startswith("double") else 0


def test_the_command_tells_memory_time_and_places(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["plan", TINY, "--train", "lora", "--card", "rtx4060", "--size", "128", "--steps", "600", "--json"]) == 0
    )
    record = json.loads(capsys.readouterr().out)
    assert record["block_inputs"] == "device" and 0 < record["hours"] == record["seconds_per_step"] / 6
    assert record["fixed"]["LoRA and moments"] > 2**20
    name = "sluice-tiny"  # as in the models folder
    assert main(["plan", name, "--train", "lora", "--card", "cpu", "--size", "128", "--rank", "8"]) == 0
    told = capsys.readouterr().out
    assert "forward and backward" in told and "sluice-tiny-t5xxl.safetensors" in told
    assert [each["name"] for each in record["phases"]] == [
        "encode captions", "encode pictures", "modulation rows", "training steps", "checkpoints",
    ]  # fmt: skip


def test_what_cannot_work_is_refused_with_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", TINY, "--train", "lora", "--card", "rtx4060", "--size", "256", "--vram", "1000M"]
    assert main([*words, "--rank", "512"]) == 1
    assert "does not fit: training steps" in (told := capsys.readouterr().err) and "or choose rank 256" in told
    assert main(["plan", "flux1-fill", "--train", "lora"]) == 1
    assert "LoRAs are trained on flux1-dev" in capsys.readouterr().err
