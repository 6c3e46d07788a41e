"""Single values as nodes, for several inputs at once."""

from __future__ import annotations

from .sockets import BOOLEAN, FLOAT, INT, STRING, Inputs

LARGEST = 2**63 - 1


class PrimitiveInt:
    """A whole number."""

    TITLE = "Int"
    DESCRIPTION = "A whole number for one or several inputs."
    CATEGORY = "utils/primitive"
    FUNCTION = "give"
    RETURN_TYPES = (INT,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        options = {"min": -LARGEST, "max": LARGEST, "control_after_generate": True, "tooltip": "The number."}
        return {"required": {"value": (INT, options)}}

    def give(self, value: int) -> tuple[int]:
        return (value,)


class PrimitiveFloat:
    """A number."""

    TITLE = "Float"
    DESCRIPTION = "A number for one or several inputs."
    CATEGORY = "utils/primitive"
    FUNCTION = "give"
    RETURN_TYPES = (FLOAT,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"value": (FLOAT, {"min": -LARGEST, "max": LARGEST, "tooltip": "The number."})}}

    def give(self, value: float) -> tuple[float]:
        return (value,)


class PrimitiveString:
    """A line of text."""

    TITLE = "String"
    DESCRIPTION = "A line of text for one or several inputs."
    CATEGORY = "utils/primitive"
    FUNCTION = "give"
    RETURN_TYPES = (STRING,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"value": (STRING, {"multiline": False, "tooltip": "The text."})}}

    def give(self, value: str) -> tuple[str]:
        return (value,)


class PrimitiveStringMultiline:
    """A text of several lines."""

    TITLE = "String (Multiline)"
    DESCRIPTION = "A text of several lines for one or several inputs."
    CATEGORY = "utils/primitive"
    FUNCTION = "give"
    RETURN_TYPES = (STRING,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"value": (STRING, {"multiline": True, "tooltip": "The text."})}}

    def give(self, value: str) -> tuple[str]:
        return (value,)


class PrimitiveBoolean:
    """True or false."""

    TITLE = "Boolean"
    DESCRIPTION = "True or false for one or several inputs."
    CATEGORY = "utils/primitive"
    FUNCTION = "give"
    RETURN_TYPES = (BOOLEAN,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"value": (BOOLEAN, {"tooltip": "True or false."})}}

    def give(self, value: bool) -> tuple[bool]:
        return (value,)
