"""Samplers with their options: the samplers of KSamplerSelect, as nodes with the algorithm's parameters."""

from __future__ import annotations

from typing import Any

from .sockets import MODEL, SAMPLER, Declared, Inputs, choice, integer, number, socket, switch

PLACE = "sampling/custom_sampling/samplers"
ETA_TIP = "How much of each step is replaced by new noise: 0 adds none."
NOISE_TIP = "Scale of the added noise; 1 is the theoretical value."


def eta(tip: str = ETA_TIP, default: float = 1.0, high: float = 100.0) -> Declared:
    return number(default, 0.0, high, 0.01, tip, round=False)


def s_noise(high: float = 100.0) -> Declared:
    return number(1.0, 0.0, high, 0.01, NOISE_TIP, round=False)


def where_drawn() -> Declared:
    return choice(["gpu", "cpu"], "The device that draws the noise. cpu gives the same image on all machines.")


def sampler(name: str, **options: Any) -> tuple[Any]:
    """The value of a SAMPLER link: an algorithm by its name, with its options."""
    from ..flux_core.sampling.sample import Sampler

    return (Sampler(name, options),)


class SamplerEulerAncestral:
    """Euler with new noise at each step."""

    TITLE = "SamplerEulerAncestral"
    DESCRIPTION = "The sampler euler_ancestral with its options: an Euler step, then new noise."
    CATEGORY = PLACE
    FUNCTION = "make"
    RETURN_TYPES = (SAMPLER,)
    OUTPUT_TOOLTIPS = ("The algorithm.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"eta": eta(), "s_noise": s_noise()}}

    def make(self, eta: float, s_noise: float) -> tuple[Any]:
        return sampler("euler_ancestral", eta=eta, s_noise=s_noise)


class SamplerEulerAncestralCFGPP:
    """The same for CFG++."""

    TITLE = "SamplerEulerAncestralCFG++"
    DESCRIPTION = "The sampler euler_ancestral_cfg_pp with its options. It evaluates the model twice per step."
    CATEGORY = PLACE
    FUNCTION = "make"
    RETURN_TYPES = (SAMPLER,)
    OUTPUT_TOOLTIPS = ("The algorithm.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"eta": eta(high=1.0), "s_noise": s_noise(10.0)}}

    def make(self, eta: float, s_noise: float) -> tuple[Any]:
        return sampler("euler_ancestral_cfg_pp", eta=eta, s_noise=s_noise)


class SamplerEulerCFGpp:
    """CFG++ in two forms."""

    TITLE = "SamplerEulerCFG++"
    DESCRIPTION = "The sampler euler_cfg_pp, or an older form of it. It evaluates the model twice per step."
    CATEGORY = "_for_testing"
    EXPERIMENTAL = True
    FUNCTION = "make"
    RETURN_TYPES = (SAMPLER,)
    OUTPUT_TOOLTIPS = ("The algorithm.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tip = "regular is the published form; alternative removes again what guidance added."
        return {"required": {"version": choice(["regular", "alternative"], tip)}}

    def make(self, version: str) -> tuple[Any]:
        return sampler("euler_cfg_pp" if version == "regular" else "euler_cfg_pp_alternative")


class SamplerLMS:
    """A linear multistep method."""

    TITLE = "SamplerLMS"
    DESCRIPTION = "The sampler lms with its order: each step follows the last few directions."
    CATEGORY = PLACE
    FUNCTION = "make"
    RETURN_TYPES = (SAMPLER,)
    OUTPUT_TOOLTIPS = ("The algorithm.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"order": integer(4, 1, 100, "Number of previous directions used.")}}

    def make(self, order: int) -> tuple[Any]:
        return sampler("lms", order=order)


class SamplerDPMPP_2S_Ancestral:
    """Two evaluations per step, then new noise."""

    TITLE = "SamplerDPMPP_2S_Ancestral"
    DESCRIPTION = "The sampler dpmpp_2s_ancestral with its options. It evaluates the model twice per step."
    CATEGORY = PLACE
    FUNCTION = "make"
    RETURN_TYPES = (SAMPLER,)
    OUTPUT_TOOLTIPS = ("The algorithm.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"eta": eta(), "s_noise": s_noise()}}

    def make(self, eta: float, s_noise: float) -> tuple[Any]:
        return sampler("dpmpp_2s_ancestral", eta=eta, s_noise=s_noise)


class SamplerDPMPP_SDE:
    """Stochastic, two evaluations per step."""

    TITLE = "SamplerDPMPP_SDE"
    DESCRIPTION = "The sampler dpmpp_sde with its options. It evaluates the model twice per step."
    CATEGORY = PLACE
    FUNCTION = "make"
    RETURN_TYPES = (SAMPLER,)
    OUTPUT_TOOLTIPS = ("The algorithm.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        r = number(0.5, 0.0, 100.0, 0.01, "Share of the step at which the second evaluation is.", round=False)
        return {"required": {"eta": eta(), "s_noise": s_noise(), "r": r, "noise_device": where_drawn()}}

    def make(self, eta: float, s_noise: float, r: float, noise_device: str) -> tuple[Any]:
        name = "dpmpp_sde" if noise_device == "cpu" else "dpmpp_sde_gpu"
        return sampler(name, eta=eta, s_noise=s_noise, r=r)


class SamplerDPMPP_2M_SDE:
    """Stochastic, one evaluation per step."""

    TITLE = "SamplerDPMPP_2M_SDE"
    DESCRIPTION = "The sampler dpmpp_2m_sde with its options."
    CATEGORY = PLACE
    FUNCTION = "make"
    RETURN_TYPES = (SAMPLER,)
    OUTPUT_TOOLTIPS = ("The algorithm.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        kind = choice(["midpoint", "heun"], "How the change since the previous step is weighted.")
        return {
            "required": {"solver_type": kind, "eta": eta(), "s_noise": s_noise(), "noise_device": where_drawn()},
        }

    def make(self, solver_type: str, eta: float, s_noise: float, noise_device: str) -> tuple[Any]:
        name = "dpmpp_2m_sde" if noise_device == "cpu" else "dpmpp_2m_sde_gpu"
        return sampler(name, eta=eta, s_noise=s_noise, heun=solver_type == "heun")


class SamplerDPMPP_3M_SDE:
    """Stochastic, of third order, one evaluation per step."""

    TITLE = "SamplerDPMPP_3M_SDE"
    DESCRIPTION = "The sampler dpmpp_3m_sde with its options."
    CATEGORY = PLACE
    FUNCTION = "make"
    RETURN_TYPES = (SAMPLER,)
    OUTPUT_TOOLTIPS = ("The algorithm.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"eta": eta(), "s_noise": s_noise(), "noise_device": where_drawn()}}

    def make(self, eta: float, s_noise: float, noise_device: str) -> tuple[Any]:
        return sampler("dpmpp_3m_sde" if noise_device == "cpu" else "dpmpp_3m_sde_gpu", eta=eta, s_noise=s_noise)


class SamplerDPMAdaptative:
    """Adaptive steps."""

    TITLE = "SamplerDPMAdaptative"
    DESCRIPTION = "The sampler dpm_adaptive with its options: it chooses its own steps by their error."
    CATEGORY = PLACE
    FUNCTION = "make"
    RETURN_TYPES = (SAMPLER,)
    OUTPUT_TOOLTIPS = ("The algorithm.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        def option(default: float, tip: str) -> Declared:
            return number(default, 0.0, 100.0, 0.01, tip, round=False)

        return {
            "required": {
                "order": integer(3, 2, 3, "Evaluations of the model per attempt."),
                "rtol": option(0.05, "Relative error allowed."),
                "atol": option(0.0078, "Absolute error allowed."),
                "h_init": option(0.05, "Length of the first step, in the logarithm of the noise level."),
                "pcoeff": option(0.0, "The proportional coefficient of the step size controller."),
                "icoeff": option(1.0, "The integral coefficient of the step size controller."),
                "dcoeff": option(0.0, "The derivative coefficient of the step size controller."),
                "accept_safety": option(0.81, "A step is repeated if it should have been shorter than this share."),
                "eta": eta(default=0.0),
                "s_noise": s_noise(),
            }
        }

    def make(
        self,
        order: int,
        rtol: float,
        atol: float,
        h_init: float,
        pcoeff: float,
        icoeff: float,
        dcoeff: float,
        accept_safety: float,
        eta: float,
        s_noise: float,
    ) -> tuple[Any]:
        return sampler(
            "dpm_adaptive_ancestral" if eta else "dpm_adaptive",
            order=order,
            rtol=rtol,
            atol=atol,
            h_init=h_init,
            pcoeff=pcoeff,
            icoeff=icoeff,
            dcoeff=dcoeff,
            accept_safety=accept_safety,
            eta=eta,
            s_noise=s_noise,
        )


class SamplerER_SDE:
    """The extended reverse-time SDE."""

    TITLE = "SamplerER_SDE"
    DESCRIPTION = "The sampler er_sde with its options, or the plain reverse-time equation, with or without noise."
    CATEGORY = PLACE
    FUNCTION = "make"
    RETURN_TYPES = (SAMPLER,)
    OUTPUT_TOOLTIPS = ("The algorithm.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "solver_type": choice(["ER-SDE", "Reverse-time SDE", "ODE"], "The equation. ODE adds no noise."),
                "max_stage": integer(3, 1, 3, "Highest order used."),
                "eta": eta("How much noise the reverse-time SDE adds. ER-SDE does not use it."),
                "s_noise": s_noise(),
            }
        }

    def make(self, solver_type: str, max_stage: int, eta: float, s_noise: float) -> tuple[Any]:
        if solver_type == "ER-SDE":
            return sampler("er_sde", max_stage=max_stage, s_noise=s_noise)
        if solver_type == "ODE" or eta == 0:
            return sampler("er_sde", max_stage=max_stage, s_noise=0.0, eta=0.0)
        return sampler("er_sde", max_stage=max_stage, s_noise=s_noise, eta=eta)


class SamplerSASolver:
    """A stochastic predictor-corrector method."""

    TITLE = "SamplerSASolver"
    DESCRIPTION = "The sampler sa_solver with its options: it predicts each step and then corrects it."
    CATEGORY = PLACE
    FUNCTION = "make"
    RETURN_TYPES = (SAMPLER,)
    OUTPUT_TOOLTIPS = ("The algorithm.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model whose noise levels are used."),
                "eta": eta(high=10.0),
                "sde_start_percent": number(0.2, 0.0, 1.0, 0.001, "Share of the denoising after which noise is added."),
                "sde_end_percent": number(0.8, 0.0, 1.0, 0.001, "Share of the denoising up to which noise is added."),
                "s_noise": s_noise(),
                "predictor_order": integer(3, 1, 6, "Evaluations that a prediction uses."),
                "corrector_order": integer(4, 0, 6, "Evaluations that a correction uses; 0 means no correction."),
                "use_pece": switch(None, "Evaluate the corrected state as well: twice the time."),
                "simple_order_2": switch(None, "Use simpler formulas where two evaluations are used."),
            }
        }

    def make(
        self,
        model: Any,
        eta: float,
        sde_start_percent: float,
        sde_end_percent: float,
        s_noise: float,
        predictor_order: int,
        corrector_order: int,
        use_pece: bool,
        simple_order_2: bool,
    ) -> tuple[Any]:
        percent_to_sigma = model.sampling.percent_to_sigma
        return sampler(
            "sa_solver",
            eta=eta,
            between=(percent_to_sigma(sde_start_percent), percent_to_sigma(sde_end_percent)),
            s_noise=s_noise,
            predictor_order=predictor_order,
            corrector_order=corrector_order,
            pece=use_pece,
            simple_order_2=simple_order_2,
        )
