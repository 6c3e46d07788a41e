"""Warns before a run with long steps, or with a prompt of more tokens than usual, and names the time and the cause."""

from __future__ import annotations

import logging

from ..models.denoiser_inputs import DenoiserInputs
from .flux_needs import tokens_of
from .published import TEXT_TOKENS

log = logging.getLogger(__name__)

LONG_STEP = 60.0  # seconds: from here on a step is worth a warning, whatever makes it long


def warn_of_slow_steps(inputs: DenoiserInputs, seconds: float) -> None:
    """Warn if a step with these inputs, predicted to take `seconds`, is long or has a long prompt."""
    told = slow_steps(inputs, seconds)
    if told:
        log.warning("%s", told)


def slow_steps(inputs: DenoiserInputs, seconds: float) -> str | None:
    """What to say about steps with these inputs; None if nothing is unusual about them.

    inputs: context is [B, L, C], padding included. seconds: predicted for a step.
    """
    prompt, tokens = inputs.context.shape[1], tokens_of(inputs)
    if prompt <= TEXT_TOKENS and seconds < LONG_STEP:
        return None
    told = (
        f"A step is predicted to take {_spelled(seconds)}: it computes {tokens:,} tokens, {prompt:,} of the prompt "
        f"and {tokens - prompt:,} of the image."
    )
    if prompt > TEXT_TOKENS:
        return f"{told} FLUX.1 was trained with prompts of up to {TEXT_TOKENS} tokens: a shorter prompt is faster."
    return f"{told} A smaller image is faster."


def _spelled(seconds: float) -> str:
    """ "0.8 seconds", "12 minutes", "52 hours"."""
    if seconds < 100:
        return f"{seconds:.2g} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:,.0f} hours"
