"""All settings of a training from nothing, in one place.

`FlowRecipe` is the common part, `Recipe()` the recipe of the shipped model; `quick()` runs the same stages in seconds.
Recipes of digits are in digits/recipe.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

from ..errors import InputError


@dataclass(frozen=True)
class Sizes:
    """The networks: transformer, both text encoders, autoencoder."""

    hidden: int = 192
    heads: int = 3
    head: int = 64  # channels
    channels: int = 16  # of a latent
    guidance: bool = True  # whether the transformer has a guidance input
    axes: tuple[int, int, int] = (0, 0, 0)  # of a head's channels for index, row and column; 0: shared as FLUX.1 does
    depth: int = 2
    depth_single: int = 4
    t5_width: int = 128
    t5_layers: int = 3
    t5_mlp: int = 256
    t5_length: int = 18  # tokens; the longest caption has 17
    clip_width: int = 128
    clip_layers: int = 2
    codec_channels: int = 32
    codec_factors: tuple[int, ...] = (1, 1, 2, 2)
    codec_blocks: int = 1


@dataclass(frozen=True)
class Phase:
    """The training of one stage. `steps` of `batch` images; the rate rises over `warm_up` steps, stays, and falls to
    zero over the last `cool_down` of them (a fraction).
    """

    steps: int
    batch: int
    rate: float
    matrix_rate: float = 0.0  # for the matrices inside blocks, see optimise.Muon; 0 leaves them to AdamW
    warm_up: int = 100
    cool_down: float = 0.3
    average: float = 0.998  # decay of the moving average of the weights, which is shipped


@dataclass(frozen=True)
class FlowRecipe:
    """The settings of the stages of every flow."""

    seed: int = 0
    sizes: Sizes = field(default_factory=Sizes)
    flow: Phase = Phase(steps=2000, batch=64, rate=1e-3)
    guidance: Phase = Phase(steps=200, batch=64, rate=5e-4)
    reflow: Phase = Phase(steps=350, batch=64, rate=1e-3, warm_up=20, cool_down=0.7, average=0.98)
    one_step: Phase = Phase(steps=200, batch=64, rate=5e-4, warm_up=20, cool_down=0.7, average=0.98)
    windows: Phase = Phase(steps=250, batch=64, rate=1e-3, warm_up=20, cool_down=0.7, average=0.98)
    pairs: int = 1500  # of noise and picture, for reflow and one_step
    pair_steps: int = 12  # of the teacher's path, for pairs and for all windows together
    guide: float = 3.0  # the guidance of stages for fewer steps, and of samples
    empty: float = 0.1  # how often the encoders get an empty prompt, which guidance needs
    time_mean: float = 0.3  # t = sigmoid(normal(time_mean, time_spread)), slightly towards noise
    time_spread: float = 1.2
    guidance_range: tuple[float, float] = (1.0, 6.0)

    save_every: int = 200  # steps
    sample_every: int = 500


@dataclass(frozen=True)
class Recipe(FlowRecipe):
    """One training from nothing to the shipped files."""

    code_pictures: int = 2048  # number of images to which the latent code is fitted
    flow: Phase = Phase(steps=5300, batch=64, rate=1.5e-3, matrix_rate=4e-3, warm_up=60, cool_down=0.35)
    guidance: Phase = Phase(steps=300, batch=64, rate=8e-4, matrix_rate=1e-3, warm_up=20, cool_down=0.7, average=0.98)
    codec: Phase = Phase(steps=5000, batch=8, rate=2e-3)

    loose_steps: int = 2000  # steps of `flow` on scenes with loose positions
    one_empty: float = 0.05  # share of captions that only CLIP gets, and that only T5 gets
    guide: float = 3.5
    windows: Phase = Phase(steps=300, batch=32, rate=5e-4, matrix_rate=1e-3, warm_up=20, cool_down=0.7, average=0.98)
    two_captions: float = 0.25  # how often the encoders get different captions of the same image


def quick() -> Recipe:
    """A recipe for tests: the smallest networks, a handful of steps."""
    sizes = Sizes(hidden=64, heads=1, depth=1, depth_single=1, t5_width=64, t5_layers=1, t5_mlp=64, clip_width=64,
                  clip_layers=1, codec_factors=(1, 1, 1, 1))  # fmt: skip
    phase = Phase(steps=12, batch=4, rate=2e-3, warm_up=2, average=0.5)
    few = replace(phase, steps=2)
    return Recipe(
        sizes=sizes, code_pictures=32, flow=phase, guidance=replace(phase, steps=4), codec=replace(phase, batch=2),
        reflow=few, one_step=few, windows=few, pairs=100, pair_steps=2, save_every=5, sample_every=10,
    )  # fmt: skip


_Recipe = TypeVar("_Recipe", bound=FlowRecipe)


def changed(recipe: _Recipe, settings: Sequence[str], source: str = "--set") -> _Recipe:
    """The recipe with settings such as `flow.steps=100` or `seed=1` applied. Raises InputError for unknown names.

    source: where they come from, for the error.
    """
    for setting in settings:
        name, _, text = setting.partition("=")
        recipe = _set(recipe, name.strip().split("."), text.strip(), f"{source} {setting}")
    return recipe


def _set(part: Any, path: list[str], text: str, setting: str) -> Any:
    known = {item.name for item in fields(part)}
    if path[0] not in known:
        names = ", ".join(sorted(known))
        raise InputError(f"{setting}: there is no {path[0]!r} in the recipe. Known here: {names}.")
    value = getattr(part, path[0])
    if is_dataclass(value) != (len(path) > 1):
        raise InputError(f"{setting}: name one single value, such as flow.steps=100.")
    if len(path) > 1:
        return replace(part, **{path[0]: _set(value, path[1:], text, setting)})
    try:
        kind = type(value)
        if kind is bool:
            new: Any = {"true": True, "false": False}[text.lower()]
        else:
            new = tuple(type(value[0])(item) for item in text.split(",")) if kind is tuple else kind(text)
    except (ValueError, KeyError):
        raise InputError(f"{setting}: expected {type(value).__name__}, as in {path[0]}={value}.") from None
    return replace(part, **{path[0]: new})
