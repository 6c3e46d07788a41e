"""The model that `sluice plan` plans for, read from headers or from the table of published ones.

Also the LoRAs and ControlNets that are used with it. Needs no torch.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.detect import detect, refuse
from ..checkpoint.files import open_weights
from ..checkpoint.stored import Stored
from ..errors import InputError, MissingFileError
from ..io.folders import Folders, standard_folders
from ..models.controlnet_config import ControlNetConfig, controlnet_key
from ..models.flux_config import FluxConfig
from ..quant.encoding import multiplied_as_integers
from ..runtime.published import MULTIPLIED_AS_STORED, Published, int8_bytes, published
from ..runtime.settings import INT8
from .plan_target import Target

if TYPE_CHECKING:
    from ..runtime.flux_needs import FluxNeeds

MODELS = ("diffusion_models", "checkpoints")  # categories of files with a transformer


@dataclass(frozen=True)
class Model:
    """The model to plan for: a file's transformer, or a published one."""

    name: str
    config: FluxConfig
    nbytes: Callable[[str, tuple[int, int]], int]  # stored bytes of a matrix, by name and shape
    decoded: Callable[[str], bool]  # whether a matrix is not multiplied as stored
    integers: Callable[[str], bool] = lambda name: False  # whether it is stored as 8-bit integers to be multiplied so

    def file_bytes(self, needs: FluxNeeds) -> int:
        """Bytes of all matrices."""
        return sum(self.nbytes(name, shape) for name, shape in needs.matrices.items())


@dataclass(frozen=True)
class ControlNetFile:
    """A ControlNet that runs before the transformer at every step. key: its name in the plan."""

    key: str
    config: ControlNetConfig
    tensors: Mapping[str, Stored]


@dataclass(frozen=True)
class Beside:
    """The models that are used with the transformer: bytes of LoRAs, and ControlNets."""

    loras: int = 0
    controlnets: tuple[ControlNetFile, ...] = ()


def folders_of(args: Namespace) -> Folders:
    """The model folders of the command line. Raises MissingFileError for one that does not exist."""
    return standard_folders(Path.cwd(), args.models, extra=args.extra_model_paths)


def open_model(name: str, folders: Folders | None = None) -> Model:
    """The model of a file, of a name in the model folders (if given), or of a published name, in this order.

    Raises MissingFileError or InputError for other names, FileFormatError.
    """
    path = Path(name)
    if not path.exists():
        place = None if folders is None else folders.located(name, MODELS)
        if place is None:
            return _published(name, folders)
        assert folders is not None
        path = folders.path(*place)
    from ..convert.nunchaku_plain import open_plain

    file = open_plain(path)
    found = detect(file)
    if "flux" not in found.parts:
        refuse(file.path, found, "flux")
    tensors: dict[str, Stored] = dict(found.parts["flux"])
    return Model(
        file.path.name,
        FluxConfig.from_shapes({key: stored.shape for key, stored in tensors.items()}),
        lambda key, _: tensors[key].nbytes,
        lambda key: decodes(tensors[key]),
        lambda key: key in tensors and multiplied_as_integers(tensors[key].encoding, tensors[key].shape),
    )


def _published(name: str, folders: Folders | None) -> Model:
    known = published(name)
    if known is None:
        there = "" if folders is None else f" {folders.explain_missing(MODELS[0], name)}"
        raise MissingFileError(
            f"There is no file {name}, and it is no published name like flux1-dev, flux1-dev-fp8, flux1-dev-Q8_0, "
            f"flux1-dev-Q4_K_S or flux1-schnell-fp8.{there}"
        )
    return of_published(known)


def decodes(stored: Stored) -> bool:
    """Whether a matrix is not multiplied as it is stored."""
    return stored.format not in MULTIPLIED_AS_STORED or not stored.encoding.as_is


def as_computed(model: Model, target: Target) -> Model:
    """The model, with its blocks quantised while it is loaded if the target computes in integers."""
    if target.compute != INT8:
        return model

    def nbytes(name: str, shape: tuple[int, int]) -> int:
        return int8_bytes(shape) if in_blocks(name) and not model.integers(name) else model.nbytes(name, shape)

    return replace(model, nbytes=nbytes, integers=lambda name: model.integers(name) or in_blocks(name))


def in_blocks(name: str) -> bool:
    """Whether a matrix of this name multiplies all tokens of a step."""
    return name.startswith(("double_blocks.", "single_blocks.")) and ".lin." not in name


def of_published(known: Published) -> Model:
    integers = known.format == "INT8"
    return Model(
        known.name, known.config, lambda _, shape: known.nbytes(shape), lambda _: known.decoded, lambda _: integers
    )


def lora_bytes(path: str) -> int:
    """Bytes of a LoRA on the device, with two bytes per number. Raises FileFormatError for other files."""
    file = open_weights(path)
    found = detect(file)
    if found.kind != "lora":
        refuse(file.path, found, "lora")
    return sum(2 * prod(entry.shape) for entry in file.entries.values())


def open_controlnet(path: str) -> ControlNetFile:
    """Raises MissingFileError, and FileFormatError for a file that is none."""
    file = open_weights(path)
    found = detect(file)
    if "controlnet" not in found.parts:
        refuse(file.path, found, "controlnet")
    tensors = found.parts["controlnet"]
    config = ControlNetConfig.from_shapes({name: stored.shape for name, stored in tensors.items()})
    return ControlNetFile(controlnet_key(file.path), config, tensors)


def beside_of(args: Namespace, model: Model) -> Beside:
    """The LoRAs and ControlNets of the command line. Raises InputError for a ControlNet of another width."""
    beside = Beside(sum(lora_bytes(path) for path in args.lora), tuple(map(open_controlnet, args.controlnet)))
    for net in beside.controlnets:
        if net.config.body.hidden != model.config.hidden:
            raise InputError(f"{net.key} was made for a transformer of another width than {model.name}.")
    return beside
