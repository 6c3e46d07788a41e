"""`sluice doctor`: reports whether this machine is ready, one line for each condition, and what to do if it is not."""

from __future__ import annotations

import json
import shutil
import textwrap
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..doctor.examine import examine
from ..doctor.finding import Finding
from ..io.folders import standard_folders
from .arguments import add_folder_arguments


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=8188, help="port of the server (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_folder_arguments(parser)


def run(args: Namespace) -> int:
    """0 if images can be computed, 1 if something has to be done first."""
    folders = standard_folders(Path.cwd(), args.models, extra=args.extra_model_paths, input=args.input, output=args.out)
    findings = []
    for finding in examine(folders, args.port):
        findings.append(finding)
        if not args.json:
            print("\n".join(lines(finding, shutil.get_terminal_size().columns)), flush=True)
    blocked = any(finding.needed for finding in findings)
    if args.json:
        print(json.dumps({"ready": not blocked, "findings": [finding.record() for finding in findings]}))
        return int(blocked)
    todo = sum(not finding.good for finding in findings)
    print("\nEverything is ready." if not todo else f"\n{todo} line{'s' if todo > 1 else ''} with something to do.")
    return int(blocked)


def lines(finding: Finding, width: int) -> list[str]:
    """One finding for a terminal of this width: whether it is good, its text, and the advice below."""
    mark = "ok  " if finding.good else "todo"
    lines = [f"{mark}  {finding.subject:<18}{finding.text}"]
    return lines + textwrap.wrap(finding.advice, max(40, width - 6), initial_indent=" " * 6, subsequent_indent=" " * 6)
