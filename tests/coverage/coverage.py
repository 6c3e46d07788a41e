"""How many workflow files of a folder are accepted, by source, and why the others are refused.

    python tests/coverage/coverage.py FOLDER [--origins FILE] [--node-packs DIR]... [--refusals] [--json FILE]

Every file below FOLDER is read, made an API prompt and checked, as `sluice run` does before it loads anything. Model
files, pictures and devices that are not on this machine do not count: only what the program knows is measured. Nothing
is run.

FILE is a table with the columns file, repository, category, form (tab separated); without it a file's source is the
folder it lies in. Refusals name their nodes, the pack of each, and what can be done.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

import conftest  # noqa: E402, F401  # this checkout as `sluice`

sys.path.pop(0)  # packs import libraries that have the names of this file and its folder

from sluice.flux_core.commands import workflows  # noqa: E402
from sluice.flux_core.errors import SluiceError  # noqa: E402
from sluice.flux_core.graph.interface import Classes, Interfaces  # noqa: E402
from sluice.flux_core.graph.partial import is_socket, runnable_part  # noqa: E402
from sluice.flux_core.graph.templates import unfilled, with_defaults  # noqa: E402
from sluice.flux_core.graph.validate import Validation, validate  # noqa: E402
from sluice.flux_core.io.folders import standard_folders  # noqa: E402
from sluice.flux_core.worker.registry import standalone_tables  # noqa: E402

ENDINGS = (".json", ".png", ".webp", ".jpg", ".jpeg", ".avif")
DEVICE = re.compile(r"(cuda|xpu|mps)(:\d+)?")  # which packs list by what the machine has
FILE_ENDINGS = (*ENDINGS, ".safetensors", ".sft", ".gguf", ".pt", ".pth", ".ckpt", ".bin", ".onnx", ".torchscript")
ABSENT = ("value_not_in_list", "custom_validation_failed")  # of an input that names a file


@dataclass
class Account:
    """What became of one file."""

    file: str
    source: str
    category: str = ""
    accepted: bool = False
    error: str = ""  # why it could not even be read
    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # ids of node classes that are not known


def account(path: Path, classes: Classes, partial: bool) -> Account:
    """Read and check one file."""
    told = Account(path.name, path.parent.name)
    try:
        read = workflows.read(path, classes)
        (prompt, _), packs = with_defaults(read.prompt, classes), read.packs
    except SluiceError as error:
        told.error = str(error)
        return told
    if partial:
        prompt = runnable_part(prompt, classes).prompt
    found = validate(prompt, classes, packs=packs)
    unknown = {node.get("class_type", "?") for node in prompt.values() if node.get("class_type", "") not in classes}
    told.missing = sorted(unknown)
    told.problems = unfilled(prompt)
    told.accepted = not unknown and not told.problems and _runs(prompt, found, classes)
    told.problems += [] if told.accepted else list(found.sentences)
    return told


def _runs(prompt: Mapping[str, Any], found: Validation, classes: Classes) -> bool:
    """Whether outputs are left when those are left out that lack only a link, and no other output has a fault."""
    interfaces = Interfaces(classes)
    left_out: set[str] = set()
    for node in found.node_errors.values():
        for error in node["errors"]:
            if _names_a_file(error, classes.get(node["class_type"])):
                continue
            if error["type"] != "required_input_missing":
                return False
            if not is_socket(interfaces, node["class_type"], error["extra_info"]["input_name"]):
                return False
            left_out.update(node["dependent_outputs"])
    outputs = (one for one, node in prompt.items() if getattr(classes[node["class_type"]], "OUTPUT_NODE", False))
    return any(one not in left_out for one in outputs)


def _names_a_file(error: Mapping[str, Any], node_class: Any) -> bool:
    """Whether an error is only about a model file, a picture or a device that is not here."""
    name, value = (error["extra_info"].get(key) for key in ("input_name", "received_value"))
    if error["type"] == "required_input_missing":  # an API file whose sender fills in the picture
        return name == "image" and getattr(node_class, "TITLE", None) == "Load Image"
    if error["type"] not in ABSENT:
        return False
    if isinstance(value, str) and DEVICE.fullmatch(value):
        return True
    if (error["extra_info"].get("input_config") or [None])[0] == []:  # a folder that has nothing here
        return True
    of_ours = name in getattr(node_class, "FILES", {}) or name in ("image", "latent")
    return of_ours or (isinstance(value, str) and value.lower().endswith(FILE_ENDINGS))


def origins(file: Path | None) -> dict[str, dict[str, str]]:
    if file is None:
        return {}
    with file.open(newline="") as lines:
        return {row["file"]: row for row in csv.DictReader(lines, delimiter="\t")}


def share(accounts: Iterable[Account]) -> str:
    accounts = list(accounts)
    good = sum(one.accepted for one in accounts)
    return f"{good:4d} of {len(accounts):4d}  {100 * good / len(accounts):5.1f} %"


def by_source(accounts: Iterable[Account]) -> float:
    """The share of accepted files, averaged over their sources."""
    sources: dict[str, list[bool]] = defaultdict(list)
    for one in accounts:
        sources[one.source].append(one.accepted)
    return sum(sum(each) / len(each) for each in sources.values()) / len(sources)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--origins", type=Path, metavar="FILE")
    parser.add_argument("--node-packs", type=Path, action="append", default=[], metavar="DIR")
    parser.add_argument("--partial", action="store_true", help="count a file if one of its outputs can be made")
    parser.add_argument("--refusals", action="store_true", help="list every refusal with its reasons")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all accounts")
    args = parser.parse_args()
    random.seed(0)  # {a|b} in prompts
    known = origins(args.origins)
    classes, titles = _catalogue(args.folder, args.node_packs)
    accounts = []
    for path in sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in ENDINGS):
        told = account(path, classes, args.partial)
        row = known.get(path.name)
        if row is not None:
            told.source, told.category = row["repository"].partition("/")[0], row["category"]
        accounts.append(told)
    _tell(accounts, args.refusals)
    if args.json:
        args.json.write_text(json.dumps([asdict(one) for one in accounts], indent=1))


def _catalogue(folder: Path, packs: list[Path]) -> tuple[dict[str, type[Any]], dict[str, str]]:
    from sluice.flux_core.facade.engine import Engine
    from sluice.flux_core.graph.execute import Executor
    from sluice.flux_core.worker.node_packs import load_packs
    from sluice.nodes.host import Host

    os.environ["PIP_NO_INDEX"] = "1"  # some packs install packages when they are imported: not into this environment

    folders = standard_folders(folder)
    host = Host(folders)
    classes, titles = standalone_tables(host)
    load_packs(packs, Engine(host, folders, classes, titles, Executor(classes)))
    return classes, titles


def _tell(accounts: list[Account], refusals: bool) -> None:
    print(f"all         {share(accounts)}   by source {100 * by_source(accounts):5.1f} %")
    for category in sorted({one.category for one in accounts} - {""}):
        print(f"{category[:11]:11s} {share(one for one in accounts if one.category == category)}")
    known = [one for one in accounts if not one.missing and not one.error]
    print(f"every id known: {len(known)}; of these refused: {sum(not one.accepted for one in known)}")
    print(f"not readable: {sum(bool(one.error) for one in accounts)}")
    missing = Counter(name for one in accounts for name in one.missing)
    print("\nids that are not known, by files:")
    for name, count in missing.most_common(40):
        print(f"  {count:4d}  {name}")
    for one in accounts if refusals else ():
        if not one.accepted:
            print(f"\n{one.file}", *([one.error] if one.error else one.problems), sep="\n  ")


if __name__ == "__main__":
    main()
