"""Masks grown, blurred and shown, with the ids of other packs."""

from __future__ import annotations

from typing import Any

from ..mask_edit import MaskPreview
from ..sockets import MASK, Inputs, integer, number, socket
from .declared import OfAnotherPack, flag, one_of, whole

ESSENTIALS, KJ = "comfyui_essentials", "comfyui-kjnodes"


class GrowMaskWithBlur(OfAnotherPack):
    """KJNodes' node that grows and blurs masks."""

    PACK = KJ
    TITLE = "Grow Mask With Blur"
    DESCRIPTION = "Grows or shrinks masks, each a little more than the one before, and blurs them."
    FUNCTION = "grow"
    RETURN_TYPES = (MASK, MASK)
    RETURN_NAMES = ("mask", "mask_inverted")
    OUTPUT_TOOLTIPS = ("The mask.", "Its opposite.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        far = 16384
        return {
            "required": {
                "mask": socket(MASK, "The mask."),
                "expand": whole("The number of pixels to grow; negative to shrink.", 0, -far, far),
                "incremental_expandrate": number(0.0, 0.0, 100.0, 0.1, "The additional growth of each further mask."),
                "tapered_corners": flag(True, "Grow to four neighbours instead of eight."),
                "flip_input": flag(False, "Invert the mask first."),
                "blur_radius": number(0.0, 0.0, 100.0, 0.1, "The radius of the blur in pixels."),
                "lerp_alpha": number(1.0, 0.0, 1.0, 0.01, "The share of each mask; the rest is the mask before."),
                "decay_factor": number(1.0, 0.0, 1.0, 0.01, "How much of the mask before is added, below 1."),
            },
            "optional": {"fill_holes": flag(False, "Fill enclosed holes.")},
        }

    def grow(
        self,
        mask: Any,
        expand: int,
        incremental_expandrate: float,
        tapered_corners: bool,
        flip_input: bool,
        blur_radius: float,
        lerp_alpha: float,
        decay_factor: float,
        fill_holes: bool = False,
    ) -> tuple[Any, Any]:
        from ...flux_core.images.fitted import grow_and_blur

        settings = (tapered_corners, flip_input, blur_radius, lerp_alpha, decay_factor, fill_holes)
        made = grow_and_blur(mask, expand, incremental_expandrate, *settings)
        return made, 1.0 - made


class MaskPreviewPlus(OfAnotherPack, MaskPreview):
    """Essentials' node that shows a mask as an image."""

    PACK = ESSENTIALS
    CATEGORY = OfAnotherPack.CATEGORY


class MaskBlurPlus(OfAnotherPack):
    """Essentials' node that blurs a mask."""

    PACK = ESSENTIALS
    TITLE = "Mask Blur"
    DESCRIPTION = "Blurs a mask."
    FUNCTION = "blur"
    RETURN_TYPES = (MASK,)
    OUTPUT_TOOLTIPS = ("The blurred mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "mask": socket(MASK, "The mask."),
                "amount": integer(6, 0, 256, "The size of the blur in pixels."),
                "device": one_of(("auto", "cpu", "gpu"), "No effect here."),
            }
        }

    def blur(self, mask: Any, amount: int, device: str) -> tuple[Any]:
        from ...flux_core.images.fitted import soften

        return (soften(mask, amount) if amount else mask,)
