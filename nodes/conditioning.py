"""Texts combined, and said where and when they count: areas, masks, ranges of the denoising."""

from __future__ import annotations

from typing import Any

from .sockets import CONDITIONING, MASK, Inputs, choice, number, pixels, wire

Conditioning = list[list[Any]]

STRENGTH = number(1.0, 0.0, 10.0, 0.01, "How much this text counts where several overlap.")


class ConditioningZeroOut:
    """No text at all."""

    TITLE = "ConditioningZeroOut"
    DESCRIPTION = "Sets the text to zeros: a negative prompt that asks for nothing, cheaper than an empty text."
    CATEGORY = "advanced/conditioning"
    FUNCTION = "zero_out"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("Zeros in the shape of the text.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"conditioning": wire(CONDITIONING, "The encoded text.")}}

    def zero_out(self, conditioning: Conditioning) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import zero_out

        return (zero_out(conditioning),)


class ConditioningCombine:
    """Two texts side by side."""

    TITLE = "Conditioning (Combine)"
    DESCRIPTION = "Denoises with both texts and averages what they predict. Every text costs a pass of its own."
    CATEGORY = "conditioning"
    FUNCTION = "combine"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("Both texts.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "conditioning_1": wire(CONDITIONING, "One text."),
                "conditioning_2": wire(CONDITIONING, "Another text."),
            }
        }

    def combine(self, conditioning_1: Conditioning, conditioning_2: Conditioning) -> tuple[Conditioning]:
        return (conditioning_1 + conditioning_2,)


class ConditioningConcat:
    """One text after another."""

    TITLE = "Conditioning (Concat)"
    DESCRIPTION = "Appends the tokens of one text to those of another; the summary vector of the first stays."
    CATEGORY = "conditioning"
    FUNCTION = "concat"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The longer text.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "conditioning_to": wire(CONDITIONING, "The text that comes first."),
                "conditioning_from": wire(CONDITIONING, "The text to append (its first entry)."),
            }
        }

    def concat(self, conditioning_to: Conditioning, conditioning_from: Conditioning) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import concatenate

        return (concatenate(conditioning_to, conditioning_from),)


class ConditioningAverage:
    """A blend of two texts."""

    TITLE = "ConditioningAverage"
    DESCRIPTION = "Blends two encoded texts, token by token. Costs a single pass."
    CATEGORY = "conditioning"
    FUNCTION = "average"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The blend.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "conditioning_to": wire(CONDITIONING, "One text."),
                "conditioning_from": wire(CONDITIONING, "The other text (its first entry)."),
                "conditioning_to_strength": number(1.0, 0.0, 1.0, 0.01, "Share of the first text."),
            }
        }

    def average(
        self, conditioning_to: Conditioning, conditioning_from: Conditioning, conditioning_to_strength: float
    ) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import average

        return (average(conditioning_to, conditioning_from, conditioning_to_strength),)


class ConditioningSetArea:
    """Let a text count in a rectangle only."""

    TITLE = "Conditioning (Set Area)"
    DESCRIPTION = "Limits a text to a rectangle, in pixels. Combine it with a text for the rest of the picture."
    CATEGORY = "conditioning"
    FUNCTION = "set_area"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The text with its area.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "conditioning": wire(CONDITIONING, "The encoded text."),
                "width": pixels(64, "Width of the area in pixels.", low=64, step=8),
                "height": pixels(64, "Height of the area in pixels.", low=64, step=8),
                "x": pixels(0, "Left edge in pixels.", step=8),
                "y": pixels(0, "Top edge in pixels.", step=8),
                "strength": STRENGTH,
            }
        }

    def set_area(
        self, conditioning: Conditioning, width: int, height: int, x: int, y: int, strength: float
    ) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import with_values

        area = (height // 8, width // 8, y // 8, x // 8)
        return (with_values(conditioning, area=area, strength=strength, set_area_to_bounds=False),)


class ConditioningSetAreaPercentage:
    """Let a text count in a part of the picture, whatever its size."""

    TITLE = "Conditioning (Set Area with Percentage)"
    DESCRIPTION = "Limits a text to a rectangle, given as shares of the picture."
    CATEGORY = "conditioning"
    FUNCTION = "set_area"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The text with its area.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "conditioning": wire(CONDITIONING, "The encoded text."),
                "width": number(1.0, 0, 1.0, 0.01, "Width of the area, as a share of the picture's."),
                "height": number(1.0, 0, 1.0, 0.01, "Height of the area, as a share of the picture's."),
                "x": number(0, 0, 1.0, 0.01, "Left edge, as a share of the width."),
                "y": number(0, 0, 1.0, 0.01, "Top edge, as a share of the height."),
                "strength": STRENGTH,
            }
        }

    def set_area(
        self, conditioning: Conditioning, width: float, height: float, x: float, y: float, strength: float
    ) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import with_values

        area = ("percentage", height, width, y, x)
        return (with_values(conditioning, area=area, strength=strength, set_area_to_bounds=False),)


class ConditioningSetAreaStrength:
    """Say how much a text counts."""

    TITLE = "ConditioningSetAreaStrength"
    DESCRIPTION = "Sets how much a text counts where several overlap."
    CATEGORY = "conditioning"
    FUNCTION = "set_strength"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The text with its strength.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"conditioning": wire(CONDITIONING, "The encoded text."), "strength": STRENGTH}}

    def set_strength(self, conditioning: Conditioning, strength: float) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import with_values

        return (with_values(conditioning, strength=strength),)


class ConditioningSetMask:
    """Let a text count where a mask is white."""

    TITLE = "Conditioning (Set Mask)"
    DESCRIPTION = "Limits a text to a mask. With mask bounds only the masked part is denoised, which saves time."
    CATEGORY = "conditioning"
    FUNCTION = "set_mask"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The text with its mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "conditioning": wire(CONDITIONING, "The encoded text."),
                "mask": wire(MASK, "Where the text counts: 1 is fully, 0 not at all."),
                "strength": STRENGTH,
                "set_cond_area": choice(
                    ["default", "mask bounds"], "Denoise everything, or only the mask's bounding box."
                ),
            }
        }

    def set_mask(
        self, conditioning: Conditioning, mask: Any, strength: float, set_cond_area: str
    ) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import with_values

        mask = mask[None] if mask.ndim < 3 else mask
        bounds = set_cond_area != "default"
        return (with_values(conditioning, mask=mask, mask_strength=strength, set_area_to_bounds=bounds),)


class ConditioningSetTimestepRange:
    """Let a text count for a part of the denoising."""

    TITLE = "ConditioningSetTimestepRange"
    DESCRIPTION = "Uses a text only for a part of the denoising: 0 is pure noise, 1 the finished picture."
    CATEGORY = "advanced/conditioning"
    FUNCTION = "set_range"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The text with its range.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "conditioning": wire(CONDITIONING, "The encoded text."),
                "start": number(0.0, 0.0, 1.0, 0.001, "Where the text begins to count."),
                "end": number(1.0, 0.0, 1.0, 0.001, "Where it ceases to count."),
            }
        }

    def set_range(self, conditioning: Conditioning, start: float, end: float) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import with_values

        return (with_values(conditioning, start_percent=start, end_percent=end),)
