"""Preparation of images and masks for inpainting, with the ids of comfyui-inpaint-nodes and comfyui_controlnet_aux."""

from __future__ import annotations

from typing import Any

from ..sockets import CONDITIONING, IMAGE, INT, LATENT, MASK, VAE, Inputs, integer, number, socket
from .declared import COVER, PICTURE, OfAnotherPack, flag, one_of

INPAINT = "comfyui-inpaint-nodes"
FALLOFF = integer(0, 0, 8191, "The width of the fade at its edge, in pixels.", step=1)
BLURS = ("box", "linear", "gaussian")


class MaskedFill(OfAnotherPack):
    """Fill the masked area."""

    PACK = INPAINT
    TITLE = "Fill Masked Area"
    DESCRIPTION = "Fills the masked area with grey, or by OpenCV's inpainting from its surroundings."
    FUNCTION = "fill_in"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The filled image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": PICTURE,
                "mask": COVER,
                "fill": one_of(("neutral", "telea", "navier-stokes"), "neutral is grey; the others need OpenCV."),
                "falloff": FALLOFF,
            }
        }

    def fill_in(self, image: Any, mask: Any, fill: str, falloff: int) -> tuple[Any]:
        from ...flux_core.images import inpaint_masks

        if fill == "neutral":
            return (inpaint_masks.blend_neutral(image, mask, falloff),)
        return (inpaint_masks.blend_filled(image, mask, falloff, fill),)


class MaskedBlur(OfAnotherPack):
    """Blur the masked area."""

    PACK = INPAINT
    TITLE = "Blur Masked Area"
    DESCRIPTION = "Blurs the masked area."
    FUNCTION = "blur_in"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": PICTURE,
                "mask": COVER,
                "blur": integer(255, 3, 8191, "The size of the blur in pixels.", step=1),
                "falloff": FALLOFF,
            }
        }

    def blur_in(self, image: Any, mask: Any, blur: int, falloff: int) -> tuple[Any]:
        from ...flux_core.images.inpaint_masks import blend_blurred

        return (blend_blurred(image, mask, blur, falloff),)


class ExpandMask(OfAnotherPack):
    """Grow and blur a mask."""

    PACK = INPAINT
    TITLE = "Expand Mask"
    DESCRIPTION = "Grows a mask and blurs it."
    FUNCTION = "change"
    RETURN_TYPES = (MASK,)
    OUTPUT_TOOLTIPS = ("The mask.",)
    BY = "grow"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "mask": COVER,
                cls.BY: integer(16, 0, 8096, "The number of pixels.", step=1),
                "blur": integer(7, 0, 8096, "The size of the blur in pixels.", step=1),
                "blur_type": one_of(BLURS, "The kind of blur.", "gaussian"),
            }
        }

    def change(self, mask: Any, blur: int, blur_type: str = "gaussian", **by: int) -> tuple[Any]:
        from ...flux_core.images import inpaint_masks

        change = inpaint_masks.expand if self.BY == "grow" else inpaint_masks.shrink
        return (change(mask, by[self.BY], blur, blur_type),)


class ShrinkMask(ExpandMask):
    """Shrink and blur a mask."""

    TITLE = "Shrink Mask"
    DESCRIPTION = "Shrinks a mask and blurs it."
    BY = "shrink"


class StabilizeMask(OfAnotherPack):
    """Set values near 1 to 1."""

    PACK = INPAINT
    TITLE = "Stabilize Mask"
    DESCRIPTION = "Sets values of nearly 1 to exactly 1."
    FUNCTION = "settle"
    RETURN_TYPES = (MASK,)
    OUTPUT_TOOLTIPS = ("The mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"mask": COVER, "epsilon": number(0.01, 0.0, 1.0, 0.0001, "How near.")}}

    def settle(self, mask: Any, epsilon: float) -> tuple[Any]:
        return (mask.reshape(-1, *mask.shape[-2:]).masked_fill(mask.reshape(-1, *mask.shape[-2:]) > 1 - epsilon, 1.0),)


class DenoiseToCompositingMask(OfAnotherPack):
    """The mask for compositing the result onto the image."""

    PACK = INPAINT
    TITLE = "Denoise to Compositing Mask"
    DESCRIPTION = "Stretches the values of a mask: 0 up to the offset, 1 from the threshold on."
    FUNCTION = "stretch"
    RETURN_TYPES = (MASK,)
    OUTPUT_TOOLTIPS = ("The mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "mask": COVER,
                "offset": number(0.1, 0.0, 1.0, 0.01, "Values up to this become 0."),
                "threshold": number(0.2, 0.01, 1.0, 0.01, "Values from this on become 1."),
            }
        }

    def stretch(self, mask: Any, offset: float, threshold: float) -> tuple[Any]:
        from ...flux_core.errors import InputError

        if offset >= threshold:
            raise InputError(f"The threshold ({threshold}) should be higher than the offset ({offset}).")
        return (((mask - offset) / (threshold - offset)).clamp(0, 1),)


class ColorMatch(OfAnotherPack):
    """Match the colours of another image."""

    PACK = INPAINT
    TITLE = "Color Match (Masked)"
    DESCRIPTION = "Gives an image the mean and the standard deviation of another's colours, measured outside a mask."
    FUNCTION = "match"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "target": socket(IMAGE, "The image that is changed."),
                "reference": socket(IMAGE, "The image with the wanted colours."),
                "strength": number(1.0, 0.0, 1.0, 0.01, "How much."),
            },
            "optional": {"exclude_mask": socket(MASK, "The part that is not measured.")},
        }

    def match(self, target: Any, reference: Any, strength: float, exclude_mask: Any = None) -> tuple[Any]:
        from ...flux_core.images.inpaint_masks import match_colours

        return (match_colours(target, reference, exclude_mask, strength),)


class MaskBoundingBox(OfAnotherPack):
    """The bounding box of a mask."""

    PACK = INPAINT
    TITLE = "Mask Bounding Box"
    DESCRIPTION = "Returns the smallest rectangle around a mask."
    FUNCTION = "measure"
    RETURN_TYPES = (INT, INT, INT, INT)
    RETURN_NAMES = ("x", "y", "width", "height")
    OUTPUT_TOOLTIPS = ("Its left edge.", "Its top edge.", "Its width.", "Its height.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"mask": COVER}}

    def measure(self, mask: Any) -> tuple[int, int, int, int]:
        found = mask.reshape(-1, *mask.shape[-2:]).amax(0).nonzero()
        if not len(found):
            return 0, 0, mask.shape[-1], mask.shape[-2]
        (top, left), (bottom, right) = found.amin(0).tolist(), found.amax(0).tolist()
        return left, top, right - left + 1, bottom - top + 1


class InpaintPreprocessor(OfAnotherPack):
    """controlnet_aux's preprocessor for inpainting ControlNets."""

    PACK = "comfyui_controlnet_aux"
    TITLE = "Inpaint Preprocessor"
    DESCRIPTION = "Sets the masked part to -1, as inpainting ControlNets expect, or to black."
    FUNCTION = "prepare"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {"image": PICTURE, "mask": COVER},
            "optional": {"black_pixel_for_xinsir_cn": flag(False, "Use 0 instead of -1.")},
        }

    def prepare(self, image: Any, mask: Any, black_pixel_for_xinsir_cn: bool = False) -> tuple[Any]:
        from ...flux_core.images.masks import resize

        layers = resize(mask, image.shape[1], image.shape[2]).movedim(1, -1)
        return (image.masked_fill(layers > 0.5, 0.0 if black_pixel_for_xinsir_cn else -1.0),)


class VAEEncodeInpaintConditioning(OfAnotherPack):
    """ComfyUI's inpainting conditioning, with both latents."""

    PACK = INPAINT
    TITLE = "VAE Encode & Inpaint Conditioning"
    DESCRIPTION = "Encodes an image without its masked part, for inpainting models."
    FUNCTION = "encode"
    RETURN_TYPES = (CONDITIONING, CONDITIONING, LATENT, LATENT)
    RETURN_NAMES = ("positive", "negative", "latent_inpaint", "latent_samples")
    OUTPUT_TOOLTIPS = ("The positive text.", "The negative text.", "The image without its masked part.", "The image.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "positive": socket(CONDITIONING, "The positive text."),
                "negative": socket(CONDITIONING, "The negative text."),
                "vae": socket(VAE, "The autoencoder."),
                "pixels": PICTURE,
                "mask": COVER,
            }
        }

    def encode(self, positive: Any, negative: Any, vae: Any, pixels: Any, mask: Any) -> tuple[Any, ...]:
        from ..editing import InpaintModelConditioning

        node = InpaintModelConditioning()
        positive, negative, latent = getattr(node, node.FUNCTION)(positive, negative, vae, pixels, mask, True)
        samples = positive[0][1]["concat_latent_image"]
        return positive, negative, {"samples": samples, "noise_mask": latent["noise_mask"].round()}, latent
