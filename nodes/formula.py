"""Formulas of named numbers, evaluated by the package simpleeval, which cannot run other code."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..flux_core.errors import InputError, SluiceError

MAX_EXPONENT = 4000


def evaluate(expression: str, values: Mapping[str, Any], more: Mapping[str, Callable[..., Any]] | None = None) -> float:
    """The value of a formula. Raises InputError for a wrong formula, SluiceError without the package.

    The formula can use the values by name, all of them as `values`, the functions below, and `more`.
    """
    try:
        from simpleeval import simple_eval
    except ModuleNotFoundError as missing:
        raise SluiceError("Math Expression needs the package simpleeval: pip install simpleeval") from missing
    if not expression.strip():
        raise InputError("The formula is empty.")
    names = {**values, "values": list(values.values())}
    try:
        result = simple_eval(expression, names=names, functions={**FUNCTIONS, **(more or {})})
    except Exception as error:  # any error of the formula
        raise InputError(f"The formula {expression!r} cannot be computed: {error}") from error
    if not isinstance(result, (int, float)):
        raise InputError(f"The formula {expression!r} gives {result!r}, which is not a number.")
    try:
        finite = math.isfinite(float(result))
    except OverflowError:
        finite = False
    if not finite:
        raise InputError(f"The formula {expression!r} gives a number that is not finite.")
    return result


def _sum(*numbers: Any) -> Any:
    return sum(numbers[0]) if len(numbers) == 1 and hasattr(numbers[0], "__iter__") else sum(numbers)


def _pow(base: Any, exponent: Any) -> Any:
    if abs(exponent) > MAX_EXPONENT:
        raise ValueError(f"the exponent {exponent} is larger than {MAX_EXPONENT}")
    return base**exponent


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sum": _sum, "min": min, "max": max, "abs": abs, "round": round, "pow": _pow, "sqrt": math.sqrt,
    "ceil": math.ceil, "floor": math.floor, "log": math.log, "log2": math.log2, "log10": math.log10,
    "sin": math.sin, "cos": math.cos, "tan": math.tan, "int": int, "float": float,
}  # fmt: skip
