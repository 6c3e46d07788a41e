"""Convert images to latents and back."""

from __future__ import annotations

from typing import Any

from .binding import HostedNode
from .sockets import IMAGE, LATENT, MASK, VAE, Inputs, integer, socket

Latent = dict[str, Any]


class VAEEncode:
    """Encode an image."""

    TITLE = "VAE Encode"
    DESCRIPTION = "Encodes an image as a latent. Its sides are cropped to multiples of 8."
    CATEGORY = "latent"
    FUNCTION = "encode"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The latent of the image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"pixels": socket(IMAGE, "The image."), "vae": socket(VAE, "The autoencoder.")}}

    def encode(self, pixels: Any, vae: Any) -> tuple[Latent]:
        return ({"samples": vae.encode_image(pixels)},)


class VAEDecode:
    """Decode a latent."""

    TITLE = "VAE Decode"
    DESCRIPTION = "Decodes a latent into an image."
    CATEGORY = "latent"
    FUNCTION = "decode"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"samples": socket(LATENT, "The latent."), "vae": socket(VAE, "The autoencoder.")}}

    def decode(self, samples: Latent, vae: Any) -> tuple[Any]:
        return (vae.decode_image(samples["samples"]),)


class VAEEncodeTiled(HostedNode):
    """Encode an image in tiles."""

    TITLE = "VAE Encode (Tiled)"
    DESCRIPTION = "Encodes an image in tiles: slower, but the memory depends only on the size of a tile."
    CATEGORY = "_for_testing"
    FUNCTION = "encode"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The latent of the image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "pixels": socket(IMAGE, "The image."),
                "vae": socket(VAE, "The autoencoder."),
                **_tiles(step=64),
            }
        }

    def encode(
        self, pixels: Any, vae: Any, tile_size: int, overlap: int, temporal_size: int = 64, temporal_overlap: int = 8
    ) -> tuple[Latent]:
        return ({"samples": vae.encode_image_tiled(pixels, tile_size, overlap, self.host.step)},)


class VAEDecodeTiled(HostedNode):
    """Decode a latent in tiles."""

    TITLE = "VAE Decode (Tiled)"
    DESCRIPTION = "Decodes a latent in tiles: slower, but the memory depends only on the size of a tile."
    CATEGORY = "_for_testing"
    FUNCTION = "decode"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "samples": socket(LATENT, "The latent."),
                "vae": socket(VAE, "The autoencoder."),
                **_tiles(step=32),
            }
        }

    def decode(
        self,
        samples: Latent,
        vae: Any,
        tile_size: int,
        overlap: int = 64,
        temporal_size: int = 64,
        temporal_overlap: int = 8,
    ) -> tuple[Any]:
        return (vae.decode_image_tiled(samples["samples"], tile_size, overlap, self.host.step),)


class VAEEncodeForInpaint:
    """Encode an image with a mask for inpainting."""

    TITLE = "VAE Encode (for Inpainting)"
    DESCRIPTION = "Encodes an image with grey in the masked part, and denoises only there. Use denoise 1 with it."
    CATEGORY = "latent/inpaint"
    FUNCTION = "encode"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The latent with its mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "pixels": socket(IMAGE, "The image."),
                "vae": socket(VAE, "The autoencoder."),
                "mask": socket(MASK, "The part to repaint."),
                "grow_mask_by": integer(6, 0, 64, "Pixels by which the mask grows, to avoid a seam.", step=1),
            }
        }

    def encode(self, pixels: Any, vae: Any, mask: Any, grow_mask_by: int = 6) -> tuple[Latent]:
        from ..flux_core.images import masks, resize

        mask = resize.crop_to_cells(masks.resize(mask, *pixels.shape[1:3]))
        pixels = resize.crop_to_cells(pixels.movedim(-1, 1)).movedim(1, -1)
        hole = resize.grey_where_masked(pixels, mask)
        return ({"samples": vae.encode_image(hole), "noise_mask": masks.thicken(mask, grow_mask_by).round()},)


def _tiles(step: int) -> dict[str, Any]:
    video = "For video models; no effect here."
    return {
        "tile_size": integer(512, 64, 4096, "Size of a tile in pixels. Smaller tiles need less memory.", step=step),
        "overlap": integer(64, 0, 4096, "Pixels by which tiles overlap. A larger overlap hides seams better.", step=32),
        "temporal_size": integer(64, 8, 4096, video, step=4),
        "temporal_overlap": integer(8, 4, 4096, video, step=4),
    }
