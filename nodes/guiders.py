"""The parts of a denoising run: noise, a sampler, and a guider, which is a model with its prompts."""

from __future__ import annotations

from typing import Any

from .binding import HostedNode
from .sockets import CONDITIONING, GUIDER, MODEL, NOISE, SAMPLER, Declared, Inputs, choice, number, seed, socket

Conditioning = list[list[Any]]

SAMPLERS = (
    "euler",
    "euler_cfg_pp",
    "euler_ancestral",
    "euler_ancestral_cfg_pp",
    "heun",
    "heunpp2",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde",
    "dpmpp_sde_gpu",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu",
    "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu",
    "ddpm",
    "lcm",
    "ipndm",
    "ipndm_v",
    "deis",
    "res_multistep",
    "res_multistep_cfg_pp",
    "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp",
    "gradient_estimation",
    "gradient_estimation_cfg_pp",
    "er_sde",
    "seeds_2",
    "seeds_3",
    "sa_solver",
    "sa_solver_pece",
    "ddim",
    "uni_pc",
    "uni_pc_bh2",
)
SAMPLER_TIP = "The sampler. euler evaluates the model once per step; heun, dpm_2 and dpmpp_sde twice."
CFG_TIP = "Guidance by a negative prompt. 1 is off and twice as fast: FLUX.1 has guidance built in."
NEGATIVE_TIP = "What to avoid; unused at cfg 1."


def cfg() -> Declared:
    return number(8.0, 0.0, 100.0, 0.1, CFG_TIP, round=0.01)


class BasicGuider(HostedNode):
    """A model and one prompt."""

    TITLE = "BasicGuider"
    DESCRIPTION = "Guides the model by one prompt. This is enough for FLUX.1, whose guidance is part of the prompt."
    CATEGORY = "sampling/custom_sampling/guiders"
    FUNCTION = "guide"
    RETURN_TYPES = (GUIDER,)
    OUTPUT_TOOLTIPS = ("Model and prompt.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model that denoises."),
                "conditioning": socket(CONDITIONING, "What the image should show."),
            }
        }

    def guide(self, model: Any, conditioning: Conditioning) -> tuple[Any]:
        from ..flux_core.sampling import guider

        return (self.host.guider(guider.BasicGuider(model, conditioning)),)


class CFGGuider(HostedNode):
    """A model, a prompt and a negative prompt."""

    TITLE = "CFGGuider"
    DESCRIPTION = "Guides the model by a prompt and a negative prompt. Twice the time, unless cfg is 1."
    CATEGORY = "sampling/custom_sampling/guiders"
    FUNCTION = "guide"
    RETURN_TYPES = (GUIDER,)
    OUTPUT_TOOLTIPS = ("Model and prompts.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model that denoises."),
                "positive": socket(CONDITIONING, "What the image should show."),
                "negative": socket(CONDITIONING, NEGATIVE_TIP),
                "cfg": cfg(),
            }
        }

    def guide(self, model: Any, positive: Conditioning, negative: Conditioning, cfg: float) -> tuple[Any]:
        from ..flux_core.sampling import guider

        return (self.host.guider(guider.CFGGuider(model, positive, negative, cfg)),)


class DualCFGGuider(HostedNode):
    """A model, two prompts and a negative prompt."""

    TITLE = "DualCFGGuider"
    DESCRIPTION = "Guides the model by two prompts with separate strengths and a negative prompt. Three times the time."
    CATEGORY = "sampling/custom_sampling/guiders"
    FUNCTION = "guide"
    RETURN_TYPES = (GUIDER,)
    OUTPUT_TOOLTIPS = ("Model and prompts.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model that denoises."),
                "cond1": socket(CONDITIONING, "The main prompt."),
                "cond2": socket(CONDITIONING, "The second prompt."),
                "negative": socket(CONDITIONING, "What to avoid."),
                "cfg_conds": cfg(),
                "cfg_cond2_negative": cfg(),
                "style": choice(["regular", "nested"], "How the three predictions are combined."),
            }
        }

    def guide(
        self,
        model: Any,
        cond1: Conditioning,
        cond2: Conditioning,
        negative: Conditioning,
        cfg_conds: float,
        cfg_cond2_negative: float,
        style: str = "regular",
    ) -> tuple[Any]:
        from ..flux_core.sampling import guider

        made = guider.DualCFGGuider(model, cond1, cond2, negative, cfg_conds, cfg_cond2_negative, style)
        return (self.host.guider(made),)


class KSamplerSelect:
    """Choose a sampler by its name."""

    TITLE = "KSamplerSelect"
    DESCRIPTION = "Chooses the sampler: the algorithm that goes from noise to an image."
    CATEGORY = "sampling/custom_sampling/samplers"
    FUNCTION = "select"
    RETURN_TYPES = (SAMPLER,)
    OUTPUT_TOOLTIPS = ("The algorithm.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"sampler_name": choice(SAMPLERS, SAMPLER_TIP)}}

    def select(self, sampler_name: str) -> tuple[Any]:
        from ..flux_core.sampling.sample import Sampler

        return (Sampler(sampler_name),)


class RandomNoise:
    """Noise from a seed."""

    TITLE = "RandomNoise"
    DESCRIPTION = "The random noise from which denoising starts."
    CATEGORY = "sampling/custom_sampling/noise"
    FUNCTION = "make"
    RETURN_TYPES = (NOISE,)
    OUTPUT_TOOLTIPS = ("The noise.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"noise_seed": seed()}}

    def make(self, noise_seed: int) -> tuple[Any]:
        from ..flux_core.sampling.sample import RandomNoise

        return (RandomNoise(noise_seed),)


class DisableNoise:
    """No noise."""

    TITLE = "DisableNoise"
    DESCRIPTION = "No noise at the start, for a second sampler that continues where another stopped."
    CATEGORY = "sampling/custom_sampling/noise"
    FUNCTION = "make"
    RETURN_TYPES = (NOISE,)
    OUTPUT_TOOLTIPS = ("No noise.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {}}

    def make(self) -> tuple[Any]:
        from ..flux_core.sampling.sample import DisableNoise

        return (DisableNoise(),)
