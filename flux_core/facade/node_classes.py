"""Our node classes with the interface that packs use: ComfyUI's function names, order of arguments and types.

Packs call core nodes in two ways: `nodes.VAEDecode().decode(vae, samples)`, and by id through NODE_CLASS_MAPPINGS and
the class's own FUNCTION. Both use one wrapper, which converts arguments and results as links do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from . import link_values

# Id -> the function of ComfyUI's class, if our function has another name or another order of arguments (given
# follows in brackets).
_FUNCTIONS = """
UNETLoader load_unet; DualCLIPLoader load_clip; CLIPLoader load_clip; VAELoader load_vae;
CheckpointLoaderSimple load_checkpoint; LoraLoader load_lora; LoraLoaderModelOnly load_lora_model_only;
CLIPTextEncode encode (clip text); CLIPVisionLoader load_clip; CLIPVisionEncode encode;
StyleModelLoader load_style_model;
StyleModelApply apply_stylemodel; ControlNetLoader load_controlnet; ControlNetApply apply_controlnet;
ControlNetApplyAdvanced apply_controlnet; DiffControlNetLoader load_controlnet; UpscaleModelLoader load_model;
ImageUpscaleWithModel upscale (upscale_model image);
ConditioningAverage addWeighted; ConditioningSetArea append; ConditioningSetAreaPercentage append;
ConditioningSetAreaStrength append; ConditioningSetMask append (conditioning mask set_cond_area strength);
ConditioningCombine combine; ConditioningConcat concat; ConditioningZeroOut zero_out;
ConditioningSetTimestepRange set_range;
InpaintModelConditioning encode (positive negative pixels vae mask noise_mask);
AddNoise add_noise; BasicGuider get_guider; CFGGuider get_guider; DualCFGGuider get_guider; KSamplerSelect get_sampler;
RandomNoise get_noise; DisableNoise get_noise; BasicScheduler get_sigmas; BetaSamplingScheduler get_sigmas;
KarrasScheduler get_sigmas; ExponentialScheduler get_sigmas; PolyexponentialScheduler get_sigmas;
LaplaceScheduler get_sigmas; VPScheduler get_sigmas; AlignYourStepsScheduler get_sigmas; SplitSigmas get_sigmas;
SplitSigmasDenoise get_sigmas; FlipSigmas get_sigmas; SetFirstSigma set_first_sigma; SamplingPercentToSigma get_sigma;
LatentFromBatch frombatch; LatentBlend blend; LatentComposite composite; EmptyLatentImage generate;
VAEEncode encode (vae pixels); VAEDecode decode (vae samples);
VAEEncodeTiled encode (vae pixels tile_size overlap temporal_size temporal_overlap);
VAEDecodeTiled decode (vae samples tile_size overlap temporal_size temporal_overlap);
VAEEncodeForInpaint encode (vae pixels mask grow_mask_by); SetLatentNoiseMask set_mask;
ImagePadForOutpaint expand_image;
LoadImage load_image; LoadImageMask load_image; LoadImageOutput load_image; SaveImage save_images;
PreviewImage save_images; MaskToImage mask_to_image; ImageToMask image_to_mask; SolidMask solid; GrowMask expand_mask;
GetImageSize get_size; ImageFromBatch frombatch; ResizeAndPadImage resize_and_pad; ImageColorToMask image_to_mask;
MaskPreview execute; ThresholdMask image_to_mask; ModelSamplingAuraFlow patch_aura; SaveAnimatedWEBP save_images;
SaveAnimatedPNG save_images; PreviewAny main; DifferentialDiffusion apply
"""


def _table() -> dict[str, tuple[str, list[str]]]:
    entries = [entry.split(maxsplit=2) for entry in _FUNCTIONS.replace("\n", " ").split(";")]
    return {entry[0]: (entry[1], entry[2].strip("()").split() if entry[2:] else []) for entry in entries}


FUNCTIONS = _table()


_METHODS = ["nearest-exact", "bilinear", "area", "bicubic"]
_CROPS = ["disabled", "center"]
# Attributes of these classes that packs read.
_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "ImageScale": {"upscale_methods": [*_METHODS, "lanczos"], "crop_methods": _CROPS},
    "ImageScaleBy": {"upscale_methods": [*_METHODS, "lanczos"]},
    "LatentUpscale": {"upscale_methods": [*_METHODS, "bislerp"], "crop_methods": _CROPS},
    "LatentUpscaleBy": {"upscale_methods": [*_METHODS, "bislerp"]},
}


def for_packs(node_id: str, ours: type[Any]) -> type[Any]:
    """The class of one id, for packs to call."""
    plain = node_id.removeprefix("Sluice")
    name, order = FUNCTIONS.get(plain, ("execute", []))
    own = _function(ours, order)
    body = {
        **_ATTRIBUTES.get(plain, {}),
        "execute": own,
        name: own,
        "__doc__": ours.__doc__,
        "__module__": ours.__module__,
    }
    if plain in FUNCTIONS or not hasattr(ours, "FUNCTION"):
        body["FUNCTION"] = name
    else:  # `execute` in ComfyUI's newer style of nodes, or our own name
        body[ours.FUNCTION] = own
    return type(plain, (ours,), body)


def _function(ours: type[Any], order: list[str]) -> Callable[..., Any]:
    own = getattr(ours, ours.FUNCTION)
    names = order or list(inspect.signature(own).parameters)[1:]

    def call(self: Any, *given: Any, **named: Any) -> Any:
        named |= dict(zip(names, given, strict=False))
        known = {name: link_values.to_engine(value) for name, value in named.items()}
        made = own(self, **known)
        if isinstance(made, dict):
            return {key: _out(value) if key == "result" else value for key, value in made.items()}
        return _out(made)

    call.__doc__ = own.__doc__
    return call


def _out(made: Any) -> Any:
    return tuple(link_values.to_pack(value) for value in made) if isinstance(made, tuple) else made
