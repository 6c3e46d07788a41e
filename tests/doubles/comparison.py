"""A folder as `sluice compare` writes it, with images whose colour stands for their setting, and intervals of votes."""

from __future__ import annotations

import json
import math
from pathlib import Path

from PIL import Image

SETTINGS = {"dev": (200, 0, 0), "four steps": (0, 200, 0), "int8": (0, 0, 200)}
NAMES = list(SETTINGS)


def comparison(output: Path, prompts: int, name: str = "three ways") -> None:
    """Three settings, which give three pairs for each prompt."""
    folder = output / "compare" / name
    images = []
    for setting, colour in enumerate(SETTINGS.values()):
        (folder / str(setting)).mkdir(parents=True)
        for prompt in range(prompts):
            file = f"{setting}/{prompt:03}-1.png"
            Image.new("RGB", (8, 8), colour).save(folder / file)
            images.append({"setting": setting, "prompt": prompt, "seed": 1, "file": file})
    settings = [{"name": name, "words": name} for name in NAMES]
    texts = [f"prompt {number}" for number in range(prompts)]
    told = {"settings": settings, "prompts": texts, "seeds": [1], "images": images}
    (folder / "results.json").write_text(json.dumps(told), "utf-8")
    (folder / "index.html").write_text("<p>side by side", "utf-8")


def setting_of(colour: tuple[int, int, int]) -> str:
    """The setting whose images have this colour."""
    return next(name for name, own in SETTINGS.items() if own == colour)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The two roots of (p - share)^2 = z^2 p (1 - p) / n."""
    z2 = 1.959964**2
    a, b, c = 1 + z2 / n, -(2 * share + z2 / n), share**2
    spread = math.sqrt(b * b - 4 * a * c)
    return (-b - spread) / (2 * a), (-b + spread) / (2 * a)
