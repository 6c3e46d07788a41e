"""Image sizes from lists, and empty latents in these sizes, with the ids of other packs."""

from __future__ import annotations

from typing import Any

from ..sockets import INT, LATENT, Inputs, integer, number, pixels
from .declared import PICTURE, OfAnotherPack, one_of

ESSENTIALS = "comfyui_essentials"
WIDTH, HEIGHT = "Width in pixels.", "Height in pixels."


class _Latents(OfAnotherPack):
    """An empty latent of a size from a list."""

    FUNCTION = "make"
    DESCRIPTION = "An empty latent in a size from a list."
    SIZES: tuple[str, ...] = ()


class SDXLEmptyLatentSizePicker(_Latents):
    """Essentials' list of sizes."""

    PACK = ESSENTIALS
    TITLE = "SDXL Empty Latent Size Picker"
    RETURN_TYPES = (LATENT, INT, INT)
    RETURN_NAMES = ("LATENT", "width", "height")
    OUTPUT_TOOLTIPS = ("The empty latent.", WIDTH, HEIGHT)
    SIZES = (
        *("704x1408 (0.5)", "704x1344 (0.52)", "768x1344 (0.57)", "768x1280 (0.6)", "832x1216 (0.68)"),
        *("832x1152 (0.72)", "896x1152 (0.78)", "896x1088 (0.82)", "960x1088 (0.88)", "960x1024 (0.94)"),
        *("1024x1024 (1.0)", "1024x960 (1.07)", "1088x960 (1.13)", "1088x896 (1.21)", "1152x896 (1.29)"),
        *("1152x832 (1.38)", "1216x832 (1.46)", "1280x768 (1.67)", "1344x768 (1.75)", "1344x704 (1.91)"),
        *("1408x704 (2.0)", "1472x704 (2.09)", "1536x640 (2.4)", "1600x640 (2.5)", "1664x576 (2.89)"),
        "1728x576 (3.0)",
    )

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "resolution": one_of(cls.SIZES, "Width, height and their ratio.", "1024x1024 (1.0)"),
                "batch_size": integer(1, 1, 4096, "Number of images in the batch."),
                "width_override": pixels(0, "A width to use instead; 0 for none.", step=8),
                "height_override": pixels(0, "A height to use instead; 0 for none.", step=8),
            }
        }

    def make(
        self, resolution: str, batch_size: int, width_override: int = 0, height_override: int = 0
    ) -> tuple[Any, int, int]:
        from ...flux_core.images.latents import empty

        width, height = (int(side) for side in resolution.split(" ")[0].split("x"))
        width, height = width_override or width, height_override or height
        return empty(width, height, batch_size, channels=4), width, height


class SDXLEmptyLatentImage(_Latents):
    """rgthree's list of sizes."""

    PACK = "rgthree-comfy"
    TITLE = "SDXL Empty Latent Image (rgthree)"
    RETURN_TYPES = (LATENT, INT, INT)
    RETURN_NAMES = ("LATENT", "CLIP_WIDTH", "CLIP_HEIGHT")
    OUTPUT_TOOLTIPS = ("The empty latent.", "The width times clip_scale.", "The height times clip_scale.")
    SIZES = (
        *("1536 x 640   (landscape)", "1344 x 768   (landscape)", "1216 x 832   (landscape)"),
        *("1152 x 896   (landscape)", "1024 x 1024  (square)", " 896 x 1152  (portrait)", " 832 x 1216  (portrait)"),
        *(" 768 x 1344  (portrait)", " 640 x 1536  (portrait)"),
    )

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "dimensions": one_of(cls.SIZES, "Width and height.", "1024 x 1024  (square)"),
                "clip_scale": number(2.0, 1.0, 10.0, 0.5, "The factor for the second and third output."),
                "batch_size": integer(1, 1, 64, "Number of images in the batch."),
            }
        }

    def make(self, dimensions: str, clip_scale: float, batch_size: int) -> tuple[Any, int, int]:
        from ...flux_core.images.latents import empty

        width, height = (int(side.split()[0]) for side in dimensions.split("x"))
        return empty(width, height, batch_size, channels=4), int(width * clip_scale), int(height * clip_scale)


class CRAspectRatio(_Latents):
    """Comfyroll's list of sizes."""

    PACK = "comfyroll"
    TITLE = "CR Aspect Ratio"
    RETURN_TYPES = (INT, INT, "FLOAT", "FLOAT", INT, LATENT, "STRING")
    RETURN_NAMES = ("width", "height", "upscale_factor", "prescale_factor", "batch_size", "empty_latent", "show_help")
    OUTPUT_TOOLTIPS = (WIDTH, HEIGHT, "As given.", "As given.", "As given.", "The empty latent.", "Empty here.")
    SIZES = (
        *("custom", "SD1.5 - 1:1 square 512x512", "SD1.5 - 2:3 portrait 512x768", "SD1.5 - 3:4 portrait 512x682"),
        *("SD1.5 - 3:2 landscape 768x512", "SD1.5 - 4:3 landscape 682x512", "SD1.5 - 16:9 cinema 910x512"),
        *("SD1.5 - 1.85:1 cinema 952x512", "SD1.5 - 2:1 cinema 1024x512", "SDXL - 1:1 square 1024x1024"),
        *("SDXL - 3:4 portrait 896x1152", "SDXL - 5:8 portrait 832x1216", "SDXL - 9:16 portrait 768x1344"),
        *("SDXL - 9:21 portrait 640x1536", "SDXL - 4:3 landscape 1152x896", "SDXL - 3:2 landscape 1216x832"),
        *("SDXL - 16:9 landscape 1344x768", "SDXL - 21:9 landscape 1536x640"),
    )

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "width": integer(1024, 64, 8192, f"{WIDTH} Used for custom."),
                "height": integer(1024, 64, 8192, f"{HEIGHT} Used for custom."),
                "aspect_ratio": one_of(cls.SIZES, "The size."),
                "swap_dimensions": one_of(("Off", "On"), "Swap width and height."),
                "upscale_factor": number(1.0, 0.1, 100.0, 0.1, "Passed on."),
                "prescale_factor": number(1.0, 0.1, 100.0, 0.1, "The factor for both sides."),
                "batch_size": integer(1, 1, 64, "Number of images in the batch."),
            }
        }

    def make(
        self,
        width: int,
        height: int,
        aspect_ratio: str,
        swap_dimensions: str,
        upscale_factor: float,
        prescale_factor: float,
        batch_size: int,
    ) -> tuple[Any, ...]:
        from ...flux_core.images.latents import empty

        if aspect_ratio != "custom":
            width, height = (int(side) for side in aspect_ratio.split()[-1].split("x"))
        if swap_dimensions == "On":
            width, height = height, width
        width, height = int(width * prescale_factor), int(height * prescale_factor)
        latent = empty(width, height, batch_size, channels=4)
        return width, height, upscale_factor, prescale_factor, batch_size, latent, ""


class SDXLResolutions(OfAnotherPack):
    """JPS' list of sizes."""

    PACK = "ComfyUI_JPS-Nodes"
    TITLE = "SDXL Resolutions (JPS)"
    DESCRIPTION = "A size from a list."
    FUNCTION = "give"
    RETURN_TYPES = (INT, INT)
    RETURN_NAMES = ("width", "height")
    OUTPUT_TOOLTIPS = (WIDTH, HEIGHT)
    SIZES = (
        *("square - 1024x1024 (1:1)", "landscape - 1152x896 (4:3)", "landscape - 1216x832 (3:2)"),
        *("landscape - 1344x768 (16:9)", "landscape - 1536x640 (21:9)", "portrait - 896x1152 (3:4)"),
        *("portrait - 832x1216 (2:3)", "portrait - 768x1344 (9:16)", "portrait - 640x1536 (9:21)"),
    )

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"resolution": one_of(cls.SIZES, "The size.")}}

    def give(self, resolution: str) -> tuple[int, ...]:
        return tuple(int(side) for side in resolution.split(" - ")[1].split(" ")[0].split("x"))


class NearestSDXLExtendedResolution(OfAnotherPack):
    """ComfyMath's nearest size of a list."""

    PACK = "comfymath"
    TITLE = "NearestSDXLExtendedResolution"
    DESCRIPTION = "Returns the size of a list whose aspect ratio is nearest to an image's."
    FUNCTION = "give"
    RETURN_TYPES = (INT, INT)
    RETURN_NAMES = ("width", "height")
    OUTPUT_TOOLTIPS = (WIDTH, HEIGHT)
    # Width, height, and the ratio that ComfyMath's list states, whose 1.8 for 1024x960 is kept.
    SIZES = (
        *((512, 2048, 0.25), (512, 1984, 0.26), (512, 1920, 0.27), (512, 1856, 0.28), (576, 1792, 0.32)),
        *((576, 1728, 0.33), (576, 1664, 0.35), (640, 1600, 0.4), (640, 1536, 0.42), (704, 1472, 0.48)),
        *((704, 1408, 0.5), (704, 1344, 0.52), (768, 1344, 0.57), (768, 1280, 0.6), (832, 1216, 0.68)),
        *((832, 1152, 0.72), (896, 1152, 0.78), (896, 1088, 0.82), (960, 1088, 0.88), (960, 1024, 0.94)),
        *((1024, 1024, 1.0), (1024, 960, 1.8), (1088, 960, 1.14), (1088, 896, 1.22), (1152, 896, 1.30)),
        *((1152, 832, 1.39), (1216, 832, 1.47), (1280, 768, 1.68), (1344, 768, 1.76), (1408, 704, 2.0)),
        *((1472, 704, 2.10), (1536, 640, 2.4), (1600, 640, 2.5)),
    )

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": PICTURE}}

    def give(self, image: Any) -> tuple[int, int]:
        from ...flux_core.images.fitted import nearest_shape

        return nearest_shape(image.shape[2], image.shape[1], self.SIZES)
