"""Checks a prompt before it runs: names model files as listed, and collects all errors and missing files.

The command line and the worker both use this check. Opens headers of weight files, reads no weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..graph.interface import Classes
from ..graph.validate import Validation, validate
from ..io.folders import Folders
from .required_models import Wanted, as_listed, explained, wanted_files
from .required_tokenizers import Lacking, lacking_tokenizers, refused


@dataclass(frozen=True)
class Checked:
    """A prompt with its model files named as they are listed, and the results of the check.

    models: the files that it needs in memory, as "category/name", each once.
    """

    prompt: dict[str, Any]
    found: Validation
    models: tuple[str, ...]


def check_prompt(
    prompt: Mapping[str, Any],
    classes: Classes,
    folders: Folders,
    targets: Collection[str] | None = None,
    packs: Mapping[str, str] | None = None,
) -> Checked:
    """targets, packs: as for `validate`. Raises nothing: what is wrong is in the result."""
    files = wanted_files(prompt, classes, folders)
    named = as_listed(prompt, files, folders)
    found = explained(validate(named, classes, targets, packs), files, folders)
    listed = (
        f"{wanted.category}/{named[wanted.node_id]['inputs'][wanted.input]}"
        for wanted in files
        if wanted.path is not None
    )
    models = tuple(dict.fromkeys(listed))
    return Checked(named, refused(found, lacking_tokenizers(named, classes, folders, files)), models)


def missing_files(prompt: Mapping[str, Any], classes: Classes, folders: Folders) -> tuple[list[Wanted], list[Lacking]]:
    """The model files of a prompt that were not found, and the tokenizers that its text encoders lack."""
    files = wanted_files(prompt, classes, folders)
    absent = [wanted for wanted in files if wanted.path is None]
    return absent, lacking_tokenizers(prompt, classes, folders, files)
