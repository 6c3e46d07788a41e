"""`sluice swap`: replaces ComfyUI's nodes in a workflow by ours, or back."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import SluiceError, WorkflowError
from ..graph.translate import read_table, swap
from ..io import strict_json
from ..io.embedded import read_workflow
from ..io.saving import write_whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice swap`."""
    parser.add_argument("file", type=Path, help="a workflow as JSON (canvas or API), or an image that contains one")
    parser.add_argument("--back", action="store_true", help="replace Sluice's nodes by ComfyUI's own")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file for the JSON (default: standard output)")


def run(args: argparse.Namespace) -> int:
    """Write the workflow; print on standard error the number of changes, and the parts that did not change."""
    embedded = read_workflow(args.file)
    workflow = embedded.workflow or embedded.prompt
    if workflow is None:
        raise WorkflowError(f"{args.file.name} contains no workflow.")
    swapped = swap(workflow, read_table(), args.back)
    text = strict_json.dumps(swapped.workflow, indent=2) + "\n"
    if args.out is None:
        sys.stdout.write(text)
    else:
        try:
            write_whole(args.out, text.encode())
        except OSError as error:
            raise SluiceError(f"{args.out} cannot be written: {error.strerror}.") from error
    print(f"{swapped.changed} nodes changed.", *swapped.left, sep="\n", file=sys.stderr)
    return 0
