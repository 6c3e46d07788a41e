"""The number of random cases of a test: a fifth by default, all of them with SLUICE_ALL_CASES=1."""

from __future__ import annotations

import os


def seeds(thorough: int) -> range:
    """The seeds of a test's random cases."""
    return range(thorough if "SLUICE_ALL_CASES" in os.environ else thorough // 5)
