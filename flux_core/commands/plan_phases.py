"""The phases of a planned LoRA training besides its steps: the same as `train lora` checks before it begins.

Text encoders and autoencoder are those of the model folders that fit the transformer; where none do, those that are
published with FLUX.1. Of files only headers are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from ..checkpoint.detect import detect
from ..checkpoint.files import open_weights
from ..checkpoint.stored import Stored
from ..errors import SluiceError
from ..io.folders import Folders
from ..memory.phases import Part, Phase, Reserved, Room, Streamed
from ..memory.workload import Workload, grouped
from ..models.autoencoder import Autoencoder, AutoencoderConfig
from ..models.clip_text import ClipConfig
from ..models.t5 import T5Config
from ..runtime.autoencoder import sizes_of
from ..runtime.autoencoder_handle import ENCODE
from ..runtime.dry_run import dry_run
from ..runtime.encoder_needs import EncoderNeeds, encoder_needs, needs_of_file
from ..runtime.flux_needs import FluxNeeds, Job
from ..runtime.meta_results import META
from ..runtime.modulation import modulations
from ..training.lora.phases import CAPTIONS, CHECKPOINTS, PICTURES, ROWS, copied_bytes, text_bytes
from .plan_model import Model
from .plan_step import budget_of, program_memory
from .plan_target import Target

T5_XXL = T5Config(vocabulary=32128, width=4096, inner=4096, heads=64, mlp=10240, layers=24)
CLIP_L = ClipConfig(vocabulary=49408, positions=77, width=768, mlp=3072, layers=12, heads=12)
AE = AutoencoderConfig(channels=3, ch=128, ch_mult=(1, 2, 4, 4), num_res_blocks=2, z_channels=16)
PUBLISHED = "t5xxl_fp16.safetensors, clip_l.safetensors and ae.safetensors as published"


class PictureSizes:
    """The sizes of an autoencoder's weights."""

    def __init__(self, config: AutoencoderConfig) -> None:
        self.config = config

    def module_on_meta(self, dtype: torch.dtype) -> Any:
        with torch.device(META):
            return Autoencoder(self.config).to(dtype)

    def loaded_bytes(self, dtype: torch.dtype) -> int:
        module: nn.Module = self.module_on_meta(dtype)
        return sum(parameter.numel() for parameter in module.parameters()) * dtype.itemsize

    def module(self, device: torch.device, dtype: torch.dtype) -> Any:
        raise NotImplementedError("there is no file")

    def unload(self) -> None:
        """There is nothing to unload."""


@dataclass(frozen=True)
class Encoders:
    """The models that a training needs besides the transformer. told: what they are, for people."""

    t5: EncoderNeeds
    clip: EncoderNeeds
    autoencoder: PictureSizes
    told: str


def encoders_for(model: Model, folders: Folders, tokens: int) -> Encoders | None:
    """Those of the folders whose embeddings the transformer takes, else the published ones; None if neither fit.

    tokens: of a caption.
    """
    config = model.config
    t5, clip = (
        _file_with(folders, "t5", config.context_dim),
        _file_with(folders, "clip_l", config.vec_dim),
    )
    if t5 is not None and clip is not None:
        autoencoder = _autoencoder(folders, t5[0].startswith("sluice-tiny"))
        if autoencoder is not None:
            name, sizes = autoencoder
            shapes = [{key: stored.shape for key, stored in tensors.items()} for _, tensors in (t5, clip)]
            return Encoders(
                needs_of_file(T5Config.from_shapes(shapes[0]), t5[1], tokens),
                needs_of_file(ClipConfig.from_shapes(shapes[1]), clip[1], tokens),
                PictureSizes(sizes),
                f"{t5[0]}, {clip[0]} and {name}",
            )
    if (config.context_dim, config.vec_dim) != (T5_XXL.width, CLIP_L.width):
        return None
    made = [encoder_needs(each, lambda _, shape: 2 * prod(shape), lambda _: True, tokens) for each in (T5_XXL, CLIP_L)]
    return Encoders(made[0], made[1], PictureSizes(AE), PUBLISHED)


def other_phases(
    encoders: Encoders | None, model: Model, needs: FluxNeeds, target: Target, job: Job, *, numbers: int, kept: int,
    rows: int,
) -> list[Phase]:  # fmt: skip
    """All phases but the steps, in order. numbers: of the LoRA. kept: bytes that stay from the first step to the last.
    rows: of modulation that are computed at once.
    """
    program = {**program_memory(target), "small weights": needs.small * job.itemsize}
    room = Room(budget_of(target), target.machine, program)
    return room.phases(_parts(encoders, model, needs, target, job, numbers, kept, rows))


def _parts(
    encoders: Encoders | None, model: Model, needs: FluxNeeds, target: Target, job: Job, numbers: int, kept: int,
    rows: int,
) -> Iterator[Part]:  # fmt: skip
    if encoders is not None:
        both = encoders.t5, encoders.clip
        for each in both:
            yield Part(CAPTIONS, Streamed(each.workload, each.run.peak), text_bytes(both))
        kind, shape = "cpu" if target.cpu else "cuda", (job.height, job.width, 3)
        yield Part(PICTURES, Reserved(sizes_of(encoders.autoencoder, ENCODE, shape, job.dtype, kind, {})))
    yield Part(ROWS, Streamed(*_rows(model, needs, job, rows)), kept)
    yield Part(CHECKPOINTS, Reserved((copied_bytes(numbers, target.cpu),), 0), kept)


def _rows(model: Model, needs: FluxNeeds, job: Job, count: int) -> tuple[Any, int]:
    """The pass over the adaLN matrices: its workload, and the bytes of activations."""
    from ..models.flux import Flux

    with torch.device(META):
        flux = Flux(model.config).to(job.dtype)
        vector = torch.empty(count, model.config.hidden, dtype=job.dtype)
    run = dry_run(flux, lambda copy: modulations(copy, [vector]))
    sizes = {name: model.nbytes(name, needs.matrices[name]) for name in needs.modulation}

    def workload(fixed: Mapping[str, int]) -> Workload:
        from ..memory.workload import observed_workload

        return observed_workload("modulation", grouped(sizes), run.uses, lambda name: 0, fixed)

    return workload, 2 * count * needs.row_bytes(job) // job.batch


def _file_with(folders: Folders, part: str, width: int) -> tuple[str, Mapping[str, Stored]] | None:
    """The first text encoder whose embeddings have `width` numbers, and its tensors."""
    table = {"t5": "shared.weight", "clip_l": "text_model.embeddings.token_embedding.weight"}[part]
    for name in folders.filenames("text_encoders"):
        try:
            tensors = detect(open_weights(folders.path("text_encoders", name))).parts.get(part, {})
        except SluiceError:
            continue
        if table in tensors and tensors[table].shape[1] == width:
            return name, dict(tensors)
    return None


def _autoencoder(folders: Folders, tiny: bool) -> tuple[str, AutoencoderConfig] | None:
    """The first autoencoder, of the small model or of the others."""
    for name in folders.filenames("vae"):
        try:
            tensors = detect(open_weights(folders.path("vae", name))).parts.get("autoencoder", {})
            config = AutoencoderConfig.from_shapes({key: stored.shape for key, stored in tensors.items()})
        except SluiceError:
            continue
        if name.startswith("sluice-tiny") == tiny:
            return name, config
    return None
