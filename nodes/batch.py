"""Batches: joining several, and dividing them into batches of another size."""

from __future__ import annotations

from typing import Any

from .logic import growing
from .sockets import IMAGE, LATENT, MASK, Inputs, integer, socket

Latent = dict[str, Any]


class RebatchImages:
    """Divide images into batches of another size."""

    TITLE = "Rebatch Images"
    DESCRIPTION = "Divides images into batches of this size. The nodes after it run once for each batch."
    CATEGORY = "image/batch"
    FUNCTION = "cut"
    INPUT_IS_LIST = True
    RETURN_TYPES = (IMAGE,)
    OUTPUT_IS_LIST = (True,)
    OUTPUT_TOOLTIPS = ("The batches, one after the other.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        size = integer(1, 1, 4096, "Images per batch.")
        return {"required": {"images": socket(IMAGE, "The images."), "batch_size": size}}

    def cut(self, images: list[Any], batch_size: list[int]) -> tuple[list[Any]]:
        from ..flux_core.images.batches import cut_images

        return (cut_images(images, batch_size[0]),)


class RebatchLatents:
    """Divide latents into batches of another size."""

    TITLE = "Rebatch Latents"
    DESCRIPTION = "Divides latents into batches of this size. The nodes after it run once for each batch."
    CATEGORY = "latent/batch"
    FUNCTION = "cut"
    INPUT_IS_LIST = True
    RETURN_TYPES = (LATENT,)
    OUTPUT_IS_LIST = (True,)
    OUTPUT_TOOLTIPS = ("The batches, one after the other.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        size = integer(1, 1, 4096, "Latents per batch.")
        return {"required": {"latents": socket(LATENT, "The latents."), "batch_size": size}}

    def cut(self, latents: list[Latent], batch_size: list[int]) -> tuple[list[Latent]]:
        from ..flux_core.images.batches import cut_latents

        return (cut_latents(latents, batch_size[0]),)


class BatchImagesNode:
    """Join images in one batch."""

    TITLE = "Batch Images"
    DESCRIPTION = "Joins images in one batch. All are resized to the size of the first."
    CATEGORY = "image"
    FUNCTION = "join"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("All images.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"images": growing(IMAGE, "image", "The images.", most=50)}}

    def join(self, images: dict[str, Any]) -> tuple[Any]:
        from ..flux_core.images.batches import join_images

        return (join_images([*images.values()]),)


class BatchMasksNode:
    """Join masks in one batch."""

    TITLE = "Batch Masks"
    DESCRIPTION = "Joins masks in one batch. All are resized to the size of the first."
    CATEGORY = "mask"
    FUNCTION = "join"
    RETURN_TYPES = (MASK,)
    OUTPUT_TOOLTIPS = ("All masks.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"masks": growing(MASK, "mask", "The masks.", most=50)}}

    def join(self, masks: dict[str, Any]) -> tuple[Any]:
        from ..flux_core.images.batches import join_masks

        return (join_masks([*masks.values()]),)


class BatchLatentsNode:
    """Join latents in one batch."""

    TITLE = "Batch Latents"
    DESCRIPTION = "Joins latents in one batch. All are resized to the size of the first; each keeps its noise."
    CATEGORY = "latent"
    FUNCTION = "join"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("All latents.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"latents": growing(LATENT, "latent", "The latents.", most=50)}}

    def join(self, latents: dict[str, Latent]) -> tuple[Latent]:
        from ..flux_core.images.batches import join_latents

        return (join_latents([*latents.values()]),)


class BatchImagesMasksLatentsNode:
    """Join images, masks or latents in one batch."""

    TITLE = "Batch Images/Masks/Latents"
    DESCRIPTION = "Joins images, masks or latents in one batch. All are resized to the size of the first."
    CATEGORY = "utils"
    FUNCTION = "join"
    RETURN_TYPES = ("COMFY_MATCHTYPE_V3",)
    RETURN_NAMES = ("MATCHTYPE",)
    OUTPUT_MATCHTYPES = ("input",)
    OUTPUT_TOOLTIPS = ("All of them.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        matched = {"template_id": "input", "allowed_types": "IMAGE,MASK,LATENT"}
        inputs = growing("COMFY_MATCHTYPE_V3", "input", "Images, masks or latents.", most=50, template=matched)
        return {"required": {"inputs": inputs}}

    def join(self, inputs: dict[str, Any]) -> tuple[Any]:
        from ..flux_core.images.batches import join

        return (join([*inputs.values()]),)
