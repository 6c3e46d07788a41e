"""Seconds of an image, for `sluice plan`: of all steps, with step caches and with few-step LoRAs, each with its basis.

Uses no model: the seconds of a step are an argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# The share of 20 steps that a cache computes. Measured on the shipped model: 11 and 9 of 20; one more for caution.
COMPUTED = {"fast": 12 / 20, "faster": 10 / 20}
IMAGE_STEPS = 20  # of an image, where nothing else is said
FEW = 8  # steps that the Turbo and Hyper LoRAs are made for
MEASURED_FROM = 16  # steps: below them a cache finds next to nothing to skip


@dataclass(frozen=True)
class Image:
    """One way to make an image. `basis`: the reason for the number of evaluations, as a sentence."""

    label: str
    evaluations: int
    seconds: float
    basis: str

    def record(self) -> dict[str, object]:
        return {"label": self.label, "evaluations": self.evaluations, "seconds": self.seconds, "basis": self.basis}


def passes_of(cfg: float) -> int:
    """Evaluations in a step: with a cfg other than 1, the negative prompt is evaluated as well."""
    return 1 if math.isclose(cfg, 1.0) else 2


def images(evaluation_seconds: float, steps: int, passes: int = 1) -> list[Image]:
    """With every step computed first. Denoising only: text encoders and autoencoder come to some seconds more.

    passes: evaluations in a step.
    """
    step_seconds = passes * evaluation_seconds
    made = [Image(f"{steps} steps", steps * passes, steps * step_seconds, "every step is computed")]
    if steps >= MEASURED_FROM:
        for name, share in COMPUTED.items():
            count = math.ceil(steps * share)
            basis = "the share that the shipped model computed; images differ slightly"
            made.append(Image(f"{steps} steps, --cache {name}", count * passes, count * step_seconds, basis))
    if steps > FEW:
        basis = "a LoRA for few steps (Turbo, or Hyper at strength 0.125)"
        made.append(Image(f"{FEW} steps", FEW * passes, FEW * step_seconds, basis))
    return made


def lines(made: list[Image]) -> list[str]:
    """For people."""
    width = max(len(image.label) for image in made)
    return [
        f"  {image.label:<{width}}{image.seconds:>8.0f} s  {image.evaluations} evaluations: {image.basis}"
        for image in made
    ]
