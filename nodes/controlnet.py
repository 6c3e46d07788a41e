"""ControlNets: an image whose edges, depth or poses the model follows."""

from __future__ import annotations

from typing import Any

from .loaders import FromFiles
from .sockets import CONDITIONING, CONTROL_NET, IMAGE, MASK, MODEL, VAE, Inputs, choice, number, socket

Conditioning = list[list[Any]]

TYPES = (
    "auto",
    "openpose",
    "depth",
    "hed/pidi/scribble/ted",
    "canny/lineart/anime_lineart/mlsd",
    "normal",
    "segment",
    "tile",
    "repaint",
)


class ControlNetLoader(FromFiles):
    """A ControlNet."""

    TITLE = "Load ControlNet Model"
    DESCRIPTION = "Loads a ControlNet for FLUX.1: InstantX, Shakker (union), XLabs, alimama (inpainting) or MistoLine."
    CATEGORY = "loaders"
    FUNCTION = "load"
    RETURN_TYPES = (CONTROL_NET,)
    OUTPUT_TOOLTIPS = ("The ControlNet, to be applied to a prompt.",)
    FILES = {"control_net_name": "controlnet"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"control_net_name": cls.files("controlnet", "The ControlNet's file.")}}

    def load(self, control_net_name: str) -> tuple[Any]:
        from ..flux_core.runtime.controlnets import load_controlnet

        return (load_controlnet(self.host.runtime, self.host.full_path("controlnet", control_net_name)),)


class DiffControlNetLoader(ControlNetLoader):
    """The same node: none of FLUX.1's ControlNets is stored as a difference to the model."""

    TITLE = "Load ControlNet Model (diff)"
    DESCRIPTION = "Loads a ControlNet for FLUX.1, as Load ControlNet Model does. The model is not used."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        named = super().INPUT_TYPES()["required"]
        return {"required": {"model": socket(MODEL, "Not used: no ControlNet for FLUX.1 depends on it."), **named}}

    def load(self, control_net_name: str, model: Any = None) -> tuple[Any]:
        return super().load(control_net_name)


class SetUnionControlNetType:
    """Set the image type of a union ControlNet."""

    TITLE = "SetUnionControlNetType"
    DESCRIPTION = (
        "Sets the type of image that a union ControlNet follows. As in ComfyUI, a name means the number that "
        "SDXL's union model gives it: 0 openpose, 1 depth, 2 hed, 3 canny, 4 normal, 5 segment, 6 tile, 7 repaint. "
        "Union models for FLUX.1 have other numbers: 0 canny, 1 tile, 2 depth, 3 blur, 4 pose, 5 gray, 6 low quality."
    )
    CATEGORY = "conditioning/controlnet"
    FUNCTION = "set_type"
    RETURN_TYPES = (CONTROL_NET,)
    OUTPUT_TOOLTIPS = ("The ControlNet with this setting.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "control_net": socket(CONTROL_NET, "A union ControlNet."),
                "type": choice(TYPES, "auto sets no type."),
            }
        }

    def set_type(self, control_net: Any, type: str) -> tuple[Any]:
        from dataclasses import replace

        number_of_type = TYPES.index(type) - 1 if type in TYPES else -1
        return (replace(control_net, modes=(number_of_type,) if number_of_type >= 0 else ()),)


def _strength() -> Any:
    return number(1.0, 0.0, 10.0, 0.01, "How closely to follow the image; 0 leaves the ControlNet out.")


def _range() -> dict[str, Any]:
    """The start and the end of its effect."""
    return {
        "start_percent": number(0.0, 0.0, 1.0, 0.001, "The start, as a share of the way from noise to image."),
        "end_percent": number(1.0, 0.0, 1.0, 0.001, "The end, as a share of the way from noise to image."),
    }


class ControlNetApply:
    """The oldest of the nodes that apply a ControlNet."""

    TITLE = "Apply ControlNet (OLD)"
    DESCRIPTION = (
        "Makes the model follow an image. For ControlNets that use pixels (XLabs); others need the node with vae."
    )
    CATEGORY = "conditioning/controlnet"
    DEPRECATED = True
    FUNCTION = "apply"
    RETURN_TYPES = (CONDITIONING,)
    OUTPUT_TOOLTIPS = ("The prompt with the ControlNet.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "conditioning": socket(CONDITIONING, "The prompt. The negative one gets the ControlNet as well."),
                "control_net": socket(CONTROL_NET, "The ControlNet."),
                "image": socket(IMAGE, "The image to follow."),
                "strength": _strength(),
            }
        }

    def apply(self, conditioning: Conditioning, control_net: Any, image: Any, strength: float) -> tuple[Any]:
        from ..flux_core.conditioning.controls import ControlUse, with_control

        if strength == 0:
            return (conditioning,)
        return tuple(with_control([conditioning], ControlUse(control_net, image, strength), to_others=True))  # type: ignore[return-value]


class ControlNetApplyAdvanced:
    """Prompt and negative prompt with a ControlNet."""

    TITLE = "Apply ControlNet"
    DESCRIPTION = "Makes the model follow an image: its edges, depth or poses. Chain several nodes for several images."
    CATEGORY = "conditioning/controlnet"
    FUNCTION = "apply"
    RETURN_TYPES = (CONDITIONING, CONDITIONING)
    RETURN_NAMES = ("positive", "negative")
    OUTPUT_TOOLTIPS = ("The prompt with the ControlNet.", "The negative prompt with the ControlNet.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                **_prompts(),
                "image": socket(IMAGE, "The image to follow."),
                "strength": _strength(),
                **_range(),
            },
            "optional": {"vae": socket(VAE, "The autoencoder, for ControlNets that use the image as a latent.")},
        }

    def apply(
        self,
        positive: Conditioning,
        negative: Conditioning,
        control_net: Any,
        image: Any,
        strength: float,
        start_percent: float,
        end_percent: float,
        vae: Any = None,
        mask: Any = None,
    ) -> tuple[Any, ...]:
        from ..flux_core.conditioning.controls import ControlUse, with_control

        if strength == 0:
            return positive, negative
        use = ControlUse(control_net, image, strength, start_percent, end_percent, vae, mask)
        return tuple(with_control([positive, negative], use, to_others=False))


class ControlNetApplySD3(ControlNetApplyAdvanced):
    """The same node, with a required autoencoder."""

    TITLE = "Apply Controlnet with VAE"
    DEPRECATED = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                **_prompts(),
                "vae": socket(VAE, "The autoencoder, for ControlNets that use the image as a latent."),
                "image": socket(IMAGE, "The image to follow."),
                "strength": _strength(),
                **_range(),
            }
        }


class ControlNetInpaintingAliMamaApply(ControlNetApplyAdvanced):
    """A ControlNet for inpainting, with a mask of the part to repaint."""

    TITLE = "ControlNetInpaintingAliMamaApply"
    DESCRIPTION = "Repaints the masked part with alimama's inpainting ControlNet so that it fits the rest of the image."
    FUNCTION = "apply_inpaint"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                **_prompts(),
                "vae": socket(VAE, "The autoencoder."),
                "image": socket(IMAGE, "The image."),
                "mask": socket(MASK, "The part to repaint."),
                "strength": _strength(),
                **_range(),
            }
        }

    def apply_inpaint(
        self,
        positive: Conditioning,
        negative: Conditioning,
        control_net: Any,
        vae: Any,
        image: Any,
        mask: Any,
        strength: float,
        start_percent: float,
        end_percent: float,
    ) -> tuple[Any, ...]:
        from ..flux_core.images.masks import layers
        from ..flux_core.images.resize import resize

        kept = None
        if control_net.takes_mask:
            kept = 1.0 - layers(mask)
            height, width = image.shape[1:3]
            image = image * resize(kept, width, height, "bilinear", "center").round().movedim(1, -1)
        return self.apply(positive, negative, control_net, image, strength, start_percent, end_percent, vae, kept)


def _prompts() -> dict[str, Any]:
    return {
        "positive": socket(CONDITIONING, "The prompt."),
        "negative": socket(CONDITIONING, "The negative prompt; unused at cfg 1."),
        "control_net": socket(CONTROL_NET, "The ControlNet."),
    }
