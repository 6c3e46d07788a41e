"""The LoRA files that are here: family, rank, trigger words, and whether each fits a model. Opens headers only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapters.few_steps import wanted_strength
from ..adapters.lora_fit import fit
from ..checkpoint.detect import detect
from ..checkpoint.files import open_weights
from ..errors import SluiceError
from ..io.folders import Folders

MOST_TRIGGERS = 5  # of the captions a LoRA was trained on
LONGEST = 120  # characters of a trigger word
_PHRASES = ("modelspec.trigger_phrase", "trigger_phrase", "trigger", "activation_text")

Shapes = Mapping[str, tuple[int, ...]]


def lora_list(folders: Folders, category: str | None = None, model: str | None = None) -> list[dict[str, Any]]:
    """[{"name", "bytes", "about", "family", "rank", "changes", "triggers", "strength", "fits", "why"}], by name.

    fits: true, false, or null without a model; why: a sentence, "" if it fits. strength: the one that a LoRA for few
    steps was made for, else null. category, model: the transformer's file.
    """
    parameters = _parameters(folders.find(category, model)) if category and model else None
    return [_told(folders, name, parameters) for name in folders.filenames("loras")]


def _parameters(path: Path | None) -> Shapes | None:
    """Shapes of a transformer's parameters; None for a file that is missing or holds no FLUX.1 transformer."""
    try:
        found = detect(open_weights(path)) if path is not None else None
    except (SluiceError, OSError):
        return None
    if found is None or "flux" not in found.parts:
        return None
    return {name: stored.shape for name, stored in found.parts["flux"].items()}


def _told(folders: Folders, name: str, parameters: Shapes | None) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": name, "bytes": None, "about": "", "family": None, "rank": None, "changes": None, "triggers": [],
        "strength": wanted_strength(name), "fits": None, "why": "",
    }  # fmt: skip
    try:
        file = open_weights(folders.path("loras", name))
        found = detect(file)
    except (SluiceError, OSError) as error:
        return {**entry, "fits": False, "why": str(error)}
    entry |= {"bytes": file.size, "about": found.noun, "triggers": trigger_words(file.metadata)}
    entry |= {key: found.facts.get(key) for key in ("family", "rank", "changes")}
    if found.kind != "lora":
        return {**entry, "fits": False, "why": f"It is {found.noun}."}
    if parameters is None:
        return entry
    if "transformer" not in str(entry["changes"]):
        return {**entry, "fits": True, "why": "It changes the text encoders only: use Load LoRA."}
    counted = fit({entry.name: entry.shape for entry in file.entries.values()}, parameters)
    if counted.wrong:
        return {**entry, "fits": False, "why": f"{counted.wrong} has another shape than the model's matrix."}
    if not counted.used:
        return {**entry, "fits": False, "why": "None of its tensors belong to this model."}
    left = f"{counted.unused} of {counted.used + counted.unused} tensors will not be used." if counted.unused else ""
    return {**entry, "fits": True, "why": left}


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """The words that call what was trained: those that the file declares, else the most frequent captions."""
    for key in _PHRASES:
        if metadata.get(key, "").strip():
            return [_line(metadata[key])]
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        tags: Counter[str] = Counter()
        for counted in folders.values():
            tags.update({str(tag): int(count) for tag, count in counted.items()})
    except (ValueError, AttributeError, TypeError):
        return []
    return [_line(tag) for tag, _ in tags.most_common(MOST_TRIGGERS) if tag.strip()]


def _line(text: str) -> str:
    return " ".join("".join(sign if sign.isprintable() else " " for sign in str(text)).split())[:LONGEST]
