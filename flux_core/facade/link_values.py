"""Converts values on links between our nodes and packs' nodes: our handles to ComfyUI's objects, and back.

    FluxModel     <-> comfy.model_patcher.ModelPatcher        Sampler <-> comfy.samplers.KSAMPLER
    TextEncoders  <-> comfy.sd.CLIP                            Guider  <-> comfy.samplers.CFGGuider
    Autoencoder   <-> comfy.sd.VAE                             VisionModel <-> comfy.clip_vision.ClipVisionModel
    ControlNet    <-> comfy.controlnet.ControlNet              StyleModel  <-> comfy.sd.StyleModel

They are converted when they enter a node, so that packs' nodes exchange their own objects unchanged. All other types
(images, masks, latents, conditionings, noise, levels) are the same in both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

PACK_MODULE = "custom_nodes."


def prepared(node_class: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of one call of a node, converted. Raises InputError for settings that our nodes do not support."""
    convert = to_pack if is_of_pack(node_class) else to_engine
    return {name: convert(value) for name, value in call.items()}


def is_of_pack(node_class: Any) -> bool:
    """Whether a node class belongs to a pack."""
    return str(getattr(node_class, "RELATIVE_PYTHON_MODULE", "")).startswith(PACK_MODULE)


def to_pack(value: Any) -> Any:
    """The object for a pack's node for one of our values. Lists are converted item by item."""
    return _changed(value, _pack_kinds)


def to_engine(value: Any) -> Any:
    """The value for our nodes for one of a pack's objects. Raises InputError or NotOffered."""
    return _changed(value, _engine_kinds)


def _changed(value: Any, kinds: Callable[[], Mapping[type[Any], Callable[[Any], Any]]]) -> Any:
    if isinstance(value, list) and value and not isinstance(value[0], (list, int, float, str)):
        return [_changed(item, kinds) for item in value]
    if value is None or isinstance(value, (int, float, str, list, dict)) or "torch" not in sys.modules:
        return value
    for kind, change in kinds().items():
        if isinstance(value, kind):
            return change(value)
    return value


def _pack_kinds() -> Mapping[type[Any], Callable[[Any], Any]]:
    from ..runtime.controlnets import ControlNet
    from ..runtime.handles import Autoencoder, FluxModel, TextEncoders
    from ..runtime.vision import StyleModel, VisionModel
    from ..sampling.guider import BasicGuider, CFGGuider
    from ..sampling.sample import Sampler
    from .guidance import PackGuider
    from .offered.comfy import clip_vision, controlnet, model_patcher, samplers, sd

    def guider(ours: Any) -> Any:
        made = samplers.CFGGuider(model_patcher.ModelPatcher(ours.model))
        if isinstance(ours, BasicGuider):
            made.set_conds(ours.conditioning, ours.conditioning)
        else:
            made.set_conds(ours.positive, ours.negative)
            made.set_cfg(ours.cfg)
        return made

    return {
        FluxModel: model_patcher.ModelPatcher,
        TextEncoders: sd.CLIP,
        Autoencoder: sd.VAE,
        VisionModel: clip_vision.ClipVisionModel,
        StyleModel: sd.StyleModel,
        ControlNet: controlnet.ControlNet,
        Sampler: lambda ours: samplers.ksampler(ours.name, ours.options),
        BasicGuider: guider,
        CFGGuider: guider,
        PackGuider: lambda ours: ours.theirs,
    }


def _engine_kinds() -> Mapping[type[Any], Callable[[Any], Any]]:
    from .offered.comfy import clip_vision, controlnet, model_patcher, samplers, sd

    return {
        model_patcher.ModelPatcher: lambda theirs: theirs.handle(),
        sd.CLIP: lambda theirs: theirs.handle(),
        sd.VAE: lambda theirs: theirs.handle(),
        sd.StyleModel: lambda theirs: theirs.handle(),
        clip_vision.ClipVisionModel: lambda theirs: theirs.handle(),
        controlnet.ControlBase: lambda theirs: theirs.handle(),
        samplers.KSAMPLER: lambda theirs: theirs.engine_sampler(),
        samplers.CFGGuider: lambda theirs: theirs.engine_guider(),
    }
