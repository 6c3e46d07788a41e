"""Recognises what a weight file contains by the names and shapes in its header, never by the name of the file.

A file has one `kind` and may have several parts (an all-in-one checkpoint contains four models). The tensors of each
part have the model's own names. Files of other families are recognised so that messages can name them and their folder.

Independent of: how to build a model, torch, and nodes except for their names in messages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from ..errors import FileFormatError
from .complete import missing
from .controlnet_files import controlnet
from .kinds import KINDS, Detected, Facts
from .matrix_parts import UnreadableScheme
from .names import (
    Rename,
    autoencoder_diffusers,
    clip_openai,
    clip_transformers,
    flux_bfl,
    flux_diffusers,
    model_tensors,
    t5_llama,
    t5_transformers,
    taef1,
)
from .other_files import helpers, lora, other_models, quantised_by
from .shapes import misshapen
from .stored import Stored, WeightFile

Shapes = Mapping[str, Stored]


def detect(file: WeightFile) -> Detected:
    """Recognise a file by its keys and shapes, and find out which of its parts can be used.

    Listing, planning and loading files all use this function, so they agree. Raises FileFormatError only if a part is
    damaged.
    """
    names = file.entries.keys()
    for look in (controlnet, lora, _image_adapter, _flux, other_models, helpers):
        if (found := look(file, names)) is not None:
            return found
    components = [component for find in _COMPONENTS.values() if (component := find(file, names)) is not None]
    if not components:
        return quantised_by(file, names) or Detected("unknown", KINDS["unknown"].noun)
    parts, refusals = _usable(file, components)
    first = components[0]
    noun = f"{first.noun}, which cannot be used" if first.kind in refusals else first.noun
    return Detected(first.kind, noun, parts, first.facts, refusals)


def refuse(path: Path, found: Detected, wanted: str) -> NoReturn:
    """A message that says why the file cannot be used as the `wanted` kind, or what it is instead and where it
    belongs.
    """
    for part in ("flux",) if wanted == "checkpoint" else ("clip_l", "t5") if wanted in ("clip_l", "t5") else (wanted,):
        if part in found.refusals:
            raise FileFormatError(found.refusals[part])
    if found.kind == "unknown":
        reason = found.refusals.get("") or "its tensors do not have the names of a model known here."
        raise FileFormatError(f"Could not detect the model type of {path.name}: {reason} Choose {KINDS[wanted].noun}.")
    kind = KINDS[found.kind]
    home = (
        f"Load it with the node {kind.node}, from the folder models/{kind.folder}"
        if kind.node
        else "It cannot be used here"
    )
    raise FileFormatError(f"{path.name} is {found.noun}, not {KINDS[wanted].noun}. {home}.")


@dataclass(frozen=True)
class Component:
    """One model in a file. `unreadable` is the reason if its tensors cannot be read."""

    kind: str
    noun: str
    tensors: Mapping[str, Stored]
    facts: Facts
    unreadable: str = ""


def _usable(file: WeightFile, components: Iterable[Component]) -> tuple[dict[str, Shapes], dict[str, str]]:
    """The tensors of the usable parts, and the reasons why the others cannot be used."""
    parts: dict[str, Shapes] = {}
    refusals: dict[str, str] = {}
    for component in components:
        lacking = [] if component.unreadable else missing(component.kind, component.tensors)
        if component.unreadable:
            refusals[component.kind] = component.unreadable
        elif lacking:
            refusals[component.kind] = (
                f"{file.path.name} is incomplete: of {KINDS[component.kind].noun} {len(lacking)} tensors are missing, "
                f"the first is {lacking[0]}. If it is one of several files, fetch the others too; else fetch it again, "
                "or choose another file."
            )
        elif wrong := misshapen(component.kind, {name: one.shape for name, one in component.tensors.items()}):
            name, needed = wrong
            refusals[component.kind] = (
                f"{file.path.name} is damaged: {name} has the shape {list(component.tensors[name].shape)}, and the "
                f"other tensors require {list(needed)}. Fetch it again, or choose another file."
            )
        elif component.kind in (*_COMPONENTS, "flux"):
            parts[component.kind] = component.tensors
    return parts, refusals


def _component(kind: str, read: Callable[[], Component]) -> Component:
    """The result of `read`; if the quantisation is not known, a component with the reason."""
    try:
        return read()
    except UnreadableScheme as error:
        return Component(kind, KINDS[kind].noun, {}, {}, str(error))


# -- FLUX ------------------------------------------------------------------------------------------------------------

_FLUX_BFL = ("img_in.weight", "txt_in.weight", "vector_in.in_layer.weight", "final_layer.linear.weight",
             "double_blocks.0.img_attn.norm.key_norm.scale", "double_blocks.0.img_mlp.0.weight")  # fmt: skip
_FLUX_DIFFUSERS = ("x_embedder.weight", "context_embedder.weight", "time_text_embed.text_embedder.linear_1.weight",
                   "proj_out.weight", "transformer_blocks.0.attn.norm_k.weight",
                   "transformer_blocks.0.ff.net.0.proj.weight",
                   "transformer_blocks.0.attn.add_k_proj.weight")  # fmt: skip


def _flux(file: WeightFile, names: Collection[str]) -> Detected | None:
    """A FLUX transformer, alone or together with text encoders and an autoencoder."""
    layouts: tuple[tuple[str, tuple[str, ...], Rename], ...] = (
        ("BFL", _FLUX_BFL, flux_bfl),
        ("diffusers", _FLUX_DIFFUSERS, flux_diffusers),
    )
    for layout, anchors, rename in layouts:
        prefix = _prefix(names, anchors)
        if prefix is None or f"{prefix}distilled_guidance_layer.in_proj.weight" in names:
            continue
        flux = _component("flux", lambda: _transformer(file, layout, prefix, rename))  # noqa: B023 - called at once
        others = [name for name in names if not prefix or not name.startswith(prefix)]
        beside = [find(file, others) for find in _COMPONENTS.values()]
        components = [flux, *(part for part in beside if part is not None and part.kind in _COMPONENTS)]
        parts, refusals = _usable(file, components)
        kind = "checkpoint" if len(components) > 1 else "flux"
        variant = f" ({flux.facts['variant']})" if flux.facts else ""
        cannot = ", which cannot be used" if "flux" in refusals else ""
        return Detected(kind, f"{KINDS[kind].noun}{variant}{cannot}", parts, flux.facts, refusals)
    return None


def _transformer(file: WeightFile, layout: str, prefix: str, rename: Rename) -> Component:
    tensors = model_tensors(file, prefix, rename)
    return Component("flux", KINDS["flux"].noun, tensors, _flux_facts(tensors) | {"layout": layout, "prefix": prefix})


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
    """Rows and columns of a tensor that must be a matrix."""
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

_CLIP = ("embeddings.token_embedding.weight", "encoder.layers.0.mlp.fc1.weight")
_CLIP_OPENAI = ("token_embedding.weight", "transformer.resblocks.0.mlp.c_fc.weight")
_CLIP_DEEPEST = 12  # layers of CLIP-L; H has 24, G has 32
_T5_FIRST = "block.0.layer.0.SelfAttention.q.weight"


def _clip(file: WeightFile, names: Collection[str]) -> Component | None:
    for anchors, rename in ((_CLIP, clip_transformers), (_CLIP_OPENAI, clip_openai)):
        prefix = _prefix(names, anchors)
        if prefix is not None:
            return _component("clip_l", lambda: _clip_of(file, prefix, rename))  # noqa: B023 - called at once
    return None


def _clip_of(file: WeightFile, prefix: str, rename: Rename) -> Component:
    tensors = model_tensors(file, prefix, rename)
    layers = _blocks(tensors, "text_model.encoder.layers.")
    width = _sides(tensors, "text_model.embeddings.token_embedding.weight")[1]
    if layers > _CLIP_DEEPEST:
        return Component("other_text", f"a larger CLIP text encoder ({layers} layers, {width} wide)", {}, {})
    layout = {} if rename is clip_transformers else {"layout": "OpenAI"}
    return Component("clip_l", KINDS["clip_l"].noun, tensors, {"layers": layers, "width": width} | layout)


def _t5(file: WeightFile, names: Collection[str]) -> Component | None:
    prefix = _prefix(names, (f"encoder.{_T5_FIRST}",))
    if "enc.blk.0.attn_q.weight" in names:
        return _component("t5", lambda: _t5_of(model_tensors(file, "", t5_llama)))
    if prefix is None:
        return None
    rename = t5_transformers(f"{prefix}shared.weight" in names)
    return _component("t5", lambda: _t5_of(model_tensors(file, prefix, rename)))


def _t5_of(tensors: Shapes) -> Component:
    first = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    if first not in tensors or "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in tensors:
        noun = "a T5 of another generation (FLUX.1 uses the encoder of T5 v1.1 XXL)"
        return Component("other_text", noun, {}, {})
    facts: Facts = {"layers": _blocks(tensors, "encoder.block."), "width": _sides(tensors, first)[1]}
    return Component("t5", KINDS["t5"].noun, tensors, facts)


def _autoencoder(file: WeightFile, names: Collection[str]) -> Component | None:
    if "pixels.weight" in names:
        return _component("autoencoder", lambda: _pixels_of(file))
    prefix = _prefix(names, ("decoder.conv_in.weight", "decoder.conv_out.weight"))
    if prefix is None:
        return None
    shape = file.entries[f"{prefix}decoder.conv_in.weight"].shape
    if len(shape) != 4 or shape[1] != 16 or f"{prefix}quant_conv.weight" in names:
        size = f"{shape[1]} latent channels" if len(shape) == 4 else "for video"
        noun = f"an autoencoder of another family ({size}; FLUX.1's has 16, no quant_conv)"
        return Component("other_autoencoder", noun, {}, {})
    return _component("autoencoder", lambda: _autoencoder_of(file, names, prefix))


def _pixels_of(file: WeightFile) -> Component:
    """What stands for an autoencoder where a transformer works on pixels (models/pixel_codec.py)."""
    tensors = model_tensors(file, "", lambda name: (name, 0) if name == "pixels.weight" else None)
    facts: Facts = {"layout": "pixels", "latent_channels": tensors["pixels.weight"].shape[0]}
    return Component("autoencoder", "a codec for FLUX models in pixel space (VAE)", tensors, facts)


def _autoencoder_of(file: WeightFile, names: Collection[str], prefix: str) -> Component:
    levels = _blocks([name[len(prefix) :] for name in names if name.startswith(prefix)], "encoder.down_blocks.")
    tensors = model_tensors(file, prefix, _only_coder if levels == 0 else autoencoder_diffusers(levels))
    facts: Facts = {"layout": "diffusers" if levels else "BFL", "latent_channels": 16}
    convolutions = {name: _as_convolution(tensor) for name, tensor in tensors.items()}
    return Component("autoencoder", KINDS["autoencoder"].noun, convolutions, facts)


def _taef1(file: WeightFile, names: Collection[str]) -> Component | None:
    """TAEF1 or another TAESD, whole or one half of it."""
    there = set(names)
    if {"1.weight", "3.conv.0.weight", "19.weight"} <= there:
        rename = taef1("decoder")
    elif {"0.weight", "1.conv.0.weight", "14.weight"} <= there:
        rename = taef1("encoder")
    elif there & {"decoder.layers.2.conv.0.weight", "taesd_decoder.3.conv.0.weight"}:
        rename = taef1()
    else:
        return None
    return _component("taef1", lambda: _taef1_of(model_tensors(file, "", rename)))


def _taef1_of(tensors: Shapes) -> Component:
    halves = [half for half in ("encoder", "decoder") if _blocks(tensors, f"{half}.")]
    latent = {"encoder": ("encoder.14.weight", 0), "decoder": ("decoder.1.weight", 1)}
    name, axis = latent[halves[-1]]
    shape = tensors[name].shape if name in tensors else ()
    channels = shape[axis] if len(shape) == 4 else 0
    if channels != 16:
        noun = f"a small autoencoder of another family (TAESD, {channels} latent channels; FLUX.1's has 16)"
        return Component("other_autoencoder", noun, {}, {})
    half = "" if len(halves) == 2 else f", its {halves[0]}"
    facts: Facts = {"halves": " and ".join(halves), "latent_channels": channels}
    return Component("taef1", f"{KINDS['taef1'].noun}{half}", tensors, facts)


def _only_coder(name: str) -> tuple[str, int] | None:
    return (name, 0) if name.startswith(("encoder.", "decoder.")) else None


def _as_convolution(stored: Stored) -> Stored:
    """Diffusers stores the 1x1 convolutions of the attention as matrices."""
    if ".mid.attn_1." not in stored.name or len(stored.shape) != 2:
        return stored
    return replace(stored, shape=(*stored.shape, 1, 1))


def _image_adapter(file: WeightFile, names: Collection[str]) -> Detected | None:
    if "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight" not in names:
        return None
    kept = ("ip_adapter_proj_model.", "double_blocks.")
    adapter = _component("ip_adapter", lambda: Component(
        "ip_adapter", KINDS["ip_adapter"].noun,
        model_tensors(file, "", lambda name: (name, 0) if name.startswith(kept) else None), {},
    ))  # fmt: skip
    if adapter.unreadable:
        return Detected("ip_adapter", adapter.noun, refusals={"ip_adapter": adapter.unreadable})
    return Detected("ip_adapter", adapter.noun, {"ip_adapter": adapter.tensors})


# -- images as prompts ---------------------------------------------------------------------------------------------

_VISION = ("vision_model.embeddings.", "vision_model.encoder.", "vision_model.post_layernorm.",
           "vision_model.pre_layrnorm.", "visual_projection.")  # fmt: skip


def _vision(file: WeightFile, names: Collection[str]) -> Component | None:
    if "vision_model.embeddings.patch_embedding.weight" not in names:
        return None
    return _component("clip_vision", lambda: _vision_of(model_tensors(file, "", _only_vision)))


def _vision_of(tensors: Shapes) -> Component:
    kind = "CLIP" if "vision_model.embeddings.class_embedding" in tensors else "SigLIP"
    facts: Facts = {"family": kind, "layers": _blocks(tensors, "vision_model.encoder.layers.")}
    return Component("clip_vision", f"{KINDS['clip_vision'].noun} ({kind})", tensors, facts)


def _only_vision(name: str) -> tuple[str, int] | None:
    return (name, 0) if name.startswith(_VISION) and not name.endswith("position_ids") else None


def _redux(file: WeightFile, names: Collection[str]) -> Component | None:
    if "redux_down.weight" not in names:
        return None
    return _component(
        "redux", lambda: Component("redux", KINDS["redux"].noun, model_tensors(file, "", _only_redux), {})
    )


def _only_redux(name: str) -> tuple[str, int] | None:
    return (name, 0) if name.startswith("redux_") else None


def _style_projector(file: WeightFile, names: Collection[str]) -> Component | None:
    below = "feature_embedder."
    if f"{below}mid_layer_norm.bias" not in names:
        return None
    return _component("style_projector", lambda: Component(
        "style_projector", KINDS["style_projector"].noun,
        model_tensors(file, below, lambda name: (name, 0)), {},
    ))  # fmt: skip


_COMPONENTS = {
    "clip_l": _clip, "t5": _t5, "autoencoder": _autoencoder, "taef1": _taef1, "clip_vision": _vision, "redux": _redux,
    "style_projector": _style_projector,
}  # fmt: skip


def _prefix(names: Collection[str], anchors: tuple[str, ...]) -> str | None:
    """The shortest prefix that all of `anchors` have in the file; None if there is none."""
    there = set(names)
    return min(_prefixes(there, anchors), key=len, default=None)


def _prefixes(names: set[str], anchors: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        prefix = name.removesuffix(anchors[0])
        if name != prefix and prefix[-1:] in ("", ".") and all(prefix + anchor in names for anchor in anchors[1:]):
            yield prefix
