"""Inputs that depend on others: of several types, of matching types, chosen by an option, as many as are linked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .inputs import Input as PlainInput
from .inputs import Output as PlainOutput
from .inputs import WidgetInput
from .types import AnyType


class MultiType:
    """An input that accepts any of several link types."""

    class Input(PlainInput):
        def __init__(self, id: Any, types: Sequence[Any] = (), **more: Any) -> None:
            """id: a name, or an input with a widget that also accepts links of other types."""
            widget = id if isinstance(id, PlainInput) else None
            super().__init__(widget.id if widget else id, **more)
            names = [kind if isinstance(kind, str) else kind.io_type for kind in types]
            first = [widget.get_io_type()] if widget else []
            self.widget, self.io_type = widget, ",".join(dict.fromkeys([*first, *names]))

        def as_dict(self) -> dict[str, Any]:
            return {**(self.widget.as_dict() if self.widget else {}), **super().as_dict()}


class MatchType:
    """Inputs and outputs whose types must match."""

    io_type = "COMFY_MATCHTYPE_V3"

    class Template:
        def __init__(self, template_id: str, allowed_types: Any = None) -> None:
            kinds = allowed_types if isinstance(allowed_types, (list, tuple)) else [allowed_types or AnyType]
            self.template_id, self.allowed = template_id, ",".join(dict.fromkeys(kind.io_type for kind in kinds))

        def as_dict(self) -> dict[str, str]:
            return {"template_id": self.template_id, "allowed_types": self.allowed}

    class Input(PlainInput):
        def __init__(self, id: str, template: MatchType.Template, **more: Any) -> None:
            super().__init__(id, **more, template=template.as_dict())

        io_type = "COMFY_MATCHTYPE_V3"

    class Output(PlainOutput):
        def __init__(self, template: MatchType.Template, **more: Any) -> None:
            super().__init__(**more)
            self.template_id = template.template_id

        io_type = "COMFY_MATCHTYPE_V3"


class DynamicCombo:
    """A choice whose options add inputs. The node receives them in one dict."""

    io_type = "COMFY_DYNAMICCOMBO_V3"

    class Option:
        def __init__(self, key: str, inputs: Sequence[Any]) -> None:
            self.key, self.inputs = key, list(inputs)

    class Input(WidgetInput):
        io_type = "COMFY_DYNAMICCOMBO_V3"

        def __init__(self, id: str, options: Sequence[DynamicCombo.Option], *given: Any, **more: Any) -> None:
            declared = [{"key": option.key, "inputs": declarations(option.inputs)} for option in options]
            super().__init__(id, *given, **more, options=declared)


class Autogrow:
    """As many inputs as are linked. The node receives a dict of them by their names."""

    io_type = "COMFY_AUTOGROW_V3"

    class TemplatePrefix:
        """prefix0, prefix1, ..."""

        def __init__(self, input: Any, prefix: str, min: int = 1, max: int = 10) -> None:
            self.declared = {"input": declarations([input]), "prefix": prefix, "min": min, "max": max}

    class TemplateNames:
        """These names, starting with the first."""

        def __init__(self, input: Any, names: Sequence[str], min: int = 1) -> None:
            self.declared = {"input": declarations([input]), "names": list(names), "min": min}

    class Input(PlainInput):
        io_type = "COMFY_AUTOGROW_V3"

        def __init__(self, id: str, template: Any, *given: Any, **more: Any) -> None:
            super().__init__(id, *given, **more, template=template.declared)


def declarations(inputs: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """{"required": {name: declaration}, "optional": {...}}"""
    sections: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
    for one in inputs:
        sections["optional" if one.optional else "required"][one.id] = (one.get_io_type(), one.as_dict())
    return sections
