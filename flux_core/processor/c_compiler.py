"""A library from C source, compiled for this processor at first use, where a C compiler is installed.

The compiler is `$CC`, `cc`, `gcc` or `clang`. The library is made in a temporary folder, and its file is deleted once
it is loaded: no file becomes stale, and none is used by a machine with other instructions.

Independent of what is computed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

SECONDS = 30  # that a compiler may take
# -ffp-contract=off: products are rounded before they are added, as PyTorch's are.
OPTIONS = ("-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC")


def compiled(source: str) -> ctypes.CDLL | None:
    """The library; None without a compiler, if it fails, and on other systems than Linux. source: ASCII.

    On macOS the name of a compiler may be a program that opens a window to install one.
    """
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        return None
    with tempfile.TemporaryDirectory(prefix="sluice-") as folder:
        path, library = Path(folder) / "functions.c", Path(folder) / "functions.so"
        try:
            path.write_text(source, "ascii")
            command = [compiler, *OPTIONS, "-o", str(library), str(path)]
            subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
            return ctypes.CDLL(str(library))
        except (OSError, subprocess.SubprocessError) as error:
            log.info("C functions are not used, because %s did not make a library: %s", compiler, error)
            return None
