"""Finds the matrix of a model to which the name of a LoRA tensor refers.

A name is a prefix (the matrix, as some trainer writes it) and a suffix (the part: up, down, alpha, ...). Trainers
differ in both: kohya writes BFL paths with underscores, diffusers its own module names, OneTrainer those with
underscores, XLabs names of its own, and each adds something that checkpoint/lora_keys.py removes. `Targets` lists every
supported path of a model; the suffixes are in `lora_families.py`.

Independent of: tensors, files, arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..checkpoint.names import FLUX_DOUBLE, FLUX_SINGLE, FLUX_TOP, FUSED, SWAPPED


@dataclass(frozen=True)
class Target:
    """A parameter by its BFL (or Hugging Face) name, or some of its rows. `swap` exchanges the halves of the delta."""

    parameter: str
    rows: tuple[int, int] | None = None
    swap: bool = False

    @property
    def module(self) -> str:
        return self.parameter.rpartition(".")[0]


Targets = Mapping[str, Target]  # a module's path in any supported notation -> target


def flux_targets(parameters: Mapping[str, tuple[int, ...]]) -> Targets:
    """The targets of a FLUX transformer. `parameters`: BFL name -> shape."""
    hidden = parameters["img_in.weight"][0]
    found: dict[str, Target] = {}
    for name in parameters:
        path, _, kind = name.rpartition(".")
        found[path if kind == "weight" else name] = Target(name)
        if kind == "weight":
            found[path.replace(".", "_")] = Target(name)
    for diffusers, target in diffusers_targets(parameters):
        found[diffusers] = found[diffusers.replace(".", "_")] = target
    found |= _xlabs(parameters, hidden)
    return found


def diffusers_targets(parameters: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Target]]:
    """diffusers module path -> target, for the whole model. parameters: BFL name -> shape."""
    hidden = parameters["img_in.weight"][0]
    families = (
        ("transformer_blocks", "double_blocks", FLUX_DOUBLE),
        ("single_transformer_blocks", "single_blocks", FLUX_SINGLE),
    )
    for family, blocks, table in families:
        for i in _blocks(parameters, f"{blocks}."):
            for theirs, (module, part) in table.items():
                yield f"{family}.{i}.{theirs}", _diffusers_target(f"{blocks}.{i}.{module}", part, parameters, hidden)
    for theirs, (module, part) in FLUX_TOP.items():
        if f"{module}.weight" in parameters:  # schnell has no guidance_in
            yield theirs, _diffusers_target(module, part, parameters, hidden)


def _diffusers_target(module: str, part: int, parameters: Mapping[str, tuple[int, ...]], hidden: int) -> Target:
    """Part `part` of a module: `hidden` rows of a fused matrix, except the last part of linear1, which is the rest."""
    name = f"{module}.{'scale' if module.endswith('_norm') else 'weight'}"
    if not module.endswith(tuple(FUSED)):
        return Target(name, swap=name.startswith(SWAPPED))
    end = (part + 1) * hidden if part < 3 else parameters[name][0]
    return Target(name, (part * hidden, end))


def _xlabs(parameters: Iterable[str], hidden: int) -> Iterator[tuple[str, Target]]:
    """XLabs and USO: processors attached to attention, numbered 1 for the image and 2 for the text."""
    for i in _blocks(parameters, "double_blocks."):
        for number, stream in (("1", "img"), ("2", "txt")):
            attn = f"double_blocks.{i}.{stream}_attn"
            yield f"double_blocks.{i}.processor.qkv_lora{number}", Target(f"{attn}.qkv.weight")
            yield f"double_blocks.{i}.processor.proj_lora{number}", Target(f"{attn}.proj.weight")
    for i in _blocks(parameters, "single_blocks."):
        yield f"single_blocks.{i}.processor.qkv_lora", Target(f"single_blocks.{i}.linear1.weight", (0, 3 * hidden))
        yield f"single_blocks.{i}.processor.proj_lora", Target(f"single_blocks.{i}.linear2.weight")


def encoder_targets(parameters: Iterable[str]) -> Targets:
    """The targets of a text encoder. `parameters`: their names."""
    found: dict[str, Target] = {}
    for name in (name for name in parameters if name.endswith(".weight")):
        path = name.removesuffix(".weight")
        found[path] = found[path.replace(".", "_")] = Target(name)
    return found


def _blocks(parameters: Iterable[str], prefix: str) -> list[int]:
    return sorted({int(name[len(prefix) :].split(".", 1)[0]) for name in parameters if name.startswith(prefix)})
