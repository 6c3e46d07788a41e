"""The sampling nodes with the samplers and schedules that node packs have added to ComfyUI's lists.

    comfy.samplers.KSampler.SAMPLERS.append("res_2m"); comfy.k_diffusion.sampling.sample_res_2m = function
    comfy.samplers.SCHEDULER_HANDLERS["beta57"] = SchedulerHandler(function)

In ComfyUI such names appear in the lists of its own nodes, and workflows use them there. The same happens here:
`extend` replaces the classes of four nodes by ones that list the added names. Our own names are still handled by our
own code.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from .engine import Engine

_MODULE = f"{__package__}.offered.comfy.samplers"
_NODES = ("KSampler", "KSamplerAdvanced", "KSamplerSelect", "BasicScheduler")


def extend(engine: Engine) -> None:
    """Make the sampling nodes list and run what packs have added. Does nothing if no pack has added any."""
    offered = sys.modules.get(_MODULE)  # imported as soon as a pack uses it
    if offered is None:
        return
    names, schedules = _added(offered, engine)
    if not names and not schedules:
        return
    for node_id in _NODES:
        ours = engine.classes.get(node_id)
        if ours is not None and node_id in engine.own:
            engine.classes[node_id] = _extended(ours, names, schedules)


def _added(offered: ModuleType, engine: Engine) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(samplers, schedules) that are not ours. A name without a function is not a sampler."""
    functions = vars(engine.absent("comfy.k_diffusion.sampling"))
    samplers = [*offered.SAMPLER_NAMES, *offered.KSampler.SAMPLERS]
    names = [name for name in samplers if name not in offered.OWN_SAMPLERS and f"sample_{name}" in functions]
    schedules = [name for name in offered.SCHEDULER_HANDLERS if name not in offered.OWN_SCHEDULERS]
    return tuple(dict.fromkeys(names)), tuple(schedules)


def _extended(ours: type[Any], names: Sequence[str], schedules: Sequence[str]) -> type[Any]:
    more = {"sampler_name": list(names), "scheduler": list(schedules)}
    own = getattr(ours, ours.FUNCTION)
    parameters = list(inspect.signature(own).parameters)[1:]

    def input_types(cls: type[Any]) -> dict[str, Any]:
        declared: dict[str, Any] = ours.INPUT_TYPES()
        for name, added in more.items():
            if name in declared["required"]:
                choices, *rest = declared["required"][name]
                declared["required"][name] = ([*choices, *added], *rest)
        return declared

    def run(self: Any, *given: Any, **inputs: Any) -> Any:
        inputs |= dict(zip(parameters, given, strict=False))
        if not any(inputs.get(name) in added for name, added in more.items()):
            return own(self, **inputs)
        return _RUNS[ours.__name__](inputs)

    body = {"INPUT_TYPES": classmethod(input_types), ours.FUNCTION: run, "__doc__": ours.__doc__}
    return type(ours.__name__, (ours,), {**body, "__module__": ours.__module__})


# -- nodes with a name that is not ours ----------------------------------------------------------------------------


def _ksampler(inputs: dict[str, Any]) -> tuple[Any]:
    from .offered import nodes
    from .offered.comfy.model_patcher import ModelPatcher

    names = ("seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image", "denoise")
    return nodes.common_ksampler(ModelPatcher(inputs["model"]), *(inputs[name] for name in names))


def _ksampler_advanced(inputs: dict[str, Any]) -> tuple[Any]:
    from .offered import nodes
    from .offered.comfy.model_patcher import ModelPatcher

    return nodes.common_ksampler(
        ModelPatcher(inputs["model"]),
        inputs["noise_seed"],
        inputs["steps"],
        inputs["cfg"],
        inputs["sampler_name"],
        inputs["scheduler"],
        inputs["positive"],
        inputs["negative"],
        inputs["latent_image"],
        disable_noise=inputs["add_noise"] == "disable",
        start_step=inputs["start_at_step"],
        last_step=inputs["end_at_step"],
        force_full_denoise=inputs["return_with_leftover_noise"] != "enable",
    )


def _select(inputs: dict[str, Any]) -> tuple[Any]:
    from .offered.comfy.samplers import ksampler

    return (ksampler(inputs["sampler_name"]).engine_sampler(),)


def _schedule(inputs: dict[str, Any]) -> tuple[Any]:
    from .offered.comfy.model_patcher import ModelPatcher
    from .offered.comfy.samplers import KSampler

    model = ModelPatcher(inputs["model"])
    run = KSampler(model, inputs["steps"], scheduler=inputs["scheduler"], denoise=inputs["denoise"])
    return (run.sigmas.cpu(),)


_RUNS = {
    "KSampler": _ksampler,
    "KSamplerAdvanced": _ksampler_advanced,
    "KSamplerSelect": _select,
    "BasicScheduler": _schedule,
}
