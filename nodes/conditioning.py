"""Combine encoded prompts, and limit them to areas, masks or ranges of the denoising."""

from __future__ import annotations

from typing import Any

from .sockets import CONDITIONING, MASK, Inputs, choice, number, pixels, socket

Conditioning = list[list[Any]]

STRENGTH = number(1.0, 0.0, 10.0, 0.01, "Weight of this prompt where several overlap.")


class ConditioningZeroOut:
    """Replace a prompt by zeros."""

    TITLE = "ConditioningZeroOut"
    DESCRIPTION = "Replaces the encoded prompt by zeros: a negative prompt without content that needs no encoding."
    CATEGORY = "advanced/conditioning"
    FUNCTION = "zero_out"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("Zeros in the shape of the encoded prompt.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"conditioning": socket(CONDITIONING, "The encoded prompt.")}}

    def zero_out(self, conditioning: Conditioning) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import zero_out

        return (zero_out(conditioning),)


class ConditioningCombine:
    """Combine two prompts."""

    TITLE = "Conditioning (Combine)"
    DESCRIPTION = "Denoises with both prompts and averages the predictions. Each prompt needs an evaluation of its own."
    CATEGORY = "conditioning"
    FUNCTION = "combine"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("Both texts.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "conditioning_1": socket(CONDITIONING, "One text."),
                "conditioning_2": socket(CONDITIONING, "Another text."),
            }
        }

    def combine(self, conditioning_1: Conditioning, conditioning_2: Conditioning) -> tuple[Conditioning]:
        return (conditioning_1 + conditioning_2,)


class ConditioningConcat:
    """Concatenate two prompts."""

    TITLE = "Conditioning (Concat)"
    DESCRIPTION = "Appends the tokens of one prompt to those of another. The pooled vector of the first is kept."
    CATEGORY = "conditioning"
    FUNCTION = "concat"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The longer prompt.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "conditioning_to": socket(CONDITIONING, "The first prompt."),
                "conditioning_from": socket(CONDITIONING, "The prompt to append (its first entry)."),
            }
        }

    def concat(self, conditioning_to: Conditioning, conditioning_from: Conditioning) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import concatenate

        return (concatenate(conditioning_to, conditioning_from),)


class ConditioningAverage:
    """Average two prompts."""

    TITLE = "ConditioningAverage"
    DESCRIPTION = "Averages two encoded prompts, token by token. Needs only one evaluation per step."
    CATEGORY = "conditioning"
    FUNCTION = "average"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The blend.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "conditioning_to": socket(CONDITIONING, "One text."),
                "conditioning_from": socket(CONDITIONING, "The other prompt (its first entry)."),
                "conditioning_to_strength": number(1.0, 0.0, 1.0, 0.01, "Share of the first prompt."),
            }
        }

    def average(
        self, conditioning_to: Conditioning, conditioning_from: Conditioning, conditioning_to_strength: float
    ) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import average

        return (average(conditioning_to, conditioning_from, conditioning_to_strength),)


class ConditioningSetArea:
    """Limit a prompt to a rectangle."""

    TITLE = "Conditioning (Set Area)"
    DESCRIPTION = "Limits a prompt to a rectangle in pixels. Combine it with a prompt for the rest of the image."
    CATEGORY = "conditioning"
    FUNCTION = "set_area"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The prompt with its area.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "conditioning": socket(CONDITIONING, "The encoded prompt."),
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
    """Limit a prompt to a rectangle given in shares of the image."""

    TITLE = "Conditioning (Set Area with Percentage)"
    DESCRIPTION = "Limits a prompt to a rectangle, given as shares of the image."
    CATEGORY = "conditioning"
    FUNCTION = "set_area"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The prompt with its area.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "conditioning": socket(CONDITIONING, "The encoded prompt."),
                "width": number(1.0, 0, 1.0, 0.01, "Width of the area, as a share of the image's width."),
                "height": number(1.0, 0, 1.0, 0.01, "Height of the area, as a share of the image's height."),
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
    """Set a prompt's weight."""

    TITLE = "ConditioningSetAreaStrength"
    DESCRIPTION = "Sets the weight of a prompt where several overlap."
    CATEGORY = "conditioning"
    FUNCTION = "set_strength"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The prompt with its strength.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"conditioning": socket(CONDITIONING, "The encoded prompt."), "strength": STRENGTH}}

    def set_strength(self, conditioning: Conditioning, strength: float) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import with_values

        return (with_values(conditioning, strength=strength),)


class ConditioningSetMask:
    """Limit a prompt to a mask."""

    TITLE = "Conditioning (Set Mask)"
    DESCRIPTION = "Limits a prompt to a mask. With mask bounds only the mask's bounding box is evaluated: faster."
    CATEGORY = "conditioning"
    FUNCTION = "set_mask"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The prompt with its mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "conditioning": socket(CONDITIONING, "The encoded prompt."),
                "mask": socket(MASK, "Where the prompt applies: 1 fully, 0 not at all."),
                "strength": STRENGTH,
                "set_cond_area": choice(
                    ["default", "mask bounds"], "Evaluate the whole image, or only the mask's bounding box."
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
    """Limit a prompt to a part of the denoising."""

    TITLE = "ConditioningSetTimestepRange"
    DESCRIPTION = "Uses a prompt only for a part of the denoising: 0 is pure noise, 1 the finished image."
    CATEGORY = "advanced/conditioning"
    FUNCTION = "set_range"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The prompt with its range.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "conditioning": socket(CONDITIONING, "The encoded prompt."),
                "start": number(0.0, 0.0, 1.0, 0.001, "The point where the prompt begins to apply."),
                "end": number(1.0, 0.0, 1.0, 0.001, "The point where it stops."),
            }
        }

    def set_range(self, conditioning: Conditioning, start: float, end: float) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import with_values

        return (with_values(conditioning, start_percent=start, end_percent=end),)
