"""comfy_api.latest.io: nodes declared by a schema, served as plain node classes.

    class Add(io.ComfyNode):
        define_schema() -> io.Schema(node_id, inputs=[io.Int.Input("a")], outputs=[io.Int.Output()])
        execute(a) -> io.NodeOutput(a + 1)

`ComfyNode` reads the schema when an attribute of a plain class is first read.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from ....graph.calls import ExecutionBlocker

__all__ = [
    "AnyType", "Audio", "AudioEncoder", "AudioEncoderOutput", "Autogrow", "BBOX", "Boolean", "BoundingBox", "Clip",
    "ClipVision", "ClipVisionOutput", "Combo", "ComfyNode", "ComfyTypeI", "ComfyTypeIO", "Conditioning", "ControlNet",
    "Custom", "DynamicCombo", "FaceAnalysis", "Float", "FolderType", "Gligen", "Guider", "Hidden", "HiddenHolder",
    "Hooks", "Image", "Input", "Int", "Latent", "LatentUpscaleModel", "LoraModel", "LossMap", "Mask", "MatchType",
    "Mesh", "Model", "MultiCombo", "MultiType", "NodeOutput", "Noise", "NumberDisplay", "Output", "Photomaker",
    "Point", "RemoteOptions", "SEGS", "SVG", "Sampler", "Schema", "Sigmas", "String", "StyleModel", "TimestepsRange",
    "Tracks", "UploadType", "UpscaleModel", "Vae", "Video", "Voxel", "Webcam", "WidgetInput", "comfytype",
]  # fmt: skip


class FolderType(str, Enum):
    input = "input"
    output = "output"
    temp = "temp"


class UploadType(str, Enum):
    image = "image_upload"
    audio = "audio_upload"
    video = "video_upload"
    model = "file_upload"


class NumberDisplay(str, Enum):
    number = "number"
    slider = "slider"


class Hidden(str, Enum):
    """The hidden inputs that a node may declare."""

    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"
    dynprompt = "DYNPROMPT"
    auth_token_comfy_org = "AUTH_TOKEN_COMFY_ORG"
    api_key_comfy_org = "API_KEY_COMFY_ORG"


@dataclass
class RemoteOptions:
    """Options that the page fetches."""

    route: str
    refresh_button: bool = False
    control_after_refresh: str = "first"
    timeout: int | None = None
    max_retries: int | None = None
    refresh: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return _given(vars(self))


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


# -- inputs and outputs ------------------------------------------------------------------------------------------------


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
        return {**_given(own), **self.extra_dict}

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
    return _kind(io_type)


def _kind(io_type: str, base: type[Any] = Input, order: str = "") -> Any:
    own = {"io_type": io_type, **({"_ORDER": tuple(order.split())} if order else {})}
    parts = {"Input": type("Input", (base,), own), "Output": type("Output", (Output,), {"io_type": io_type})}
    return type(io_type, (ComfyTypeIO,), {"io_type": io_type, **parts})


def comfytype(io_type: str, **kwargs: Any) -> Callable[[type[Any]], type[Any]]:
    """A class decorator that names a link type."""

    def named(cls: type[Any]) -> type[Any]:
        made = _kind(io_type)
        cls.io_type = io_type
        for name in ("Input", "Output"):
            inner = cls.__dict__.get(name)
            if inner is None:
                setattr(cls, name, getattr(made, name))
            else:
                inner.io_type = io_type
        return cls

    return named


class _ComboInput(WidgetInput):
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


class _MultiComboInput(_ComboInput):
    """Several of a list."""

    _ORDER = ("default", "placeholder", "chip", "control_after_generate", "socketless")

    def __init__(self, id: str, options: Any = None, *given: Any, **more: Any) -> None:
        more |= dict(zip(("display_name", "optional", "tooltip", "lazy", *self._ORDER), given, strict=False))
        chips = {name: more.pop(name) for name in ("placeholder", "chip") if name in more}
        super().__init__(id, options, **more)
        self.more["multi_select"] = chips


Boolean = _kind("BOOLEAN", WidgetInput, "default label_on label_off socketless force_input")
Int = _kind("INT", WidgetInput, "default min max step control_after_generate display_mode socketless force_input")
Float = _kind("FLOAT", WidgetInput, "default min max step round display_mode socketless force_input")
String = _kind("STRING", WidgetInput, "multiline placeholder default dynamic_prompts socketless force_input")
Combo = _kind("COMBO", _ComboInput)
MultiCombo = _kind("COMBO", _MultiComboInput)
Image, Mask, Latent, Conditioning = map(_kind, ("IMAGE", "MASK", "LATENT", "CONDITIONING"))
Sampler, Sigmas, Noise, Guider = map(_kind, ("SAMPLER", "SIGMAS", "NOISE", "GUIDER"))
Model, Clip, Vae, ControlNet = map(_kind, ("MODEL", "CLIP", "VAE", "CONTROL_NET"))
ClipVision, ClipVisionOutput, StyleModel = map(_kind, ("CLIP_VISION", "CLIP_VISION_OUTPUT", "STYLE_MODEL"))
Gligen, UpscaleModel, LoraModel, LossMap = map(_kind, ("GLIGEN", "UPSCALE_MODEL", "LORA_MODEL", "LOSS_MAP"))
Audio, Video, SVG, Voxel, Mesh = map(_kind, ("AUDIO", "VIDEO", "SVG", "VOXEL", "MESH"))
Hooks, TimestepsRange, Photomaker, Point = map(_kind, ("HOOKS", "TIMESTEPS_RANGE", "PHOTOMAKER", "POINT"))
Tracks, BoundingBox, LatentUpscaleModel = map(_kind, ("TRACKS", "BOUNDING_BOX", "LATENT_UPSCALE_MODEL"))
FaceAnalysis, BBOX, SEGS, Webcam = map(_kind, ("FACE_ANALYSIS", "BBOX", "SEGS", "WEBCAM"))
AudioEncoder, AudioEncoderOutput, AnyType = map(_kind, ("AUDIO_ENCODER", "AUDIO_ENCODER_OUTPUT", "*"))


class MultiType:
    """An input that accepts any of several link types."""

    class Input(Input):
        def __init__(self, id: Any, types: Sequence[Any] = (), **more: Any) -> None:
            """id: a name, or an input with a widget that also accepts links of other types."""
            widget = id if isinstance(id, Input) else None
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

    class Input(Input):
        def __init__(self, id: str, template: MatchType.Template, **more: Any) -> None:
            super().__init__(id, **more, template=template.as_dict())

        io_type = "COMFY_MATCHTYPE_V3"

    class Output(Output):
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
            declared = [{"key": option.key, "inputs": _sections(option.inputs)} for option in options]
            super().__init__(id, *given, **more, options=declared)


class Autogrow:
    """As many inputs as are linked. The node receives a dict of them by their names."""

    io_type = "COMFY_AUTOGROW_V3"

    class TemplatePrefix:
        """prefix0, prefix1, ..."""

        def __init__(self, input: Any, prefix: str, min: int = 1, max: int = 10) -> None:
            self.declared = {"input": _sections([input]), "prefix": prefix, "min": min, "max": max}

    class TemplateNames:
        """These names, starting with the first."""

        def __init__(self, input: Any, names: Sequence[str], min: int = 1) -> None:
            self.declared = {"input": _sections([input]), "names": list(names), "min": min}

    class Input(Input):
        io_type = "COMFY_AUTOGROW_V3"

        def __init__(self, id: str, template: Any, *given: Any, **more: Any) -> None:
            super().__init__(id, *given, **more, template=template.declared)


def _sections(inputs: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """{"required": {name: declaration}, "optional": {...}}"""
    sections: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
    for one in inputs:
        sections["optional" if one.optional else "required"][one.id] = (one.get_io_type(), one.as_dict())
    return sections


# -- schema and node ---------------------------------------------------------------------------------------------------


@dataclass
class Schema:
    """The declaration of a node."""

    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    hidden: list[Hidden] = field(default_factory=list)
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_api_node: bool = False
    is_dev_only: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False
    accept_all_inputs: bool = False
    search_aliases: list[str] | None = None
    essentials_category: str | None = None
    price_badge: Any = None
    has_intermediate_output: bool = False

    def declared(self) -> dict[str, dict[str, Any]]:
        """INPUT_TYPES of a plain class."""
        sections = {**_sections(self.inputs or []), "hidden": {}}
        wanted = [*(self.hidden or []), *([Hidden.unique_id] if self.not_idempotent else [])]
        if self.is_output_node:
            wanted += [Hidden.prompt, Hidden.extra_pnginfo]
        for one in wanted:
            sections["hidden"][one.name] = one.value
        return sections


class HiddenHolder:
    """`cls.hidden.unique_id` and the like; None for inputs that were not declared."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class NodeOutput:
    """The result of a node: its outputs in order, data to show, a graph to run in its place, or a reason to stop."""

    def __init__(
        self, *args: Any, ui: Any = None, expand: Mapping[str, Any] | None = None, block_execution: str | None = None
    ) -> None:
        self.args, self.ui, self.expand, self.block_execution = args, ui, expand, block_execution

    @property
    def result(self) -> tuple[Any, ...] | None:
        return self.args or None

    def __getitem__(self, index: int) -> Any:
        return self.args[index]

    def plain(self, outputs: int) -> dict[str, Any]:
        """The result in the form of a plain class."""
        made: dict[str, Any] = {"result": self.args}
        if self.block_execution is not None:
            made["result"] = (ExecutionBlocker(self.block_execution),) * outputs
        if self.ui is not None:
            made["ui"] = self.ui if isinstance(self.ui, dict) else self.ui.as_dict()
        if self.expand is not None:
            made["expand"] = self.expand
        return made


class _FromSchema:
    """A class attribute whose value comes from the schema."""

    def __init__(self, answer: Callable[[Schema], Any]) -> None:
        self.answer = answer

    def __get__(self, instance: Any, owner: type[ComfyNode]) -> Any:
        answer = self.answer(owner.GET_SCHEMA())
        if answer is None:
            raise AttributeError("The schema says nothing about it.")
        return answer


def _templates(names: Sequence[str | None]) -> tuple[str | None, ...] | None:
    return tuple(names) if any(names) else None


class ComfyNode:
    """The base of nodes with a schema."""

    FUNCTION = "EXECUTE_NORMALIZED"
    SCHEMA: Schema | None = None
    hidden: Any = HiddenHolder()
    CATEGORY: Any = _FromSchema(lambda schema: schema.category)
    DESCRIPTION: Any = _FromSchema(lambda schema: schema.description)
    RETURN_TYPES: Any = _FromSchema(lambda schema: tuple(one.get_io_type() for one in schema.outputs or []))
    RETURN_NAMES: Any = _FromSchema(
        lambda schema: tuple(one.display_name or one.id or one.get_io_type() for one in schema.outputs or [])
    )
    OUTPUT_IS_LIST: Any = _FromSchema(lambda schema: tuple(one.is_output_list for one in schema.outputs or []))
    OUTPUT_MATCHTYPES: Any = _FromSchema(
        lambda schema: _templates([getattr(one, "template_id", None) for one in schema.outputs or []])
    )
    OUTPUT_TOOLTIPS: Any = _FromSchema(lambda schema: tuple(one.tooltip for one in schema.outputs or []))
    INPUT_IS_LIST: Any = _FromSchema(lambda schema: schema.is_input_list)
    OUTPUT_NODE: Any = _FromSchema(lambda schema: schema.is_output_node)
    DEPRECATED: Any = _FromSchema(lambda schema: schema.is_deprecated)
    EXPERIMENTAL: Any = _FromSchema(lambda schema: schema.is_experimental)

    @classmethod
    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, plain in (("fingerprint_inputs", "IS_CHANGED"), ("validate_inputs", "VALIDATE_INPUTS")):
            if name in cls.__dict__:
                setattr(cls, plain, cls.__dict__[name])

    @classmethod
    def define_schema(cls) -> Schema:
        raise NotImplementedError(f"{cls.__name__} has no define_schema.")

    @classmethod
    def execute(cls, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{cls.__name__} has no execute.")

    @classmethod
    def GET_SCHEMA(cls) -> Schema:
        """The schema, defined once for each class."""
        if cls.__dict__.get("SCHEMA") is None:
            cls.SCHEMA = cls.define_schema()
        schema = cls.SCHEMA
        assert schema is not None
        return schema

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """Not cached: lists of files may have changed."""
        return cls.define_schema().declared()

    def EXECUTE_NORMALIZED(self, **given: Any) -> Any:
        """The function that a plain class would have. Hidden values are attributes of a separate subclass for each
        call.
        """
        cls = type(self)
        schema = cls.GET_SCHEMA()
        names = {one.name for one in Hidden}
        own = {one.id for one in schema.inputs or []}
        hidden = {name: given.pop(name) for name in list(given) if name in names and name not in own}
        call: Any = type(
            cls.__name__, (cls,), {"hidden": HiddenHolder(**hidden), "SCHEMA": schema, "__module__": cls.__module__}
        )
        made = call.execute(**given)
        if inspect.isawaitable(made):
            return _awaited(made, len(schema.outputs or []))
        return _plain(made, len(schema.outputs or []))


async def _awaited(made: Awaitable[Any], outputs: int) -> Any:
    return _plain(await made, outputs)


def _plain(made: Any, outputs: int) -> Any:
    if isinstance(made, NodeOutput):
        return made.plain(outputs)
    return {"result": ()} if made is None else made
