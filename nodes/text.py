"""Prompts, and how closely to follow them."""

from __future__ import annotations

from typing import Any

from .sockets import CLIP, CONDITIONING, Declared, Inputs, integer, number, prompt, wire

Conditioning = list[list[Any]]


def guidance() -> Declared:
    return number(3.5, 0.0, 100.0, 0.1, "How closely to follow the text. Higher is more literal, lower more natural.")


class CLIPTextEncode:
    """Prompt -> conditioning, both encoders reading the same text."""

    TITLE = "CLIP Text Encode (Prompt)"
    DESCRIPTION = "Reads a prompt with both text encoders (CLIP-L and T5-XXL). The result steers the denoising."
    CATEGORY = "conditioning"
    FUNCTION = "encode"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The encoded text.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tip = "What the picture should show. (word:1.2) weighs a word, embedding:name inserts one."
        return {"required": {"text": prompt(tip), "clip": wire(CLIP, "The text encoders.")}}

    def encode(self, text: str, clip: Any) -> tuple[Conditioning]:
        from ..flux_core.conditioning.text import encode_prompt

        return (encode_prompt(clip, text, text),)


class CLIPTextEncodeFlux:
    """Two prompts -> conditioning with guidance."""

    DESCRIPTION = (
        "Gives CLIP-L and T5-XXL a text each. CLIP-L contributes one summary vector, T5 every detail; "
        "guidance says how closely the picture should follow."
    )
    CATEGORY = "advanced/conditioning/flux"
    FUNCTION = "encode"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The encoded texts with their guidance.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "clip": wire(CLIP, "The text encoders."),
                "clip_l": prompt("The text CLIP-L summarises: a few words are enough."),
                "t5xxl": prompt("The text T5 reads in full: sentences, lettering, positions."),
                "guidance": guidance(),
            }
        }

    def encode(self, clip: Any, clip_l: str, t5xxl: str, guidance: float) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import with_values
        from ..flux_core.conditioning.text import encode_prompt

        return (with_values(encode_prompt(clip, clip_l, t5xxl), guidance=guidance),)


class CLIPSetLastLayer:
    """Stop reading the T5 encoder early."""

    TITLE = "CLIP Set Last Layer"
    DESCRIPTION = "Takes the text from an earlier layer of T5. -1 is the last layer; FLUX.1 was trained with it."
    CATEGORY = "conditioning"
    FUNCTION = "set_last_layer"
    RETURN_TYPES = (CLIP,)
    OUTPUT_TOOLTIPS = ("The text encoders with this setting.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "clip": wire(CLIP, "The text encoders."),
                "stop_at_clip_layer": integer(-1, -24, -1, "The last layer used, counted from the end.", step=1),
            }
        }

    def set_last_layer(self, clip: Any, stop_at_clip_layer: int) -> tuple[Any]:
        from dataclasses import replace

        return (replace(clip, options=replace(clip.options, last_layer=stop_at_clip_layer)),)


class T5TokenizerOptions:
    """Change how T5's row is padded."""

    DESCRIPTION = "Sets how far the T5 text is padded. FLUX.1 pads to 256 tokens unless this says otherwise."
    CATEGORY = "_for_testing/conditioning"
    EXPERIMENTAL = True
    FUNCTION = "set_options"
    RETURN_TYPES = (CLIP,)
    OUTPUT_TOOLTIPS = ("The text encoders with this setting.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "clip": wire(CLIP, "The text encoders."),
                "min_padding": integer(0, 0, 10000, "Padding tokens always added at the end.", step=1),
                "min_length": integer(0, 0, 10000, "Length the row is padded to.", step=1),
            }
        }

    def set_options(self, clip: Any, min_padding: int, min_length: int) -> tuple[Any]:
        from dataclasses import replace

        return (replace(clip, options=replace(clip.options, min_padding=min_padding, min_length=min_length)),)


class FluxGuidance:
    """Say how closely to follow the prompt."""

    DESCRIPTION = (
        "Sets the guidance the model was distilled with: 3.5 is usual for dev, 30 for Fill, Canny and Depth, "
        "2.5 for Kontext. It costs nothing, unlike cfg. schnell ignores it."
    )
    CATEGORY = "advanced/conditioning/flux"
    FUNCTION = "append"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The text with its guidance.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"conditioning": wire(CONDITIONING, "The encoded text."), "guidance": guidance()}}

    def append(self, conditioning: Conditioning, guidance: float) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import with_values

        return (with_values(conditioning, guidance=guidance),)


class FluxDisableGuidance:
    """Leave the guidance embedding out altogether."""

    DESCRIPTION = "Skips the guidance embedding: not the same as any number, for models trained without it."
    CATEGORY = "advanced/conditioning/flux"
    FUNCTION = "append"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The text without guidance.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"conditioning": wire(CONDITIONING, "The encoded text.")}}

    def append(self, conditioning: Conditioning) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import with_values

        return (with_values(conditioning, guidance=None),)
