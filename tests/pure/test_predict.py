"""The output of `sluice plan` for several cards: published runs, shares of the work, and refusals."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sluice.flux_core.commands import plan
from sluice.flux_core.errors import InputError
from sluice.flux_core.memory.cards import find_card
from sluice.flux_core.memory.workload import Use, Weight, Workload
from sluice.flux_core.parallel.predict import Exchange, of_rows, of_tokens, part_of, shares_by_speed
from sluice.flux_core.parallel.split import Split, exchanged_bytes

ROOT = Path(__file__).parents[2]
FLUX = SimpleNamespace(depth=19, depth_single=38, hidden=3072, mlp=12288)
BLOCKS, TOKENS = 57, 4608

# (seconds of a step on one card, bytes/s, seconds a message) of each system, fitted once; way -> seconds on two cards.
# 28 steps at 1024x1024: cache-dit on L20 (PCIe 4.0 x16), xDiT on H100, ParaAttention on A100; raylight: 20 steps on
# RTX 2000 Ada.
PUBLISHED = {
    "L20": ((23.56 / 28, 21e9, 2e-5), {"ulysses": 13.80 / 28, "sums": 14.61 / 28, "ring": 13.43 / 28}),
    "H100": ((4.30 / 28, 150e9, 9e-5), {"ulysses": 2.68 / 28, "ring": 2.60 / 28}),
    "A100": ((9.997 / 28, 120e9, 9e-5), {"ring": 5.775 / 28}),
    "RTX 2000 Ada": ((2.22, 10.5e9, 2e-5), {"ulysses": 1.26}),
}


@pytest.mark.parametrize("system", PUBLISHED)
def test_published_runs_on_two_cards_are_predicted_within_five_percent(system: str) -> None:
    (alone, rate, latency), measured = PUBLISHED[system]
    sums = 76 * 2 * TOKENS * 3072 * 2 / 2  # of tensor parallelism that cuts columns as well: other programs' way
    sent = {
        "ulysses": (exchanged_bytes(Split(2), BLOCKS, 1, TOKENS, 3072, 2), 2 * BLOCKS),
        "ring": (exchanged_bytes(Split(2, 1, "ring"), BLOCKS, 1, TOKENS, 3072, 2), BLOCKS),
        "sums": (sums, 76),
    }
    for way, seconds in measured.items():
        predicted = alone / 2 + Exchange(*sent[way], rate, latency).seconds
        assert abs(predicted / seconds - 1) < 0.05, (way, predicted, seconds)


# (bytes/s, seconds a message, seconds of a step on one device) of a system, its image tokens, devices -> seconds of a
# step by the study's own model of it, which divides tokens as we do. It leaves the exchange of the velocity out.
STUDY = [
    ((21e9, 2e-5, 23.56 / 28), 4096, {2: 0.49984, 4: 0.27027}),
    ((150e9, 9e-5, 4.30 / 28), 4096, {2: 0.09780, 4: 0.05672}),
    ((10.5e9, 2e-5, 2.22), 4096, {2: 1.26597}),
    ((120e9, 9e-5, 9.997 / 28), 4096, {2: 0.202226, 4: 0.109605, 8: 0.060773}),
    ((120e9, 9e-5, 2.007334), 16384, {2: 1.063236, 4: 0.549075, 8: 0.28275}),
]


@pytest.mark.parametrize(("system", "image", "steps"), STUDY)
def test_steps_of_two_to_eight_devices_take_what_the_study_computes(
    system: tuple[float, float, float], image: int, steps: dict[int, float]
) -> None:
    rate, latency, alone = system
    for devices, seconds in steps.items():
        sent = of_tokens([1 / devices] * devices, FLUX, 1, 512 + image, 2)
        assert alone / devices + Exchange(*sent, rate, latency).seconds == pytest.approx(seconds, rel=0.01), devices


def test_parts_of_the_work_add_up_to_the_whole() -> None:
    weights = (Weight("a", 0, 101), Weight("b", 1, 64))
    uses = (Use(0, 8.0, 4.0, 200), Use(1, 2.0, 0.0, 0, 6.0))
    whole = Workload("w", weights, uses, {"activations": 100, "decoding": 40, "LoRA": 7})
    assert part_of(whole, 1.0, 1.0) == whole
    half = part_of(whole, 0.5, 1.0)
    assert half.weights == weights and half.schedule == (Use(0, 4.0, 2.0, 200), Use(1, 1.0, 0.0, 0, 3.0))
    assert half.fixed == {"activations": 50, "decoding": 40, "LoRA": 7}
    rows = part_of(whole, 1.0, 0.5)
    assert [weight.nbytes for weight in rows.weights] == [51, 32]
    assert rows.schedule == (Use(0, 4.0, 4.0, 100), Use(1, 1.0, 0.0, 0, 3.0)) and rows.fixed["decoding"] == 20


@pytest.mark.parametrize("devices", [2, 3, 4, 8])
def test_even_shares_send_what_the_formula_says_and_unequal_ones_less(devices: int) -> None:
    even, messages = of_tokens([1 / devices] * devices, FLUX, 1, TOKENS, 2)
    assert even == pytest.approx(exchanged_bytes(Split(devices), BLOCKS, 1, TOKENS, 3072, 2)) and messages == 115
    assert of_tokens((0.8, 0.2), FLUX, 1, TOKENS, 2)[0] < of_tokens((0.5, 0.5), FLUX, 1, TOKENS, 2)[0]
    assert of_rows(devices, FLUX, 1, TOKENS, 2)[1] == 228
    assert shares_by_speed((1.0, 3.0)) == pytest.approx((0.75, 0.25))


def test_a_card_is_as_fast_as_its_slot_allows() -> None:
    card = find_card("RTX 4060@3.0x4")
    assert (card.link, card.exchange, card.label) == (3.2, 2.5, "RTX 4060 in 3.0 x4")
    assert find_card("rtx4060@5.0x16") == find_card("rtx4060")
    with pytest.raises(InputError, match=r"rtx4060@2x1 names no slot; write one of 3.0x4"):
        find_card("rtx4060@2x1")


# -- the command -----------------------------------------------------------------------------------------------------


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    assert plan.run(parser.parse_args(words)) == 0
    return capsys.readouterr().out


def ways(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, dict[str, Any]]:
    told = json.loads(answer(capsys, *words, "--json"))
    return {way["way"]: way for way in told["ways"]}


def test_a_good_pair_is_used_together_and_a_bad_slot_is_refused_with_what_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = ways(capsys, "flux1-dev-fp8", "--card", "rtx4060", "--card", "rtx4060")
    assert good["two jobs at once"]["times"] == pytest.approx(2.0, abs=0.01)
    assert 1.6 < good["one image, tokens divided"]["times"] < 2.0
    halves = good["one image, rows divided"]["cards"]
    assert all(card["streamed_bytes_per_step"] == 0 for card in halves)
    assert all(card["peak_bytes"] <= 8 * 2**30 for way in good.values() for card in way["cards"])

    pair = ("flux1-dev", "--card", "rtx4060", "--card", "rtx4060@3.0x4")
    page = answer(capsys, *pair)
    assert "One image: card 0 alone (--device cuda:0). Both together would be no faster." in page
    assert re.search(r"Several images: `sluice serve --devices cuda:0,cuda:1` makes 1\.\d+ times as many", page)
    assert re.search(
        r"Refused: one image, tokens divided, 0\.\d+ times as fast as one card: .*over the same link", page
    )
    fast = ways(capsys, *pair, "--exchange", "30")
    assert fast["one image, rows divided"]["refused"] is None


def test_with_a_negative_prompt_each_half_of_the_cards_evaluates_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    card = ("--card", "rtx4060")
    two = ways(capsys, "flux1-dev-fp8", *card * 2, "--cfg", "3")
    each, alone, tokens = (
        two[name] for name in ("one image, a prompt each", "card 0 alone", "one image, tokens divided")
    )
    assert each["command"] == "--devices cuda:0+cuda:1 --split cfg" and each["refused"] is None
    assert each["times"] == pytest.approx(2.0, abs=0.02) and tokens["times"] < each["times"]
    streamed = [way["cards"][0]["streamed_bytes_per_step"] for way in (alone, each)]
    assert streamed[0] == pytest.approx(2 * streamed[1], rel=0.01)
    assert each["cards"][0]["exchanged_bytes_per_step"] == 4 * 64 * 4096  # one velocity in float32
    four = ways(capsys, "flux1-dev-fp8", *card * 4, "--cfg", "3")["one image, prompts and tokens divided"]
    assert four["command"].endswith(" --split cfg2sp2") and tokens["times"] < four["times"] < 4
    page = answer(capsys, "flux1-dev-fp8", "--card", "rtx3090", "--card", "rtx3060", "--cfg", "3")
    assert "cfg 3: 2 evaluations a step" in page
    assert re.search(r"Refused: one image, a prompt each, 0\.\d+ times as fast as one card", page)


def test_what_a_slow_disk_makes_slower_than_one_card_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes divide the RAM and read from one disk."""
    pair = ("flux1-dev", "--card", "rtx4060", "--card", "rtx4060", "--ram", "10G", "--disk", "0.5")
    told = json.loads(answer(capsys, *pair, "--json"))
    refused = {way["way"]: way["refused"] for way in told["ways"] if way["refused"]}
    assert re.match(r"0\.\d+ times as many as one card: the processes divide the RAM", refused["two jobs at once"])
    assert "GB of weights from the same disk" in refused["one image, tokens divided"]
    assert not any(line.startswith("Several images") for line in told["advice"])


def test_unequal_cards_divide_by_speed_and_number_types_are_not_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    found = ways(capsys, "flux1-dev-fp8", "--card", "rtx3090", "--card", "rtx3060", "--vram", "20G,10G")
    tokens = found["one image, tokens divided"]
    assert "--shares 0.74,0.26" in tokens["command"]
    assert found["two jobs at once"]["times"] > 1.3
    assert tokens["cards"][1]["peak_bytes"] <= 10 * 2**30
    mixed = ways(capsys, "flux1-dev-fp8", "--card", "rtx3060", "--card", "gtx1070")
    assert not any(name.startswith("one image") for name in mixed)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--card", "cpu", "--card", "rtx4060"), "is for graphics cards"),
        (("--card", "rtx4060", "--card", "rtx4060", "--vram", "6G,7G,8G"), "3 sizes for 2 cards"),
        (("--card", "rtx4060") * 9, "at most 8 cards"),
        (("--card", "rtx4060", "--card", "rtx4060", "--train", "lora"), "A training runs on one card"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(words: tuple[str, ...], said: str) -> None:
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    with pytest.raises(InputError, match=said):
        plan.run(parser.parse_args(["flux1-dev-fp8", *words]))


def test_the_table_of_the_docs_is_what_the_script_prints() -> None:
    spec = importlib.util.spec_from_file_location("two_cards", ROOT / "scripts" / "two_cards.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    lines = (ROOT / "docs" / "several-cards.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert rows[0] == script.HEADER[0] and len(rows) == 1 + len(script.PAIRS) * len(script.MODELS)
    for number in (2, -2):
        pair, model = divmod(range(len(rows) - 1)[number], len(script.MODELS))
        assert rows[1:][number] == script.row(script.PAIRS[pair], script.MODELS[model])
