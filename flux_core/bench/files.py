"""The files that benchmarks measure: random weights, written before a measurement and deleted after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import random_model

FORMATS = {"fp8": "F8_E4M3", "bf16": "BF16", "fp16": "F16"}
FULL = (19, 38)  # blocks of FLUX.1
Make = Callable[[], Any]


@contextmanager
def written(folder: Path, files: Mapping[str, tuple[Make, str]], keep: bool = False) -> Iterator[None]:
    """Write the files that do not exist yet, and delete those at the end. files: name -> (module, format)."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    try:
        for name, (make, format) in files.items():
            path = path_of(str(folder), name)
            if not path.exists():
                print(f"writing {path} ...", flush=True)
                made.append(path)
                began = time.perf_counter()
                size = random_model.write(path, make, format)
                print(f"  {size / 1e9:.2f} GB at {size / 1e9 / (time.perf_counter() - began):.2f} GB/s", flush=True)
        yield
    finally:
        if not keep:
            for path in made:
                path.unlink(missing_ok=True)


def path_of(folder: str, name: str) -> Path:
    return Path(folder) / f"{name}.{'gguf' if name.endswith('Q8_0') else 'safetensors'}"
