"""Join, cut, compare and search texts. Prompts are in text.py."""

from __future__ import annotations

import re

from .sockets import BOOLEAN, INT, STRING, Declared, Inputs, choice, integer, switch

PLACE = "utils/string"


def string(tip: str) -> Declared:
    """A text of several lines, used without changes."""
    return STRING, {"multiline": True, "tooltip": tip}


def _flags(case_insensitive: bool, multiline: bool, dotall: bool) -> int:
    chosen = {re.IGNORECASE: case_insensitive, re.MULTILINE: multiline, re.DOTALL: dotall}
    return sum(int(flag) for flag, on in chosen.items() if on)


def _pattern_options() -> dict[str, Declared]:
    return {
        "case_insensitive": switch(True, "Ignore the difference of capital and small letters."),
        "multiline": switch(False, "Let ^ and $ match at each line."),
        "dotall": switch(False, "Let the dot match line ends as well."),
    }


class StringConcatenate:
    """Join two texts."""

    TITLE = "Concatenate"
    DESCRIPTION = "Joins two texts."
    CATEGORY = PLACE
    FUNCTION = "join"
    RETURN_TYPES = (STRING,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        between = STRING, {"default": "", "multiline": False, "tooltip": "The text between them."}
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
    """Cut a part out of a text."""

    TITLE = "Substring"
    DESCRIPTION = "Returns a part of a text. Negative positions count from its end."
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
    """The length of a text."""

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
    """Change capital and small letters."""

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
    """Remove the space around a text."""

    TITLE = "Trim"
    DESCRIPTION = "Removes spaces and line ends from the ends of a text."
    CATEGORY = PLACE
    FUNCTION = "trim"
    RETURN_TYPES = (STRING,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"string": string("The text."), "mode": choice(["Both", "Left", "Right"], "Which end.")}}

    def trim(self, string: str, mode: str) -> tuple[str]:
        return ({"Both": str.strip, "Left": str.lstrip, "Right": str.rstrip}[mode](string),)


class StringReplace:
    """Replace text."""

    TITLE = "Replace"
    DESCRIPTION = "Replaces all occurrences of a text."
    CATEGORY = PLACE
    FUNCTION = "replace_all"
    RETURN_TYPES = (STRING,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "string": string("The text."),
                "find": string("The text to replace."),
                "replace": string("The text to insert."),
            }
        }

    def replace_all(self, string: str, find: str, replace: str) -> tuple[str]:
        return (string.replace(find, replace),)


class StringContains:
    """Whether a text contains another."""

    TITLE = "Contains"
    DESCRIPTION = "Returns whether a text contains another."
    CATEGORY = PLACE
    FUNCTION = "look"
    RETURN_TYPES = (BOOLEAN,)
    RETURN_NAMES = ("contains",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "string": string("The text."),
                "substring": string("The text to search for."),
                "case_sensitive": switch(True, "Distinguish capital and small letters."),
            }
        }

    def look(self, string: str, substring: str, case_sensitive: bool) -> tuple[bool]:
        return (substring in string if case_sensitive else substring.lower() in string.lower(),)


class StringCompare:
    """Compare two texts."""

    TITLE = "Compare"
    DESCRIPTION = "Returns whether two texts are equal, or whether one begins or ends with the other."
    CATEGORY = PLACE
    FUNCTION = "compare"
    RETURN_TYPES = (BOOLEAN,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "string_a": string("The text."),
                "string_b": string("The text to compare with."),
                "mode": choice(["Starts With", "Ends With", "Equal"], "The comparison."),
                "case_sensitive": switch(True, "Distinguish capital and small letters."),
            }
        }

    def compare(self, string_a: str, string_b: str, mode: str, case_sensitive: bool) -> tuple[bool]:
        a, b = (string_a, string_b) if case_sensitive else (string_a.lower(), string_b.lower())
        if mode == "Equal":
            return (a == b,)
        return (a.startswith(b) if mode == "Starts With" else a.endswith(b),)


class RegexMatch:
    """Whether a pattern matches."""

    TITLE = "Regex Match"
    DESCRIPTION = "Returns whether a regular expression matches anywhere in a text. An invalid one matches nowhere."
    CATEGORY = PLACE
    FUNCTION = "match"
    RETURN_TYPES = (BOOLEAN,)
    RETURN_NAMES = ("matches",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        pattern = string("The regular expression, in Python's syntax.")
        return {"required": {"string": string("The text."), "regex_pattern": pattern, **_pattern_options()}}

    def match(
        self, string: str, regex_pattern: str, case_insensitive: bool, multiline: bool, dotall: bool
    ) -> tuple[bool]:
        try:
            return (re.search(regex_pattern, string, _flags(case_insensitive, multiline, dotall)) is not None,)
        except re.error:
            return (False,)


class RegexExtract:
    """Find a pattern in a text."""

    TITLE = "Regex Extract"
    DESCRIPTION = "Returns the matches of a regular expression in a text, one per line. An invalid one matches nothing."
    CATEGORY = PLACE
    FUNCTION = "extract"
    RETURN_TYPES = (STRING,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        modes = choice(["First Match", "All Matches", "First Group", "All Groups"], "What to return.")
        return {
            "required": {
                "string": string("The text."),
                "regex_pattern": string("The regular expression, in Python's syntax."),
                "mode": modes,
                **_pattern_options(),
                "group_index": integer(1, 0, 100, "The group of the expression; 0 is the whole match."),
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
    """Replace matches of a pattern."""

    TITLE = "Regex Replace"
    DESCRIPTION = "Replaces the matches of a regular expression in a text."
    CATEGORY = PLACE
    FUNCTION = "replace_found"
    RETURN_TYPES = (STRING,)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        count = integer(0, 0, 100, "The number of matches to replace; 0 replaces all.")
        return {
            "required": {
                "string": string("The text."),
                "regex_pattern": string("The regular expression, in Python's syntax."),
                "replace": string("The text to insert; \\1 stands for the first group."),
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
            raise InputError(f"{regex_pattern!r} is not a regular expression: {error}.") from error
