"""Numbers, seeds and formulas, with the ids of other packs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from ..formula import evaluate
from ..sockets import BOOLEAN, FLOAT, INT, STRING, Declared, Inputs, socket
from .declared import (
    OfAnotherPack,
    anything,
    decimal,
    flag,
    line,
    lines,
    linked_text,
    one_of,
    whole,
)


def constant(
    pack: str, title: str, name: str, declared: Declared, outputs: Sequence[str] = (), more: Sequence[str] = ()
) -> type[OfAnotherPack]:
    """The class of a node that returns its single value, optionally with names for it and for further outputs, which
    are "".
    """
    kind = declared[0]

    class Constant(OfAnotherPack):
        PACK, TITLE = pack, title
        DESCRIPTION = "A value for one or several inputs."
        FUNCTION = "give"
        RETURN_TYPES = (kind, *(STRING for _ in more))
        RETURN_NAMES = (*(outputs or (kind,)), *more)
        OUTPUT_TOOLTIPS = ("The value.", *("Empty here." for _ in more))

        @classmethod
        def INPUT_TYPES(cls) -> Inputs:
            return {"required": {name: declared}}

        def give(self, **value: Any) -> tuple[Any, ...]:
            return (value[name], *("" for _ in more))

    Constant.__name__ = Constant.__qualname__ = title.replace(" ", "")
    return Constant


EASY, KJ, JW, LOGIC, QUALITY = (
    "comfyui-easy-use",
    "comfyui-kjnodes",
    "comfyui-various",
    "comfyui-logic",
    "qualityoflife",
)
ESSENTIALS, IMPACT, SAVER, COMFYROLL = "comfyui_essentials", "comfyui-impact-pack", "comfy-image-saver", "comfyroll"
NUMBER = "The number."
TEXT = "The text."

CONSTANTS: dict[str, type[Any]] = {
    "easy int": constant(EASY, "Int", "value", whole(NUMBER, 0, -999999, 999999), ("int",)),
    "easy float": constant(EASY, "Float", "value", decimal(NUMBER), ("float",)),
    "easy boolean": constant(EASY, "Boolean", "value", flag(False, "True or false."), ("boolean",)),
    "easy string": constant(EASY, "String", "value", line(TEXT), ("string",)),
    "INTConstant": constant(KJ, "INT Constant", "value", whole(NUMBER), ("value",)),
    "FloatConstant": constant(KJ, "Float Constant", "value", decimal(NUMBER, step=0.00001), ("value",)),
    "BOOLConstant": constant(KJ, "BOOL Constant", "value", flag(True, "True or false."), ("value",)),
    "StringConstant": constant(KJ, "String Constant", "string", line(TEXT)),
    "JWInteger": constant(JW, "Integer", "value", whole(NUMBER)),
    "JWFloat": constant(JW, "Float", "value", decimal(NUMBER)),
    "JWString": constant(JW, "String", "text", line(TEXT)),
    "ImpactInt": constant(IMPACT, "ImpactInt", "value", whole(NUMBER, 0, 0)),
    "ImpactFloat": constant(IMPACT, "ImpactFloat", "value", decimal(NUMBER, 1.0)),
    "ImpactBoolean": constant(IMPACT, "ImpactBoolean", "value", flag(False, "True or false.")),
    "Int-🔬": constant(LOGIC, "Int", "value", whole(NUMBER)),
    "Float-🔬": constant(LOGIC, "Float", "value", decimal(NUMBER)),
    "Bool-🔬": constant(LOGIC, "Bool", "value", flag(False, "True or false.")),
    "String-🔬": constant(LOGIC, "String", "value", lines(TEXT)),
    "float _O": constant(QUALITY, "float", "float", decimal(NUMBER, 0.0, 0.0)),
    "int _O": constant(QUALITY, "int", "int", whole(NUMBER, 0, 0)),
    "String Literal": constant(SAVER, "String Literal", "string", lines(TEXT)),
    "Int Literal": constant(SAVER, "Int Literal", "int", whole(NUMBER, 0, 0, 1000000)),
    "Width/Height Literal": constant(SAVER, "Width/Height Literal", "int", whole("A side in pixels.", 512, 1, 16384)),
    "Cfg Literal": constant(SAVER, "Cfg Literal", "float", decimal(NUMBER, 8.0, 0.0, 100.0)),
    "Seed Generator": constant(
        SAVER, "Seed Generator", "seed", whole("The seed.", 0, 0, 2**64 - 1, control_after_generate=True)
    ),
    "SeargePromptText": constant("SeargeSDXL", "Prompt text input", "prompt", lines(TEXT), ("prompt",)),
    "CR Text": constant(COMFYROLL, "CR Text", "text", lines(TEXT), ("text",), ("show_help",)),
    "CR Prompt Text": constant(COMFYROLL, "CR Prompt Text", "prompt", lines(TEXT), ("prompt",), ("show_help",)),
    "Seed Everywhere": constant(
        "cg-use-everywhere", "Seed Everywhere", "seed", whole("The seed.", 0, 0, 2**64 - 1, control_after_generate=True)
    ),
    "Simple String": constant("cg-use-everywhere", "Simple String", "string", line(TEXT)),
    "SimpleMathInt+": constant(ESSENTIALS, "Simple Math Int", "value", whole(NUMBER)),
    "SimpleMathFloat+": constant(ESSENTIALS, "Simple Math Float", "value", decimal(NUMBER, step=0.05)),
}


class RgthreeSeed(OfAnotherPack):
    """rgthree's seed: -1 means a new one for every run; -2 and -3 mean counting on in the editor."""

    PACK = "rgthree-comfy"
    TITLE = "Seed (rgthree)"
    DESCRIPTION = "A seed for one or several nodes. -1 uses a new one for every run, which is written into the image."
    FUNCTION = "give"
    RETURN_TYPES = (INT,)
    RETURN_NAMES = ("SEED",)
    OUTPUT_TOOLTIPS = ("The seed.",)
    DRAWN = (-1, -2, -3)
    HIGHEST = 1125899906842624

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {"seed": whole("The seed; -1 for a new one each time.", 0, -cls.HIGHEST, cls.HIGHEST)},
            "hidden": {"prompt": "PROMPT", "unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, seed: int, prompt: Any = None, unique_id: Any = None) -> float:
        return random.random() if seed in cls.DRAWN else float(seed)

    def give(self, seed: int, prompt: Any = None, unique_id: Any = None) -> tuple[int]:
        if seed not in self.DRAWN:
            return (seed,)
        drawn = random.randrange(self.HIGHEST)
        self.tell(f"drew the seed {drawn}.")
        node = prompt.get(unique_id) if isinstance(prompt, Mapping) else None
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict):
            node["inputs"]["seed"] = drawn  # so that the image contains the seed with which it was made
        return (drawn,)


class WasSeed(OfAnotherPack):
    """WAS's seed, in four types."""

    PACK = "was-node-suite-comfyui"
    TITLE = "Seed"
    DESCRIPTION = "A seed as several types of number."
    FUNCTION = "give"
    RETURN_TYPES = ("SEED", "NUMBER", FLOAT, INT)
    RETURN_NAMES = ("seed", "number", "float", "int")
    OUTPUT_TOOLTIPS = ("The seed in the form for WAS's samplers.", "The seed.", "The seed.", "The seed.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"seed": whole("The seed.", 0, 0, 2**64 - 1, control_after_generate=True)}}

    def give(self, seed: int) -> tuple[Any, ...]:
        return {"seed": seed}, seed, float(seed), seed


class ConstantNumber(OfAnotherPack):
    """WAS's number."""

    PACK = "was-node-suite-comfyui"
    TITLE = "Constant Number"
    DESCRIPTION = "A number, optionally rounded or converted to true or false."
    FUNCTION = "give"
    RETURN_TYPES = ("NUMBER", FLOAT, INT)
    OUTPUT_TOOLTIPS = ("The number.", "The number.", "The number without its fraction.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "number_type": one_of(("integer", "float", "bool"), "The conversion."),
                "number": decimal(NUMBER),
            },
            "optional": {"number_as_text": linked_text("The number as a text, used instead of the other.")},
        }

    def give(self, number_type: str, number: float, number_as_text: str | None = None) -> tuple[Any, ...]:
        value = float(number_as_text) if number_as_text else float(number)
        kept: float = {"integer": int(value), "float": value, "bool": int(value > 0.5)}[number_type]
        return kept, float(kept), int(kept)


class NumberTo(OfAnotherPack):
    """WAS's node that converts a number to another type."""

    PACK = "was-node-suite-comfyui"
    TITLE = "Number to Text"
    DESCRIPTION = "Converts a number to another type."
    FUNCTION = "convert"
    RETURN_TYPES: tuple[str, ...] = (STRING,)
    OUTPUT_TOOLTIPS = ("The number.",)
    KIND: Any = str

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"number": socket("NUMBER", NUMBER)}}

    def convert(self, number: Any) -> tuple[Any]:
        return (self.KIND(number),)


class NumberToInt(NumberTo):
    """WAS's node that converts a number to a whole number."""

    TITLE = "Number to Int"
    RETURN_TYPES = (INT,)
    KIND = int


class NumberToFloat(NumberTo):
    """WAS's node that converts a number to a float."""

    TITLE = "Number to Float"
    RETURN_TYPES = (FLOAT,)
    KIND = float


class SimpleMath(OfAnotherPack):
    """Essentials' node for a formula of a, b and c."""

    PACK = ESSENTIALS
    TITLE = "Simple Math"
    DESCRIPTION = "Computes a formula of a, b and c. For an image, a[0] is the number, a[1] the height, a[2] the width."
    FUNCTION = "compute"
    RETURN_TYPES: tuple[str, ...] = (INT, FLOAT)
    OUTPUT_TOOLTIPS = ("The result, rounded.", "The result.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        values = {name: anything(f"The value of {name}.", default=0.0) for name in "abc"}
        return {"required": {"value": line("The formula.")}, "optional": values}

    def compute(self, value: str, a: Any = 0.0, b: Any = 0.0, c: Any = 0.0) -> tuple[int, float]:
        made = evaluate(value, {name: _plain(each) for name, each in (("a", a), ("b", b), ("c", c))}, {"len": len})
        return round(made), float(made)


def _plain(value: Any) -> Any:
    """Numbers unchanged, texts converted to numbers, images to their sizes."""
    if hasattr(value, "shape"):
        return [int(side) for side in value.shape]
    return float(value) if isinstance(value, str) else value


class SimpleMathBoolean(OfAnotherPack):
    """Essentials' node for true or false."""

    PACK = ESSENTIALS
    TITLE = "Simple Math Boolean"
    DESCRIPTION = "True or false."
    FUNCTION = "give"
    RETURN_TYPES = (BOOLEAN,)
    OUTPUT_TOOLTIPS = ("The value.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"value": flag(False, "True or false.")}}

    def give(self, value: bool) -> tuple[bool]:
        return (value,)
