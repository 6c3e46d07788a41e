"""Samplers with their options: what KSamplerSelect picks by name, as nodes with the numbers of the algorithm."""

from __future__ import annotations

from typing import Any

from .sockets import MODEL, SAMPLER, Declared, Inputs, choice, integer, number, switch, wire

PLACE = "sampling/custom_sampling/samplers"
ETA_TIP = "How much of each step is replaced by fresh noise: 0 adds none."
NOISE_TIP = "Size of the noise that is added; 1 is what the theory says."


def eta(tip: str = ETA_TIP, default: float = 1.0, high: float = 100.0) -> Declared:
    return number(default, 0.0, high, 0.01, tip, round=False)


def s_noise(high: float = 100.0) -> Declared:
    return number(1.0, 0.0, high, 0.01, NOISE_TIP, round=False)


def where_drawn() -> Declared:
    return choice(["gpu", "cpu"], "Where its noise is drawn. cpu gives the same picture on every machine.")


def sampler(name: str, **options: Any) -> tuple[Any]:
    """What goes on a SAMPLER wire: an algorithm by its name, with its options."""
    from ..flux_core.sampling.sample import Sampler

    return (Sampler(name, options),)


class SamplerEulerAncestral:
    """Euler with fresh noise."""

    TITLE = "SamplerEulerAncestral"
    DESCRIPTION = "The sampler euler_ancestral with its options: a straight step, then fresh noise."
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
    DESCRIPTION = "The sampler euler_ancestral_cfg_pp with its options. It asks the model twice a step."
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
    """CFG++ in two readings."""

    TITLE = "SamplerEulerCFG++"
    DESCRIPTION = "The sampler euler_cfg_pp, or an older form of it. It asks the model twice a step."
    CATEGORY = "_for_testing"
    EXPERIMENTAL = True
    FUNCTION = "make"
    RETURN_TYPES = (SAMPLER,)
    OUTPUT_TOOLTIPS = ("The algorithm.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tip = "regular is the published form; alternative takes off again what guidance has added."
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
        return {"required": {"order": integer(4, 1, 100, "How many directions are remembered.")}}

    def make(self, order: int) -> tuple[Any]:
        return sampler("lms", order=order)


class SamplerDPMPP_2S_Ancestral:
    """Two looks a step, then fresh noise."""

    TITLE = "SamplerDPMPP_2S_Ancestral"
    DESCRIPTION = "The sampler dpmpp_2s_ancestral with its options. It asks the model twice a step."
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
    """Stochastic, two looks a step."""

    TITLE = "SamplerDPMPP_SDE"
    DESCRIPTION = "The sampler dpmpp_sde with its options. It asks the model twice a step."
    CATEGORY = PLACE
    FUNCTION = "make"
    RETURN_TYPES = (SAMPLER,)
    OUTPUT_TOOLTIPS = ("The algorithm.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        r = number(0.5, 0.0, 100.0, 0.01, "Share of the step at which the second look is taken.", round=False)
        return {"required": {"eta": eta(), "s_noise": s_noise(), "r": r, "noise_device": where_drawn()}}

    def make(self, eta: float, s_noise: float, r: float, noise_device: str) -> tuple[Any]:
        name = "dpmpp_sde" if noise_device == "cpu" else "dpmpp_sde_gpu"
        return sampler(name, eta=eta, s_noise=s_noise, r=r)


class SamplerDPMPP_2M_SDE:
    """Stochastic, one look a step."""

    TITLE = "SamplerDPMPP_2M_SDE"
    DESCRIPTION = "The sampler dpmpp_2m_sde with its options."
    CATEGORY = PLACE
    FUNCTION = "make"
    RETURN_TYPES = (SAMPLER,)
    OUTPUT_TOOLTIPS = ("The algorithm.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        kind = choice(["midpoint", "heun"], "How the change since the last step is weighed.")
        return {
            "required": {"solver_type": kind, "eta": eta(), "s_noise": s_noise(), "noise_device": where_drawn()},
        }

    def make(self, solver_type: str, eta: float, s_noise: float, noise_device: str) -> tuple[Any]:
        name = "dpmpp_2m_sde" if noise_device == "cpu" else "dpmpp_2m_sde_gpu"
        return sampler(name, eta=eta, s_noise=s_noise, heun=solver_type == "heun")


class SamplerDPMPP_3M_SDE:
    """Stochastic, of third order, one look a step."""

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
    """Steps as long as they may be."""

    TITLE = "SamplerDPMAdaptative"
    DESCRIPTION = "The sampler dpm_adaptive with its options: it chooses its own steps, by the error of each."
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
                "order": integer(3, 2, 3, "Looks at the model for each attempt."),
                "rtol": option(0.05, "Error allowed for each unit of the picture."),
                "atol": option(0.0078, "Error allowed in any case."),
                "h_init": option(0.05, "Length of the first step, in the logarithm of the noise level."),
                "pcoeff": option(0.0, "How much the change of the error counts for the next step's length."),
                "icoeff": option(1.0, "How much the error itself counts for it."),
                "dcoeff": option(0.0, "How much the change of its change counts for it."),
                "accept_safety": option(0.81, "A step is taken again if it should have been shorter than this share."),
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
    """An extended reverse-time equation."""

    TITLE = "SamplerER_SDE"
    DESCRIPTION = "The sampler er_sde with its options, or the plain reverse-time equation, with noise or without."
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
    """Predictor and corrector."""

    TITLE = "SamplerSASolver"
    DESCRIPTION = "The sampler sa_solver with its options: it predicts a step, looks, corrects it, and goes on."
    CATEGORY = PLACE
    FUNCTION = "make"
    RETURN_TYPES = (SAMPLER,)
    OUTPUT_TOOLTIPS = ("The algorithm.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": wire(MODEL, "The model whose sampling counts."),
                "eta": eta(high=10.0),
                "sde_start_percent": number(0.2, 0.0, 1.0, 0.001, "Share of the denoising after which noise is added."),
                "sde_end_percent": number(0.8, 0.0, 1.0, 0.001, "Share of the denoising up to which noise is added."),
                "s_noise": s_noise(),
                "predictor_order": integer(3, 1, 6, "Looks that a prediction rests on."),
                "corrector_order": integer(4, 0, 6, "Looks that a correction rests on; 0 corrects nothing."),
                "use_pece": switch(None, "Look at the corrected state as well: twice the time."),
                "simple_order_2": switch(None, "Use shorter formulas wherever two looks count."),
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
