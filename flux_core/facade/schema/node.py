"""A node with a schema, and its form as a plain node class.

`ComfyNode` reads the schema when an attribute of a plain class is first read.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...graph.calls import ExecutionBlocker
from .dynamic import declarations
from .options import Hidden


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
        sections = {**declarations(self.inputs or []), "hidden": {}}
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
