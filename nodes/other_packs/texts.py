"""Texts joined, replaced and converted, with the ids of other packs."""

from __future__ import annotations

import re
from typing import Any

from ..sockets import STRING, Inputs
from .declared import Numbered, OfAnotherPack, anything, flag, in_order, line, lines, linked_text, one_of, whole


class _Joins(OfAnotherPack):
    """A node that joins texts."""

    FUNCTION = "join"
    RETURN_TYPES: tuple[str, ...] = (STRING,)
    OUTPUT_TOOLTIPS: tuple[str, ...] = ("The text.",)
    DESCRIPTION = "Joins texts."


class WasTextConcatenate(_Joins):
    """WAS's node that joins texts."""

    PACK = "was-node-suite-comfyui"
    TITLE = "Text Concatenate"
    NAMES = ("text_a", "text_b", "text_c", "text_d")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "delimiter": line("The text between them; \\n is a new line.", ", "),
                "clean_whitespace": one_of(("true", "false"), "Remove spaces at their ends."),
            },
            "optional": {name: linked_text("A text.") for name in cls.NAMES},
        }

    def join(self, delimiter: str, clean_whitespace: str, **texts: Any) -> tuple[str]:
        parts = [texts[name] for name in sorted(texts) if isinstance(texts[name], str)]
        parts = [part.strip() for part in parts] if clean_whitespace == "true" else parts
        return (("\n" if delimiter == "\\n" else delimiter).join(filter(None, parts)),)


class JpsTextConcatenate(_Joins):
    """JPS' node that joins texts."""

    PACK = "ComfyUI_JPS-Nodes"
    TITLE = "Text Concatenate (JPS)"
    BETWEEN = {"none": "", "space": " ", "comma": ", "}

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        texts = {f"text{n}": linked_text("A text.") for n in range(1, 6)}
        return {"required": {"delimiter": one_of(list(cls.BETWEEN), "The text between them.")}, "optional": texts}

    def join(self, delimiter: str, **texts: Any) -> tuple[str]:
        return (self.BETWEEN[delimiter].join(filter(None, in_order(texts, "text"))),)


class CRTextConcatenate(_Joins):
    """Comfyroll's node that joins texts."""

    PACK = "comfyroll"
    TITLE = "CR Text Concatenate"
    RETURN_TYPES = ("*", STRING)
    RETURN_NAMES = ("STRING", "show_help")
    OUTPUT_TOOLTIPS = ("The text.", "Empty here.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        texts = {"text1": linked_text("The first text."), "text2": linked_text("The second text.")}
        return {"required": {}, "optional": {**texts, "separator": line("The text between them.")}}

    def join(self, text1: str = "", text2: str = "", separator: str = "") -> tuple[str, str]:
        return text1 + separator + text2, ""


class JoinStrings(_Joins):
    """KJNodes' node that joins two texts."""

    PACK = "comfyui-kjnodes"
    TITLE = "Join Strings"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        texts = {"string1": linked_text("The first text."), "string2": linked_text("The second text.")}
        return {"required": {"delimiter": line("The text between them.", " ")}, "optional": texts}

    def join(self, delimiter: str, string1: str = "", string2: str = "") -> tuple[str]:
        return (string1 + delimiter + string2,)


class JoinStringMulti(_Joins):
    """KJNodes' node that joins any number of texts."""

    PACK = "comfyui-kjnodes"
    TITLE = "Join String Multi"
    RETURN_NAMES = ("string",)
    ACCEPT_ALL_INPUTS = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        second = {"string_2": linked_text("A text.")}
        return {
            "required": {
                "inputcount": whole("The number of texts that are used.", 2, 2, 1000),
                "string_1": linked_text("The first text."),
                "delimiter": line("The text between them.", " "),
                "return_list": flag(False, "Return a list instead of one text."),
            },
            "optional": Numbered("string_", linked_text("A text."), second),
        }

    def join(self, inputcount: int, delimiter: str, return_list: bool, **texts: Any) -> tuple[Any]:
        parts = [str(texts["string_1"]), *filter(None, (texts.get(f"string_{n}") for n in range(2, inputcount + 1)))]
        return (parts if return_list else delimiter.join(parts),)


class EasyPromptConcat(_Joins):
    """Easy-Use's node that joins texts."""

    PACK = "comfyui-easy-use"
    TITLE = "PromptConcat"
    RETURN_NAMES = ("prompt",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        texts = {"prompt1": linked_text("The first text."), "prompt2": linked_text("The second text.")}
        return {"required": {}, "optional": {**texts, "separator": line("The text between them.")}}

    def join(self, prompt1: Any = "", prompt2: Any = "", separator: Any = "") -> tuple[str]:
        return (_flat(prompt1) + _flat(separator) + _flat(prompt2),)


def _flat(value: Any) -> str:
    return ", ".join(map(_flat, value)) if isinstance(value, (list, tuple)) else str(value)


class ConcatTextO(_Joins):
    """Quality of Life's node that joins texts."""

    PACK = "qualityoflife"
    TITLE = "Concat Text"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        texts = {"text1": lines("The first text."), "text2": lines("The second text.")}
        return {"required": {**texts, "separator": line("The text between them.", ",")}}

    def join(self, text1: str, text2: str, separator: str) -> tuple[str]:
        return (text1 + separator + text2,)


class TextO(_Joins):
    """Quality of Life's text, with a space at the end."""

    PACK = "qualityoflife"
    TITLE = "Text"
    DESCRIPTION = "A text followed by a space."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"text": lines("The text.")}}

    def join(self, text: str) -> tuple[str]:
        return (text + " ",)


class ReplaceTextO(_Joins):
    """Quality of Life's node that replaces text."""

    PACK = "qualityoflife"
    TITLE = "Replace Text"
    DESCRIPTION = "Replaces all occurrences of a text."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "text": lines("The text."),
                "old": line("The text to replace."),
                "new": line("The text to insert."),
            }
        }

    def join(self, text: str, old: str, new: str) -> tuple[str]:
        return (text.replace(old, new),)


class StringConstantMultiline(_Joins):
    """KJNodes' text of several lines."""

    PACK = "comfyui-kjnodes"
    TITLE = "String Constant Multiline"
    DESCRIPTION = "A text, with or without its line ends."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"string": lines("The text."), "strip_newlines": flag(True, "Remove line ends.")}}

    def join(self, string: str, strip_newlines: bool) -> tuple[str]:
        return (string.replace("\n", "").strip() if strip_newlines else string,)


class WasTextMultiline(_Joins):
    """WAS's text of several lines."""

    PACK = "was-node-suite-comfyui"
    TITLE = "Text Multiline"
    DESCRIPTION = "A text. Lines that begin with # are left out."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"text": lines("The text.", dynamicPrompts=True)}}

    def join(self, text: str) -> tuple[str]:
        return ("\n".join(each for each in text.splitlines() if not each.strip().startswith("#")),)


class WasTextString(_Joins):
    """WAS's four texts."""

    PACK = "was-node-suite-comfyui"
    TITLE = "Text String"
    DESCRIPTION = "Up to four texts."
    RETURN_TYPES = (STRING,) * 4
    RETURN_NAMES = ("TEXT", "TEXT_B", "TEXT_C", "TEXT_D")
    OUTPUT_TOOLTIPS = ("The first.", "The second.", "The third.", "The fourth.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        more = {name: line("A text.") for name in ("text_b", "text_c", "text_d")}
        return {"required": {"text": line("A text.")}, "optional": more}

    def join(self, text: str = "", text_b: str = "", text_c: str = "", text_d: str = "") -> tuple[str, ...]:
        return text, text_b, text_c, text_d


class SomethingToString(_Joins):
    """KJNodes' node that converts a value to text."""

    PACK = "comfyui-kjnodes"
    TITLE = "Something To String"
    DESCRIPTION = "Converts any value to text, with a prefix and a suffix."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        around = {"prefix": line("The prefix."), "suffix": line("The suffix.")}
        return {"required": {"input": anything("The value.")}, "optional": around}

    def join(self, input: Any, prefix: str = "", suffix: str = "") -> tuple[Any]:
        if not isinstance(input, (int, float, str, list)):
            return (input,)
        text = ", ".join(map(str, input)) if isinstance(input, list) else str(input)
        return (prefix + text + suffix,)


class CRNumberToString(_Joins):
    """Comfyroll's node that converts a whole number to text."""

    PACK = "comfyroll"
    TITLE = "CR Integer To String"
    DESCRIPTION = "Converts a number to text."
    RETURN_TYPES = (STRING, STRING)
    RETURN_NAMES = ("STRING", "show_help")
    OUTPUT_TOOLTIPS = ("The text.", "Empty here.")
    INPUT, KIND = "int_", "INT"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {cls.INPUT: (cls.KIND, {"default": 0, "forceInput": True, "tooltip": "The number."})}}

    def join(self, **number: Any) -> tuple[str, str]:
        return str(number[self.INPUT]), ""


class CRFloatToString(CRNumberToString):
    """Comfyroll's node that converts a number to text."""

    TITLE = "CR Float To String"
    INPUT, KIND = "float_", "FLOAT"


class StringFunction(OfAnotherPack):
    """Custom-Scripts' node that joins and replaces texts."""

    PACK = "comfyui-custom-scripts"
    TITLE = "String Function"
    DESCRIPTION = "Joins texts, or replaces a part of a text; /.../ is a regular expression."
    FUNCTION = "make"
    OUTPUT_NODE = True
    RETURN_TYPES = (STRING,)
    OUTPUT_TOOLTIPS = ("The text.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        texts = {name: lines("A text.", dynamicPrompts=False) for name in ("text_a", "text_b", "text_c")}
        return {
            "required": {
                "action": one_of(
                    ("append", "replace"), "Join the texts, or replace the second by the third in the first."
                ),
                "tidy_tags": one_of(("yes", "no"), "Put single commas between them."),
            },
            "optional": texts,
        }

    def make(
        self, action: str, tidy_tags: str, text_a: str = "", text_b: str = "", text_c: str | None = ""
    ) -> dict[str, Any]:
        tidy = tidy_tags == "yes"
        if action == "append":
            text = (", " if tidy else "").join(filter(None, [text_a, text_b, text_c]))
        elif len(text_b) > 1 and text_b.startswith("/") and text_b.endswith("/"):
            text = re.sub(text_b[1:-1], text_c or "", text_a)
        else:
            text = text_a.replace(text_b, text_c or "")
        if tidy:
            text = re.sub(r"\s{2,}", " ", text).replace(" ,", ",")
            text = re.sub(",{2,}", ",", text).strip()
        return {"ui": {"text": (text,)}, "result": (text,)}
