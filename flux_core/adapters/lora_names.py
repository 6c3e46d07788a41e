"""Which matrix of a model a LoRA tensor's name means.

A name is a prefix (the matrix, as some trainer writes it) and a suffix (the part: up, down, alpha, ...). Trainers agree
on neither: kohya writes BFL paths with underscores, diffusers its own module names, OneTrainer those with underscores,
XLabs names of its own. `targets` lists every prefix that is understood for a model; the suffixes are in `lora.py`.

Does not know: tensors, files, arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A parameter by its BFL (or Hugging Face) name, or some of its rows. `swap` exchanges the halves of the delta."""

    parameter: str
    rows: tuple[int, int] | None = None
    swap: bool = False

    @property
    def module(self) -> str:
        return self.parameter.rpartition(".")[0]


def flux_targets(parameters: Mapping[str, tuple[int, ...]]) -> dict[str, Target]:
    """Every understood prefix for a FLUX transformer. `parameters`: BFL name -> shape."""
    hidden = parameters["img_in.weight"][0]
    found: dict[str, Target] = {}
    for name in parameters:
        path, _, kind = name.rpartition(".")
        target = Target(name)
        if kind == "weight":
            found[path] = target  # BFL's own control LoRAs carry no prefix
            found[f"diffusion_model.{path}"] = target
            found[f"lora_unet_{path.replace('.', '_')}"] = target
        else:
            found[f"diffusion_model.{name}"] = target
            found[name] = target
    for diffusers, target in _diffusers(parameters, hidden):
        underscored = diffusers.replace(".", "_")
        found[f"transformer.{diffusers}"] = target
        found[f"lycoris_{underscored}"] = target
        found[f"lora_transformer_{underscored}"] = target
    for name, target in _xlabs(parameters, hidden):
        found[name] = target
        found[f"diffusion_model.{name}"] = target
    return found


def _diffusers(parameters: Iterable[str], hidden: int) -> Iterable[tuple[str, Target]]:
    """diffusers module path -> target, for the whole model."""
    for theirs, ours in _DIFFUSERS_TOP.items():
        yield theirs, Target(f"{ours}.weight")
    yield "norm_out.linear", Target("final_layer.adaLN_modulation.1.weight", swap=True)
    for i in _blocks(parameters, "double_blocks."):
        for theirs, ours in _DIFFUSERS_DOUBLE.items():
            yield f"transformer_blocks.{i}.{theirs}", Target(f"double_blocks.{i}.{ours}")
        for third, letter in enumerate("qkv"):
            rows = (third * hidden, (third + 1) * hidden)
            yield f"transformer_blocks.{i}.attn.to_{letter}", Target(f"double_blocks.{i}.img_attn.qkv.weight", rows)
            yield (
                f"transformer_blocks.{i}.attn.add_{letter}_proj",
                Target(f"double_blocks.{i}.txt_attn.qkv.weight", rows),
            )
    for i in _blocks(parameters, "single_blocks."):
        for theirs, ours in _DIFFUSERS_SINGLE.items():
            yield f"single_transformer_blocks.{i}.{theirs}", Target(f"single_blocks.{i}.{ours}")
        for third, letter in enumerate("qkv"):
            rows = (third * hidden, (third + 1) * hidden)
            yield f"single_transformer_blocks.{i}.attn.to_{letter}", Target(f"single_blocks.{i}.linear1.weight", rows)
        rows = (3 * hidden, 7 * hidden)
        yield f"single_transformer_blocks.{i}.proj_mlp", Target(f"single_blocks.{i}.linear1.weight", rows)


def _xlabs(parameters: Iterable[str], hidden: int) -> Iterable[tuple[str, Target]]:
    """XLabs and USO: processors attached to attention, numbered 1 for the image and 2 for the text."""
    for i in _blocks(parameters, "double_blocks."):
        for number, stream in (("1", "img"), ("2", "txt")):
            attn = f"double_blocks.{i}.{stream}_attn"
            yield f"double_blocks.{i}.processor.qkv_lora{number}", Target(f"{attn}.qkv.weight")
            yield f"double_blocks.{i}.processor.proj_lora{number}", Target(f"{attn}.proj.weight")
    for i in _blocks(parameters, "single_blocks."):
        yield f"single_blocks.{i}.processor.qkv_lora", Target(f"single_blocks.{i}.linear1.weight", (0, 3 * hidden))
        yield f"single_blocks.{i}.processor.proj_lora", Target(f"single_blocks.{i}.linear2.weight")


def text_targets(clip: Iterable[str], t5: Iterable[str]) -> tuple[dict[str, Target], dict[str, Target]]:
    """Every understood prefix for CLIP-L and for T5, given their parameter names."""
    for_clip: dict[str, Target] = {}
    for name in (n for n in clip if n.endswith(".weight")):
        path = name.removesuffix(".weight")
        underscored = path.replace(".", "_")
        for prefix in (f"lora_te_{underscored}", f"lora_te1_{underscored}", f"text_encoder.{path}",
                       f"text_encoders.clip_l.transformer.{path}"):  # fmt: skip
            for_clip[prefix] = Target(name)
    for_t5: dict[str, Target] = {}
    for name in (n for n in t5 if n.endswith(".weight")):
        path = name.removesuffix(".weight")
        underscored = path.replace(".", "_")
        for prefix in (f"lora_te2_{underscored}", f"lora_te3_{underscored}", f"text_encoders.t5xxl.transformer.{path}"):
            for_t5[prefix] = Target(name)
    return for_clip, for_t5


def _blocks(parameters: Iterable[str], prefix: str) -> list[int]:
    return sorted({int(name[len(prefix) :].split(".", 1)[0]) for name in parameters if name.startswith(prefix)})


_DIFFUSERS_TOP = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
}
_DIFFUSERS_DOUBLE = {
    "norm1.linear": "img_mod.lin.weight",
    "norm1_context.linear": "txt_mod.lin.weight",
    "attn.to_out.0": "img_attn.proj.weight",
    "attn.to_add_out": "txt_attn.proj.weight",
    "ff.net.0.proj": "img_mlp.0.weight",
    "ff.net.2": "img_mlp.2.weight",
    "ff_context.net.0.proj": "txt_mlp.0.weight",
    "ff_context.net.2": "txt_mlp.2.weight",
    "attn.norm_q": "img_attn.norm.query_norm.scale",
    "attn.norm_k": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k": "txt_attn.norm.key_norm.scale",
}
_DIFFUSERS_SINGLE = {
    "norm.linear": "modulation.lin.weight",
    "proj_out": "linear2.weight",
    "attn.norm_q": "norm.query_norm.scale",
    "attn.norm_k": "norm.key_norm.scale",
}
