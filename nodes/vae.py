"""Between pictures and latents."""

from __future__ import annotations

from typing import Any

from .binding import HostedNode
from .sockets import IMAGE, LATENT, MASK, VAE, Inputs, integer, wire

Latent = dict[str, Any]


class VAEEncode:
    """A picture as a latent."""

    TITLE = "VAE Encode"
    DESCRIPTION = "Encodes a picture, to denoise it further. Its sides are cut to multiples of 8."
    CATEGORY = "latent"
    FUNCTION = "encode"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The latent of the picture.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"pixels": wire(IMAGE, "The picture."), "vae": wire(VAE, "The autoencoder.")}}

    def encode(self, pixels: Any, vae: Any) -> tuple[Latent]:
        return ({"samples": vae.encode_image(pixels)},)


class VAEDecode:
    """A latent as a picture."""

    TITLE = "VAE Decode"
    DESCRIPTION = "Decodes a latent into a picture."
    CATEGORY = "latent"
    FUNCTION = "decode"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The picture.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"samples": wire(LATENT, "The latent."), "vae": wire(VAE, "The autoencoder.")}}

    def decode(self, samples: Latent, vae: Any) -> tuple[Any]:
        return (vae.decode_image(samples["samples"]),)


class VAEEncodeTiled(HostedNode):
    """A large picture as a latent, piece by piece."""

    TITLE = "VAE Encode (Tiled)"
    DESCRIPTION = "Encodes a picture in tiles: slower, but memory depends on the tile and not on the picture."
    CATEGORY = "_for_testing"
    FUNCTION = "encode"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The latent of the picture.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "pixels": wire(IMAGE, "The picture."),
                "vae": wire(VAE, "The autoencoder."),
                **_tiles(step=64),
            }
        }

    def encode(
        self, pixels: Any, vae: Any, tile_size: int, overlap: int, temporal_size: int = 64, temporal_overlap: int = 8
    ) -> tuple[Latent]:
        return ({"samples": vae.encode_image_tiled(pixels, tile_size, overlap, self.host.step)},)


class VAEDecodeTiled(HostedNode):
    """A large latent as a picture, piece by piece."""

    TITLE = "VAE Decode (Tiled)"
    DESCRIPTION = "Decodes a latent in tiles: slower, but memory depends on the tile and not on the picture."
    CATEGORY = "_for_testing"
    FUNCTION = "decode"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The picture.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "samples": wire(LATENT, "The latent."),
                "vae": wire(VAE, "The autoencoder."),
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
    """A picture with a hole, as a latent."""

    TITLE = "VAE Encode (for Inpainting)"
    DESCRIPTION = "Encodes a picture with grey where the mask is, and denoises only there. Use denoise 1 with it."
    CATEGORY = "latent/inpaint"
    FUNCTION = "encode"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The latent with its mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "pixels": wire(IMAGE, "The picture."),
                "vae": wire(VAE, "The autoencoder."),
                "mask": wire(MASK, "What to paint anew."),
                "grow_mask_by": integer(6, 0, 64, "Pixels to grow the mask by, so that no seam is left.", step=1),
            }
        }

    def encode(self, pixels: Any, vae: Any, mask: Any, grow_mask_by: int = 6) -> tuple[Latent]:
        from ..flux_core.images import masks, resize

        mask = resize.crop_to_cells(masks.resize(mask, *pixels.shape[1:3]))
        pixels = resize.crop_to_cells(pixels.movedim(-1, 1)).movedim(1, -1)
        hole = resize.grey_where_masked(pixels, mask)
        return ({"samples": vae.encode_image(hole), "noise_mask": masks.thicken(mask, grow_mask_by).round()},)


def _tiles(step: int) -> dict[str, Any]:
    video = "For video models; without effect here."
    return {
        "tile_size": integer(512, 64, 4096, "Length of a tile in pixels. Smaller needs less memory.", step=step),
        "overlap": integer(64, 0, 4096, "Pixels by which tiles overlap. More hides the seams better.", step=32),
        "temporal_size": integer(64, 8, 4096, video, step=4),
        "temporal_overlap": integer(8, 4, 4096, video, step=4),
    }
