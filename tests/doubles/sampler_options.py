"""The options with which sampler nodes are compared with ComfyUI's, by node."""

from __future__ import annotations

from typing import Any

SAMPLERS: dict[str, list[dict[str, Any]]] = {
    "SamplerEulerAncestral": [{"eta": 1.0, "s_noise": 1.0}, {"eta": 0.4, "s_noise": 0.9}, {"eta": 0.0, "s_noise": 1.0}],
    "SamplerEulerAncestralCFGPP": [{"eta": 0.5, "s_noise": 1.1}],
    "SamplerEulerCFGpp": [{"version": "regular"}, {"version": "alternative"}],
    "SamplerLMS": [{"order": 1}, {"order": 2}, {"order": 7}],
    "SamplerDPMPP_2S_Ancestral": [{"eta": 0.7, "s_noise": 0.9}],
    "SamplerDPMPP_SDE": [
        {"eta": 1.0, "s_noise": 1.0, "r": 0.5, "noise_device": "cpu"},
        {"eta": 0.6, "s_noise": 0.9, "r": 0.3, "noise_device": "gpu"},
    ],
    "SamplerDPMPP_2M_SDE": [
        {"solver_type": "midpoint", "eta": 0.8, "s_noise": 1.0, "noise_device": "cpu"},
        {"solver_type": "heun", "eta": 1.0, "s_noise": 0.9, "noise_device": "gpu"},
    ],
    "SamplerDPMPP_3M_SDE": [{"eta": 0.5, "s_noise": 1.0, "noise_device": "cpu"}],
    "SamplerDPMAdaptative": [
        {"order": order, "eta": eta, "rtol": 0.05, "atol": 0.0078, "h_init": 0.05, "pcoeff": p, "icoeff": 1.0,
         "dcoeff": d, "accept_safety": 0.81, "s_noise": 1.0}
        for order, eta, p, d in ((3, 0.0, 0.0, 0.0), (2, 0.0, 0.2, 0.1), (3, 0.5, 0.0, 0.0))
    ],
    "SamplerER_SDE": [
        {"solver_type": kind, "max_stage": stage, "eta": 0.7, "s_noise": 0.9}
        for kind, stage in (("ER-SDE", 2), ("Reverse-time SDE", 3), ("Reverse-time SDE", 1), ("ODE", 3))
    ],
    "SamplerSASolver": [
        {"eta": eta, "sde_start_percent": 0.1, "sde_end_percent": 0.9, "s_noise": 0.9, "predictor_order": p,
         "corrector_order": c, "use_pece": pece, "simple_order_2": simple}
        for eta, p, c, pece, simple in (
            (1.0, 3, 4, False, False), (0.5, 2, 2, False, True), (0.8, 2, 0, False, False), (0.0, 1, 3, True, False)
        )
    ],
}  # fmt: skip
