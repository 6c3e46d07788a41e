"""The names of sockets, and functions that declare inputs. flux_core/ defines the values.

Inside ComfyUI our models are not ComfyUI's models, so their links have types of their own: linking one to a node that
cannot use it is refused at the socket instead of failing later. All other types of links are shared.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

INSIDE_COMFYUI = "comfy.model_management" in sys.modules and "folder_paths" in sys.modules

_PREFIX = "FLUX_" if INSIDE_COMFYUI else ""
_MODELS = ("MODEL", "CLIP", "VAE", "CONTROL_NET", "CLIP_VISION", "STYLE_MODEL", "MODEL_PATCH")
MODEL, CLIP, VAE, CONTROL_NET, CLIP_VISION, STYLE_MODEL, MODEL_PATCH = (f"{_PREFIX}{kind}" for kind in _MODELS)
OWN = frozenset({MODEL, CLIP, VAE, CONTROL_NET, CLIP_VISION, STYLE_MODEL, MODEL_PATCH})

CONDITIONING, LATENT, IMAGE, MASK = "CONDITIONING", "LATENT", "IMAGE", "MASK"
SIGMAS, NOISE, SAMPLER, GUIDER = "SIGMAS", "NOISE", "SAMPLER", "GUIDER"
INT, FLOAT, STRING, BOOLEAN = "INT", "FLOAT", "STRING", "BOOLEAN"

MAX_SIZE = 16384  # pixels along one side
MAX_SEED = 2**64 - 1

Declared = tuple[Any, dict[str, Any]]
Inputs = dict[str, dict[str, Any]]


def socket(kind: str, tip: str) -> Declared:
    """A socket without a widget."""
    return kind, {"tooltip": tip}


def integer(default: int, low: int, high: int, tip: str, **more: Any) -> Declared:
    """A whole number between `low` and `high`. more: step and other options of the frontend."""
    return INT, {"default": default, "min": low, "max": high, **more, "tooltip": tip}


def number(default: float, low: float, high: float, step: float, tip: str, **more: Any) -> Declared:
    """A number between `low` and `high`, moved by `step` in the editor."""
    return FLOAT, {"default": default, "min": low, "max": high, "step": step, **more, "tooltip": tip}


def choice(options: Sequence[str], tip: str, **more: Any) -> Declared:
    """One of a list."""
    return list(options), {**more, "tooltip": tip}


def switch(default: bool | None, tip: str) -> Declared:
    """On or off; None where ComfyUI declares no default, which the editor treats as off."""
    return BOOLEAN, {"tooltip": tip} if default is None else {"default": default, "tooltip": tip}


def prompt(tip: str) -> Declared:
    """A text of several lines, in which the frontend resolves {a|b} alternatives."""
    return STRING, {"multiline": True, "dynamicPrompts": True, "tooltip": tip}


def seed(tip: str = "The seed of the noise: the same seed gives the same image.") -> Declared:
    """A seed, with the editor's widget that changes it after each run."""
    return integer(0, 0, MAX_SEED, tip, control_after_generate=True)


def pixels(default: int, tip: str, low: int = 0, step: int = 1) -> Declared:
    """A length in pixels."""
    return integer(default, low, MAX_SIZE, tip, step=step)
