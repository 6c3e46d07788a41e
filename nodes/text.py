"""Prompts and guidance."""

from __future__ import annotations

from typing import Any

from .sockets import CLIP, CONDITIONING, Declared, Inputs, integer, number, prompt, socket

Conditioning = list[list[Any]]


def guidance() -> Declared:
    return number(3.5, 0.0, 100.0, 0.1, "How closely to follow the prompt: higher is more literal, lower more natural.")


class CLIPTextEncode:
    """Prompt -> conditioning, both encoders reading the same text."""

    TITLE = "CLIP Text Encode (Prompt)"
    DESCRIPTION = "Encodes a prompt with both text encoders (CLIP-L and T5-XXL)."
    CATEGORY = "conditioning"
    FUNCTION = "encode"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The encoded prompt.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tip = "What the image should show. (word:1.2) weights a word; embedding:name inserts a textual inversion."
        return {"required": {"text": prompt(tip), "clip": socket(CLIP, "The text encoders.")}}

    def encode(self, text: str, clip: Any) -> tuple[Conditioning]:
        from ..flux_core.conditioning.text import encode_prompt

        return (encode_prompt(clip, text, text),)


class CLIPTextEncodeFlux:
    """Two prompts -> conditioning with guidance."""

    DESCRIPTION = (
        "Gives CLIP-L and T5-XXL separate texts. CLIP-L contributes one summary vector, T5 every detail; "
        "guidance says how closely the image should follow."
    )
    CATEGORY = "advanced/conditioning/flux"
    FUNCTION = "encode"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The encoded prompt with its guidance.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "clip": socket(CLIP, "The text encoders."),
                "clip_l": prompt("The text for CLIP-L, which summarises it: a few words are enough."),
                "t5xxl": prompt("The text for T5, which uses all of it: sentences, lettering, positions."),
                "guidance": guidance(),
            }
        }

    def encode(self, clip: Any, clip_l: str, t5xxl: str, guidance: float) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import with_values
        from ..flux_core.conditioning.text import encode_prompt

        return (with_values(encode_prompt(clip, clip_l, t5xxl), guidance=guidance),)


class CLIPSetLastLayer:
    """Use an earlier layer of T5."""

    TITLE = "CLIP Set Last Layer"
    DESCRIPTION = "Uses the output of an earlier layer of T5. -1 is the last layer, which FLUX.1 was trained with."
    CATEGORY = "conditioning"
    FUNCTION = "set_last_layer"
    RETURN_TYPES = (CLIP,)
    OUTPUT_TOOLTIPS = ("The text encoders with this setting.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "clip": socket(CLIP, "The text encoders."),
                "stop_at_clip_layer": integer(-1, -24, -1, "The last layer used, counted from the end.", step=1),
            }
        }

    def set_last_layer(self, clip: Any, stop_at_clip_layer: int) -> tuple[Any]:
        from dataclasses import replace

        return (replace(clip, options=replace(clip.options, last_layer=stop_at_clip_layer)),)


class T5TokenizerOptions:
    """Change the padding of T5's tokens."""

    DESCRIPTION = "Sets the length to which T5's tokens are padded. The default for FLUX.1 is 256 tokens."
    CATEGORY = "_for_testing/conditioning"
    EXPERIMENTAL = True
    FUNCTION = "set_options"
    RETURN_TYPES = (CLIP,)
    OUTPUT_TOOLTIPS = ("The text encoders with this setting.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "clip": socket(CLIP, "The text encoders."),
                "min_padding": integer(0, 0, 10000, "Number of padding tokens always added at the end.", step=1),
                "min_length": integer(0, 0, 10000, "The length to pad to.", step=1),
            }
        }

    def set_options(self, clip: Any, min_padding: int, min_length: int) -> tuple[Any]:
        from dataclasses import replace

        return (replace(clip, options=replace(clip.options, min_padding=min_padding, min_length=min_length)),)


class FluxGuidance:
    """Set how closely to follow the prompt."""

    DESCRIPTION = (
        "Sets the built-in guidance of distilled models: 3.5 is usual for dev, 30 for Fill, Canny and Depth, "
        "2.5 for Kontext. It costs nothing, unlike cfg. schnell ignores it."
    )
    CATEGORY = "advanced/conditioning/flux"
    FUNCTION = "append"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The prompt with its guidance.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"conditioning": socket(CONDITIONING, "The encoded prompt."), "guidance": guidance()}}

    def append(self, conditioning: Conditioning, guidance: float) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import with_values

        return (with_values(conditioning, guidance=guidance),)


class FluxDisableGuidance:
    """Leave the guidance embedding out."""

    DESCRIPTION = "Leaves the guidance embedding out, which differs from any value, for models trained without it."
    CATEGORY = "advanced/conditioning/flux"
    FUNCTION = "append"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The prompt without guidance.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"conditioning": socket(CONDITIONING, "The encoded prompt.")}}

    def append(self, conditioning: Conditioning) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import with_values

        return (with_values(conditioning, guidance=None),)
