"""Which tokenizers a prompt needs and cannot find. They are reported with the missing model files, before loading.

Only the headers of weight files are read. A file that is missing is judged by its published name.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint.detect import detect
from ..checkpoint.files import open_weights
from ..conditioning import tokenizer_files
from ..conditioning.tokenizer import CLIP_LENGTH
from ..conditioning.tokenizer_files import CLIP_L, CLIP_VOCABULARY, T5_VOCABULARY, T5XXL, Published
from ..errors import SluiceError
from ..graph.interface import Classes
from ..graph.problems import MISSING_TOKENIZER, Problem, place_of
from ..graph.prompt import is_link
from ..graph.validate import Validation
from ..io.folders import Folders
from .required_models import Wanted

_TEXT_OUTPUTS = ("CLIP", "FLUX_CLIP")
# Category and published name of a file -> the tokenizers it needs.
_PRESUMED: tuple[tuple[str, str, tuple[Published, ...]], ...] = (
    ("text_encoders", "*t5*.gguf", ()),
    ("text_encoders", "*t5*", (T5XXL,)),
    ("text_encoders", "*clip_l*", (CLIP_L,)),
    ("checkpoints", "flux1-*", (CLIP_L, T5XXL)),
)


@dataclass(frozen=True)
class Lacking:
    """A tokenizer that a node's text encoder needs and that was not found. folder: where to put it."""

    node_id: str
    input: str
    published: Published
    folder: Path | None

    @property
    def text(self) -> str:
        """The message: what is missing, where it is published and where to put it."""
        wanted = self.published
        where = f"Put it into {self.folder}." if self.folder else "Put it into a tokenizers folder of your models."
        return (
            f"The tokenizer of {wanted.title} is missing: {wanted.files}, published at {wanted.address}. "
            f"{where}{wanted.hint}"
        )


def lacking_tokenizers(
    prompt: Mapping[str, Any], classes: Classes, folders: Folders, files: Iterable[Wanted]
) -> list[Lacking]:
    """The tokenizers that cannot be found, each with the first node that needs it. files: those of the prompt."""
    found: dict[str, Lacking] = {}
    place = folders.place_for("tokenizers")
    for wanted in files:
        if wanted.category not in ("text_encoders", "checkpoints") or not _read_by_others(prompt, wanted, classes):
            continue
        for published in _missing(wanted, folders.directories("tokenizers")):
            folder = place / published.folders[0] if place else None
            found.setdefault(published.title, Lacking(wanted.node_id, wanted.input, published, folder))
    return list(found.values())


def refused(found: Validation, lacking: list[Lacking]) -> Validation:
    """The validation of a prompt with an error for each missing tokenizer."""
    if not lacking or (found.error and not found.node_errors):  # a prompt with unknown nodes is not examined further
        return found
    node_errors = dict(found.node_errors)
    for one in lacking:
        node = found.prompt[one.node_id]
        error = {"type": MISSING_TOKENIZER, "message": one.text, "details": one.input, "extra_info": {}}
        entry = node_errors.get(one.node_id, {"errors": [], "dependent_outputs": list(found.outputs)})
        entry = entry | {"errors": [*entry["errors"], error], "class_type": node.get("class_type", "")}
        node_errors[one.node_id] = entry
    problems = tuple(
        Problem(MISSING_TOKENIZER, one.text, place_of(one.node_id, found.prompt[one.node_id]), one.node_id, one.input)
        for one in lacking
    )
    sentences = " ".join(problem.sentence for problem in problems)
    error = {"type": MISSING_TOKENIZER, "message": "A tokenizer is missing", "details": sentences, "extra_info": {}}
    every = (*found.problems, *problems)
    return replace(found, outputs=(), node_errors=node_errors, error=found.error or error, problems=every)


def _missing(wanted: Wanted, folders: tuple[Path, ...]) -> Iterator[Published]:
    """The tokenizers of a file that were not found."""
    for published, vocabulary, length in _needed(wanted):
        try:
            if published is CLIP_L:
                tokenizer_files.clip_tokenizer(wanted.path, folders, vocabulary, length)
            else:
                tokenizer_files.t5_tokenizer(wanted.path, folders, vocabulary)
        except SluiceError:
            yield published


def _needed(wanted: Wanted) -> Iterator[tuple[Published, int, int]]:
    """The tokenizers that a file needs: which, for how many tokens, for rows of what length."""
    if wanted.path is None:
        name = wanted.name.replace("\\", "/").rpartition("/")[2].lower()
        presumed = (needs for kind, form, needs in _PRESUMED if kind == wanted.category and fnmatch.fnmatch(name, form))
        for published in next(presumed, ()):
            yield published, CLIP_VOCABULARY if published is CLIP_L else T5_VOCABULARY, CLIP_LENGTH
        return
    try:
        parts = detect(open_weights(wanted.path)).parts
    except SluiceError:
        return  # the node that loads the file reports what is wrong with it
    if "clip_l" in parts:
        embeddings = "text_model.embeddings.{}_embedding.weight"
        tokens, positions = (parts["clip_l"][embeddings.format(name)].shape[0] for name in ("token", "position"))
        yield CLIP_L, tokens, positions
    if "t5" in parts:
        yield T5XXL, parts["t5"]["shared.weight"].shape[0], 0


def _read_by_others(prompt: Mapping[str, Any], wanted: Wanted, classes: Classes) -> bool:
    """Whether another node uses the text encoders that this one loads."""
    outputs = classes[prompt[wanted.node_id]["class_type"]].RETURN_TYPES
    slots = [slot for slot, kind in enumerate(outputs) if kind in _TEXT_OUTPUTS]
    links = (value for node in prompt.values() for value in node.get("inputs", {}).values() if is_link(value))
    return any(source == wanted.node_id and slot in slots for source, slot in links)
