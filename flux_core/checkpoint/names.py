"""The names of the same tensors in different files, as tables, and the one function that applies them.

Models here have the names of the original publications: FLUX and its autoencoder those of Black Forest Labs, text
encoders those of Hugging Face. A `Rename` maps a name in a file to (name in the model, position among the parts that
are fused into it). A conversion of the layout moves no byte: a fused matrix is a list of ranges, a swap is their order.

Independent of: how files are recognised (`detect.py`), formats, torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..errors import FileFormatError
from .quantized import SIDES, quantised, statements
from .stored import Stored, WeightFile, split, stack


@dataclass(frozen=True)
class Split:
    """The names in the model of the equal parts into which a tensor is split, from its first rows on."""

    names: tuple[str, ...]


# A name in a file -> (name in the model, position among the parts fused into it); None: not a tensor of this model
Rename = Callable[[str], tuple[str, int] | Split | None]

# -- FLUX: BFL's names, and diffusers' ------------------------------------------------------------------------------

FLUX_BFL = {"img_in", "time_in", "guidance_in", "vector_in", "txt_in", "double_blocks", "single_blocks", "final_layer"}

# diffusers module -> (BFL module, position among the rows of a fused one)
FLUX_TOP = {
    "x_embedder": ("img_in", 0),
    "context_embedder": ("txt_in", 0),
    "time_text_embed.timestep_embedder.linear_1": ("time_in.in_layer", 0),
    "time_text_embed.timestep_embedder.linear_2": ("time_in.out_layer", 0),
    "time_text_embed.guidance_embedder.linear_1": ("guidance_in.in_layer", 0),
    "time_text_embed.guidance_embedder.linear_2": ("guidance_in.out_layer", 0),
    "time_text_embed.text_embedder.linear_1": ("vector_in.in_layer", 0),
    "time_text_embed.text_embedder.linear_2": ("vector_in.out_layer", 0),
    "norm_out.linear": ("final_layer.adaLN_modulation.1", 0),
    "proj_out": ("final_layer.linear", 0),
}
FLUX_DOUBLE = {
    "norm1.linear": ("img_mod.lin", 0),
    "norm1_context.linear": ("txt_mod.lin", 0),
    "attn.to_q": ("img_attn.qkv", 0),
    "attn.to_k": ("img_attn.qkv", 1),
    "attn.to_v": ("img_attn.qkv", 2),
    "attn.add_q_proj": ("txt_attn.qkv", 0),
    "attn.add_k_proj": ("txt_attn.qkv", 1),
    "attn.add_v_proj": ("txt_attn.qkv", 2),
    "attn.norm_q": ("img_attn.norm.query_norm", 0),
    "attn.norm_k": ("img_attn.norm.key_norm", 0),
    "attn.norm_added_q": ("txt_attn.norm.query_norm", 0),
    "attn.norm_added_k": ("txt_attn.norm.key_norm", 0),
    "attn.to_out.0": ("img_attn.proj", 0),
    "attn.to_add_out": ("txt_attn.proj", 0),
    "ff.net.0.proj": ("img_mlp.0", 0),
    "ff.net.2": ("img_mlp.2", 0),
    "ff_context.net.0.proj": ("txt_mlp.0", 0),
    "ff_context.net.2": ("txt_mlp.2", 0),
}
FLUX_SINGLE = {
    "norm.linear": ("modulation.lin", 0),
    "attn.to_q": ("linear1", 0),
    "attn.to_k": ("linear1", 1),
    "attn.to_v": ("linear1", 2),
    "proj_mlp": ("linear1", 3),
    "attn.norm_q": ("norm.query_norm", 0),
    "attn.norm_k": ("norm.key_norm", 0),
    "proj_out": ("linear2", 0),
}
FUSED = {"img_attn.qkv": 3, "txt_attn.qkv": 3, "linear1": 4}  # number of diffusers modules whose rows are fused
SWAPPED = "final_layer.adaLN_modulation.1."  # diffusers stores scale before shift, BFL shift before scale


def flux_module(path: str) -> tuple[str, int] | None:
    """Path of a diffusers FLUX module -> (path of the BFL module, position among its fused rows).

    "transformer_blocks.3.attn.to_k" -> ("double_blocks.3.img_attn.qkv", 1). None if FLUX has no such module.
    """
    family, _, rest = path.partition(".")
    tables = {"transformer_blocks": ("double_blocks", FLUX_DOUBLE),
              "single_transformer_blocks": ("single_blocks", FLUX_SINGLE)}  # fmt: skip
    if family not in tables:
        return FLUX_TOP.get(path)
    blocks, table = tables[family]
    number, _, rest = rest.partition(".")
    if not number.isdecimal() or rest not in table:
        return None
    module, part = table[rest]
    return f"{blocks}.{number}.{module}", part


def flux_diffusers(name: str) -> tuple[str, int] | None:
    """Rename a tensor of a diffusers FLUX transformer."""
    path, _, parameter = name.rpartition(".")
    target = flux_module(path)
    if target is None:
        return None
    module, part = target
    return f"{module}.{'scale' if module.endswith('_norm') else parameter}", part


def flux_bfl(name: str) -> tuple[str, int] | None:
    """Keep a tensor that has BFL's name; `linear1.0.weight` is the first of the matrices that linear1 consists of."""
    if found := re.fullmatch(r"(single_blocks\.\d+\.linear1)\.([01])\.weight", name):
        return f"{found[1]}.weight", int(found[2])
    return (name, 0) if name.partition(".")[0] in FLUX_BFL else None


# -- ControlNets for FLUX --------------------------------------------------------------------------------------------

_CONTROLNET = {"pos_embed_input", "controlnet_blocks", "controlnet_single_blocks", "controlnet_mode_embedder",
               "input_hint_block", "input_cond_block"}  # fmt: skip


def controlnet_bfl(name: str) -> tuple[str, int] | None:
    """Keep a tensor whose block has BFL's name; MistoLine has another name for one list."""
    name = re.sub(r"^single_controlnet_blocks\.", "controlnet_single_blocks.", name)
    return (name, 0) if name.partition(".")[0] in FLUX_BFL | _CONTROLNET else None


def controlnet_diffusers(name: str) -> tuple[str, int] | None:
    """Rename a tensor of a diffusers ControlNet for FLUX."""
    name = re.sub(r"^controlnet_x_embedder\.", "pos_embed_input.", name)
    return (name, 0) if name.partition(".")[0] in _CONTROLNET else flux_diffusers(name)


# -- the autoencoder in diffusers' names -----------------------------------------------------------------------------

_AE_PARTS = (
    (re.compile(r"^(encoder|decoder)\.mid_block\.resnets\.(\d+)"), lambda m: f"{m[1]}.mid.block_{int(m[2]) + 1}"),
    (re.compile(r"^(encoder|decoder)\.mid_block\.attentions\.0"), lambda m: f"{m[1]}.mid.attn_1"),
    (re.compile(r"^encoder\.down_blocks\.(\d+)\.resnets\.(\d+)"), lambda m: f"encoder.down.{m[1]}.block.{m[2]}"),
    (re.compile(r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0"), lambda m: f"encoder.down.{m[1]}.downsample"),
    (re.compile(r"^(encoder|decoder)\.conv_norm_out"), lambda m: f"{m[1]}.norm_out"),
)
_AE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
                 "query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}  # fmt: skip


def autoencoder_diffusers(levels: int) -> Rename:
    """Renames tensors of a diffusers AutoencoderKL with `levels` resolutions (it numbers the decoder's in reverse)."""

    def rename(name: str) -> tuple[str, int] | None:
        if not name.startswith(("encoder.", "decoder.")):
            return None
        for pattern, target in _AE_PARTS:
            name = pattern.sub(target, name)
        name = re.sub(
            r"^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)",
            lambda m: f"decoder.up.{levels - 1 - int(m[1])}." + (f"block.{m[3]}" if m[2] == "resnets" else "upsample"),
            name,
        )
        head, attention, tail = name.partition(".mid.attn_1.")
        if attention:
            module, _, parameter = tail.rpartition(".")
            name = f"{head}{attention}{_AE_ATTENTION.get(module, module)}.{parameter}"
        return name.replace(".conv_shortcut.", ".nin_shortcut."), 0

    return rename


# -- TAEF1, in the forms it is published in -------------------------------------------------------------------------

_TAEF1 = (
    (re.compile(r"^taesd_(encoder|decoder)\.(\d+)\."), 0),  # saved by ComfyUI
    (re.compile(r"^(encoder|decoder)\.layers\.(\d+)\."), 1),  # diffusers, which does not count the decoder's clamp
)


def taef1(half: str = "") -> Rename:
    """Renames tensors of TAEF1. half: "encoder" or "decoder" for a file of one of them, whose names are numbers."""

    def rename(name: str) -> tuple[str, int] | None:
        if half:
            return f"{half}.{name}", 0
        for pattern, clamp in _TAEF1:
            if found := pattern.match(name):
                number = int(found[2]) + (clamp if found[1] == "decoder" else 0)
                return f"{found[1]}.{number}.{name[found.end() :]}", 0
        return None

    return rename


# -- text encoders ---------------------------------------------------------------------------------------------------

T5_LLAMA = {
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "attn_norm": "layer.0.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
    "ffn_norm": "layer.1.layer_norm",
}
T5_LLAMA_TOP = {"token_embd.weight": "shared.weight", "enc.output_norm.weight": "encoder.final_layer_norm.weight"}


def t5_llama(name: str) -> tuple[str, int] | None:
    """Rename a tensor of a T5 encoder with llama.cpp's names (GGUF)."""
    if name in T5_LLAMA_TOP:
        return T5_LLAMA_TOP[name], 0
    match = re.fullmatch(r"enc\.blk\.(\d+)\.(\w+)\.weight", name)
    if match is None or match[2] not in T5_LLAMA:
        return None
    return f"encoder.block.{match[1]}.{T5_LLAMA[match[2]]}.weight", 0


def t5_transformers(has_shared: bool) -> Rename:
    """Renames tensors of a Hugging Face T5. Its token embedding may be present twice; one is used."""

    def rename(name: str) -> tuple[str, int] | None:
        if name == "encoder.embed_tokens.weight":
            return None if has_shared else ("shared.weight", 0)
        return (name, 0) if name == "shared.weight" or name.startswith("encoder.") else None

    return rename


def clip_transformers(name: str) -> tuple[str, int] | None:
    """Renames tensors of a Hugging Face CLIP text model; the names come without `text_model.`."""
    kept = name.startswith(("embeddings.", "encoder.", "final_layer_norm.")) and not name.endswith("position_ids")
    return (f"text_model.{name}", 0) if kept else None


# OpenAI's names, as fine-tuned CLIP-L files have them. q, k and v are one matrix there.
_CLIP_TOP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_CLIP_BLOCK = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
               "attn.out_proj": "self_attn.out_proj"}  # fmt: skip


def clip_openai(name: str) -> tuple[str, int] | Split | None:
    """Renames tensors of a CLIP text model in OpenAI's names."""
    if name in _CLIP_TOP:
        return f"text_model.{_CLIP_TOP[name]}", 0
    found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.*?)[._](weight|bias)", name)
    if found is None:
        return None
    layer = f"text_model.encoder.layers.{found[1]}."
    if found[2] == "attn.in_proj":
        return Split(tuple(f"{layer}self_attn.{part}_proj.{found[3]}" for part in "qkv"))
    return (f"{layer}{_CLIP_BLOCK[found[2]]}.{found[3]}", 0) if found[2] in _CLIP_BLOCK else None


# -- going through a file --------------------------------------------------------------------------------------------

MARK = "scaled_fp8"  # the tensor by which ComfyUI recognises such a file; its type is that of the matrices


def model_tensors(file: WeightFile, prefix: str, rename: Rename) -> dict[str, Stored]:
    """The tensors below `prefix` under the model's names, with parts fused and their encodings attached.

    Reads single scales and the file's statements about its quantisation, nothing else. Raises FileFormatError if parts
    are missing or do not fit, UnreadableScheme for an unknown quantisation.
    """
    groups: dict[str, dict[int, Stored]] = {}
    said = statements(file, prefix)
    for name, entry in file.entries.items():
        if not name.startswith(prefix) or SIDES.search(name):
            continue
        target = rename(name[len(prefix) :].removesuffix("._data"))
        if target is None:
            continue
        stored = quantised(file, entry, said)
        if isinstance(target, Split):
            parts = split(stored, len(target.names))
            groups |= {own: {0: part} for own, part in zip(target.names, parts, strict=True)}
        else:
            groups.setdefault(target[0], {})[target[1]] = stored
    if rename in (flux_diffusers, controlnet_diffusers):
        return {name: _swapped(_fused(name, file, parts, _parts_of(name))) for name, parts in groups.items()}
    tensors = {name: _fused(name, file, parts, len(parts)) for name, parts in groups.items()}
    mark = file.entries.get(prefix + MARK)
    if mark is None or rename not in (flux_bfl, controlnet_bfl):
        return tensors
    through = mark.format if mark.format == "F8_E5M2" else "F8_E4M3"
    return {name: stored if name.endswith(".scale") else replace(stored, through=through)
            for name, stored in tensors.items()}  # fmt: skip


def _parts_of(name: str) -> int:
    return next((count for module, count in FUSED.items() if f".{module}." in name), 1)


def _fused(name: str, file: WeightFile, parts: Mapping[int, Stored], wanted: int) -> Stored:
    if sorted(parts) != list(range(wanted)):
        there = ", ".join(part.name for part in parts.values())
        raise FileFormatError(f"{file.path.name} is incomplete: for {name} it has only {there}. Fetch it again.")
    return stack(name, [parts[number] for number in range(wanted)])


def _swapped(stored: Stored) -> Stored:
    """Convert diffusers' last modulation to BFL's order of its two halves; any other tensor is returned unchanged."""
    if not stored.name.startswith(SWAPPED):
        return stored
    if stored.encoding.sides:
        return replace(stored, encoding=replace(stored.encoding, swapped=True))
    (offset, nbytes), half = stored.ranges[0], stored.ranges[0][1] // 2
    return replace(stored, ranges=((offset + half, nbytes - half), (offset, half)))
