"""A run in the form in which another process gets it: with paths of its ControlNets in place of their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..sampling.guider import Run
from .controlnets import load_controlnet
from .runtime import Runtime


@dataclass(frozen=True)
class ControlNetPath:
    """The file of a ControlNet."""

    path: str


def portable(run: Run) -> Run:
    """The run in a form that can be pickled."""
    return _with_nets(run, lambda weights: ControlNetPath(str(weights.path)))


def restored(run: Run, runtime: Runtime) -> Run:
    """The run that `portable` was given, with the ControlNets of this process. Raises as `load_controlnet`."""
    return _with_nets(run, lambda net: load_controlnet(runtime, net.path).weights)


def _with_nets(run: Run, change: Callable[[Any], Any]) -> Run:
    conditions = tuple(
        replace(c, controls=tuple(replace(control, weights=change(control.weights)) for control in c.controls))
        for c in run.conditions
    )
    return replace(run, conditions=conditions)
