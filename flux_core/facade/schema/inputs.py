"""The inputs and outputs of a node with a schema, and how a link type is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, ClassVar

from .options import given


class Input:
    """One input; link types derive from it."""

    io_type: str = "*"

    def __init__(
        self,
        id: str,
        display_name: str | None = None,
        optional: bool = False,
        tooltip: str | None = None,
        lazy: bool | None = None,
        extra_dict: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        self.id, self.optional, self.lazy, self.tooltip = id, optional, lazy, tooltip
        self.display_name, self.extra_dict = display_name, dict(extra_dict or {})
        self.more = more

    def as_dict(self) -> dict[str, Any]:
        """The options of a plain declaration."""
        own = {"display_name": self.display_name, "tooltip": self.tooltip, "lazy": self.lazy, **self.more}
        return {**given(own), **self.extra_dict}

    def get_io_type(self) -> str:
        return self.io_type


class WidgetInput(Input):
    """An input with a widget. `more` are the options of the widget's type."""

    # The order of its own arguments after the common ones, for packs that pass them by position.
    _ORDER: ClassVar[tuple[str, ...]] = ()
    _SPELLED: ClassVar[Mapping[str, str]] = {
        "force_input": "forceInput",
        "widget_type": "widgetType",
        "dynamic_prompts": "dynamicPrompts",
        "display_mode": "display",
    }

    def __init__(
        self,
        id: str,
        display_name: str | None = None,
        optional: bool = False,
        tooltip: str | None = None,
        lazy: bool | None = None,
        *own: Any,
        **more: Any,
    ) -> None:
        super().__init__(id, display_name, optional, tooltip, lazy, **dict(zip(self._ORDER, own, strict=False)), **more)

    def as_dict(self) -> dict[str, Any]:
        plain = super().as_dict()
        for name, spelled in self._SPELLED.items():
            if name in plain:
                plain[spelled] = plain.pop(name)
        if isinstance(plain.get("display"), Enum):
            plain["display"] = plain["display"].value
        return plain

    @property
    def default(self) -> Any:
        return self.more.get("default")


class Output:
    """One output."""

    io_type: str = "*"

    def __init__(
        self,
        id: str | None = None,
        display_name: str | None = None,
        tooltip: str | None = None,
        is_output_list: bool = False,
        **more: Any,
    ) -> None:
        self.id, self.display_name, self.tooltip, self.is_output_list = id, display_name, tooltip, is_output_list

    def get_io_type(self) -> str:
        return self.io_type


class ComfyTypeI:
    """A link type without its own inputs."""

    io_type: str = "*"
    Type: Any = Any
    Input: Any = Input


class ComfyTypeIO(ComfyTypeI):
    """A link type: `.Input(id, ...)`, `.Output(...)`."""

    Output: Any = Output


def Custom(io_type: str) -> Any:
    """A link type of a pack."""
    return link_type(io_type)


def link_type(io_type: str, base: type[Any] = Input, order: str = "") -> Any:
    """A link type with its two classes, Input and Output. order: names of the options passed by position."""
    own = {"io_type": io_type, **({"_ORDER": tuple(order.split())} if order else {})}
    parts = {"Input": type("Input", (base,), own), "Output": type("Output", (Output,), {"io_type": io_type})}
    return type(io_type, (ComfyTypeIO,), {"io_type": io_type, **parts})


def comfytype(io_type: str, **kwargs: Any) -> Callable[[type[Any]], type[Any]]:
    """A class decorator that names a link type."""

    def named(cls: type[Any]) -> type[Any]:
        made = link_type(io_type)
        cls.io_type = io_type
        for name in ("Input", "Output"):
            inner = cls.__dict__.get(name)
            if inner is None:
                setattr(cls, name, getattr(made, name))
            else:
                inner.io_type = io_type
        return cls

    return named


class ComboInput(WidgetInput):
    """One of a list; the options may be an Enum."""

    _ORDER: ClassVar[tuple[str, ...]] = (
        "default",
        "control_after_generate",
        "upload",
        "image_folder",
        "remote",
        "socketless",
    )

    def __init__(self, id: str, options: Any = None, *given: Any, **more: Any) -> None:
        common = ("display_name", "optional", "tooltip", "lazy", *self._ORDER)
        more |= dict(zip(common, given, strict=False))
        if isinstance(options, type) and issubclass(options, Enum):
            options = [member.value for member in options]
        upload, remote = more.pop("upload", None), more.pop("remote", None)
        super().__init__(id, **more)
        self.options = list(options or [])
        self.more["options"] = self.options
        if isinstance(self.more.get("default"), Enum):
            self.more["default"] = self.more["default"].value
        if isinstance(self.more.get("image_folder"), Enum):
            self.more["image_folder"] = self.more["image_folder"].value
        if upload is not None:
            self.more[upload.value if isinstance(upload, Enum) else str(upload)] = True
        if remote is not None:
            self.more["remote"] = remote.as_dict()


class MultiComboInput(ComboInput):
    """Several of a list."""

    _ORDER = ("default", "placeholder", "chip", "control_after_generate", "socketless")

    def __init__(self, id: str, options: Any = None, *given: Any, **more: Any) -> None:
        more |= dict(zip(("display_name", "optional", "tooltip", "lazy", *self._ORDER), given, strict=False))
        chips = {name: more.pop(name) for name in ("placeholder", "chip") if name in more}
        super().__init__(id, options, **more)
        self.more["multi_select"] = chips
