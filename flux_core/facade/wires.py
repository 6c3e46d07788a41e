"""Values on wires between our nodes and those of packs: handles of ours there, ComfyUI's kind of object here.

    FluxModel     <-> comfy.model_patcher.ModelPatcher        Sampler <-> comfy.samplers.KSAMPLER
    TextEncoders  <-> comfy.sd.CLIP                            Guider  <-> comfy.samplers.CFGGuider
    Autoencoder   <-> comfy.sd.VAE

They change where they enter a node, so that a pack's nodes hand each other what they made, and ours never see it. Every
other kind of wire (images, masks, latents, conditionings, noise, levels) is the same in both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

PACK_MODULE = "custom_nodes."


def prepared(node_class: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of one call of a node, as it knows them. Raises InputError for what our nodes cannot honour."""
    convert = to_pack if is_of_pack(node_class) else to_engine
    return {name: convert(value) for name, value in call.items()}


def is_of_pack(node_class: Any) -> bool:
    """Whether a node class came with a pack."""
    return str(getattr(node_class, "RELATIVE_PYTHON_MODULE", "")).startswith(PACK_MODULE)


def to_pack(value: Any) -> Any:
    """What a pack gets for one of our values. Lists of such values are changed item by item."""
    return _changed(value, _pack_kinds)


def to_engine(value: Any) -> Any:
    """What our nodes get for one of a pack's values. Raises InputError, or NotOffered."""
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
    from ..runtime.handles import Autoencoder, FluxModel, TextEncoders
    from ..sampling.guider import BasicGuider, CFGGuider
    from ..sampling.sample import Sampler
    from .offered.comfy import model_patcher, samplers, sd

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
        Sampler: lambda ours: samplers.ksampler(ours.name, ours.options),
        BasicGuider: guider,
        CFGGuider: guider,
    }


def _engine_kinds() -> Mapping[type[Any], Callable[[Any], Any]]:
    from .offered.comfy import model_patcher, samplers, sd

    return {
        model_patcher.ModelPatcher: lambda theirs: theirs.handle(),
        sd.CLIP: lambda theirs: theirs.handle(),
        sd.VAE: lambda theirs: theirs.handle(),
        samplers.KSAMPLER: lambda theirs: theirs.engine_sampler(),
        samplers.CFGGuider: lambda theirs: theirs.engine_guider(),
    }
