"""What a comparison found, as one JSON file beside its images; written after every image, read to go on.

    {"settings": [{"name", "words"}], "prompts": [text], "seeds": [n], "machine",
     "images": [{"setting", "prompt", "seed", "file", "seconds", "peak_bytes", "psnr", "ssim"}]}     all by number

psnr and ssim are to the first setting's image of the same prompt and seed; null for that setting itself, and for images
of other sizes. An infinite PSNR (equal images) is written as the text "equal".
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SluiceError
from ..io.saving import write_whole

FILE = "results.json"


@dataclass(frozen=True)
class Made:
    """One image. file: relative to the folder, with slashes."""

    setting: int
    prompt: int
    seed: int
    file: str
    seconds: float
    peak_bytes: int
    psnr: float | str | None
    ssim: float | None


@dataclass
class Results:
    settings: list[dict[str, str]]
    prompts: list[str]
    seeds: list[int]
    machine: str
    images: list[Made] = field(default_factory=list)

    def find(self, setting: int, prompt: int, seed: int) -> Made | None:
        return next((m for m in self.images if (m.setting, m.prompt, m.seed) == (setting, prompt, seed)), None)

    def save(self, folder: Path) -> None:
        write_whole(folder / FILE, json.dumps(asdict(self), indent=1).encode())


def open_results(folder: Path, fresh: Results) -> Results:
    """What an earlier run of the same comparison left in the folder, or `fresh`. Raises SluiceError for another one."""
    file = folder / FILE
    if not file.exists():
        return fresh
    found = read(folder)
    if (found.settings, found.prompts, found.seeds) != (fresh.settings, fresh.prompts, fresh.seeds):
        raise SluiceError(f"{folder} holds another comparison. Choose another --out, or move it away.")
    return found


def read(folder: Path) -> Results:
    """Raises SluiceError for a file that is none."""
    try:
        saved = json.loads((folder / FILE).read_bytes())
        images = [Made(**image) for image in saved.pop("images")]
        return Results(**saved, images=images)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SluiceError(f"{folder / FILE} holds no comparison: {error}.") from error


@dataclass(frozen=True)
class Price:
    """What computing costs: per_hour for a rented machine; or watts of one's own, at per_kwh."""

    per_hour: float = 0.0
    watts: float = 0.0
    per_kwh: float = 0.0

    def of(self, seconds: float) -> float | None:
        """None if no price is known."""
        hourly = self.per_hour + self.watts / 1000 * self.per_kwh
        return hourly * seconds / 3600 if hourly else None


def rows(results: Results, price: Price) -> Iterator[dict[str, Any]]:
    """A row for each setting. seconds: the median without the first image, which also loads the model."""
    first_seconds: float | None = None
    for number, setting in enumerate(results.settings):
        made = [image for image in results.images if image.setting == number]
        if not made:
            continue
        seconds = statistics.median([m.seconds for m in made[1:]] or [made[0].seconds])
        first_seconds = seconds if first_seconds is None else first_seconds
        yield {
            "name": setting["name"], "words": setting["words"], "images": len(made),
            "seconds": seconds, "first_seconds": made[0].seconds, "speed_up": first_seconds / seconds,
            "cost": price.of(seconds), "peak_bytes": max(m.peak_bytes for m in made),
            "psnr": _middle([_number(m.psnr) for m in made]),
            "psnr_worst": min((p for m in made if (p := _number(m.psnr)) is not None), default=None),
            "ssim": _middle([m.ssim for m in made]),
        }  # fmt: skip


def _number(psnr: float | str | None) -> float | None:
    return math.inf if psnr == "equal" else None if psnr is None else float(psnr)


def _middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median_low(known) if known else None
