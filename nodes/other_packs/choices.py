"""Comparisons, switches and groups of values, with the ids of other packs."""

from __future__ import annotations

import operator
from typing import Any

from ...flux_core.graph.calls import ExecutionBlocker
from ..sockets import BOOLEAN, CLIP, CONDITIONING, IMAGE, INT, LATENT, MODEL, STRING, VAE, Inputs, socket
from .declared import (
    Numbered,
    OfAnotherPack,
    anything,
    flag,
    in_order,
    one_of,
    whole,
)
from .values import ESSENTIALS, IMPACT, KJ

COMPARISONS = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


class SimpleComparison(OfAnotherPack):
    """Essentials' node that compares two values."""

    PACK = ESSENTIALS
    TITLE = "Simple Comparison"
    DESCRIPTION = "Returns whether a comparison of two values is true."
    FUNCTION = "compare"
    RETURN_TYPES = (BOOLEAN,)
    OUTPUT_TOOLTIPS = ("The result.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "a": anything("The first value.", default=0),
                "b": anything("The second value.", default=0),
                "comparison": one_of(list(COMPARISONS), "The relation."),
            }
        }

    def compare(self, a: Any, b: Any, comparison: str) -> tuple[bool]:
        return (bool(COMPARISONS[comparison](a, b)),)


class SimpleCondition(OfAnotherPack):
    """Essentials' node that chooses one of two values."""

    PACK = ESSENTIALS
    TITLE = "Simple Condition"
    DESCRIPTION = "Returns one of two values. If that is a missing second value, the following nodes do not run."
    FUNCTION = "choose"
    RETURN_TYPES = ("*",)
    RETURN_NAMES = ("result",)
    OUTPUT_TOOLTIPS = ("The chosen value.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "evaluate": anything("What decides.", default=0),
                "on_true": anything("The value if it is true.", default=0),
            },
            "optional": {"on_false": anything("The value if it is false.")},
        }

    def choose(self, evaluate: Any, on_true: Any, on_false: Any = None) -> tuple[Any]:
        if evaluate:
            return (on_true,)
        return (ExecutionBlocker(None) if on_false is None else on_false,)


class AnySwitch(OfAnotherPack):
    """rgthree's node for the first available value."""

    PACK = "rgthree-comfy"
    TITLE = "Any Switch (rgthree)"
    DESCRIPTION = "Returns the first of its inputs that has a value."
    FUNCTION = "choose"
    RETURN_TYPES = ("*",)
    OUTPUT_TOOLTIPS = ("The first value.",)
    ACCEPT_ALL_INPUTS = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {}, "optional": Numbered("any_", anything("A value."))}

    def choose(self, **values: Any) -> tuple[Any]:
        return (next((value for value in in_order(values, "any_") if not _empty(value)), None),)


def _empty(value: Any) -> bool:
    """Whether there is no value: None, or a context in which every value is None."""
    return value is None or (isinstance(value, Context_) and all(each is None for each in value.values()))


class ImpactSwitch(OfAnotherPack):
    """Impact's node that chooses a value by a number."""

    PACK = IMPACT
    TITLE = "Switch (Any)"
    DESCRIPTION = "Returns one of its inputs, chosen by number."
    FUNCTION = "choose"
    RETURN_TYPES = ("*", STRING, INT)
    RETURN_NAMES = ("selected_value", "selected_label", "selected_index")
    OUTPUT_TOOLTIPS = ("The chosen value.", "The name of its input.", "Its number.")
    ACCEPT_ALL_INPUTS = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "select": whole("The number of the input.", 1, 1, 999999),
                "sel_mode": flag(False, "No effect here: the choice is made during the run."),
            },
            "optional": Numbered("input", anything("A value.", lazy=True), {"input1": anything("A value.", lazy=True)}),
        }

    def check_lazy_status(self, select: int, **values: Any) -> list[str]:
        name = f"input{int(select)}"
        return [name] if values.get(name) is None else []

    def choose(self, select: int, sel_mode: bool = False, **values: Any) -> tuple[Any, str, int]:
        name = f"input{int(select)}"
        return values.get(name), name, select


class Context_(dict[str, Any]):
    """rgthree's context: values by name, for use in several places of a workflow."""


PARTS: dict[str, str] = {
    "model": MODEL, "clip": CLIP, "vae": VAE, "positive": CONDITIONING, "negative": CONDITIONING, "latent": LATENT,
    "images": IMAGE, "seed": INT,
}  # fmt: skip
CONTEXT = "RGTHREE_CONTEXT"


class Context(OfAnotherPack):
    """rgthree's node that adds values to a context and returns them."""

    PACK = "rgthree-comfy"
    TITLE = "Context (rgthree)"
    DESCRIPTION = (
        "Holds values for several places of a workflow: inputs are added to the context, outputs return its values."
    )
    FUNCTION = "convert"
    RETURN_TYPES = (CONTEXT, *PARTS.values())
    RETURN_NAMES = ("CONTEXT", *(name.upper() for name in PARTS))
    OUTPUT_TOOLTIPS = ("The context.", *(f"Its {name}." for name in PARTS))

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        parts = {name: (kind, {"forceInput": True, "tooltip": f"Its {name}."}) for name, kind in PARTS.items()}
        return {"required": {}, "optional": {"base_ctx": socket(CONTEXT, "A context to extend."), **parts}}

    def convert(self, base_ctx: Any = None, **values: Any) -> tuple[Any, ...]:
        made = Context_(base_ctx or {})
        made.update({name: value for name, value in values.items() if value is not None})
        return (made, *(made.get(name) for name in PARTS))


class CondPassThrough(OfAnotherPack):
    """KJNodes' node that passes two conditionings on."""

    PACK = KJ
    TITLE = "CondPassThrough"
    DESCRIPTION = "Passes its values on."
    FUNCTION = "pass_on"
    RETURN_TYPES: tuple[str, ...] = (CONDITIONING, CONDITIONING)
    RETURN_NAMES: tuple[str, ...] = ("positive", "negative")
    OUTPUT_TOOLTIPS: tuple[str, ...] = ("The first.", "The second.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        pairs = zip(cls.RETURN_NAMES, cls.RETURN_TYPES, strict=True)
        return {"required": {}, "optional": {name: socket(kind, "A value.") for name, kind in pairs}}

    def pass_on(self, **values: Any) -> tuple[Any, ...]:
        return tuple(values.get(name) for name in self.RETURN_NAMES)


class ModelPassThrough(CondPassThrough):
    """KJNodes' node that passes a model on."""

    TITLE = "ModelPass"
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The model.",)


class ImagePass(CondPassThrough):
    """KJNodes' node that passes an image on."""

    TITLE = "ImagePass"
    RETURN_TYPES = (IMAGE,)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The image.",)
