"""Nodes that let a model skip evaluations whose result would hardly change: EasyCache, LazyCache and Sluice's own.

The ids of other packs' caches (first block cache, TeaCache, MagCache) are for workflows outside ComfyUI, where those
packs are missing: they set Sluice's own cache, to the threshold that skips about as many of 20 steps.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from .sockets import MODEL, STRING, Inputs, choice, number, socket, switch

log = logging.getLogger(__name__)

THRESHOLD_TIP = "How large the estimated relative change may become before a step is computed again. 0 skips nothing."
START_TIP = "The share of the steps, from the start, that is always computed."
END_TIP = "The share of the steps after which every step is computed."


def _cached(model: Any, threshold: float, start: float, end: float, **more: Any) -> tuple[Any]:
    from ..flux_core.sampling.step_cache import StepCache

    return (replace(model, own_step_cache=StepCache(threshold, start, end, **more)),)


class _Cache:
    """The common parts of EasyCache and LazyCache."""

    CATEGORY = "advanced/debug/model"
    EXPERIMENTAL = True
    FUNCTION = "patch"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with this cache.",)
    KEEPS = ""

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model."),
                "reuse_threshold": number(0.2, 0.0, 3.0, 0.01, THRESHOLD_TIP),
                "start_percent": number(0.15, 0.0, 1.0, 0.01, START_TIP),
                "end_percent": number(0.95, 0.0, 1.0, 0.01, END_TIP),
                "verbose": switch(False, "Kept for saved workflows. The result is always written to the log."),
            }
        }

    def patch(
        self, model: Any, reuse_threshold: float, start_percent: float, end_percent: float, verbose: bool = False
    ) -> tuple[Any]:
        from ..flux_core.sampling.step_cache import SUBSAMPLE

        return _cached(model, reuse_threshold, start_percent, end_percent, keeps=self.KEEPS, every=SUBSAMPLE)


class EasyCache(_Cache):
    """ComfyUI's EasyCache: keeps the difference between output and input."""

    TITLE = "EasyCache"
    DESCRIPTION = (
        "Skips evaluations of the model while its output hardly changes. Images differ slightly; the log says how much."
    )
    KEEPS = "difference"


class LazyCache(_Cache):
    """ComfyUI's LazyCache: the same rule around the whole guider."""

    TITLE = "LazyCache"
    DESCRIPTION = "As EasyCache, but decides once for all conditions of a step, from the denoised image."
    KEEPS = "denoised"


class StepCache:
    """Sluice's own step cache: keeps the velocity."""

    TITLE = "Step Cache"
    DESCRIPTION = (
        "Skips evaluations of the model while its output hardly changes, and reuses the velocity meanwhile. "
        "0.1 computes about 11 of 20 steps, 0.2 about 9. Images differ slightly; the log says how much."
    )
    CATEGORY = "advanced/model"
    FUNCTION = "patch"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with this cache.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model."),
                "threshold": number(0.1, 0.0, 3.0, 0.01, THRESHOLD_TIP),
                "start_percent": number(0.15, 0.0, 1.0, 0.01, START_TIP),
                "end_percent": number(0.95, 0.0, 1.0, 0.01, END_TIP),
            }
        }

    def patch(self, model: Any, threshold: float, start_percent: float, end_percent: float) -> tuple[Any]:
        return _cached(model, threshold, start_percent, end_percent)


class _ElsewhereCache:
    """A cache of another pack, replaced by Sluice's own: `RATIO` times its threshold skips about as many steps."""

    CATEGORY = "advanced/model"
    FUNCTION = "patch"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with Sluice's step cache.",)
    ALONE = True
    RATIO = 1.0

    TITLE = ""

    def _own(self, model: Any, threshold: float, start: float, end: float) -> tuple[Any]:
        log.info("%s is replaced by Sluice's step cache with threshold %.3f.", self.TITLE, self.RATIO * threshold)
        return _cached(model, self.RATIO * threshold, start, end)


class ApplyFBCacheOnModel(_ElsewhereCache):
    """The first block cache of WaveSpeed, by its inputs."""

    TITLE = "Apply First Block Cache"
    DESCRIPTION = "WaveSpeed's first block cache. Sluice uses its own step cache, at half the threshold."
    RATIO = 0.5

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model."),
                "object_to_patch": (STRING, {"default": "diffusion_model", "tooltip": "Not used."}),
                "residual_diff_threshold": number(0.0, 0.0, 1.0, 0.001, "0 skips nothing; 0.12 is usual."),
                "start": number(0.0, 0.0, 1.0, 0.01, START_TIP),
                "end": number(1.0, 0.0, 1.0, 0.01, END_TIP),
                "max_consecutive_cache_hits": number(-1, -1, 100, 1, "Not used."),
            }
        }

    def patch(
        self,
        model: Any,
        object_to_patch: str,
        residual_diff_threshold: float,
        start: float,
        end: float,
        max_consecutive_cache_hits: float,
    ) -> tuple[Any]:
        return self._own(model, residual_diff_threshold, start, end)


class TeaCache(_ElsewhereCache):
    """TeaCache's node, by its inputs."""

    TITLE = "TeaCache"
    DESCRIPTION = "TeaCache. Sluice uses its own step cache, at a quarter of the threshold."
    RATIO = 0.25

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model."),
                "model_type": (STRING, {"default": "flux", "tooltip": "Not used: it is read from the model."}),
                "rel_l1_thresh": number(0.4, 0.0, 10.0, 0.01, "0 skips nothing; 0.25 to 0.8 is usual."),
            },
            "optional": {
                "start_percent": number(0.0, 0.0, 1.0, 0.01, START_TIP),
                "end_percent": number(1.0, 0.0, 1.0, 0.01, END_TIP),
                "cache_device": choice(["cuda", "cpu"], "Not used: the cache is small."),
            },
        }

    def patch(
        self,
        model: Any,
        model_type: str,
        rel_l1_thresh: float,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        cache_device: str = "cuda",
    ) -> tuple[Any]:
        return self._own(model, rel_l1_thresh, start_percent, end_percent)


class TeaCacheForImgGen(TeaCache):
    """TeaCache's node under its older id."""

    TITLE = "TeaCache For Img Gen"


class MagCache(_ElsewhereCache):
    """MagCache's node, by its inputs."""

    TITLE = "MagCache"
    DESCRIPTION = "MagCache. Sluice uses its own step cache, at four fifths of the threshold."
    RATIO = 0.8

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The model."),
                "model_type": (STRING, {"default": "flux", "tooltip": "Not used: it is read from the model."}),
                "magcache_thresh": number(0.24, 0.0, 0.3, 0.01, "0 skips nothing."),
                "retention_ratio": number(0.1, 0.0, 0.3, 0.01, START_TIP),
                "magcache_K": number(5, 0, 6, 1, "Not used."),
            }
        }

    def patch(
        self, model: Any, model_type: str, magcache_thresh: float, retention_ratio: float, magcache_K: float
    ) -> tuple[Any]:
        return self._own(model, magcache_thresh, retention_ratio, 1.0)
