"""The part `devices` of `sluice bench gpu`: two processes on one card compute an image, each under half the cap.

This tests the arithmetic and the budgets of several devices with the kernels of a card; it does not measure their
speed. On a CPU two processes share its cores.
"""

from __future__ import annotations

import torch

from ..memory.budget import Allowed
from ..parallel.split import Split
from ..runtime import handles
from ..runtime.runtime import Runtime
from ..runtime.settings import Settings
from ..runtime.team import Team, TeamSettings
from .devices import TOLERANCE
from .files import path_of
from .gpu_parts import Part, Tell
from .steps import condition_of, manager_of, sample

SECONDS = 60.0  # seconds until a process that sends nothing counts as lost


def devices(part: Part, tell: Tell) -> None:
    """Results of the same noise, in float32: one process, two that divide tokens, two that divide rows."""
    assert part.cap is not None
    allowed = Allowed(part.cap // 2, part.cap // 2 if part.setup.device == "cpu" else None)
    (file,) = part.files
    expected = None
    for split in (None, Split(2, 1), Split(1, 2)):
        runtime = Runtime(Settings(part.setup.device, "fp32", allowed))
        model = handles.load_flux(runtime, path_of(part.setup.folder, file))
        if split is not None and model.weights.config.heads < split.sp:
            split = Split(split.sp, split.tp, "gather")
        if split is not None:
            member = {"device": part.setup.device, "dtype": "fp32", **allowed.words}
            settings = TeamSettings(("the first process", "the second process"), (member,), split, split.sp, SECONDS)
            runtime.team = Team(settings, runtime.device)
        try:
            made = sample(model, part.setup, condition_of(part.setup, runtime.device), part.seed)[0].cpu()
        finally:
            if runtime.team is not None:
                runtime.team.close()
        expected = made if expected is None else expected
        distance = float((made - expected).abs().max() / expected.abs().max())
        peak = manager_of(runtime).memory.peak_bytes()
        words = "one process" if split is None else f"two processes, {split.words}"
        tell({
            "file": file, "device_case": words, "distance": distance, "near": distance <= TOLERANCE,
            "peak_bytes": peak, "within": peak <= part.cap // 2,
            "line": f"{words}: differs by {distance:.1e}, peak of the first {peak / 2**20:.0f} MiB",
        })  # fmt: skip
        model.weights.unload()
        if runtime.device.type == "cuda":
            torch.cuda.empty_cache()
