"""The command line: `sluice COMMAND ...`. Each command is a module of its own, imported only when it is called.

A module has `add_arguments(parser)` and `run(args) -> exit code`. An error is one sentence on stderr and an exit
code: 2 for a command line or workflow that cannot be run, 1 for everything else, 130 after Ctrl-C. With SLUICE_DEBUG=1
errors keep their traceback.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..errors import PromptError, SluiceError, WorkflowError
from .other_flags import Parser

# name -> (what it does, module with add_arguments and run)
COMMANDS = {
    "run": ("make the images of a workflow (PNG, WebP or JSON)", ".run"),
    "serve": ("open the ComfyUI editor in the browser", ".serve"),
    "work": ("run jobs for a `sluice serve` on another machine", ".work"),
    "cluster": ("start workers for a `sluice serve` on a Ray cluster, and keep them running", ".cluster"),
    "inspect": ("describe an image or a weight file", ".inspect"),
    "swap": ("replace ComfyUI's nodes in a workflow by Sluice's, or back", ".swap"),
    "packs": ("list which node packs of ComfyUI work here, and why others do not", ".packs"),
    "convert": ("convert a model file to another format (fp8, int8, Q4_K, ...)", ".convert"),
    "doctor": ("check whether this machine is ready, and what to do if it is not", ".doctor"),
    "plan": ("predict memory and time for a model, before anything is downloaded", ".plan"),
    "compare": ("put two or more settings side by side: time, memory, likeness, blind votes", "..compare.command"),
    "train": (
        "train the small model, a LoRA (`train lora FOLDER`), or digits (`train digits`)",
        ".train",
    ),
    "bench": ("measure this machine", ".bench"),
}

# the second words of a command that have modules of their own
ROOMS = {
    ("train", "lora"): ("train a LoRA on a folder of images", ".train_lora"),
    ("train", "study"): ("train a family of sizes and fit the law of their performance", ".train_study"),
    ("train", "digits"): ("train a FLUX that draws digits in pixel space", ".train_digits"),
}

EXAMPLES = """
examples:
  sluice run workflows/text_to_image.png
  sluice run flux_dev_example.png --models ~/ComfyUI/models --seed 7
  sluice run picture.png --set "Prompt.text=a red fox" --set steps=8
  sluice inspect picture.png
  sluice COMMAND --help

An image made by ComfyUI or Sluice contains its workflow: give it to `run` to make it again. Model files are searched
in ./models, in the folders given with --models, and in those of ./extra_model_paths.yaml.
"""


def program() -> NoReturn:
    """The `sluice` program: exit with the exit code of the command line.

    Exits without Python's cleanup, which would take another half second with torch; everything is finished by then.

    OpenMP's threads sleep while they wait for each other. By default they spin, which makes a step 4 to 40 times
    slower as soon as other programs use the same cores. OpenMP reads this setting when torch is loaded; the server's
    worker inherits it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    code = main()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # the reader of the output has gone
            code = code or 1
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: the program's own) and return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _replace_unprintable()
    try:
        return _dispatch(argv)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except SluiceError as error:
        if _debugging():
            raise
        print(f"sluice: {error}", file=sys.stderr)
        return 2 if isinstance(error, (WorkflowError, PromptError)) else 1
    except Exception as error:
        if _debugging():
            raise
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            print(f"sluice: {error.filename}: {error.strerror}.", file=sys.stderr)
            return 1
        description = f"{type(error).__name__}: {error}"
        print(f"sluice: unexpected {description}. SLUICE_DEBUG=1 shows where it happened.", file=sys.stderr)
        return 1


def _replace_unprintable() -> None:
    """Print a question mark for a character that the output's encoding lacks: Windows redirects in cp1252."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _dispatch(argv: list[str]) -> int:
    name = argv[0] if argv else "--help"
    if name not in COMMANDS:
        _front_page(argv).parse_args(argv or ["--help"])
        return 0
    words = argv[:2] if tuple(argv[:2]) in ROOMS else argv[:1]
    does, module = ROOMS[(words[0], words[1])] if len(words) == 2 else COMMANDS[name]
    parser = Parser(argv, prog=f"sluice {' '.join(words)}", description=f"{does[0].upper()}{does[1:]}.")
    room = importlib.import_module(module, __package__)
    room.add_arguments(parser)
    return int(room.run(parser.parse_args(argv[len(words) :])))


def _front_page(argv: list[str]) -> Parser:
    listed = "\n".join(f"  {name:<9} {does}" for name, (does, _) in COMMANDS.items())
    parser = Parser(argv, prog="sluice", description=f"FLUX.1 images in the memory you have.\n\ncommands:\n{listed}")
    parser.usage, parser.epilog = "sluice COMMAND ...", EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--version", action="version", version=f"sluice {_version()}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def _version() -> str:
    root = importlib.import_module((__package__ or "").removesuffix(".flux_core.commands"))
    return str(getattr(root, "__version__", ""))


def _debugging() -> bool:
    return os.environ.get("SLUICE_DEBUG", "") not in ("", "0")
