"""The output of `sluice plan`: for every card in the table, for files, for names, and for invalid arguments."""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sluice.flux_core.commands import plan
from sluice.flux_core.errors import BudgetTooSmall, FileFormatError, InputError, MissingFileError
from sluice.flux_core.memory.budget import Allowed, parse_size
from sluice.flux_core.memory.cards import CARDS, GENERATIONS, Card, find_card
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import flux1
from sluice.flux_core.runtime.flux_needs import Job, flux_needs
from sluice.flux_core.runtime.published import COMPARED, published

KEYS = {"seconds_per_step", "bound", "peak_bytes", "resident_bytes", "streamed_bytes_per_step", "units"}


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    assert plan.run(parser.parse_args(words)) == 0
    return capsys.readouterr().out


def figures(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(answer(capsys, *words, "--json"))
    return told


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_every_card_has_sensible_numbers_with_a_source_and_can_be_planned_for(
    card: Card, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 4 <= card.vram <= 200 and 0 < card.attention < card.gemm < card.peak and card.link > 1
    assert card.source == GENERATIONS[card.generation][2]
    assert find_card(card.label) == card
    told = figures(capsys, "flux1-dev-fp8", "--card", card.name, "--size", "512x512")
    assert told.keys() >= KEYS and told["peak_bytes"] <= card.vram * 2**30


def test_cards_are_found_however_they_are_written() -> None:
    assert {find_card(name).name for name in ("rtx4060", "RTX 4060", "4060", "GeForce RTX-4060")} == {"rtx4060"}
    assert find_card("4060 Ti 16 GB").vram == 16 and find_card("RTX 2060 Super").name == "rtx2060s"
    with pytest.raises(InputError, match="rtx4060"):
        find_card("voodoo2")


def test_the_published_model_has_its_published_size() -> None:
    """11,901,408,320 weights, a quarter of them used on one vector a step; 76 equal groups."""
    needs = flux_needs(flux1(), Job())
    sizes = {name: rows * columns for name, (rows, columns) in needs.matrices.items()}
    vectors = 11_901_408_320 - sum(sizes.values())
    assert 3_000_000 < vectors < 3_100_000
    assert sum(sizes[name] for name in needs.modulation) == 344 * 3072**2
    assert needs.small == 11_901_408_320 - sum(sizes[name] for name in (*needs.streamed, *needs.modulation))
    made = needs.workload("dev", sizes.__getitem__, lambda name: False, 2)
    per_group: dict[int, int] = {}
    for weight in made.weights:
        per_group[weight.group] = per_group.get(weight.group, 0) + weight.nbytes
    assert len(per_group) == 76 and set(per_group.values()) == {12 * 3072**2}
    names = "flux1-dev", "flux1-dev-Q4_K_S"
    found = {name: published(name) for name in names}
    files = {name: sum(map(model.nbytes, needs.matrices.values())) for name, model in found.items() if model}
    assert files["flux1-dev"] == pytest.approx(23.8e9, rel=0.01)
    assert files["flux1-dev-Q4_K_S"] == pytest.approx(6.7e9, rel=0.02)


def test_an_8_gb_card_makes_a_step_in_the_time_its_arithmetic_takes(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMPARED:
        told = figures(capsys, f"flux1-dev-{name}", "--card", "rtx4060")
        low, high = (1.6, 1.85) if name == "int8" else (3.0, 3.4)
        assert told["bound"] == "compute" and low < told["seconds_per_step"] < high
        assert told["peak_bytes"] <= 8 * 2**30
        assert len(told["units"]) in (76, 77) and {row["class"] for row in told["units"]} <= set("VPRD")
        moved = sum(row["bytes"] for row in told["units"] if row["class"] != "V")
        assert moved == told["streamed_bytes_per_step"]


@pytest.mark.parametrize(("card", "most"), [("gtx1070", (231, 145, 92)), ("rtx4060", (36, 22, 14))])
def test_seconds_of_an_image_in_integers_with_a_cache_and_in_few_steps(
    capsys: pytest.CaptureFixture[str], card: str, most: tuple[int, int, int]
) -> None:
    """The figures for these cards, of 20 steps at 1024x1024; each number names its basis."""
    told = figures(capsys, "flux1-dev-int8", "--card", card, "--steps", "20")["images"]
    found = [image["seconds"] for image in told if "faster" not in image["label"]]
    assert all(seconds <= limit for seconds, limit in zip(found, most, strict=True)), found
    assert all(image["basis"] for image in told)
    page = answer(capsys, "flux1-dev-int8", "--card", card)
    assert "20 steps, --cache fast" in page and "12 evaluations" in page
    exact = figures(capsys, "flux1-dev-int8", "--card", card, "--compute", "16bit")
    assert exact["seconds_per_step"] > 1.4 * told[0]["seconds"] / 20


def test_a_file_that_is_quantised_while_it_is_loaded_takes_the_memory_of_integers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    of_bf16 = figures(capsys, "flux1-dev", "--card", "rtx4060", "--compute", "int8")
    of_int8 = figures(capsys, "flux1-dev-int8", "--card", "rtx4060")
    assert sum(row["bytes"] for row in of_bf16["units"]) == sum(row["bytes"] for row in of_int8["units"])
    assert of_bf16["seconds_per_step"] == pytest.approx(of_int8["seconds_per_step"], rel=0.02)


def test_integers_on_published_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Within 15 %: GTX 1070, 768x1024, 8.1 s a step (sd-webui-forge-classic, pull request 1466); RTX 3090, 1.99 times
    as fast as bfloat16 (ComfyUI-INT8-Fast). The page names the run that the rate fits.
    """
    told = figures(capsys, "flux1-dev-int8", "--card", "gtx1070", "--size", "768x1024")
    assert told["seconds_per_step"] == pytest.approx(8.1, rel=0.15)
    assert told["basis"][-1].startswith("8-bit integers 40% of 4 times the peak: fits GTX 1070 runs at 768x1024")
    of_int8 = figures(capsys, "flux1-dev-int8", "--card", "rtx3090")
    of_bf16 = figures(capsys, "flux1-dev", "--card", "rtx3090")
    assert of_bf16["seconds_per_step"] / of_int8["seconds_per_step"] == pytest.approx(1.99, rel=0.15)
    assert "fits RTX 3090 runs" in of_int8["basis"][-1] and not any("integers" in line for line in of_bf16["basis"])
    page = answer(capsys, "flux1-dev", "--card", "rtx4060", "--compute", "fp16-sums", "--size", "512x512")
    assert "    peak 30.2 TFLOP/s: NVIDIA Ada" in page and "sums in float16 70% of twice the peak" in page
    assert figures(capsys, "flux1-dev", "--compute", "30")["basis"] == ["the rates of the command line"]


def test_few_steps_have_no_cache_to_speak_of(capsys: pytest.CaptureFixture[str]) -> None:
    told = figures(capsys, "flux1-schnell-fp8", "--card", "rtx4060", "--steps", "4")["images"]
    assert [image["label"] for image in told] == ["4 steps"]


def test_a_page_shows_the_map_and_compares_all_formats(capsys: pytest.CaptureFixture[str]) -> None:
    page = answer(capsys, "flux1-schnell-fp8", "--vram", "6G", "--ram", "16G", "--size", "768x512", "--batch", "2")
    assert "double img" in page and "single" in page and "768x512, 2 at a time" in page
    assert all(f"flux1-schnell-{name}" in page for name in COMPARED)
    rows = [line.split()[-1] for line in page.splitlines() if line.strip().startswith(("double", "single"))]
    assert [len(row) for row in rows] == [19, 19, 38]


def test_a_file_is_planned_by_its_header_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that ends right after its header, sparse: nothing but the header is read."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Flux(flux1()).state_dict().items()}
    header, end = {}, 0
    for name, size in shapes.items():
        count = size[0] * size[1] if len(size) > 1 else size[0]
        header[name] = {"dtype": "F8_E4M3", "shape": size, "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "model.safetensors"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)
    of_file, of_name = (figures(capsys, model, "--card", "4060") for model in (str(path), "flux1-dev-fp8"))
    assert of_file["seconds_per_step"] == pytest.approx(of_name["seconds_per_step"])
    assert of_file["streamed_bytes_per_step"] == of_name["streamed_bytes_per_step"]


@pytest.mark.parametrize(
    ("named", "meant"),
    [("flux1-dev", "flux1-dev-bf16"), ("flux1-schnell.safetensors", "flux1-schnell-bf16"),
     ("flux1-dev-fp8.safetensors", "flux1-dev-fp8"), ("flux1-dev-Q8_0.gguf", "flux1-dev-Q8_0"),
     ("flux1-fill-dev.safetensors", "flux1-fill-bf16")],
)  # fmt: skip
def test_a_published_file_goes_by_its_file_name_too(named: str, meant: str) -> None:
    assert published(named) == published(meant) is not None


def test_a_lora_takes_room_from_what_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"
    header = {name: {"dtype": "F16", "shape": [400, 1024, 1024], "data_offsets": [0, 800 * 2**20]}}
    text = json.dumps(header).encode()
    path = tmp_path / "lora.safetensors"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + 800 * 2**20)
    without = figures(capsys, "flux1-dev-fp8", "--card", "4060")
    with_it = figures(capsys, "flux1-dev-fp8", "--card", "4060", "--lora", str(path))
    moved = with_it["streamed_bytes_per_step"] - without["streamed_bytes_per_step"]
    assert abs(moved - 800 * 2**20) < 2 * 108 * 2**20


def test_slower_links_and_disks_show_in_the_bound(capsys: pytest.CaptureFixture[str]) -> None:
    slow = figures(capsys, "flux1-dev-bf16", "--card", "3070", "--link", "2", "--size", "512x512")
    assert slow["bound"] == "link" and slow["seconds_per_step"] > 4
    starved = figures(capsys, "flux1-dev-bf16", "--card", "3070", "--ram", "2G", "--disk", "0.5")
    assert starved["bound"] == "disk" and starved["disk_bytes_per_step"] > 5e9
    cpu = figures(capsys, "flux1-dev-bf16", "--card", "cpu", "--ram", "8G", "--size", "256x256", "--disk", "0.3")
    assert cpu["bound"] == "disk" and cpu["host_bytes"] == 0


def test_what_makes_no_sense_is_told_in_one_sentence(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)

    def ask(*words: str) -> None:
        plan.run(parser.parse_args(words))

    (tmp_path / "other.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(FileFormatError, match="other.safetensors.*Choose a LoRA"):
        ask("flux1-dev", "--lora", str(tmp_path / "other.safetensors"))
    with pytest.raises(MissingFileError, match="flux1-dev, flux1-dev-fp8"):
        ask("flux9-dev")
    with pytest.raises(InputError, match="Q8_0"):
        ask("flux1-dev-fp4")
    for wrong in ("0", "-1", "fast", "nan"):
        with pytest.raises(SystemExit):
            ask("flux1-dev", "--disk", wrong)
    with pytest.raises(InputError, match="1024x768"):
        ask("flux1-dev-fp8", "--size", "large")
    with pytest.raises(InputError, match="7.5G"):
        ask("flux1-dev-fp8", "--vram", "lots")
    with pytest.raises(BudgetTooSmall, match=r"at least \d+ MiB"):
        ask("flux1-dev-bf16", "--vram", "1G")
    (tmp_path / "x.safetensors").write_bytes(b"nothing at all")
    with pytest.raises(FileFormatError):
        ask(str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    ("text", "size"),
    [("8G", 8 * 2**30), ("7.5g", 7.5 * 2**30), ("800M", 800 * 2**20), ("12GiB", 12 * 2**30), ("1,5 GB", 1.5 * 2**30),
     ("4096B", 4096), ("64K", 65536), ("1T", 2**40),
     ("8", 8 * 2**30), ("7.5", 7.5 * 2**30), ("8589934592", 8 * 2**30)],
)  # fmt: skip
def test_sizes_are_read_as_people_write_them(text: str, size: float) -> None:
    assert parse_size(text) == size


def test_budgets_are_a_size_or_a_word() -> None:
    assert Allowed.parse("8G", "auto") == Allowed(8 * 2**30, None, True)
    assert not Allowed.parse("off").managed and not Allowed.parse().explicit
    for wrong in ("8Q", "-3G", "G", "eight", "1e9", "8000"):
        with pytest.raises(InputError):
            Allowed.parse(wrong)


@pytest.mark.parametrize("words", [("8G", "7.7G"), ("900M", "auto"), ("off", "1500M"), ("auto", "123456789B")])
def test_a_budget_is_written_as_it_was_read(words: tuple[str, str]) -> None:
    assert tuple(Allowed.parse(*words).words.values()) == words
    assert Allowed.parse("8192MB", "16 gib").words == {"vram": "8G", "ram": "16G"}


def test_the_command_is_there_before_torch(prologue: str) -> None:
    """Its help and its refusals need none: torch is imported once it is clear what to plan for."""
    code = prologue + "from sluice.flux_core.commands import plan, plan_model\n"
    code += "try: plan_model.open_model('flux9-dev')\nexcept Exception: sys.exit('torch' in sys.modules)\nsys.exit(2)"
    run = subprocess.run([sys.executable, "-c", code])
    assert run.returncode == 0
