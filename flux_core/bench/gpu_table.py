"""The results of `sluice bench gpu` for people: tables for LOG.md, and the targets, met or not.

A target that could not be measured is not met. Uses no device and no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..memory.budget import format_size

SLOWER, FASTER = 1.1, 2.0  # times the limit, at most; than diffusers' group offloading, at least
TRAINING_SLOWER = 1.5  # work on single numbers is not in the prediction, and there is more of it than in sampling
CAPPED = ("fraction", "ballast")
COLUMNS = (
    "cap", "file, size", "resident", "streamed a step", "link", "seconds a step", "limit", "ratio", "predicted", "peak",
    "whole card at most",
)  # fmt: skip

Record = dict[str, Any]
Facts = Mapping[str, Any]


def targets(facts: Facts, records: Sequence[Record]) -> list[dict[str, Any]]:
    """[{target, met, found}] for the parts that were chosen."""
    found = []
    if "correctness" in facts["parts"]:
        cases = [each for each in records if each["part"] == "correctness"]
        wrong = [each for each in cases if not each.get("equal")]
        told = f"{len(cases) - len(wrong)} of {len(cases)} cases"
        found.append(_target("the same bits in every case", bool(cases) and not wrong, told))
        streamed = [each for each in cases if each.get("case", "").startswith("streamed")]
        told = f"{sum(each['streamed_bytes'] > 0 for each in streamed)} of {len(streamed)}"
        found.append(_target("weights did stream", all(e["streamed_bytes"] > 0 for e in streamed) and cases, told))
    for part in CAPPED:
        for format, size in _asked(facts) if part in facts["parts"] else ():
            record = step_of(records, part, format, size)
            name = f"{part}, {format}, {size}"
            if record is None:
                found.append(_target(f"{name}: peak and time", False, "not measured"))
                continue
            peak = record["peak_bytes"]
            cap = facts["cap_bytes"]
            found.append(_target(f"{name}: peak below {format_size(cap)}", peak <= cap, format_size(peak)))
            ratio = ratio_of(records, record)
            words = f"{name}: step within {SLOWER} x the limit"
            found.append(_target(words, ratio is not None and ratio <= SLOWER, _number(ratio)))
            resident = step_of(records, "resident", format, size)
            if resident is not None:
                same = resident["picture"] == record["picture"]
                found.append(_target(f"{name}: the bits of the resident model", same, record["picture"]))
    if "training" in facts["parts"]:
        found += _of_training(facts, records)
    if "devices" in facts["parts"]:
        cases = [each for each in records if "device_case" in each]
        good = sum(each["near"] and each["within"] for each in cases)
        words = "two processes on one device: the image of one, each within half the cap"
        found.append(_target(words, len(cases) == good == 3, f"{good} of 3"))
    if "peers" in facts["parts"]:
        faster = advantage(facts, records)
        words = f"{FASTER} x as fast as diffusers' group offloading, bf16, {facts['peer_size']}"
        found.append(_target(words, faster is not None and faster >= FASTER, _number(faster)))
    return found


def _of_training(facts: Facts, records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    cases = [each for each in records if "training_case" in each]
    if "correctness" in facts["parts"]:
        equal = sum(each["equal"] for each in cases)
        yield _target("training: the same gradients, streamed and resident", cases and equal == len(cases), str(equal))
    for format, size in _asked(facts):
        steps = [each for each in records if "training_seconds" in each and each["size"] == size]
        record = next((each for each in steps if each["file"] == f"flux-{format}"), None)
        name = f"training, {format}, {size}"
        if record is None:
            yield _target(f"{name}: peak and time", False, "not measured")
            continue
        peak, cap = record["peak_bytes"], facts["cap_bytes"]
        yield _target(f"{name}: peak below {format_size(cap)}", peak <= cap and record["finite"], format_size(peak))
        ratio = record["training_seconds"] / record["predicted_seconds"]
        yield _target(
            f"{name}: step within {TRAINING_SLOWER} x the prediction", ratio <= TRAINING_SLOWER, _number(ratio)
        )


def _target(words: str, met: object, found: str) -> dict[str, Any]:
    return {"target": words, "met": bool(met), "found": found}


def _asked(facts: Facts) -> Iterator[tuple[str, str]]:
    for format in facts["formats"]:
        for size in facts["sizes"]:
            yield format, size


def step_of(records: Sequence[Record], part: str, format: str, size: str) -> Record | None:
    """The measured steps of a part at a size."""
    for record in records:
        if record["part"] == part and record.get("file") == f"flux-{format}" and _size_of(record) == size:
            return record
    return None


def limit_of(records: Sequence[Record], record: Record) -> float | None:
    """The least seconds of a step: of its arithmetic, measured with all weights on the card, or of its transfers.

    If not all weights fit on the card, the time of the arithmetic is computed from measured rates of single products.
    """
    format = record["file"].removeprefix("flux-")
    resident = step_of(records, "resident", format, _size_of(record))
    whole = resident is not None and resident["streamed_bytes"] == 0
    compute = resident["step_seconds"] if resident and whole else record["rates"]["compute_seconds"]
    measured = record["rates"]
    rate = record.get("link_bytes_per_second") or measured["link_bytes_per_second"] or measured["disk_bytes_per_second"]
    limit: float = max(compute, record["streamed_bytes"] / rate)
    return limit


def ratio_of(records: Sequence[Record], record: Record) -> float | None:
    limit = limit_of(records, record)
    return record["step_seconds"] / limit if limit else None


def advantage(facts: Facts, records: Sequence[Record]) -> float | None:
    """How many times as fast as the fastest group offloading a capped bf16 step is."""
    ours = step_of(records, "fraction", "bf16", facts["peer_size"])
    theirs = [
        each["step_seconds"] for each in records
        if each["part"] == "peers" and each.get("peer", "").startswith(facts["groups"]) and "step_seconds" in each
    ]  # fmt: skip
    return min(theirs) / ours["step_seconds"] if ours and theirs else None


def markdown(told: Mapping[str, Any]) -> str:
    """Tables that can be put into LOG.md as they are."""
    facts, records = told["facts"], told["records"]
    named = ("card", "driver", "torch", "cuda", "commit", "seed", "began")
    out = ["### On a GPU", "", ", ".join(f"{name} {facts[name]}" for name in named if name in facts)]
    if "idle_bytes" in facts:
        idle, card = format_size(facts["idle_bytes"]), format_size(facts["card_bytes"])
        out[-1] += f"; the card with one idle process: {idle} of {card}"
    out += ["", "| target | met | found |", "|---|---|---|"]
    out += [f"| {each['target']} | {'yes' if each['met'] else 'NO'} | {each['found']} |" for each in told["targets"]]
    out += [
        "",
        *_correctness(records),
        *_products(records),
        *_attentions(records),
        *_pictures(records),
        *_steps(records),
        *_training(records),
        *_peers(records),
    ]
    for record in records:
        if "error" in record:
            where = f"{record['part']} {', '.join(record.get('files', ()))}"
            out += ["", f"**Failed: {where}**", "", "```text", record["error"].rstrip(), "```"]
    return "\n".join(out) + "\n"


def _correctness(records: Sequence[Record]) -> Iterator[str]:
    cases = [each for each in records if each["part"] == "correctness" and "case" in each]
    if cases:
        yield from ("| file | LoRA | case, with sleeps on both streams | homes | streamed a step | equal |",)
        yield "|---|---|---|---|---|---|"
    for each in cases:
        row = (each["file"], "yes" if each["lora"] else "no", each["case"], each["homes"])
        yield _row(*row, format_size(each["streamed_bytes"]), "yes" if each["equal"] else "NO")
    yield ""


def _products(records: Sequence[Record]) -> Iterator[str]:
    found = [each for each in records if "way" in each]
    if found:
        yield "| matrix | tokens | product | 10^12 operations/s | relative difference from float32 |"
        yield "|---|---|---|---|---|"
    for each in found:
        matrix = f"{each['outputs']}x{each['inputs']}"
        yield _row(matrix, str(each["tokens"]), each["way"], f"{each['rate'] / 1e12:.2f}", f"{each['difference']:.4f}")
    yield ""


def _attentions(records: Sequence[Record]) -> Iterator[str]:
    found = [each for each in records if "attention" in each]
    if found:
        yield "| attention of | heads | tokens | 10^12 operations/s | relative difference from float32 |"
        yield "|---|---|---|---|---|"
    for each in found:
        if "refused" in each:
            yield _row(each["attention"], "", "", each["refused"], "")
        else:
            row = each["attention"], str(each["heads"]), str(each["tokens"])
            yield _row(*row, f"{each['rate'] / 1e12:.2f}", f"{each['difference']:.4f}")
    yield ""


def _pictures(records: Sequence[Record]) -> Iterator[str]:
    found = [each for each in records if "setting" in each]
    if found:
        yield "| setting, shipped model | picture | PSNR beside the exact one |"
        yield "|---|---|---|"
    for each in found:
        near = "" if each.get("psnr") is None else f"{each['psnr']:.1f} dB"
        yield _row(each["setting"], each.get("shown") or each["refused"].replace("\n", " "), near)
    yield ""


def _steps(records: Sequence[Record]) -> Iterator[str]:
    found = [each for each in records if "step_seconds" in each and each["part"] != "peers"]
    if found:
        yield _row(*COLUMNS)
        yield "|" + "---|" * len(COLUMNS)
    for each in found:
        card, link, streamed = each["card_peak_bytes"], each.get("link_bytes_per_second"), each["streamed_bytes"]
        yield _row(
            each["part"], f"{each['file']} {_size_of(each)}", format_size(each["resident_bytes"]),
            f"{streamed / 1e9:.2f} GB", f"{link / 1e9:.1f} GB/s" if link else "", _number(each["step_seconds"]),
            _number(limit_of(records, each)), _number(ratio_of(records, each)),
            f"{each['predicted_seconds']:.3f} ({each['bound']})", format_size(each["peak_bytes"]),
            format_size(card) if card else "",
        )  # fmt: skip
    yield ""


def _training(records: Sequence[Record]) -> Iterator[str]:
    found = [each for each in records if "training_seconds" in each]
    if found:
        yield "| training step | seconds | predicted | peak | streamed a step | block inputs |"
        yield "|---|---|---|---|---|---|"
    for each in found:
        yield _row(
            f"{each['file']} {each['size']}", _number(each["training_seconds"]), f"{each['predicted_seconds']:.3f}",
            format_size(each["peak_bytes"]), format_size(each["streamed_bytes"]), each["block_inputs"],
        )  # fmt: skip
    yield ""


def _peers(records: Sequence[Record]) -> Iterator[str]:
    found = [each for each in records if "peer" in each]
    if found:
        yield "| other programs | size | seconds a step | peak of the allocator |"
        yield "|---|---|---|---|"
    for each in found:
        if "missing" in each:
            told = f"{each['missing']} not installed"
        else:
            told = each.get("failed") or _number(each["step_seconds"])
        peak = each.get("peak_bytes")
        yield _row(each["peer"], _size_of(each), told, format_size(peak) if peak else "")


def _size_of(record: Record) -> str:
    return f"{record['width']}x{record['height']}" if "width" in record else ""


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
