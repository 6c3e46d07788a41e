"""Logic in workflows: switches, conditions, custom lists of options, formulas."""

from __future__ import annotations

from typing import Any

from .sockets import BOOLEAN, FLOAT, INT, STRING, Declared, Inputs, choice, integer, number, socket

PLACE = "logic"
ABSENT: Any = object()  # an input without a link; None is an input whose value is not computed yet


def same(template: str, tip: str, allowed: str = "*", **more: Any) -> Declared:
    """A socket with the same type as the other sockets of its template, determined by their links."""
    matched = {"template_id": template, "allowed_types": allowed}
    return "COMFY_MATCHTYPE_V3", {"template": matched, **more, "tooltip": tip}


def growing(kind: str, prefix: str, tip: str, most: int = 10, **options: Any) -> Declared:
    """A growing number of sockets prefix0, prefix1, ..., which the node receives as one dict."""
    inner = {"required": {prefix: (kind, {**options, "forceInput": True} if kind in (INT, FLOAT, STRING) else options)}}
    template = {"input": inner, "prefix": prefix, "min": 1, "max": most}
    return "COMFY_AUTOGROW_V3", {"template": template, "tooltip": tip}


class ComfySwitchNode:
    """Choose one of two branches."""

    TITLE = "If/Else Switch"
    DESCRIPTION = "Passes on one of two values. Nodes that only the other value needs do not run."
    CATEGORY = PLACE
    EXPERIMENTAL = True
    FUNCTION = "pick"
    RETURN_TYPES = ("COMFY_MATCHTYPE_V3",)
    RETURN_NAMES = ("output",)
    OUTPUT_MATCHTYPES = ("switch",)
    OUTPUT_TOOLTIPS = ("The value of the chosen branch.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {"switch": (BOOLEAN, {"tooltip": "Which of the two values to pass on."})},
            "optional": {
                "on_false": same("switch", "The value if the switch is off.", lazy=True),
                "on_true": same("switch", "The value if the switch is on.", lazy=True),
            },
        }

    def check_lazy_status(self, switch: bool, on_false: Any = ABSENT, on_true: Any = ABSENT) -> list[str]:
        chosen, name = (on_true, "on_true") if switch else (on_false, "on_false")
        return [name] if chosen is None else []

    def pick(self, switch: bool, on_false: Any = ABSENT, on_true: Any = ABSENT) -> tuple[Any]:
        chosen = on_true if switch else on_false
        return (None if chosen is ABSENT else chosen,)


class ComfyNotNode:
    """Negate a value."""

    TITLE = "Not"
    DESCRIPTION = "Returns the opposite. Numbers other than 0 and non-empty texts count as true."
    CATEGORY = PLACE
    FUNCTION = "turn"
    RETURN_TYPES = (BOOLEAN,)
    OUTPUT_TOOLTIPS = ("The opposite.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"value": socket("*", "The value.")}}

    def turn(self, value: Any) -> tuple[bool]:
        return (not value,)


class ComfyAndNode:
    """Whether all values are true."""

    TITLE = "And"
    DESCRIPTION = "Returns whether all values are true. Numbers other than 0 and non-empty texts count as true."
    CATEGORY = PLACE
    FUNCTION = "ask"
    RETURN_TYPES = (BOOLEAN,)
    OUTPUT_TOOLTIPS = ("True if all values are true.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"values": growing("*", "value", "The values.")}}

    def ask(self, values: dict[str, Any]) -> tuple[bool]:
        return (all(values.values()),)


class ComfyOrNode:
    """Whether any value is true."""

    TITLE = "Or"
    DESCRIPTION = "Returns whether any value is true. Numbers other than 0 and non-empty texts count as true."
    CATEGORY = PLACE
    FUNCTION = "ask"
    RETURN_TYPES = (BOOLEAN,)
    OUTPUT_TOOLTIPS = ("True if any value is true.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"values": growing("*", "value", "The values.")}}

    def ask(self, values: dict[str, Any]) -> tuple[bool]:
        return (any(values.values()),)


class ComfyPassOrNoneNode:
    """A value, or a substitute if there is none."""

    TITLE = "Pass or None"
    DESCRIPTION = "Passes on a value, or a substitute if there is none."
    CATEGORY = PLACE
    FUNCTION = "pass_on"
    RETURN_TYPES = ("COMFY_MATCHTYPE_V3", BOOLEAN)
    RETURN_NAMES = ("output", "is_none")
    OUTPUT_MATCHTYPES = ("value", None)
    OUTPUT_TOOLTIPS = ("The value.", "True if there is no value.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {},
            "optional": {
                "anything": same("value", "The value."),
                "default": same("value", "The substitute if there is none."),
            },
        }

    def pass_on(self, anything: Any = None, default: Any = None) -> tuple[Any, bool]:
        value = default if anything is None else anything
        return value, value is None


class CustomCombo:
    """Choose an option of a list that is part of the workflow."""

    ACCEPT_ALL_INPUTS = True  # the editor adds index, option1, option2, ...
    EDITOR_WIDGETS = ("index", "option{}")  # saved after those declared here
    TITLE = "Custom Combo"
    DESCRIPTION = "Returns one of the options that are entered in the node, and its number."
    CATEGORY = "utils"
    EXPERIMENTAL = True
    FUNCTION = "give"
    RETURN_TYPES = (STRING, INT)
    RETURN_NAMES = ("STRING", "INDEX")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"choice": choice([], "The chosen option.")}}

    @classmethod
    def VALIDATE_INPUTS(cls, choice: Any = None, **options: Any) -> bool:
        return True  # the options come from the workflow

    def give(self, choice: str, index: int = 0, **options: Any) -> tuple[str, int]:
        return choice, index


class ComfyMathExpression:
    """Compute a formula."""

    TITLE = "Math Expression"
    DESCRIPTION = "Computes a formula of the values a, b, c, ... in Python's notation: (a // 32) * 32, max(a, b)."
    CATEGORY = "utils"
    FUNCTION = "compute"
    RETURN_TYPES = (FLOAT, INT, BOOLEAN)
    RETURN_NAMES = ("FLOAT", "INT", "BOOL")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        names = [chr(code) for code in range(ord("a"), ord("z") + 1)]
        inner: Inputs = {"optional": {"value": ("FLOAT,INT,BOOLEAN", {})}}
        values = {"template": {"input": inner, "names": names, "min": 1}, "tooltip": "The values of a, b, c, ..."}
        formula = {"default": "a + b", "multiline": True, "tooltip": "The formula."}
        return {"required": {"expression": (STRING, formula), "values": ("COMFY_AUTOGROW_V3", values)}}

    def compute(self, expression: str, values: dict[str, float]) -> tuple[float, int, bool]:
        from .formula import evaluate

        result = evaluate(expression, values)
        return float(result), int(result), bool(result)


class ResolutionSelector:
    """Compute a size from an aspect ratio."""

    TITLE = "Resolution Selector"
    DESCRIPTION = "Computes width and height from the aspect ratio and the size in megapixels."
    CATEGORY = "utils"
    FUNCTION = "give"
    RETURN_TYPES = (INT, INT)
    RETURN_NAMES = ("width", "height")

    SHAPES = {
        "1:1 (Square)": (1, 1),
        "2:3 (Portrait Photo)": (2, 3),
        "3:2 (Photo)": (3, 2),
        "3:4 (Portrait Standard)": (3, 4),
        "4:3 (Standard)": (4, 3),
        "9:16 (Portrait Widescreen)": (9, 16),
        "16:9 (Widescreen)": (16, 9),
        "21:9 (Ultrawide)": (21, 9),
    }

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        shape = choice(list(cls.SHAPES), "Width to height.", default="1:1 (Square)")
        megapixels = number(1.0, 0.1, 16.0, 0.1, "Size in units of 1024 x 1024 pixels. FLUX.1 is best with about one.")
        multiple = integer(8, 8, 128, "Both sides become multiples of this.", step=4)
        return {
            "required": {"aspect_ratio": shape, "megapixels": megapixels},
            "optional": {"multiple": multiple},
        }

    def give(self, aspect_ratio: str, megapixels: float, multiple: int = 8) -> tuple[int, int]:
        across, down = self.SHAPES[aspect_ratio]
        unit = (megapixels * 1024 * 1024 / (across * down)) ** 0.5 / multiple
        return round(across * unit) * multiple, round(down * unit) * multiple
