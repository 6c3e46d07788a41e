"""What a weight file holds, judged by the names and shapes in its header and never by the name of the file.

A file has one `kind` and may have several parts (an all-in-one checkpoint holds four models); each part is given under
the model's own names. Files of other families are recognised as far as needed to say what they are and where they go.

Does not know: how to build a model, torch, nodes beyond their names in a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from ..errors import FileFormatError
from .lora_keys import SUFFIX, changes_flux, encoder_key
from .names import (
    Rename,
    autoencoder_diffusers,
    clip_transformers,
    flux_bfl,
    flux_diffusers,
    model_tensors,
    t5_llama,
    t5_transformers,
)
from .stored import Stored, WeightFile

Facts = dict[str, str | int | bool]
Shapes = Mapping[str, Stored]


@dataclass(frozen=True)
class Kind:
    """What one kind of file is called, which node loads it, and in which folder under `models` it lives."""

    noun: str
    node: str | None
    folder: str


KINDS: Mapping[str, Kind] = {
    "flux": Kind("a FLUX.1 transformer", "Load Diffusion Model", "diffusion_models"),
    "checkpoint": Kind("an all-in-one FLUX.1 checkpoint", "Load Checkpoint", "checkpoints"),
    "clip_l": Kind("a CLIP-L text encoder", "DualCLIPLoader", "text_encoders"),
    "t5": Kind("a T5 text encoder", "DualCLIPLoader", "text_encoders"),
    "autoencoder": Kind("a FLUX.1 autoencoder (VAE)", "Load VAE", "vae"),
    "lora": Kind("a LoRA", "Load LoRA", "loras"),
    "controlnet": Kind("a ControlNet", "Load ControlNet Model", "controlnet"),
    "redux": Kind("a FLUX.1 Redux style model", "Load Style Model", "style_models"),
    "clip_vision": Kind("a CLIP vision model", "Load CLIP Vision", "clip_vision"),
    "embedding": Kind("a textual inversion embedding", None, "embeddings"),
    "other_checkpoint": Kind("an all-in-one checkpoint of another model family", None, "checkpoints"),
    "other_model": Kind("a diffusion model of another family", None, "diffusion_models"),
    "other_text": Kind("a text encoder of another family", None, "text_encoders"),
    "other_autoencoder": Kind("an autoencoder of another family", None, "vae"),
    "other": Kind("a weight file, but no diffusion model", None, "the folder of its own kind"),
    "unknown": Kind("a weight file of unknown kind", None, "the folder of its own kind"),
}


@dataclass(frozen=True)
class Detected:
    """`noun` says what the file is, more closely than its kind. `parts`: "flux", "clip_l", "t5", "autoencoder" ->
    the tensors of that model under its own names. `facts`: layout, variant and sizes, for people and for planning."""

    kind: str
    noun: str
    parts: Mapping[str, Mapping[str, Stored]] = field(default_factory=dict)
    facts: Mapping[str, str | int | bool] = field(default_factory=dict)


def detect(file: WeightFile) -> Detected:
    """Recognise a file by its keys and shapes. Raises FileFormatError only if a part of it is damaged."""
    names = file.entries.keys()
    for look in (_controlnet, _lora, _flux, _other_models, _helpers):
        if (found := look(file, names)) is not None:
            return found
    components = [component for find in _COMPONENTS.values() if (component := find(file, names)) is not None]
    if not components:
        return Detected("unknown", KINDS["unknown"].noun)
    kind, noun, _, facts = components[0]
    return Detected(kind, noun, {kind: tensors for kind, _, tensors, _ in components if kind in _COMPONENTS}, facts)


def refuse(path: Path, found: Detected, wanted: str) -> NoReturn:
    """Say what the file is instead of the `wanted` kind, and where it belongs."""
    if found.kind == "unknown":
        raise FileFormatError(
            f"Could not detect the model type of {path.name}: its tensors have no names of a model known here. "
            f"Choose {KINDS[wanted].noun}."
        )
    kind = KINDS[found.kind]
    home = f"Its node is {kind.node}, its folder models/{kind.folder}" if kind.node else "It cannot be used here"
    raise FileFormatError(f"{path.name} is {found.noun}, not {KINDS[wanted].noun}. {home}.")


# -- FLUX ------------------------------------------------------------------------------------------------------------

_FLUX_BFL = ("img_in.weight", "txt_in.weight", "vector_in.in_layer.weight", "final_layer.linear.weight",
             "double_blocks.0.img_attn.norm.key_norm.scale", "double_blocks.0.img_mlp.0.weight")  # fmt: skip
_FLUX_DIFFUSERS = ("x_embedder.weight", "context_embedder.weight", "time_text_embed.text_embedder.linear_1.weight",
                   "proj_out.weight", "transformer_blocks.0.attn.norm_k.weight",
                   "transformer_blocks.0.ff.net.0.proj.weight",
                   "transformer_blocks.0.attn.add_k_proj.weight")  # fmt: skip


def _flux(file: WeightFile, names: Collection[str]) -> Detected | None:
    """A FLUX transformer, alone or with text encoders and autoencoder beside it."""
    layouts: tuple[tuple[str, tuple[str, ...], Rename], ...] = (
        ("BFL", _FLUX_BFL, flux_bfl),
        ("diffusers", _FLUX_DIFFUSERS, flux_diffusers),
    )
    for layout, anchors, rename in layouts:
        prefix = _prefix(names, anchors)
        if prefix is None or f"{prefix}distilled_guidance_layer.in_proj.weight" in names:
            continue
        tensors = model_tensors(file, prefix, rename)
        facts = _flux_facts(tensors) | {"layout": layout, "prefix": prefix}
        parts = {"flux": tensors}
        for part, find in _COMPONENTS.items():
            component = find(file, [name for name in names if not prefix or not name.startswith(prefix)])
            if component is not None and component[0] == part:
                parts[part] = component[2]
        kind = "checkpoint" if len(parts) > 1 else "flux"
        return Detected(kind, f"{KINDS[kind].noun} ({facts['variant']})", parts, facts)
    return None


def _flux_facts(tensors: Shapes) -> Facts:
    guidance = "guidance_in.in_layer.weight" in tensors
    hidden, columns = _sides(tensors, "img_in.weight")
    ratio = columns / _sides(tensors, "final_layer.linear.weight")[0]
    variants = {1.0: "dev" if guidance else "schnell", 2.0: "canny or depth", 6.0: "fill"}
    return {
        "variant": variants.get(ratio, "unknown variant"),
        "guidance": guidance,
        "hidden": hidden,
        "double_blocks": _blocks(tensors, "double_blocks."),
        "single_blocks": _blocks(tensors, "single_blocks."),
        "input_channels": columns // 4,
    }


def _sides(tensors: Shapes, name: str) -> tuple[int, int]:
    """Rows and columns of a matrix that must be one."""
    shape = tensors[name].shape
    if len(shape) != 2 or 0 in shape:
        raise FileFormatError(
            f"{tensors[name].file.path.name}: {name} has the shape {list(shape)} and should be a matrix. "
            "Fetch the file again."
        )
    return shape[0], shape[1]


def _blocks(names: Collection[str], prefix: str) -> int:
    return len({name[len(prefix) :].split(".", 1)[0] for name in names if name.startswith(prefix)})


# -- text encoders and autoencoder -----------------------------------------------------------------------------------

Component = tuple[str, str, dict[str, Stored], Facts]  # (kind, noun, tensors, facts)

_CLIP = ("embeddings.token_embedding.weight", "encoder.layers.0.mlp.fc1.weight")
_CLIP_DEEPEST = 12  # layers of CLIP-L; H has 24, G has 32
_T5_FIRST = "block.0.layer.0.SelfAttention.q.weight"


def _clip(file: WeightFile, names: Collection[str]) -> Component | None:
    prefix = _prefix(names, _CLIP)
    if prefix is None:
        return None
    tensors = model_tensors(file, prefix, clip_transformers)
    layers = _blocks(tensors, "text_model.encoder.layers.")
    width = _sides(tensors, "text_model.embeddings.token_embedding.weight")[1]
    if layers > _CLIP_DEEPEST:
        return "other_text", f"a larger CLIP text encoder ({layers} layers, {width} wide)", {}, {}
    return "clip_l", KINDS["clip_l"].noun, tensors, {"layers": layers, "width": width}


def _t5(file: WeightFile, names: Collection[str]) -> Component | None:
    if "enc.blk.0.attn_q.weight" in names:
        tensors = model_tensors(file, "", t5_llama)
    else:
        prefix = _prefix(names, (f"encoder.{_T5_FIRST}",))
        if prefix is None:
            return None
        tensors = model_tensors(file, prefix, t5_transformers(f"{prefix}shared.weight" in names))
    first = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    if first not in tensors or "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in tensors:
        return "other_text", "a T5 of another generation (FLUX.1 uses the encoder of T5 v1.1 XXL)", {}, {}
    return "t5", KINDS["t5"].noun, tensors, {
        "layers": _blocks(tensors, "encoder.block."),
        "width": _sides(tensors, first)[1],
    }  # fmt: skip


def _autoencoder(file: WeightFile, names: Collection[str]) -> Component | None:
    prefix = _prefix(names, ("decoder.conv_in.weight", "decoder.conv_out.weight"))
    if prefix is None:
        return None
    shape = file.entries[f"{prefix}decoder.conv_in.weight"].shape
    if len(shape) != 4 or shape[1] != 16 or f"{prefix}quant_conv.weight" in names:
        size = f"{shape[1]} latent channels" if len(shape) == 4 else "for video"
        return "other_autoencoder", f"an autoencoder of another family ({size}; FLUX.1's has 16, no quant_conv)", {}, {}
    levels = _blocks([name[len(prefix) :] for name in names if name.startswith(prefix)], "encoder.down_blocks.")
    tensors = model_tensors(file, prefix, _only_coder if levels == 0 else autoencoder_diffusers(levels))
    return "autoencoder", KINDS["autoencoder"].noun, {name: _as_convolution(t) for name, t in tensors.items()}, {
        "layout": "diffusers" if levels else "BFL",
        "latent_channels": shape[1],
    }  # fmt: skip


def _only_coder(name: str) -> tuple[str, int] | None:
    return (name, 0) if name.startswith(("encoder.", "decoder.")) else None


def _as_convolution(stored: Stored) -> Stored:
    """Diffusers stores the attention's 1x1 convolutions as matrices."""
    if ".mid.attn_1." not in stored.name or len(stored.shape) != 2:
        return stored
    return replace(stored, shape=(*stored.shape, 1, 1))


_COMPONENTS = {"clip_l": _clip, "t5": _t5, "autoencoder": _autoencoder}

# -- everything else -------------------------------------------------------------------------------------------------

_LORA_FAMILIES = (  # (what its names look like, who writes such)
    (r"processor\.(qkv|proj)_lora", "XLabs"),
    (r"^oft_unet_", "kohya"),
    (r"^lora_unet_(double|single)_blocks_", "kohya"),
    (r"^lora_unet_(single_)?transformer_blocks_", "kohya with diffusers' names"),
    (r"^lora_transformer_(single_)?transformer_blocks_", "OneTrainer"),
    (r"^lycoris_", "LyCORIS"),
    (r"^(model\.)?diffusion_model\.(double|single)_blocks\.", "BFL names"),
    (r"(^|\.)(single_)?transformer_blocks\.", "diffusers"),
    (r"(^|\.)(double|single)_blocks\.", "BFL"),
)
_ADAPTERS = (  # (a suffix, what such an adapter is called)
    (r"\.oft_(blocks|[Rr]\b)", "an OFT"),
    (r"\.hada_w1", "a LoHa"),
    (r"\.lokr_w1", "a LoKr"),
    (r"\.dora_scale$", "a DoRA"),
)
_OTHER_MODELS = (  # (a name only such a file has, kind, noun)
    (r"distilled_guidance_layer\.in_proj", "other_model", "a Chroma transformer"),
    (r"^conditioner\.embedders\.", "other_checkpoint", "an SDXL checkpoint"),
    (r"^cond_stage_model\.", "other_checkpoint", "a Stable Diffusion 1 or 2 checkpoint"),
    (r"joint_blocks\.0\.", "other_model", "a Stable Diffusion 3 model"),
    (r"(^|\.)input_blocks\.1\.0\.", "other_model", "a Stable Diffusion or SDXL UNet"),
    (r"(^|\.)down_blocks\.0\.resnets\.0\.time_emb_proj\.", "other_model", "a Stable Diffusion or SDXL UNet"),
    (r"double_stream_modulation_img\.|double_stream_modulation\.", "other_model", "a FLUX.2 transformer"),
    (r"txt_in\.individual_token_refiner\.", "other_model", "a HunyuanVideo transformer"),
    (r"transformer_blocks\.0\.img_mod\.1\.", "other_model", "a Qwen-Image transformer"),
    (r"(^|\.)blocks\.0\.cross_attn\.k\.weight", "other_model", "a Wan video transformer"),
)  # fmt: skip
_HELPERS = (
    (r"^redux_down\.weight$", "redux", "a FLUX.1 Redux style model"),
    (r"^(image_proj|ip_adapter|ip_adapter_proj_model)\.", "other", "an IP-Adapter"),
    (r"^(emb_params|string_to_param\.?.*)$", "embedding", "a textual inversion embedding"),
    (r"^(model\.)?layers\.0\.self_attn\.q_proj\.weight$|^blk\.0\.attn_q\.weight$", "other_text", "a language model"),
)


def _controlnet(file: WeightFile, names: Collection[str]) -> Detected | None:
    if any(name.startswith(("control_model.", "controlnet_cond_embedding.")) for name in names):
        return Detected("other", "a ControlNet for Stable Diffusion")
    blocks = {"controlnet_blocks.0.weight", "controlnet_blocks.0.linear.weight"}
    if not any(name.endswith(tuple(blocks)) for name in names):
        return None
    family = "InstantX or Shakker" if "controlnet_x_embedder.weight" in names else "XLabs or MistoLine"
    return Detected("controlnet", f"a ControlNet for FLUX.1 ({family})", {}, {"family": family})


def _lora(file: WeightFile, names: Collection[str]) -> Detected | None:
    tensors = [name for name in names if SUFFIX.search(name)]
    if not tensors:
        return None
    encoders = {found[0] for name in tensors if (found := encoder_key(name)) is not None}
    for_transformer = [name for name in tensors if encoder_key(name) is None]
    adapter = next((called for pattern, called in _ADAPTERS if _any(pattern, names)), "a LoRA")
    if for_transformer and not changes_flux(for_transformer):
        return Detected("other", f"{adapter} for another model family", {}, {"modules": _modules(names)})
    changed = [called for part, called in (("clip_l", "CLIP-L"), ("t5", "T5")) if part in encoders]
    facts: Facts = {"modules": _modules(names)} | _rank(file)
    if not for_transformer:
        facts |= {"changes": ", ".join(changed)}
        encoder = f"text encoder{'s' * (len(changed) > 1)} {' and '.join(changed)}"
        return Detected("lora", f"{adapter} for the {encoder} alone", {}, facts)
    family = next((family for pattern, family in _LORA_FAMILIES if _any(pattern, for_transformer)), "diffusers")
    if family == "BFL" and "img_in.lora_A.weight" in names:
        family = "BFL control (Canny or Depth)"
    facts |= {"family": family, "changes": ", ".join(["transformer", *changed])}
    return Detected("lora", f"{adapter} for FLUX.1 ({family})", {}, facts)


def _modules(names: Collection[str]) -> int:
    return len({name[: found.start()] for name in names if (found := SUFFIX.search(name))})


def _rank(file: WeightFile) -> Facts:
    down = re.compile(r"(lora_down|lora_A|lora\d?\.down)(\.[\w-]+)?(\.weight)?$")
    ranks = [entry.shape[0] for entry in file.entries.values() if entry.shape and down.search(entry.name)]
    return {"rank": max(ranks)} if ranks else {}


def _other_models(file: WeightFile, names: Collection[str]) -> Detected | None:
    return _first(_OTHER_MODELS, names)


def _helpers(file: WeightFile, names: Collection[str]) -> Detected | None:
    if _any(r"^vision_model\.", names) and _prefix(names, _CLIP) is None:
        return Detected("clip_vision", KINDS["clip_vision"].noun)
    if names and set(names) <= {"clip_l", "clip_g", "t5xxl"}:
        return Detected("embedding", KINDS["embedding"].noun)
    return _first(_HELPERS, names)


def _first(table: tuple[tuple[str, str, str], ...], names: Collection[str]) -> Detected | None:
    return next((Detected(kind, noun) for pattern, kind, noun in table if _any(pattern, names)), None)


def _any(pattern: str, names: Collection[str]) -> bool:
    search = re.compile(pattern).search
    return any(search(name) for name in names)


def _prefix(names: Collection[str], anchors: tuple[str, ...]) -> str | None:
    """What stands before all of `anchors` alike, the shortest such; None if they are not all there."""
    there = set(names)
    return min(_prefixes(there, anchors), key=len, default=None)


def _prefixes(names: set[str], anchors: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        prefix = name.removesuffix(anchors[0])
        if name != prefix and prefix[-1:] in ("", ".") and all(prefix + anchor in names for anchor in anchors[1:]):
            yield prefix
