"""Whether a prompt asks for more memory than there is, found before any of its nodes runs.

The size of an image is read off the prompt where it stands in it: in the node that makes the empty latent, through
nodes that keep a latent's size. The memory is that of a step as the planner observes it, the least with which it can
run. What is not known before the run (sizes that come from files, LoRAs, ControlNets) only adds to it, and is checked
when the model is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BudgetTooSmall, InputError, SluiceError
from ..graph.interface import Classes
from ..graph.prompt import is_link
from ..io.folders import Folders
from .required_models import wanted_files

if TYPE_CHECKING:
    from ..runtime.runtime import Runtime

Prompt = Mapping[str, Any]

PREFIX = "Sluice"
SOURCES = ("EmptyLatentImage", "EmptySD3LatentImage", "LatentUpscale")  # have width and height, most a batch_size
KEEPING = {  # nodes whose latent is as large as that of the input named here
    "KSampler": "latent_image", "KSamplerAdvanced": "latent_image", "SamplerCustom": "latent_image",
    "SamplerCustomAdvanced": "latent_image", "SetLatentNoiseMask": "samples",
}  # fmt: skip
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
MODELS = ("diffusion_models", "checkpoints")
SIDES = (("width", 0), ("height", 0), ("batch_size", 1))  # of SOURCES, and their values where they are left out
CELL = 8  # pixels along a side of a latent cell
SURELY_FITS = 96  # activations that a step may have: so many numbers of each channel and token; measured are up to 40


@dataclass(frozen=True)
class Size:
    """Of a latent, in pixels."""

    width: int
    height: int
    batch: int

    @property
    def tokens(self) -> int:
        return self.batch * -(-self.width // (2 * CELL)) * -(-self.height // (2 * CELL))

    def __str__(self) -> str:
        many = f"a batch of {self.batch} images" if self.batch > 1 else "an image"
        return f"{many} of {self.width}x{self.height} pixels"


def too_large(
    prompt: Prompt, classes: Classes, folders: Folders, runtime: Runtime
) -> Iterator[tuple[str, BudgetTooSmall | InputError]]:
    """(sampler, what is needed, what there is and what to do) for each sampler whose step does not fit."""
    for node_id, node in prompt.items():
        if _kind(node) not in SAMPLERS:
            continue
        size, file = _latent_size(prompt, node), _model_file(prompt, node, classes, folders)
        if size is None or file is None:
            continue
        try:
            error = _refusal(size, file, runtime)
        except SluiceError:  # a file that cannot be read, a device that is not there: told when it is loaded
            continue
        if error is not None:
            yield node_id, error


def _refusal(size: Size, file: Path, runtime: Runtime) -> BudgetTooSmall | InputError | None:
    from ..checkpoint.detect import detect
    from ..checkpoint.files import open_weights
    from ..models.flux_config import FluxConfig
    from ..runtime.flux_handle import check_room_for

    if runtime.team is not None:  # each device has a part of the image
        return None
    tensors = detect(open_weights(file)).parts.get("flux")
    if not tensors:
        return None
    config = FluxConfig.from_shapes({name: stored.shape for name, stored in tensors.items()})
    shape = (size.batch, config.in_channels, size.height // CELL, size.width // CELL)
    try:
        check_room_for(config, shape, runtime.model_dtype, runtime.device)
    except InputError as error:
        return error
    itemsize = runtime.model_dtype.itemsize
    manager = runtime.manager(runtime.device, sum(stored.nbytes for stored in tensors.values()))
    if manager is None or size.tokens * config.hidden * SURELY_FITS * itemsize < manager.available() // 2:
        return None
    from ..runtime.flux_needs import Job, flux_needs

    needs = flux_needs(config, Job(size.height, size.width, size.batch, 1, itemsize))
    return manager.refused(str(size), file.name, needs.run.peak, [tensors[name].nbytes for name in needs.streamed])


# -- reading the prompt ------------------------------------------------------------------------------------------------


def _kind(node: Mapping[str, Any]) -> str:
    return str(node.get("class_type", "")).removeprefix(PREFIX)


def _source(prompt: Prompt, node: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The node that an input is linked to."""
    link = node.get("inputs", {}).get(name)
    found = prompt.get(str(link[0])) if is_link(link) else None
    return found if isinstance(found, Mapping) else None


def _number(prompt: Prompt, node: Mapping[str, Any], name: str, otherwise: int) -> int | None:
    """A whole number of a node, its own or that of a number node; None if it is not known before the run."""
    value = node.get("inputs", {}).get(name, otherwise)
    if is_link(value):
        linked = prompt.get(str(value[0]), {})
        value = linked.get("inputs", {}).get("value") if isinstance(linked, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _latent_size(prompt: Prompt, node: Mapping[str, Any]) -> Size | None:
    at: Mapping[str, Any] | None = node
    for _ in range(len(prompt)):
        at = _source(prompt, at, KEEPING[_kind(at)]) if at is not None and _kind(at) in KEEPING else at
        if at is None or _kind(at) not in KEEPING:
            break
    if at is None or _kind(at) not in SOURCES:
        return None
    width, height, batch = (_number(prompt, at, name, otherwise) for name, otherwise in SIDES)
    return Size(width, height, batch) if width and height and batch else None


def _model_file(prompt: Prompt, node: Mapping[str, Any], classes: Classes, folders: Folders) -> Path | None:
    """The file that the model of a sampler is loaded from, through guiders and nodes that change the model."""
    at = _source(prompt, node, "guider") if "guider" in node.get("inputs", {}) else _source(prompt, node, "model")
    for _ in range(len(prompt)):
        if at is None:
            return None
        named = [file for file in wanted_files({"": at}, classes, folders) if file.category in MODELS]
        if named:
            return named[0].path
        at = _source(prompt, at, "model")
    return None
