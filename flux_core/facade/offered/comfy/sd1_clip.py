"""comfy.sd1_clip: the weights of words in prompts."""

from __future__ import annotations

from ....conditioning import weighting

__all__ = ["escape_important", "token_weights", "unescape_important"]


def token_weights(string: str, current_weight: float) -> list[tuple[str, float]]:
    """[(text, weight)] of the groups in an escaped prompt; `current_weight` is the weight outside of all groups."""
    return weighting.weighted(string, current_weight)


def escape_important(text: str) -> str:
    """A prompt whose escaped parentheses are no parentheses; `unescape_important` brings them back."""
    return weighting.escape(text)


def unescape_important(text: str) -> str:
    return weighting.unescape(text)
