"""Nodes of other packs that the Krita plugin requires before it connects, although they cannot run here.

They need models of other families or another node pack, and say so when they are run.
"""

from __future__ import annotations

from typing import Any

from ..sockets import IMAGE, Inputs, socket
from .declared import PICTURE, OfAnotherPack, line, whole
from .inpainting import INPAINT


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
    INPUTS = {
        "model": socket("MODEL", "The model."),
        "ipadapter": socket("IPADAPTER", "The adapter."),
        "image": PICTURE,
    }


class LoadFooocusInpaint(_Declared):
    """Fooocus' inpainting, for SDXL."""

    PACK = INPAINT
    TITLE = "Load Fooocus Inpaint"
    DESCRIPTION = "Declared for programs that require it. It is for models of Stable Diffusion XL."
    RETURN_TYPES = ("INPAINT_PATCH",)
    OUTPUT_TOOLTIPS = ("The patch.",)
    NEEDS = "Fooocus' inpainting is for Stable Diffusion XL; with FLUX.1 use Fill or an inpainting ControlNet"
    INPUTS = {"head": ([], {"tooltip": "Its head."}), "patch": ([], {"tooltip": "Its patch."})}
