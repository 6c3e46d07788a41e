"""`sluice packs`: lists the node packs of a folder that load, their nodes, missing requirements, and others' errors.

Loading a pack runs its code, as `sluice serve --node-packs` does. Nothing is installed, and no workflow is run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..graph.execute import Executor
from ..io.folders import standard_folders
from .arguments import add_folder_arguments

_SHOWN = 8  # nodes listed by name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice packs`."""
    parser.add_argument("folder", nargs="+", type=Path, help="a folder of node packs (custom_nodes), or one pack")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--verbose", action="store_true", help="also print the output of the packs, and full tracebacks"
    )
    add_folder_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """List the packs. Returns 0 if all of them were loaded, else 1."""
    from ...nodes.host import Host
    from ..facade.engine import Engine
    from ..worker.node_packs import load_packs
    from ..worker.registry import standalone_tables

    folders = standard_folders(Path.cwd(), args.models, extra=args.extra_model_paths, input=args.input, output=args.out)
    host = Host(folders)
    classes, titles = standalone_tables(host)
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="%(message)s")
    quiet = sys.stderr if args.verbose else io.StringIO()
    with contextlib.ExitStack() as stack:
        if not args.verbose:
            logging.disable(logging.CRITICAL)
            stack.enter_context(contextlib.redirect_stderr(quiet))
        stack.enter_context(contextlib.redirect_stdout(quiet))
        packs = load_packs(args.folder, Engine(host, folders, classes, titles, Executor(classes)))
        routes = packs.start_routes()["routes"]
        found = packs.packs
    logging.disable(logging.NOTSET)
    if args.json:
        print(json.dumps({"packs": found, "routes": routes}))
    else:
        print("\n".join(_lines(found)))
    return 0 if all(pack["error"] is None for pack in found) else 1


def _lines(packs: list[dict[str, Any]]) -> Iterable[str]:
    loaded = [pack for pack in packs if pack["error"] is None]
    for pack in loaded:
        yield f"{pack['name']}: {len(pack['nodes'])} nodes ({_named(pack['nodes'])})"
        yield from _remarks(pack)
    for pack in packs:
        if pack["error"] is not None:
            yield f"{pack['name']}: not loaded. {pack['error']}"
    yield f"{len(loaded)} of {len(packs)} packs loaded."


def _remarks(pack: dict[str, Any]) -> Iterable[str]:
    if pack["taken"]:
        yield f"    not replaced, because these ids exist already: {_named(pack['taken'])}"
    for node, reason in pack["left_out"].items():
        yield f"    left out: {node}: {reason}"
    if pack["missing"]:
        yield f"    requirements that are not installed: {', '.join(pack['missing'])}"
    if pack["patches"]:
        yield f"    changes ComfyUI's own program, which has no effect on Sluice: {', '.join(pack['patches'])}"


def _named(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
