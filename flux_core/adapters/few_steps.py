"""LoRAs for few steps, recognised by the names of their files, and the strength for which each was made.

A file does not contain its strength, and at another one these LoRAs produce noise: Hyper's LoRAs for FLUX.1-dev need
0.125, where most LoRAs need 1 (as their authors publish them: ByteDance/Hyper-SD, alimama-creative, RED-AIGC/TDD).
"""

from __future__ import annotations

import re

# (a pattern of the file's name, the strength for which it was made)
KNOWN = (
    (re.compile(r"hyper.*flux.*step|flux.*hyper.*step|hyper[-_ ]?flux", re.IGNORECASE), 0.125),
    (re.compile(r"flux.*tdd|tdd.*flux", re.IGNORECASE), 0.125),
    (re.compile(r"flux.*turbo[-_ ]?alpha|turbo[-_ ]?alpha", re.IGNORECASE), 1.0),
)
NEAR = 1.6  # a strength that is wrong by more than this factor causes a warning


def wanted_strength(name: str) -> float | None:
    """The strength that a LoRA file of this name was made for, if it is one for few steps."""
    return next((wanted for pattern, wanted in KNOWN if pattern.search(name)), None)


def strength_hint(name: str, strength: float) -> str | None:
    """The warning about a LoRA file of this name, if it is one for few steps and the strength is wrong."""
    for pattern, wanted in KNOWN:
        if pattern.search(name) and strength > 0 and not wanted / NEAR <= strength <= wanted * NEAR:
            return (
                f"{name} is used at strength {strength:g}. By its name it is a LoRA for few steps that was made for "
                f"strength {wanted:g}; at another one its images are blurred or noisy."
            )
    return None
