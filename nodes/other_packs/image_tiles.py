"""Images divided into overlapping tiles, with the ids of comfyui-tooling-nodes."""

from __future__ import annotations

from typing import Any

from ..sockets import IMAGE, MASK, Inputs, integer, socket
from .declared import PICTURE, OfAnotherPack, flag, whole
from .krita_images import TOOLING

LAYOUT = "TileLayout"
TILE = {"layout": socket(LAYOUT, "The layout."), "index": whole("Which tile.", 0, 0)}  # inputs that choose a tile


class CreateTileLayout(OfAnotherPack):
    """The layout of an image's tiles."""

    PACK = TOOLING
    TITLE = "Create Tile Layout"
    DESCRIPTION = "Divides an image into overlapping tiles."
    FUNCTION = "make"
    RETURN_TYPES = (LAYOUT,)
    RETURN_NAMES = ("layout",)
    OUTPUT_TOOLTIPS = ("The layout.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": PICTURE,
                "min_tile_size": integer(512, 64, 8192, "Smallest side of a tile in pixels.", step=8),
                "padding": integer(32, 0, 8192, "Pixels shared with each neighbour.", step=8),
                "blending": integer(8, 0, 256, "Pixels over which neighbours fade into each other.", step=8),
                "multiple": integer(8, 1, 1024, "Sides are multiples of this.", step=1),
            }
        }

    def make(self, image: Any, min_tile_size: int, padding: int, blending: int, multiple: int) -> tuple[Any]:
        from ...flux_core.images.tiles import layout

        return (layout(image.shape[1], image.shape[2], min_tile_size, padding, blending, multiple),)


class ExtractImageTile(OfAnotherPack):
    """One tile of an image."""

    PACK = TOOLING
    TITLE = "Extract Image Tile"
    DESCRIPTION = "Cuts a tile out of an image."
    FUNCTION = "cut"
    RETURN_TYPES: tuple[str, ...] = (IMAGE,)
    RETURN_NAMES = ("tile",)
    OUTPUT_TOOLTIPS = ("The tile.",)
    INPUT = "image"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                cls.INPUT: socket(cls.RETURN_TYPES[0], "The image or mask to cut."),
                **TILE,
            }
        }

    def cut(self, layout: Any, index: int, **given: Any) -> tuple[Any]:
        return (layout.cut(given[self.INPUT], index),)


class ExtractMaskTile(ExtractImageTile):
    """One tile of a mask."""

    TITLE = "Extract Mask Tile"
    RETURN_TYPES = (MASK,)
    INPUT = "mask"


class GenerateTileMask(OfAnotherPack):
    """The mask of a tile."""

    PACK = TOOLING
    TITLE = "Generate Tile Mask"
    DESCRIPTION = "The mask of the part that a tile does not share with its neighbours."
    FUNCTION = "make"
    RETURN_TYPES = (MASK,)
    RETURN_NAMES = ("mask",)
    OUTPUT_TOOLTIPS = ("The mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": dict(TILE),
            "optional": {"blend": flag(False, "Fade at the edges.")},
        }

    def make(self, layout: Any, index: int, blend: bool = False) -> tuple[Any]:
        return (layout.mask(index, blend),)


class MergeImageTile(OfAnotherPack):
    """Put a tile back into the image."""

    PACK = TOOLING
    TITLE = "Merge Image Tile"
    DESCRIPTION = "Puts a tile at its place in an image."
    FUNCTION = "merge"
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The image with the tile.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "image": PICTURE,
                **TILE,
                "tile": socket(IMAGE, "The tile."),
            }
        }

    def merge(self, image: Any, layout: Any, index: int, tile: Any) -> tuple[Any]:
        return (layout.merge(image, index, tile),)
