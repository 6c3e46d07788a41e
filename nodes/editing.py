"""Conditioning by images: references (Kontext), structure (Canny, Depth), inpainting (Fill)."""

from __future__ import annotations

from typing import Any

from .sockets import CONDITIONING, IMAGE, LATENT, MASK, VAE, Inputs, choice, socket, switch

Conditioning = list[list[Any]]
Latent = dict[str, Any]

PROMPTS = {
    "positive": socket(CONDITIONING, "The prompt."),
    "negative": socket(CONDITIONING, "The negative prompt; unused at cfg 1."),
}


class InstructPixToPixConditioning:
    """Add a control image for FLUX.1-Canny or FLUX.1-Depth."""

    DESCRIPTION = "Gives the model an image to follow: edges for FLUX.1-Canny, a depth map for FLUX.1-Depth."
    CATEGORY = "conditioning/instructpix2pix"
    FUNCTION = "encode"
    RETURN_TYPES = (CONDITIONING, CONDITIONING, LATENT)
    RETURN_NAMES = ("positive", "negative", "latent")
    OUTPUT_TOOLTIPS = ("The prompt with the image.", "The negative prompt with the image.", "An empty latent.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                **PROMPTS,
                "vae": socket(VAE, "The autoencoder."),
                "pixels": socket(IMAGE, "The image to follow."),
            }
        }

    def encode(
        self, positive: Conditioning, negative: Conditioning, vae: Any, pixels: Any
    ) -> tuple[Conditioning, Conditioning, Latent]:
        import torch

        from ..flux_core.conditioning.entries import with_values

        concat = vae.encode_image(pixels)
        positive, negative = (with_values(text, concat_latent_image=concat) for text in (positive, negative))
        return positive, negative, {"samples": torch.zeros_like(concat)}


class InpaintModelConditioning:
    """Add the image and the mask for FLUX.1-Fill."""

    TITLE = "InpaintModelConditioning"
    DESCRIPTION = "Gives FLUX.1-Fill the image and the mask of the part to repaint."
    CATEGORY = "conditioning/inpaint"
    FUNCTION = "encode"
    RETURN_TYPES = (CONDITIONING, CONDITIONING, LATENT)
    RETURN_NAMES = ("positive", "negative", "latent")
    OUTPUT_TOOLTIPS = ("The prompt with the image.", "The negative prompt with the image.", "The image's latent.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                **PROMPTS,
                "vae": socket(VAE, "The autoencoder."),
                "pixels": socket(IMAGE, "The image."),
                "mask": socket(MASK, "The part to repaint."),
                "noise_mask": switch(True, "Also keep everything outside the mask exactly as it is."),
            }
        }

    def encode(
        self, positive: Conditioning, negative: Conditioning, vae: Any, pixels: Any, mask: Any, noise_mask: bool = True
    ) -> tuple[Conditioning, Conditioning, Latent]:
        from ..flux_core.conditioning.entries import with_values
        from ..flux_core.images import masks, resize

        mask = resize.crop_to_cells(masks.resize(mask, *pixels.shape[1:3]))
        cropped = resize.crop_to_cells(pixels.movedim(-1, 1)).movedim(1, -1)
        kept = vae.encode_image(resize.grey_where_masked(cropped, mask))
        latent = {"samples": vae.encode_image(cropped)}
        if noise_mask:
            latent["noise_mask"] = mask
        values = {"concat_latent_image": kept, "concat_mask": mask}
        return with_values(positive, **values), with_values(negative, **values), latent


class ReferenceLatent:
    """Add a reference image for FLUX.1-Kontext."""

    DESCRIPTION = "Gives the model a reference image (FLUX.1-Kontext). Chain several nodes for several images."
    CATEGORY = "advanced/conditioning/edit_models"
    FUNCTION = "append"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The prompt with the reference.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {"conditioning": socket(CONDITIONING, "The prompt.")},
            "optional": {"latent": socket(LATENT, "The encoded image.")},
        }

    def append(self, conditioning: Conditioning, latent: Latent | None = None) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import append_to

        if latent is None:
            return (conditioning,)
        return (append_to(conditioning, "reference_latents", latent["samples"]),)


class FluxKontextMultiReferenceLatentMethod:
    """Set how several reference images are positioned."""

    DESCRIPTION = "Sets the positions of several reference images. offset is what Kontext was trained with."
    CATEGORY = "advanced/conditioning/flux"
    EXPERIMENTAL = True
    FUNCTION = "set_method"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The prompt with this setting.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tip = "offset: side by side. index: each with an index of its own. uxo/uno: along the image's diagonal."
        return {
            "required": {
                "conditioning": socket(CONDITIONING, "The prompt."),
                "reference_latents_method": choice(["offset", "index", "uxo/uno"], tip),
            }
        }

    def set_method(self, conditioning: Conditioning, reference_latents_method: str) -> tuple[Conditioning]:
        from ..flux_core.conditioning.entries import with_values

        method = "uxo" if "uxo" in reference_latents_method else reference_latents_method
        return (with_values(conditioning, reference_latents_method=method),)
