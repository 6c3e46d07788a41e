"""Texts put together, cut, compared and searched. Prompts are in text.py."""

from __future__ import annotations

import re

from .sockets import BOOLEAN, INT, STRING, Declared, Inputs, choice, integer, switch

PLACE = "utils/string"


def string(tip: str) -> Declared:
    """A text of several lines, taken as it stands."""
    return STRING, {"multiline": True, "tooltip": tip}


def _flags(case_insensitive: bool, multiline: bool, dotall: bool) -> int:
    chosen = {re.IGNORECASE: case_insensitive, re.MULTILINE: multiline, re.DOTALL: dotall}
    return sum(int(flag) for flag, on in chosen.items() if on)


def _pattern_options() -> dict[str, Declared]:
    return {
        "case_insensitive": switch(True, "Take capital and small letters for the same."),
        "multiline": switch(False, "Let ^ and $ match at every line."),
        "dotall": switch(False, "Let the dot match line ends as well."),
    }


class StringConcatenate:
    """One text after another."""

    TITLE = "Concatenate"
    DESCRIPTION = "Puts two texts one after the other."
    CATEGORY = PLACE
    FUNCTION = "join"
    RETURN_TYPES = (STRING,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        between = STRING, {"default": "", "multiline": False, "tooltip": "What stands between them."}
        return {
            "required": {
                "string_a": string("The first text."),
                "string_b": string("The second text."),
                "delimiter": between,
            }
        }

    def join(self, string_a: str, string_b: str, delimiter: str) -> tuple[str]:
        return (delimiter.join((string_a, string_b)),)


class StringSubstring:
    """A part of a text."""

    TITLE = "Substring"
    DESCRIPTION = "Cuts a part out of a text. Negative places count from its end."
    CATEGORY = PLACE
    FUNCTION = "cut"
    RETURN_TYPES = (STRING,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "string": string("The text."),
                "start": (INT, {"tooltip": "The first character, counted from 0."}),
                "end": (INT, {"tooltip": "The character to stop before."}),
            }
        }

    def cut(self, string: str, start: int, end: int) -> tuple[str]:
        return (string[start:end],)


class StringLength:
    """How long a text is."""

    TITLE = "Length"
    DESCRIPTION = "Counts the characters of a text."
    CATEGORY = PLACE
    FUNCTION = "count"
    RETURN_TYPES = (INT,)
    RETURN_NAMES = ("length",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"string": string("The text.")}}

    def count(self, string: str) -> tuple[int]:
        return (len(string),)


class CaseConverter:
    """Capital and small letters."""

    TITLE = "Case Converter"
    DESCRIPTION = "Writes a text in capital or small letters."
    CATEGORY = PLACE
    FUNCTION = "convert"
    RETURN_TYPES = (STRING,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        modes = choice(["UPPERCASE", "lowercase", "Capitalize", "Title Case"], "Which letters become capitals.")
        return {"required": {"string": string("The text."), "mode": modes}}

    def convert(self, string: str, mode: str) -> tuple[str]:
        ways = {"UPPERCASE": str.upper, "lowercase": str.lower, "Capitalize": str.capitalize, "Title Case": str.title}
        return (ways[mode](string),)


class StringTrim:
    """A text without the space around it."""

    TITLE = "Trim"
    DESCRIPTION = "Takes spaces and line ends off the ends of a text."
    CATEGORY = PLACE
    FUNCTION = "trim"
    RETURN_TYPES = (STRING,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"string": string("The text."), "mode": choice(["Both", "Left", "Right"], "Which end.")}}

    def trim(self, string: str, mode: str) -> tuple[str]:
        return ({"Both": str.strip, "Left": str.lstrip, "Right": str.rstrip}[mode](string),)


class StringReplace:
    """One piece of text for another."""

    TITLE = "Replace"
    DESCRIPTION = "Replaces every occurrence of a piece of text."
    CATEGORY = PLACE
    FUNCTION = "replace_all"
    RETURN_TYPES = (STRING,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "string": string("The text."),
                "find": string("What is replaced."),
                "replace": string("What takes its place."),
            }
        }

    def replace_all(self, string: str, find: str, replace: str) -> tuple[str]:
        return (string.replace(find, replace),)


class StringContains:
    """Whether a text holds another."""

    TITLE = "Contains"
    DESCRIPTION = "Tells whether a text contains another."
    CATEGORY = PLACE
    FUNCTION = "look"
    RETURN_TYPES = (BOOLEAN,)
    RETURN_NAMES = ("contains",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "string": string("The text."),
                "substring": string("What is looked for."),
                "case_sensitive": switch(True, "Tell capital from small letters."),
            }
        }

    def look(self, string: str, substring: str, case_sensitive: bool) -> tuple[bool]:
        return (substring in string if case_sensitive else substring.lower() in string.lower(),)


class StringCompare:
    """Two texts side by side."""

    TITLE = "Compare"
    DESCRIPTION = "Tells whether two texts are equal, or one begins or ends with the other."
    CATEGORY = PLACE
    FUNCTION = "compare"
    RETURN_TYPES = (BOOLEAN,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "string_a": string("The text."),
                "string_b": string("What it is compared with."),
                "mode": choice(["Starts With", "Ends With", "Equal"], "What is asked."),
                "case_sensitive": switch(True, "Tell capital from small letters."),
            }
        }

    def compare(self, string_a: str, string_b: str, mode: str, case_sensitive: bool) -> tuple[bool]:
        a, b = (string_a, string_b) if case_sensitive else (string_a.lower(), string_b.lower())
        if mode == "Equal":
            return (a == b,)
        return (a.startswith(b) if mode == "Starts With" else a.endswith(b),)


class RegexMatch:
    """Whether a pattern fits."""

    TITLE = "Regex Match"
    DESCRIPTION = "Tells whether a regular expression matches anywhere in a text. One that is wrong matches nowhere."
    CATEGORY = PLACE
    FUNCTION = "match"
    RETURN_TYPES = (BOOLEAN,)
    RETURN_NAMES = ("matches",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        pattern = string("The regular expression, as Python reads it.")
        return {"required": {"string": string("The text."), "regex_pattern": pattern, **_pattern_options()}}

    def match(
        self, string: str, regex_pattern: str, case_insensitive: bool, multiline: bool, dotall: bool
    ) -> tuple[bool]:
        try:
            return (re.search(regex_pattern, string, _flags(case_insensitive, multiline, dotall)) is not None,)
        except re.error:
            return (False,)


class RegexExtract:
    """What a pattern finds."""

    TITLE = "Regex Extract"
    DESCRIPTION = "Gives what a regular expression finds in a text, several finds in lines. A wrong one finds nothing."
    CATEGORY = PLACE
    FUNCTION = "extract"
    RETURN_TYPES = (STRING,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        modes = choice(["First Match", "All Matches", "First Group", "All Groups"], "What is given.")
        return {
            "required": {
                "string": string("The text."),
                "regex_pattern": string("The regular expression, as Python reads it."),
                "mode": modes,
                **_pattern_options(),
                "group_index": integer(1, 0, 100, "Which group of the expression; 0 is all of it."),
            }
        }

    def extract(
        self,
        string: str,
        regex_pattern: str,
        mode: str,
        case_insensitive: bool,
        multiline: bool,
        dotall: bool,
        group_index: int,
    ) -> tuple[str]:
        try:
            expression = re.compile(regex_pattern, _flags(case_insensitive, multiline, dotall))
        except re.error:
            return ("",)
        group = {"First Match": 0, "All Matches": min(1, expression.groups)}.get(mode, group_index)
        if expression.groups < group or (mode == "All Groups" and not expression.groups):
            return ("",)
        finds = [one[group] or "" for one in expression.finditer(string)]
        return ("\n".join(finds[:1] if mode.startswith("First") else finds),)


class RegexReplace:
    """A pattern for a text."""

    TITLE = "Regex Replace"
    DESCRIPTION = "Replaces what a regular expression finds in a text."
    CATEGORY = PLACE
    FUNCTION = "replace_found"
    RETURN_TYPES = (STRING,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        count = integer(0, 0, 100, "How many finds are replaced; 0 replaces all.")
        return {
            "required": {
                "string": string("The text."),
                "regex_pattern": string("The regular expression, as Python reads it."),
                "replace": string("What takes its place; \\1 stands for the first group."),
            },
            "optional": {**_pattern_options(), "count": count},
        }

    def replace_found(
        self,
        string: str,
        regex_pattern: str,
        replace: str,
        case_insensitive: bool = True,
        multiline: bool = False,
        dotall: bool = False,
        count: int = 0,
    ) -> tuple[str]:
        from ..flux_core.errors import InputError

        try:
            flags = _flags(case_insensitive, multiline, dotall)
            return (re.sub(regex_pattern, replace, string, count=count, flags=flags),)
        except re.error as error:
            raise InputError(f"{regex_pattern!r} is no regular expression: {error}.") from error
