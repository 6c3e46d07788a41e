"""Which node packs of a folder load, and which of their nodes run: the ones for pictures, masks, texts and numbers.

    python tests/packs/check.py FOLDER... [--only NAME]... [--seconds N] [--json FILE]

FOLDER holds packs of other people (or is one). All of them are loaded together, as by `sluice serve --node-packs`. Then
every node whose inputs are pictures, masks, latents, texts, numbers and choices runs in a workflow of its own: a small
picture, mask or latent at each socket, the defaults in its widgets, its first output shown. What a node does with its
defaults is its own business: run this where nothing can be lost. Nothing is installed.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import conftest  # noqa: E402, F401  # this checkout as `sluice`

sys.path.pop(0)  # the folders of tests have names that libraries look for

import torch  # noqa: E402
from sluice.flux_core.facade.engine import Engine  # noqa: E402
from sluice.flux_core.graph.execute import Executor  # noqa: E402
from sluice.flux_core.graph.interface import Interface  # noqa: E402
from sluice.flux_core.graph.validate import validate  # noqa: E402
from sluice.flux_core.io.folders import standard_folders  # noqa: E402
from sluice.flux_core.worker.node_packs import load_packs  # noqa: E402
from sluice.flux_core.worker.registry import standalone_tables  # noqa: E402
from sluice.nodes.host import Host  # noqa: E402

Prompt = dict[str, Any]
# Socket -> what is put there.
SOURCES: Mapping[str, tuple[str, Any]] = {
    "IMAGE": ("picture", {"class_type": "LoadImage", "inputs": {"image": "check.png"}}),
    "MASK": ("mask", {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": 96, "height": 64}}),
    "LATENT": ("latent", {"class_type": "EmptySD3LatentImage", "inputs": {"width": 96, "height": 64, "batch_size": 1}}),
}
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
# Nodes that ask other computers, or load models that nobody has here.
ELSEWHERE = re.compile(
    r"download|api\b|ollama|gemini|openai|chatgpt|hugging|civitai|\burl|web ?cam|upload|translat|remove ?bg|rembg|"
    r"llm|caption|blip|clipseg|\bsam\b|segment|detect|depth|pose|lineart|hed\b|midas|zoe|yolo|florence|loader|load ",
    re.IGNORECASE,
)


class TooLong(Exception):
    """A node has had its time."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises TooLong in what takes longer. Windows has no alarm, so everything may take as long as it likes there."""
    if sys.platform == "win32":
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise TooLong(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def workflow(node_id: str, interface: Interface) -> Prompt | None:
    """A prompt with this node; None if it needs an input that we cannot give."""
    prompt: Prompt = {}
    inputs: dict[str, Any] = {}
    for declared in interface.inputs():
        kinds = [declared.type] if isinstance(declared.type, list) else str(declared.type).split(",")
        if declared.category != "required" and declared.options.get("forceInput"):
            continue
        source = next((SOURCES[kind] for kind in kinds if isinstance(kind, str) and kind in SOURCES), None)
        if isinstance(declared.type, list) or any(kind in WIDGETS for kind in kinds):
            options = declared.type if isinstance(declared.type, list) else declared.options.get("options")
            if options is not None and not options:
                if declared.category == "required":
                    return None
                continue
            inputs[declared.name] = default(declared, options)
        elif declared.category != "required":
            continue
        elif source is not None or "*" in kinds:
            name, node = source or SOURCES["IMAGE"]
            prompt[name] = node
            inputs[declared.name] = [name, 0]
        else:
            return None
    prompt["it"] = {"class_type": node_id, "inputs": inputs}
    if not interface.is_output:
        if not interface.outputs:
            return None
        prompt["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["it", 0]}}
    return prompt


def default(declared: Any, options: Any) -> Any:
    """The value that the editor sets in a widget."""
    if "default" in declared.options:
        return declared.options["default"]
    if options:
        return options[0]
    return {"STRING": "text", "BOOLEAN": False}.get(str(declared.type), max(0, declared.options.get("min", 0)))


def check(folders_of_packs: list[Path], only: list[str], seconds: int) -> list[dict[str, Any]]:
    """The account of each pack: as `sluice packs --json`, and under "ran" and "failed" what became of its nodes."""
    base = Path(tempfile.mkdtemp(prefix="packs-"))
    folders = standard_folders(base)
    for place in (folders.input, folders.output, folders.temp, folders.user):
        place.mkdir(parents=True)
    picture().save(folders.input / "check.png")
    host = Host(folders)
    classes, titles = standalone_tables(host)
    executor = Executor(classes, around=torch.inference_mode)
    packs = load_packs(folders_of_packs, Engine(host, folders, classes, titles, executor))
    packs.start_routes()
    told = packs.packs
    for pack in told:
        pack["ran"], pack["failed"] = [], {}
        for node_id in pack["nodes"] if not only or pack["name"] in only else ():
            became(pack, node_id, classes, executor, seconds)
        print(line(pack), flush=True)
    return told


def became(pack: dict[str, Any], node_id: str, classes: dict[str, Any], executor: Executor, seconds: int) -> None:
    """Run one node and note it."""
    named = f"{node_id} {getattr(classes[node_id], 'CATEGORY', '')}"
    prompt = None if ELSEWHERE.search(named) else workflow(node_id, Interface(classes[node_id]))
    if prompt is None:
        return
    try:
        with within(seconds):
            found = validate(prompt, classes)
            if found.problems:
                pack["failed"][node_id] = f"refused: {found.problems[0]}"
                return
            result = executor.execute(found.prompt, f"check {node_id}", {}, found.outputs)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        told: BaseException | None = error
    else:
        told = result.exception
    if told is None:
        pack["ran"].append(node_id)
    else:
        pack["failed"][node_id] = f"{type(told).__name__}: {' '.join(str(told).split())[:200]}"


def picture() -> Any:
    """A small picture that is no single colour."""
    from PIL import Image

    image = Image.new("RGB", (96, 64))
    image.putdata([(x * 2, y * 3, (x * y) % 256) for y in range(64) for x in range(96)])
    return image


def line(pack: dict[str, Any]) -> str:
    if pack["error"] is not None:
        return f"{pack['name']}: NOT LOADED. {pack['error']}"
    tried = len(pack["ran"]) + len(pack["failed"])
    return f"{pack['name']}: {len(pack['nodes'])} nodes, {len(pack['ran'])} of {tried} tried ran"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="+", type=Path)
    parser.add_argument("--only", action="append", default=[], help="run nodes of this pack alone")
    parser.add_argument("--seconds", type=int, default=20, help="for each node")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    told = check(args.folder, args.only, args.seconds)
    loaded = [pack for pack in told if pack["error"] is None]
    ran, failed = (sum(len(pack[key]) for pack in loaded) for key in ("ran", "failed"))
    print(f"{len(loaded)} of {len(told)} packs loaded; {ran} nodes ran, {failed} did not", end=" ")
    print(f"({time.monotonic() - began:.0f} s)")
    if args.json:
        args.json.write_text(json.dumps(told, indent=1))
    return 0 if len(loaded) == len(told) else 1


if __name__ == "__main__":
    raise SystemExit(main())
