"""A model file in another format: read tensor by tensor, written tensor by tensor, with the names of the model itself.

    safetensors   BFL's names for the transformer, Hugging Face's for text encoders: what ComfyUI's loaders take
    GGUF          the same for the transformer, llama.cpp's for T5

Independent of: how a number is stored (targets.py), the command line.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..cancel import check_cancelled
from ..checkpoint.names import T5_LLAMA, T5_LLAMA_TOP
from ..checkpoint.stored import Stored
from ..errors import BudgetTooSmall, InputError, SluiceError
from ..io.folders import make_folder
from ..io.shards import INDEX, shard_name
from .rows import Rows, needed_bytes
from .targets import Form, Plain, Target, Written
from .writers import gguf_writer, safetensors_writer

PROGRAM = 450 << 20  # bytes of this program in RAM before it reads a tensor, PyTorch included
ARCHITECTURES = {"flux": "flux", "t5": "t5encoder"}  # GGUF's names of what can be in such a file
_FILE_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18}
_KEPT = ("BF16", "F16", "F32")  # numbers that stay what they are

OnProgress = Callable[[int, int], None]  # (bytes written, of how many)


@dataclass(frozen=True)
class Step:
    """One tensor of the source, and what is written for it."""

    stored: Stored
    form: Form
    written: list[Written]


def steps_of(kind: str, tensors: Mapping[str, Stored], target: Target) -> list[Step]:
    """What becomes of each tensor. kind: "flux", "clip_l", "t5" or "autoencoder".

    Raises InputError for a model that has no file of this format.
    """
    if target.container == "GGUF" and kind not in ARCHITECTURES:
        raise InputError(f"There are no GGUF files of this kind of model; {target.name} is for transformers and T5.")
    steps = []
    for name, stored in tensors.items():
        form = _form(kind, name, stored, target)
        out = _llama(name) if target.container == "GGUF" and kind == "t5" else name
        steps.append(Step(stored, form, form.outline(out, stored.shape)))
    return steps


def _form(kind: str, name: str, stored: Stored, target: Target) -> Form:
    if _in_block(kind, name) and len(stored.shape) == 2:
        return target.matrix(stored.shape)
    if target.container == "GGUF" and len(stored.shape) < 2:
        return Plain("F32")
    if target.rest is not None:
        return target.rest
    return Plain(stored.format if stored.format in _KEPT and stored.encoding.as_is and not stored.through else "BF16")


def _in_block(kind: str, name: str) -> bool:
    """Whether a matrix of this name is one of those that are quantised."""
    if not name.endswith(".weight"):
        return False
    if kind == "flux":
        return name.startswith(("double_blocks.", "single_blocks."))
    if kind == "t5":
        return name.startswith("encoder.block.") and "relative_attention_bias" not in name
    return kind == "clip_l" and ".encoder.layers." in name


def _llama(name: str) -> str:
    """A T5 tensor's name in llama.cpp's way."""
    for theirs, ours in T5_LLAMA_TOP.items():
        if name == ours:
            return theirs
    block, _, rest = name.removeprefix("encoder.block.").partition(".")
    module = next(theirs for theirs, ours in T5_LLAMA.items() if rest == f"{ours}.weight")
    return f"enc.blk.{block}.{module}.weight"


def needed_ram(steps: list[Step]) -> int:
    """Bytes that `write` takes at most, the program itself included."""
    return PROGRAM + max(needed_bytes(step.stored) for step in steps)


def write(
    path: Path,
    kind: str,
    steps: list[Step],
    target: Target,
    metadata: Mapping[str, str],
    ram: int | None = None,
    on_progress: OnProgress | None = None,
) -> int:
    """Write the new file; its size in bytes. metadata: of the source, kept but for what it says of quantisation.

    Raises BudgetTooSmall if `ram` bytes do not suffice for the largest tensor, SluiceError if the disk has no room or
    the file is there already, Interrupted if the job is cancelled. Whatever is raised, no part of a file is left.
    """
    if ram is not None and needed_ram(steps) > ram:
        raise BudgetTooSmall(
            f"Converting this file takes {needed_ram(steps) >> 20} MiB of RAM, and {ram >> 20} are allowed."
        )
    tensors = [tensor for step in steps for tensor in step.written]
    total = sum(tensor.nbytes for tensor in tensors)
    if path.exists():
        raise SluiceError(f"{path} is there already. Give another name with --out, or remove it first.")
    make_folder(path.absolute().parent, "--out")
    free = shutil.disk_usage(path.parent).free
    if free < total:
        raise SluiceError(
            f"{path.absolute().parent} has {free >> 20} MiB free, and the new file takes {total >> 20} MiB. Make "
            "room there, or write it elsewhere with --out."
        )
    kept = {key: text for key, text in metadata.items() if not key.startswith(("_quantization", "general.", "comfy."))}
    opened = (
        gguf_writer(path, tensors, _gguf_metadata(kind, target))
        if target.container == "GGUF"
        else safetensors_writer(path, tensors, {**kept, "format": "pt"})
    )
    done = 0
    with opened as writer:
        for step in steps:
            data = step.form.data(Rows(step.stored))
            for tensor in step.written:
                for count in writer.tensor(tensor, data):
                    done += count
                    check_cancelled()
                    if on_progress is not None:
                        on_progress(done, total)
    return path.stat().st_size


def _gguf_metadata(kind: str, target: Target) -> dict[str, str | int]:
    return {
        "general.architecture": ARCHITECTURES[kind],
        "general.quantization_version": 2,
        "general.file_type": _FILE_TYPES[target.name],
    }


def named(source: Path, target: Target) -> Path:
    """The default path of a conversion: beside the source, with the format in its name."""
    shard = shard_name(source.name)
    stem = shard.stem if shard and shard.stem else source.name
    for ending in (INDEX, ".safetensors", ".sft", ".gguf"):
        stem = stem.removesuffix(ending)
    return source.parent / f"{stem}-{target.name}{'.gguf' if target.container == 'GGUF' else '.safetensors'}"
