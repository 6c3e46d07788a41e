"""XLabs' nodes (x-flux-comfyui): their sampler, ControlNets with link types of their own, and their IP-Adapter."""

from __future__ import annotations

from typing import Any

from ..loaders import FromFiles
from ..sampling import report
from ..sockets import CONDITIONING, IMAGE, LATENT, MODEL, Inputs, integer, number, seed, socket
from .declared import ActsOnModel, one_of, unused

PACK = "x-flux-comfyui"
CONTROL_NET, CONDITION, IP_ADAPTER = "FluxControlNet", "ControlNetCondition", "IP_ADAPTER_FLUX"
Conditioning = list[list[Any]]
Latent = dict[str, Any]


class LoadFluxControlNet(ActsOnModel, FromFiles):
    """XLabs' loader of a ControlNet."""

    PACK = PACK
    TITLE = "Load Flux ControlNet"
    DESCRIPTION = "Loads a ControlNet by XLabs. Its file may be in controlnet or in xlabs/controlnets."
    FUNCTION = "load"
    RETURN_TYPES = (CONTROL_NET,)
    RETURN_NAMES = ("ControlNet",)
    OUTPUT_TOOLTIPS = ("The ControlNet.",)
    FILES = {"controlnet_path": "controlnet"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        models = ("flux-dev", "flux-dev-fp8", "flux-schnell")
        return {
            "required": {
                "model_name": unused(one_of(models, "")),
                "controlnet_path": cls.files("controlnet", "The ControlNet's file."),
            }
        }

    def load(self, controlnet_path: str, model_name: str = "flux-dev") -> tuple[Any]:
        from ...flux_core.runtime.controlnets import load_controlnet

        return (load_controlnet(self.host.runtime, self.host.full_path("controlnet", controlnet_path)),)


def _inputs(**more: Any) -> Inputs:
    return {
        "required": {
            "controlnet": socket(CONTROL_NET, "The ControlNet."),
            "image": socket(IMAGE, "The image to follow. It is stretched to the size of the latent."),
            "strength": number(1.0, 0.0, 10.0, 0.01, "How closely to follow the image."),
            **more,
        },
        "optional": {"controlnet_condition": socket(CONDITION, "ControlNets that are also applied.")},
    }


class ApplyFluxControlNet(ActsOnModel):
    """A ControlNet with its image."""

    PACK = PACK
    TITLE = "Apply Flux ControlNet"
    DESCRIPTION = "Makes XLabs' sampler follow an image. Chain several nodes for several images."
    FUNCTION = "apply"
    RETURN_TYPES = (CONDITION,)
    RETURN_NAMES = ("controlnet_condition",)
    OUTPUT_TOOLTIPS = ("For XLabs' sampler.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return _inputs()

    def apply(
        self,
        controlnet: Any,
        image: Any,
        strength: float,
        start: float = 0.0,
        end: float = 1.0,
        controlnet_condition: Any = None,
    ) -> tuple[list[Any]]:
        from ...flux_core.sampling.xlabs import ControlCondition

        return ([*(controlnet_condition or ()), ControlCondition(controlnet, image, strength, start, end)],)


class ApplyAdvancedFluxControlNet(ApplyFluxControlNet):
    """A ControlNet in a part of the steps."""

    TITLE = "Apply Advanced Flux ControlNet"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return _inputs(
            start=number(0.0, 0.0, 1.0, 0.01, "From this share of the steps on."),
            end=number(1.0, 0.0, 1.0, 0.01, "Up to this share of the steps."),
        )


class XlabsSampler(ActsOnModel, FromFiles):
    """XLabs' sampler."""

    PACK = PACK
    TITLE = "Xlabs Sampler"
    DESCRIPTION = "Denoises a latent in Euler steps, with guidance by a negative prompt from a given step on."
    FUNCTION = "sample"
    RETURN_TYPES = (LATENT,)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The denoised latent.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model that denoises."),
                "conditioning": socket(CONDITIONING, "What the image should show."),
                "neg_conditioning": socket(CONDITIONING, "What to avoid."),
                "noise_seed": seed(),
                "steps": integer(20, 1, 100, "Number of steps."),
                "timestep_to_start_cfg": integer(20, 0, 100, "The first step with guidance by the negative prompt."),
                "true_gs": number(3, 0, 100, 0.1, "The strength of the guidance."),
                "image_to_image_strength": number(
                    0.0, 0.0, 1.0, 0.01, "How much an image in the latent is changed; not used for an empty latent."
                ),
                "denoise_strength": number(1.0, 0.0, 1.0, 0.01, "The share of the steps that are run."),
            },
            "optional": {
                "latent_image": socket(LATENT, "The latent to denoise. It determines the size of the image."),
                "controlnet_condition": socket(CONDITION, "ControlNets with their images."),
            },
        }

    def sample(
        self,
        model: Any,
        conditioning: Conditioning,
        neg_conditioning: Conditioning,
        noise_seed: int,
        steps: int,
        timestep_to_start_cfg: int,
        true_gs: float,
        image_to_image_strength: float,
        denoise_strength: float,
        latent_image: Latent | None = None,
        controlnet_condition: Any = None,
    ) -> tuple[Latent]:
        from ...flux_core.errors import InputError
        from ...flux_core.sampling.xlabs import XlabsRun, sample_xlabs

        if latent_image is None:
            raise InputError("XLabs' sampler needs a latent, which determines the size of the image. Connect one.")
        run = XlabsRun(noise_seed, steps, timestep_to_start_cfg, true_gs, image_to_image_strength, denoise_strength)
        controls = controlnet_condition or ()
        return (sample_xlabs(model, conditioning, neg_conditioning, latent_image, run, controls, report(self.host)),)


class LoadFluxIPAdapter(ActsOnModel, FromFiles):
    """XLabs' loader of an IP-Adapter."""

    PACK = PACK
    TITLE = "Load Flux IPAdapter"
    DESCRIPTION = "Loads XLabs' IP-Adapter (xlabs/ipadapters) with CLIP-L's vision encoder."
    FUNCTION = "load"
    RETURN_TYPES = (IP_ADAPTER,)
    RETURN_NAMES = ("ipadapterFlux",)
    OUTPUT_TOOLTIPS = ("The IP-Adapter.",)
    FILES = {"ipadatper": "xlabs_ipadapters", "clip_vision": "clip_vision"}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "ipadatper": cls.files("xlabs_ipadapters", "The IP-Adapter's file."),
                "clip_vision": cls.files("clip_vision", "CLIP-L's vision encoder: openai/clip-vit-large-patch14."),
                "provider": unused(one_of(("CPU", "GPU"), "")),
            }
        }

    def load(self, ipadatper: str, clip_vision: str, provider: str = "CPU") -> tuple[Any]:
        from ...flux_core.runtime.image_adapters import load_image_adapter
        from ...flux_core.runtime.vision import load_vision

        host = self.host
        vision = load_vision(host.runtime, host.full_path("clip_vision", clip_vision))
        return (load_image_adapter(host.runtime, host.full_path("xlabs_ipadapters", ipadatper), vision),)


class ApplyFluxIPAdapter(ActsOnModel):
    """Images that the model also follows."""

    PACK = PACK
    TITLE = "Apply Flux IPAdapter"
    DESCRIPTION = "Makes the model follow the content of an image."
    FUNCTION = "apply"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with the image.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                **_adapted(),
                "ip_scale": number(0.93, 0.0, 1.0, 0.001, "The influence of the image."),
            }
        }

    def apply(self, model: Any, ip_adapter_flux: Any, image: Any, ip_scale: float) -> tuple[Any]:
        return (model.seeing(ip_adapter_flux.see(image, ip_scale, average=False)),)


class ApplyAdvancedFluxIPAdapter(ActsOnModel):
    """The same node with a strength for each block."""

    PACK = PACK
    TITLE = "Apply Advanced Flux IPAdapter"
    DESCRIPTION = "Makes the model follow the mean of images, with a strength that changes from block to block."
    FUNCTION = "apply"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with the images.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        courses = ("Linear", "First half", "Second half", "Sigmoid")
        return {
            "required": {
                **_adapted(),
                "begin_strength": number(0.0, -100.0, 100.0, 0.01, "The strength in the first block."),
                "end_strength": number(1.0, -100.0, 100.0, 0.01, "The strength in the last block."),
                "smothing_type": one_of(courses, "How it changes from the first block to the last."),
            }
        }

    def apply(
        self,
        model: Any,
        ip_adapter_flux: Any,
        image: Any,
        begin_strength: float,
        end_strength: float,
        smothing_type: str,
    ) -> tuple[Any]:
        strengths = ip_adapter_flux.strengths(begin_strength, end_strength, smothing_type)
        return (model.seeing(ip_adapter_flux.see(image, strengths, average=True)),)


def _adapted() -> dict[str, Any]:
    return {
        "model": socket(MODEL, "The model."),
        "ip_adapter_flux": socket(IP_ADAPTER, "The IP-Adapter."),
        "image": socket(IMAGE, "The image to follow."),
    }
