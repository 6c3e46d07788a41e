"""A library from C source, compiled for this processor at first use, where a C compiler is installed.

The compiler is `$CC`, `cc`, `gcc` or `clang`. The library is made in a temporary folder, and its file is deleted once
it is loaded: no file becomes stale, and none is used by a machine with other instructions.

Independent of what is computed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

log = logging.getLogger(__name__)

SECONDS = 30  # that a compiler may take
# -ffp-contract=off: products are rounded before they are added, as PyTorch's are.
OPTIONS = ("-O3", "-march=native", "-ffp-contract=off", "-fPIC")
OPENMP = re.compile(r"/\S*/lib(?:gomp|iomp5|omp)[^/\s]*\.so\S*")


def compiled(source: str) -> ctypes.CDLL | None:
    """The library; None without a compiler, if it fails, and on other systems than Linux. source: ASCII.

    Loops that OpenMP divides use the threads of PyTorch's OpenMP library. Where it cannot be used, they use one core.
    On macOS the name of a compiler may be a program that opens a window to install one.
    """
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        return None
    openmp = pytorch_openmp()
    return (openmp and _compiled(source, compiler, openmp)) or _compiled(source, compiler, None)


def _compiled(source: str, compiler: str, openmp: str | None) -> ctypes.CDLL | None:
    with tempfile.TemporaryDirectory(prefix="sluice-") as folder:
        path, part, library = (str(Path(folder, f"functions.{ending}")) for ending in ("c", "o", "so"))
        try:
            Path(path).write_text(source, "ascii")
            # Not in one command: -fopenmp would link the compiler's own OpenMP library, with threads of its own.
            _run(compiler, *OPTIONS, *(["-fopenmp"] if openmp else []), "-c", "-o", part, path)
            _run(compiler, "-shared", "-o", library, part, *([openmp] if openmp else []))
            return ctypes.CDLL(library)
        except (OSError, subprocess.SubprocessError) as error:
            log.info("C functions %s are not used, because %s did not make a library: %s",
                     "with OpenMP" if openmp else "on one core", compiler, error)  # fmt: skip
            return None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)


def pytorch_openmp() -> str | None:
    """The file of the OpenMP library that PyTorch has loaded; None if there is none, or several and none is PyTorch's.

    Others come from NumPy or SciPy, for example.
    """
    try:
        loaded = set(OPENMP.findall(Path("/proc/self/maps").read_text()))
    except OSError:
        return None
    own = {path for path in loaded if path.startswith(str(Path(torch.__file__).parent))} or loaded
    return own.pop() if len(own) == 1 else None
