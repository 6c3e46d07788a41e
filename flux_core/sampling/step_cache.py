"""Step caches: evaluations of the network that are skipped because the last result is still close enough.

The rule is EasyCache's (Zhou et al. 2025, arXiv 2507.02860), with ComfyUI's details. After two full evaluations j < i

    k = mean|v_i - v_j| / mean|x_i - x_j|              how fast the output changes with the input
    e += k mean|x - x_i| / mean|v_i|                   estimated relative change since the last full evaluation

and an evaluation is skipped while e stays below the threshold; otherwise e = 0 and the network runs. The result of a
skipped evaluation depends on `keeps`:

    velocity     v_i               Sluice's own: for a rectified flow the velocity is what changes least
    difference   x + (v_i - x_i)   EasyCache of ComfyUI
    denoised     x + (D_i - x_i)   LazyCache of ComfyUI: around the whole guider, for the result of all conditions

Off unless a node or `--cache` sets it. A skipped evaluation streams no weights. Uses no network and no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

SUBSAMPLE = 8  # ComfyUI uses every eighth cell in both directions


@dataclass(frozen=True)
class StepCache:
    """The setting, as part of a model handle. threshold 0 never skips. The shares count from noise (0) to image (1).

    every: the change is measured on every n-th cell in both directions.
    """

    threshold: float
    start_percent: float = 0.15
    end_percent: float = 0.95
    keeps: str = "velocity"
    every: int = 1


# Their names for `--cache` and the node. Measured on the shipped model, 20 steps: about 11 and 9 evaluations.
PRESETS: dict[str, StepCache | None] = {"off": None, "fast": StepCache(0.1), "faster": StepCache(0.2)}


@dataclass
class _Kept:
    """The last full evaluation of one condition."""

    x: Tensor
    result: Tensor


class CachedEvaluations:
    """The state of one sampling run.

    start, end: noise levels between which evaluations may be skipped (start >= sigma > end). The first condition of
    each evaluation decides for all of them; each keeps its own result.
    """

    def __init__(self, setting: StepCache, start: float, end: float) -> None:
        self.setting, self.start, self.end = setting, start, end
        self.computed = self.reused = 0
        self.largest_drift = 0.0  # relative error of one more skip, where it was computed after skips
        self._sigma = math.inf
        self._forget()

    def begin(self, sigma: float) -> None:
        """One evaluation of the guider begins. A rising noise level resets the state."""
        if sigma > self._sigma:
            self._forget()
        self._sigma, self._decided, self._skip = sigma, False, False

    def evaluate(self, key: Hashable, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """The result for the condition `key` at x, computed or reused. x and results have the same shape."""
        if self._sigma <= self.end:
            self.computed += 1
            return compute()
        leads = not self._decided
        if leads:
            self._decided, self._skip = True, self._sigma <= self.start and self._may_skip(key, x)
        kept = self._kept.get(key)
        if self._skip and kept is not None and kept.x.shape == x.shape:
            self.reused += 1
            self._skipped = True
            return self._from(kept, x)
        result = compute()
        self.computed += 1
        if leads:
            self._learn(key, x, result)
        self._kept[key] = _Kept(x.clone(), result.clone())  # solvers may change theirs in place
        return result

    def event(self) -> dict[str, Any]:
        """The computed and skipped evaluations, as an event of the run. `line`: the same as a sentence."""
        total = self.computed + self.reused
        line = f"step cache: {self.computed} of {total} evaluations computed, {self.reused} reused"
        if self.largest_drift:
            line += f"; one more skip would have been off by {self.largest_drift:.1%} at most"
        counts = {"computed": self.computed, "reused": self.reused, "largest_drift": self.largest_drift}
        return {"type": "steps.reused", **counts, "line": line}

    def _forget(self) -> None:
        self._kept: dict[Hashable, _Kept] = {}
        self._leader: Hashable | None = None
        self._x: Tensor | None = None  # sampled input and output of the first condition's last full evaluation
        self._v: Tensor | None = None
        self._rate: float | None = None
        self._input_change: float | None = None
        self._size = self._change = 0.0
        self._skipped = self._decided = self._skip = False

    def _may_skip(self, key: Hashable, x: Tensor) -> bool:
        self._input_change = None
        seen = self._sampled(x)
        if key != self._leader or self._x is None or self._x.shape != seen.shape:
            return False
        self._input_change = _mean(seen - self._x)
        if self._rate is None:
            return False
        self._change += self._rate * self._input_change / self._size if self._size else math.inf
        if self._change < self.setting.threshold:
            return True
        self._change = 0.0
        return False

    def _learn(self, key: Hashable, x: Tensor, result: Tensor) -> None:
        """Measure the rate of change. Before `start` nothing is measured, as in ComfyUI."""
        if self._sigma > self.start:
            return
        sampled = self._sampled(result)
        if key == self._leader and self._v is not None and self._v.shape == sampled.shape:
            if self._input_change:
                self._rate = _mean(sampled - self._v) / self._input_change
            if self._skipped and (kept := self._kept.get(key)) is not None:
                off = _mean(self._from(kept, x) - result) / (_mean(result) or math.inf)
                self.largest_drift = max(self.largest_drift, off)
        self._leader, self._x, self._v, self._size = key, self._sampled(x).clone(), sampled.clone(), _mean(result)
        self._skipped = False

    def _from(self, kept: _Kept, x: Tensor) -> Tensor:
        return kept.result if self.setting.keeps == "velocity" else x + (kept.result - kept.x)

    def _sampled(self, x: Tensor) -> Tensor:
        every = self.setting.every
        return x[..., ::every, ::every]


def _mean(x: Tensor) -> float:
    return float(x.abs().mean())
