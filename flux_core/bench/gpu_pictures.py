"""A picture of the shipped model for each faster setting on this device, beside the exact one of the same seed.

Written to OUT/pictures, one PNG for each setting, so that what a table says in decibels can be looked at.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

from PIL import Image

from ..errors import SluiceError
from ..runtime.settings import HALF_SUMS
from .gpu_parts import Part, Tell
from .quality import SETTINGS, images_of, psnr

STEPS = 8


def pictures(out: Path, part: Part, tell: Tell) -> None:
    """One record for each setting; one that this device does not have is recorded with the reason."""
    device = part.setup.device
    settings = dict(SETTINGS) | ({"fp16 sums": ("--compute", HALF_SUMS)} if device.startswith("cuda") else {})
    exact = None
    out.mkdir(parents=True, exist_ok=True)
    for setting, options in settings.items():
        dtype = "fp16" if HALF_SUMS in options else "auto"
        args = argparse.Namespace(workflow=None, prompts=1, steps=STEPS, models=None, device=device, dtype=dtype)
        with tempfile.TemporaryDirectory() as folder:
            try:
                seconds, _, (made,) = images_of(args, options, Path(folder))
            except SluiceError as error:
                tell({"setting": setting, "refused": str(error), "line": f"{setting}: {error}"})
                continue
        file = out / f"{setting.replace(', ', '_').replace(' ', '_')}.png"
        Image.fromarray(made).save(file)
        exact = made if exact is None else exact
        near = psnr(made, exact)
        told = "the exact picture" if math.isinf(near) else f"{near:.1f} dB"
        record = {"setting": setting, "seconds": seconds, "psnr": None if math.isinf(near) else near}
        tell(record | {"shown": file.name, "line": f"{setting}: {told}, {file}"})
