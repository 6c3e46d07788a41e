"""Batches: cut into batches of another size."""

from __future__ import annotations

from typing import Any

from .sockets import IMAGE, LATENT, Inputs, integer, wire

Latent = dict[str, Any]


class RebatchImages:
    """Pictures in batches of another size."""

    TITLE = "Rebatch Images"
    DESCRIPTION = "Cuts batches of pictures into batches of a size; what follows runs once for each."
    CATEGORY = "image/batch"
    FUNCTION = "cut"
    INPUT_IS_LIST = True
    RETURN_TYPES = (IMAGE,)
    OUTPUT_IS_LIST = (True,)
    OUTPUT_TOOLTIPS = ("The batches, one after the other.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        size = integer(1, 1, 4096, "Pictures in a batch.")
        return {"required": {"images": wire(IMAGE, "The pictures."), "batch_size": size}}

    def cut(self, images: list[Any], batch_size: list[int]) -> tuple[list[Any]]:
        from ..flux_core.images.batches import cut_images

        return (cut_images(images, batch_size[0]),)


class RebatchLatents:
    """Latents in batches of another size."""

    TITLE = "Rebatch Latents"
    DESCRIPTION = "Cuts batches of latents into batches of a size; what follows runs once for each."
    CATEGORY = "latent/batch"
    FUNCTION = "cut"
    INPUT_IS_LIST = True
    RETURN_TYPES = (LATENT,)
    OUTPUT_IS_LIST = (True,)
    OUTPUT_TOOLTIPS = ("The batches, one after the other.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        size = integer(1, 1, 4096, "Latents in a batch.")
        return {"required": {"latents": wire(LATENT, "The latents."), "batch_size": size}}

    def cut(self, latents: list[Latent], batch_size: list[int]) -> tuple[list[Latent]]:
        from ..flux_core.images.batches import cut_latents

        return (cut_latents(latents, batch_size[0]),)
