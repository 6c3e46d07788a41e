"""LoRAs for few steps, known by the names of their files, and the strength each was made for.

A file says nothing of its strength, and these make noise of images at another one: Hyper's LoRAs for FLUX.1-dev want
0.125, where most LoRAs want 1 (as their authors publish them: ByteDance/Hyper-SD, alimama-creative, RED-AIGC/TDD).
"""

from __future__ import annotations

import re

# (what the name of a file looks like, the strength it was made for)
KNOWN = (
    (re.compile(r"hyper.*flux.*step|flux.*hyper.*step|hyper[-_ ]?flux", re.IGNORECASE), 0.125),
    (re.compile(r"flux.*tdd|tdd.*flux", re.IGNORECASE), 0.125),
    (re.compile(r"flux.*turbo[-_ ]?alpha|turbo[-_ ]?alpha", re.IGNORECASE), 1.0),
)
NEAR = 1.6  # times too much or too little, from which it is told


def strength_hint(name: str, strength: float) -> str | None:
    """What to say of a LoRA file of this name, if it is one for few steps and this strength is wrong."""
    for pattern, wanted in KNOWN:
        if pattern.search(name) and strength > 0 and not wanted / NEAR <= strength <= wanted * NEAR:
            return (
                f"{name} is used at strength {strength:g}. By its name it is a LoRA for few steps that was made for "
                f"strength {wanted:g}; at another one its images are blurred or noisy."
            )
    return None
