"""Crop, flip, rotate, blend, batch, add and subtract latents."""

from __future__ import annotations

from typing import Any

from .image_layout import FLIPS, ROTATIONS
from .sockets import LATENT, Inputs, choice, number, pixels, socket

Latent = dict[str, Any]

ONE, TWO = (
    socket(LATENT, "The first latent."),
    socket(LATENT, "The second latent; it is resized to the size of the first."),
)


class LatentComposite:
    """Composite one latent on another, with soft edges."""

    TITLE = "Latent Composite"
    DESCRIPTION = "Places one latent on another."
    CATEGORY = "latent"
    FUNCTION = "composite"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The combined result.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "samples_to": socket(LATENT, "The latent below."),
                "samples_from": socket(LATENT, "The latent on top."),
                "x": pixels(0, "Its left edge in pixels.", step=8),
                "y": pixels(0, "Its top edge in pixels.", step=8),
                "feather": pixels(0, "Pixels over which its edges fade in.", step=8),
            }
        }

    def composite(self, samples_to: Latent, samples_from: Latent, x: int, y: int, feather: int = 0) -> tuple[Latent]:
        from ..flux_core.images.latents import lay_over

        return (lay_over(samples_to, samples_from, x, y, feather),)


class LatentBlend:
    """Blend two latents."""

    TITLE = "Latent Blend"
    DESCRIPTION = "Blends two latents."
    CATEGORY = "_for_testing"
    FUNCTION = "blend"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The blend.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "samples1": ONE,
                "samples2": TWO,
                "blend_factor": number(0.5, 0, 1, 0.01, "Share of the first latent."),
            }
        }

    def blend(self, samples1: Latent, samples2: Latent, blend_factor: float) -> tuple[Latent]:
        from ..flux_core.images.resize import resize

        one, two = samples1["samples"], samples2["samples"]
        if one.shape != two.shape:
            two = resize(two, one.shape[3], one.shape[2], "bicubic", "center")
        return ({**samples1, "samples": one * blend_factor + two * (1 - blend_factor)},)


class LatentCrop:
    """Crop a latent."""

    TITLE = "Crop Latent"
    DESCRIPTION = "Crops a latent to a rectangle."
    CATEGORY = "latent/transform"
    FUNCTION = "crop"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The part.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "samples": socket(LATENT, "The latent."),
                "width": pixels(512, "Width of the part in pixels.", low=64, step=8),
                "height": pixels(512, "Height of the part in pixels.", low=64, step=8),
                "x": pixels(0, "Its left edge in pixels.", step=8),
                "y": pixels(0, "Its top edge in pixels.", step=8),
            }
        }

    def crop(self, samples: Latent, width: int, height: int, x: int, y: int) -> tuple[Latent]:
        from ..flux_core.images.latents import crop

        return (crop(samples, width, height, x, y),)


class LatentFlip:
    """Mirror it."""

    TITLE = "Flip Latent"
    DESCRIPTION = "Mirrors a latent. The decoded image differs slightly from a mirrored image."
    CATEGORY = "latent/transform"
    FUNCTION = "flip"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The mirrored latent.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tip = "Vertically (upside down) or horizontally (left and right exchanged)."
        return {"required": {"samples": socket(LATENT, "The latent."), "flip_method": choice(FLIPS, tip)}}

    def flip(self, samples: Latent, flip_method: str) -> tuple[Latent]:
        return ({**samples, "samples": samples["samples"].flip(2 if flip_method.startswith("x") else 3)},)


class LatentRotate:
    """Rotate by quarter turns."""

    TITLE = "Rotate Latent"
    DESCRIPTION = "Rotates a latent clockwise by multiples of 90 degrees."
    CATEGORY = "latent/transform"
    FUNCTION = "rotate"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The rotated latent.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tip = "The angle, clockwise."
        return {"required": {"samples": socket(LATENT, "The latent."), "rotation": choice(ROTATIONS, tip)}}

    def rotate(self, samples: Latent, rotation: str) -> tuple[Latent]:
        from ..flux_core.images.layout import turns

        return ({**samples, "samples": samples["samples"].rot90(turns(rotation), (3, 2))},)


class LatentBatch:
    """Two latents in one batch."""

    DESCRIPTION = "Joins two latents in one batch; each keeps its noise."
    CATEGORY = "latent/batch"
    FUNCTION = "batch"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("Both latents.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"samples1": ONE, "samples2": TWO}}

    def batch(self, samples1: Latent, samples2: Latent) -> tuple[Latent]:
        from ..flux_core.images.latents import joined

        return (joined(samples1, samples2),)


class LatentBatchSeedBehavior:
    """Set whether a batch shares its noise."""

    DESCRIPTION = "Gives all images of a batch the same noise, or different noise."
    CATEGORY = "latent/advanced"
    FUNCTION = "choose"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The latent with this setting.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        rule = choice(["random", "fixed"], "fixed: all have the noise of the first one.", default="fixed")
        return {"required": {"samples": socket(LATENT, "The batch."), "seed_behavior": rule}}

    def choose(self, samples: Latent, seed_behavior: str) -> tuple[Latent]:
        rest = {key: value for key, value in samples.items() if key != "batch_index"}
        if seed_behavior == "random":
            return (rest,)
        return ({**rest, "batch_index": [samples.get("batch_index", [0])[0]] * len(samples["samples"])},)


class LatentAdd:
    """Add two latents."""

    DESCRIPTION = "Adds two latents."
    CATEGORY = "latent/advanced"
    FUNCTION = "add"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The sum.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"samples1": ONE, "samples2": TWO}}

    def add(self, samples1: Latent, samples2: Latent) -> tuple[Latent]:
        from ..flux_core.images.latents import fitted

        return ({**samples1, "samples": samples1["samples"] + fitted(samples2, samples1)},)


class LatentSubtract:
    """Subtract two latents."""

    DESCRIPTION = "Subtracts the second latent from the first."
    CATEGORY = "latent/advanced"
    FUNCTION = "subtract"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The difference.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"samples1": ONE, "samples2": TWO}}

    def subtract(self, samples1: Latent, samples2: Latent) -> tuple[Latent]:
        from ..flux_core.images.latents import fitted

        return ({**samples1, "samples": samples1["samples"] - fitted(samples2, samples1)},)


class LatentMultiply:
    """Multiply a latent by a number."""

    DESCRIPTION = "Multiplies a latent by a number."
    CATEGORY = "latent/advanced"
    FUNCTION = "multiply"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The multiple.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        factor = number(1.0, -10.0, 10.0, 0.01, "The number.")
        return {"required": {"samples": socket(LATENT, "The latent."), "multiplier": factor}}

    def multiply(self, samples: Latent, multiplier: float) -> tuple[Latent]:
        return ({**samples, "samples": samples["samples"] * multiplier},)


class LatentInterpolate:
    """Interpolate direction and length of two latents."""

    DESCRIPTION = "Blends two latents, interpolating directions and lengths of their channel vectors separately."
    CATEGORY = "latent/advanced"
    FUNCTION = "interpolate"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The blend.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "samples1": ONE,
                "samples2": TWO,
                "ratio": number(1.0, 0.0, 1.0, 0.01, "Share of the first latent."),
            }
        }

    def interpolate(self, samples1: Latent, samples2: Latent, ratio: float) -> tuple[Latent]:
        from ..flux_core.images.latents import fitted, interpolate

        return ({**samples1, "samples": interpolate(samples1["samples"], fitted(samples2, samples1), ratio)},)
