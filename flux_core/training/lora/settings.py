"""The user's settings for a LoRA training, their defaults, and the checks before anything is read.

All of them are written to settings.json at the start. A continued run compares them, because other settings would train
another LoRA. Uses no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...errors import InputError

KOHYA, PEFT = "kohya", "peft"
KEYS = (KOHYA, PEFT)
OPTIMISERS = ("adamw", "adamw8bit", "adam", "sgd", "rmsprop")
SCHEDULES = ("constant", "cosine", "linear")
TIMES = ("logit-normal", "uniform", "mode")
LOSSES = ("l2", "l1", "huber")
MOST_RANK = 512


@dataclass(frozen=True)
class LoraSettings:
    """name: of the LoRA and of its files. Sizes in pixels, rates per step.

    steps        updates of the LoRA; each sees batch x accumulate pictures
    alpha        the LoRA's scale is alpha / rank; 0 stands for alpha = rank
    layers       blocks, attention, single, all (modulation too), or a file of patterns
    time         how noise levels are drawn: the sigmoid of a normal number (Esser et al. 2024), evenly, or more in the
                 middle; then shifted as sampling shifts them at this size
    shift        "size" for that shift, or a number s: t -> s t / (1 + (s - 1) t)
    guidance     the guidance input of dev-like models; at 1 their output is the plain velocity, the target of the loss
    dropout      share of captions that are left out
    warm_up      steps in which the rate rises
    validate     pictures of the validation set, every validate_every steps
    """

    name: str = "lora"
    trigger: str = ""
    steps: int = 1500
    rank: int = 16
    alpha: float = 0.0
    size: int = 512
    batch: int = 1
    accumulate: int = 1
    rate: float = 1e-4
    schedule: str = "constant"
    warm_up: int = 20
    optimiser: str = "adamw"
    weight_decay: float = 0.01
    clip: float = 1.0
    layers: str = "blocks"
    seed: int = 0
    time: str = "logit-normal"
    shift: str = "size"
    guidance: float = 1.0
    dropout: float = 0.05
    loss: str = "l2"
    repeats: int = 1
    keys: str = KOHYA
    save_every: int = 250
    sample_every: int = 250
    prompts: tuple[str, ...] = ()
    sample_steps: int = 20
    sample_guidance: float = 3.5
    validate: int = 8
    validate_every: int = 50

    def __post_init__(self) -> None:
        """Raises InputError for impossible values."""
        least = {"steps": 1, "rank": 1, "size": 32, "batch": 1, "accumulate": 1, "repeats": 1, "save_every": 1}
        least |= {"sample_every": 1, "validate_every": 1, "sample_steps": 1, "validate": 0, "warm_up": 0, "seed": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"--{name.replace('_', '-')} is at least {value}, not {getattr(self, name)}.")
        if self.rank > MOST_RANK:
            raise InputError(f"--rank {self.rank} is too large for a LoRA: use at most {MOST_RANK}; 16 is usual.")
        if not 0 < self.rate < 1:
            raise InputError(f"--rate is a number between 0 and 1 such as 1e-4, not {self.rate:g}.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"--dropout is a share from 0 to below 1, not {self.dropout:g}.")
        choices = {"optimiser": OPTIMISERS, "schedule": SCHEDULES, "time": TIMES, "loss": LOSSES, "keys": KEYS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"--{name} is one of {', '.join(known)}, not {getattr(self, name)!r}.")
        if self.shift != "size" and not _positive(self.shift):
            raise InputError(f"--shift is `size` or a number above 0, not {self.shift!r}.")
        if not self.name or set(self.name) & set('/\\:*?"<>|\0') or self.name.startswith("."):
            raise InputError(
                f"--name {self.name!r} cannot be the name of a file. Choose one of letters and digits, without a dot "
                "at its beginning."
            )

    @property
    def scale_alpha(self) -> float:
        return self.alpha or float(self.rank)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def settings_from(document: Mapping[str, Any]) -> LoraSettings:
    """The settings from the output of `to_json`. Raises InputError for unknown names."""
    known = {field.name for field in fields(LoraSettings)}
    unknown = sorted(document.keys() - known)
    if unknown:
        raise InputError(f"These settings are of another version: {', '.join(unknown)}. Start again with --fresh.")
    values = dict(document)
    values["prompts"] = tuple(values.get("prompts", ()))
    return LoraSettings(**values)


# Settings that may change when a run continues: they affect what is reported and how long it runs, not what is learned.
FREE = {"save_every", "sample_every", "prompts", "sample_steps", "sample_guidance", "keys", "steps"}


def differences(before: LoraSettings, now: LoraSettings) -> list[str]:
    """Settings that would train another LoRA, as "rank 16, now 8". At a constant rate more steps may be requested."""
    named = [field.name for field in fields(LoraSettings) if getattr(before, field.name) != getattr(now, field.name)]
    held = [name for name in named if name not in FREE or (name == "steps" and now.schedule != "constant")]
    return [f"{name} {getattr(before, name)!r}, now {getattr(now, name)!r}" for name in held]


def _positive(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
