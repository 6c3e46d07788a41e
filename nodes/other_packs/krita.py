"""The nodes that the Krita plugin builds its workflows of, beside ComfyUI's own: comfyui-tooling-nodes and
comfyui-inpaint-nodes, and those of other packs that it wants to see before it connects.

Images go in and out by ids, through files that server and worker share (server/exchange.py). Nodes that need models of
other families are declared, so that the plugin connects, and refuse to run.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from ..binding import HostedNode
from ..sockets import CONDITIONING, IMAGE, INT, LATENT, MASK, STRING, VAE, Inputs, integer, number, wire
from .declared import OfAnotherPack, flag, line, lines, one_of, whole

TOOLING, INPAINT = "comfyui-tooling-nodes", "comfyui-inpaint-nodes"
LAYOUT = "TileLayout"
FOLDER = "exchange"
FORMATS = ("PNG", "JPEG")
BLURS = ("box", "linear", "gaussian")
PICTURE, COVER = wire(IMAGE, "The image."), wire(MASK, "The mask.")


class LoadImageCache(OfAnotherPack, HostedNode):
    """An image by its id."""

    PACK = TOOLING
    TITLE = "Load Image from Cache"
    DESCRIPTION = "Loads an image that a program has sent under an id, and its transparency as a mask."
    FUNCTION = "load"
    RETURN_TYPES = (IMAGE, MASK)
    RETURN_NAMES = ("image", "mask")
    OUTPUT_TOOLTIPS = ("The image.", "Its transparency; for an image without transparency, its red channel.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"id": line("The id.")}}

    def load(self, id: str) -> tuple[Any, Any]:
        from ...flux_core.images.files import from_bytes

        path = self.host.temp / FOLDER / id
        if "/" in id or "\\" in id or id.startswith(".") or not path.is_file():
            from ...flux_core.errors import MissingFileError

            raise MissingFileError(f"There is no image with the id {id!r}; images are kept for an hour.")
        planes = from_bytes(path.read_bytes())
        image = planes[..., :3] if planes.shape[-1] > 1 else planes.expand(-1, -1, -1, 3)
        return image, planes[..., 3] if planes.shape[-1] == 4 else planes[..., 0]


class SaveImageCache(OfAnotherPack, HostedNode):
    """Images under new ids."""

    PACK = TOOLING
    TITLE = "Save Image to Cache"
    DESCRIPTION = "Keeps images for the program that queued the job, which gets their ids. Nothing is saved."
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"images": PICTURE, "format": one_of(FORMATS, "The format in which they are kept.", "PNG")}}

    def save(self, images: Any, format: str = "PNG") -> dict[str, Any]:
        from ...flux_core.images.encode import as_file
        from ...flux_core.io.saving import write_whole

        folder = self.host.temp / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        told = []
        for image in images:
            name = uuid4().hex
            write_whole(folder / name, as_file(image, format.lower(), 95, False))
            told.append({"source": "http", "id": name, "content-type": f"image/{format.lower()}", "type": "output"})
        return {"ui": {"images": told}}


class _Base64(OfAnotherPack):
    """An image as text in the workflow."""

    PACK = TOOLING
    FUNCTION = "load"

    @staticmethod
    def decoded(text: str) -> Any:
        """[1, H, W, C]. Raises InputError."""
        import base64
        import binascii

        from ...flux_core.errors import InputError
        from ...flux_core.images.files import from_bytes

        try:
            return from_bytes(base64.b64decode(text.rpartition("base64,")[2], validate=True))
        except binascii.Error as error:
            raise InputError(f"This is not an image in base64: {error}.") from error


class LoadImageBase64(_Base64):
    """An image as text in the workflow."""

    TITLE = "Load Image (Base64)"
    DESCRIPTION = "Loads an image that the workflow contains as text, and its transparency as a mask."
    RETURN_TYPES = (IMAGE, MASK)
    RETURN_NAMES = ("image", "mask")
    OUTPUT_TOOLTIPS = ("The image.", "Its transparency; 1 everywhere without transparency.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": line("The file in base64.")}}

    def load(self, image: str) -> tuple[Any, Any]:
        planes = self.decoded(image)
        shown = planes[..., :3] if planes.shape[-1] > 1 else planes.expand(-1, -1, -1, 3)
        return shown, planes[..., 3] if planes.shape[-1] == 4 else planes.new_ones(planes.shape[:3])


class LoadMaskBase64(_Base64):
    """A mask as text in the workflow."""

    TITLE = "Load Mask (Base64)"
    DESCRIPTION = "Loads a mask that the workflow contains as an image in text: its red channel."
    RETURN_TYPES = (MASK,)
    OUTPUT_TOOLTIPS = ("The mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"mask": line("The file in base64.")}}

    def load(self, mask: str) -> tuple[Any]:
        return (self.decoded(mask)[..., 0],)


class SendImageWebSocket(OfAnotherPack, HostedNode):
    """Images over the websocket."""

    PACK = TOOLING
    TITLE = "Send Image (WebSocket)"
    DESCRIPTION = "Sends images over the websocket to the program that queued the job. Nothing is saved."
    FUNCTION = "send"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"images": PICTURE, "format": one_of(FORMATS, "They are sent as PNG.", "PNG")}}

    @classmethod
    def IS_CHANGED(cls, images: Any, format: str = "PNG") -> float:
        import time

        return time.time()  # a cached image would not be sent

    def send(self, images: Any, format: str = "PNG") -> dict[str, Any]:
        from ...flux_core.images.files import to_pil

        for n, image in enumerate(images):
            self.host.send(to_pil(image), n, len(images))
        told = [{"source": "websocket", "content-type": "image/png", "type": "output"} for _ in images]
        return {"ui": {"images": told}}


class ApplyMaskToImage(OfAnotherPack):
    """A mask as transparency."""

    PACK = TOOLING
    TITLE = "Apply Mask to Image"
    DESCRIPTION = "Uses a mask as the transparency of an image: 1 is opaque."
    FUNCTION = "apply"
    RETURN_TYPES = (IMAGE,)
    RETURN_NAMES = ("masked",)
    OUTPUT_TOOLTIPS = ("The image with four channels.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"image": PICTURE, "mask": COVER}}

    def apply(self, image: Any, mask: Any) -> tuple[Any]:
        import torch

        from ...flux_core.errors import InputError

        layers = mask.reshape(-1, *mask.shape[-2:])
        if layers.shape[-2:] != image.shape[1:3]:
            raise InputError(f"The mask is {tuple(layers.shape[-2:])} and the image {tuple(image.shape[1:3])} pixels.")
        layers = layers if len(layers) == len(image) else layers[:1].expand(len(image), -1, -1)
        return (torch.cat((image[..., :3], layers[..., None].to(image)), dim=-1),)


class Translate(OfAnotherPack):
    """A text, not translated."""

    PACK = TOOLING
    TITLE = "Translate Text"
    DESCRIPTION = "Passes a text on without translating it. Write prompts in English."
    FUNCTION = "pass_on"
    RETURN_TYPES = (STRING,)
    RETURN_NAMES = ("translation",)
    OUTPUT_TOOLTIPS = ("The same text without language marks (lang:xx).",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"text": lines("The text.")}}

    def pass_on(self, text: str) -> tuple[str]:
        import re

        return (re.sub(r"lang:\w\w\s*", "", text),)


# -- tiles ------------------------------------------------------------------------------------------------------------


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
                cls.INPUT: wire(cls.RETURN_TYPES[0], "The image or mask to cut."),
                "layout": wire(LAYOUT, "The layout."),
                "index": whole("Which tile.", 0, 0),
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
            "required": {"layout": wire(LAYOUT, "The layout."), "index": whole("Which tile.", 0, 0)},
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
                "layout": wire(LAYOUT, "The layout."),
                "index": whole("Which tile.", 0, 0),
                "tile": wire(IMAGE, "The tile."),
            }
        }

    def merge(self, image: Any, layout: Any, index: int, tile: Any) -> tuple[Any]:
        return (layout.merge(image, index, tile),)


# -- inpainting -------------------------------------------------------------------------------------------------------


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
                "falloff": integer(0, 0, 8191, "The width of the fade at its edge, in pixels.", step=1),
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
                "falloff": integer(0, 0, 8191, "The width of the fade at its edge, in pixels.", step=1),
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
                "target": wire(IMAGE, "The image that is changed."),
                "reference": wire(IMAGE, "The image with the wanted colours."),
                "strength": number(1.0, 0.0, 1.0, 0.01, "How much."),
            },
            "optional": {"exclude_mask": wire(MASK, "The part that is not measured.")},
        }

    def match(self, target: Any, reference: Any, strength: float, exclude_mask: Any = None) -> tuple[Any]:
        from ...flux_core.images.inpaint_masks import match_colours

        return (match_colours(target, reference, exclude_mask, strength),)


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
                "positive": wire(CONDITIONING, "The positive text."),
                "negative": wire(CONDITIONING, "The negative text."),
                "vae": wire(VAE, "The autoencoder."),
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


# -- declared ---------------------------------------------------------------------------------------------------------


class _Declared(OfAnotherPack):
    """A node that is listed and refuses to run, because it needs something that Sluice does not have."""

    FUNCTION = "refuse"
    RETURN_TYPES: tuple[str, ...] = ()
    OUTPUT_TOOLTIPS: tuple[str, ...] = ()
    NEEDS = ""
    INPUTS: dict[str, Any] = {}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": cls.INPUTS}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: Any) -> str:
        return cls.NEEDS

    def refuse(self, **inputs: Any) -> tuple[Any, ...]:
        from ...flux_core.errors import InputError

        raise InputError(self.NEEDS)


class DepthAnythingV2Preprocessor(_Declared):
    """controlnet_aux's depth."""

    PACK = "comfyui_controlnet_aux"
    TITLE = "Depth Anything V2"
    DESCRIPTION = "Declared for programs that require it. It runs in comfyui_controlnet_aux (--node-packs)."
    RETURN_TYPES = (IMAGE,)
    OUTPUT_TOOLTIPS = ("The depth.",)
    NEEDS = "depth is estimated by the node pack comfyui_controlnet_aux; name its folder with --node-packs"
    INPUTS = {"image": PICTURE, "ckpt_name": line("Its weights."), "resolution": whole("Its size.", 512, 64)}


class IPAdapterModelLoader(_Declared):
    """IPAdapter_plus' loader, for Stable Diffusion."""

    PACK = "comfyui_ipadapter_plus"
    TITLE = "IPAdapter Model Loader"
    DESCRIPTION = "Declared for programs that require it. It is for models of Stable Diffusion."
    RETURN_TYPES = ("IPADAPTER",)
    OUTPUT_TOOLTIPS = ("The adapter.",)
    NEEDS = "these adapters are for Stable Diffusion; with FLUX.1 use Redux or XLabs' IP-Adapter"
    INPUTS = {"ipadapter_file": ([], {"tooltip": "Its file."})}


class IPAdapter(_Declared):
    """IPAdapter_plus' node, for Stable Diffusion."""

    PACK = "comfyui_ipadapter_plus"
    TITLE = "IPAdapter"
    DESCRIPTION = IPAdapterModelLoader.DESCRIPTION
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model.",)
    NEEDS = IPAdapterModelLoader.NEEDS
    INPUTS = {"model": wire("MODEL", "The model."), "ipadapter": wire("IPADAPTER", "The adapter."), "image": PICTURE}


class LoadFooocusInpaint(_Declared):
    """Fooocus' inpainting, for SDXL."""

    PACK = INPAINT
    TITLE = "Load Fooocus Inpaint"
    DESCRIPTION = "Declared for programs that require it. It is for models of Stable Diffusion XL."
    RETURN_TYPES = ("INPAINT_PATCH",)
    OUTPUT_TOOLTIPS = ("The patch.",)
    NEEDS = "Fooocus' inpainting is for Stable Diffusion XL; with FLUX.1 use Fill or an inpainting ControlNet"
    INPUTS = {"head": ([], {"tooltip": "Its head."}), "patch": ([], {"tooltip": "Its patch."})}


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
