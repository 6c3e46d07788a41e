"""`sluice inspect`: describes a file: the workflow of an image, the header of a weight file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import WorkflowError
from ..graph.interface import Classes, Interfaces
from ..graph.prompt import is_link, name_of
from ..io.embedded import read_workflow
from ..io.file_hashes import hashes_of
from ..io.folders import PICKLES, WEIGHT_FILES, Folders, standard_folders
from ..worker.required_models import wanted_files
from ..worker.used_files import compared, states
from . import workflows
from .arguments import add_model_arguments

SEEDS = ("seed", "noise_seed")
TOLD = ("steps", "cfg", "guidance", "sampler_name", "scheduler", "denoise", "weight_dtype")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice inspect`."""
    parser.add_argument("file", type=Path, help="an image, a workflow as JSON, or a weight file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the description of the file."""
    name = args.file.name.lower()
    if args.file.is_dir() or name.endswith((*WEIGHT_FILES, *PICKLES, ".index.json")):
        from ..checkpoint.describe import as_text, describe

        facts = describe(args.file)
        print(json.dumps(facts) if args.json else as_text(facts))
        return 0
    facts = workflow_facts(args.file, standard_folders(Path.cwd(), args.models, extra=args.extra_model_paths))
    print(json.dumps(facts) if args.json else "\n".join(_lines(facts)))
    return 0


def workflow_facts(file: Path, folders: Folders) -> dict[str, Any]:
    """The description of a workflow file, as JSON-ready data. Raises WorkflowError, MissingFileError."""
    from ...nodes.host import Host
    from ..worker.registry import standalone_tables

    classes, _ = standalone_tables(Host(folders))
    embedded = read_workflow(file)
    if embedded.prompt is None and embedded.workflow is None:
        return {"path": str(file), "parameters": embedded.parameters}
    read = workflows.read(file, classes)
    embedded, prompt = read.embedded, read.prompt
    if not prompt:
        raise WorkflowError(f"The workflow in {file.name} has no nodes that run.")
    return {
        "path": str(file),
        "notes": [*read.notes],
        "carries": [name for name in ("prompt", "workflow") if getattr(embedded, name) is not None],
        "texts": [*_texts(prompt, classes)],
        "seeds": [*_values(prompt, SEEDS)],
        "sizes": [*_sizes(prompt)],
        "settings": [*_values(prompt, TOLD)],
        "models": [_model(wanted, folders) for wanted in wanted_files(prompt, classes, folders)],
        "files": states(compared(embedded.files, folders, hashes_of(folders.user))),
        "nodes": [_node(node_id, prompt, classes) for node_id in _in_order(prompt)],
    }


def _texts(prompt: Mapping[str, Any], classes: Classes) -> Iterator[dict[str, Any]]:
    """The texts with several lines, which are prompts."""
    interfaces = Interfaces(classes)
    for node_id, node in prompt.items():
        for name, value in node["inputs"].items():
            declared = interfaces[node["class_type"]].input(name) if node["class_type"] in interfaces else None
            if declared is not None and declared.options.get("multiline") and isinstance(value, str):
                yield {"node": node_id, "name": name_of(node_id, node), "input": name, "value": value}


def _values(prompt: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for node_id, node in prompt.items():
        for name in names:
            value = _constant(prompt, node["inputs"].get(name))
            if value is not None:
                yield {"node": node_id, "name": name_of(node_id, node), "input": name, "value": value}


def _sizes(prompt: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The sizes of the empty latents."""
    for node_id, node in prompt.items():
        if "Latent" in node["class_type"] and {"width", "height", "batch_size"} <= node["inputs"].keys():
            values = {key: _constant(prompt, node["inputs"][key]) for key in ("width", "height", "batch_size")}
            yield {"node": node_id, "name": name_of(node_id, node), **values}


def _constant(prompt: Mapping[str, Any], value: Any) -> Any:
    """A value, or the value of the number node that it comes from."""
    if is_link(value):
        value = prompt.get(value[0], {}).get("inputs", {}).get("value")
    return None if is_link(value) else value


def _model(wanted: Any, folders: Folders) -> dict[str, Any]:
    found = {"category": wanted.category, "name": wanted.name, "path": str(wanted.path) if wanted.path else None}
    return found if wanted.path else {**found, "missing": folders.explain_missing(wanted.category, wanted.name)}


def _node(node_id: str, prompt: Mapping[str, Any], classes: Classes) -> dict[str, Any]:
    node = prompt[node_id]
    known = node["class_type"] in classes
    return {"id": node_id, "name": name_of(node_id, node), "known": known, "inputs": node["inputs"]}


def _in_order(prompt: Mapping[str, Any]) -> list[str]:
    """The nodes, each after those it depends on; nodes of a cycle in the order of the file."""
    order: dict[str, None] = {}
    entered: set[str] = set()
    for root in prompt:
        waiting = [root]
        while waiting:
            node_id = waiting[-1]
            links = [v[0] for v in prompt[node_id]["inputs"].values() if is_link(v)] if node_id not in entered else []
            entered.add(node_id)
            fresh = [source for source in links if source in prompt and source not in entered]
            if fresh:
                waiting += reversed(fresh)
                continue
            order.setdefault(waiting.pop())
    return list(order)


# As text -------------------------------------------------------------------------------------------------------------


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    name = Path(facts["path"]).name
    if "nodes" not in facts:
        yield f"{name}: generation parameters of another program, but no workflow"
        yield str(facts["parameters"])
        return
    yield f"{name}: a workflow of {len(facts['nodes'])} nodes ({' and '.join(facts['carries'])})"
    yield from facts["notes"]
    for text in facts["texts"]:
        yield f"\n{text['input']}, {text['name']}:"
        yield from (f"  {line}" for line in text["value"].splitlines() or ["(empty)"])
    yield ""
    for seed in facts["seeds"]:
        yield f"{seed['input']:<14}{seed['value']}  ({seed['name']})"
    for size in facts["sizes"]:
        batch = f", {size['batch_size']} at once" if size["batch_size"] != 1 else ""
        yield f"{'size':<14}{size['width']}x{size['height']}{batch}  ({size['name']})"
    for setting in facts["settings"]:
        yield f"{setting['input']:<14}{setting['value']}  ({setting['name']})"
    if facts["models"]:
        yield "\nmodel files:"
    for model in facts["models"]:
        yield f"  {model['category']}/{model['name']}: {model['path'] or 'MISSING. ' + model['missing']}"
    if facts["files"]:
        yield "\nmade with, compared with what is here:"
    for one in facts["files"]:
        yield f"  {one['category']}: {one['text']}"
    yield "\nnodes, in the order they run:"
    for node in facts["nodes"]:
        values = ", ".join(f"{key}={_shown(value)}" for key, value in node["inputs"].items())
        yield f"  {node['name']}{'' if node['known'] else ' [unknown here]'}: {values}"


def _shown(value: Any) -> str:
    if is_link(value):
        return f"<{value[0]}.{value[1]}>"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:36]}...{text[-1] if isinstance(value, str) else ''}"
