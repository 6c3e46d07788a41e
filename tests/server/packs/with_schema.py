"""A pack whose nodes have schemas."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyExtension, io, ui


class Join(io.ComfyNode):  # type: ignore[misc]  # ComfyUI has no types
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="SchemaJoin",
            display_name="Join",
            category="test",
            description="Joins.",
            inputs=[
                io.String.Input("first", default="a", multiline=True),
                io.Combo.Input("by", options=["-", "+"], default="+"),
                io.Int.Input("times", default=2, min=1, max=9, display_mode=io.NumberDisplay.slider, optional=True),
                io.MultiType.Input(io.Float.Input("share", default=0.5), [io.Int], tooltip="A number."),
                io.Custom("MINE").Input("mine", optional=True),
            ],
            outputs=[io.String.Output(display_name="joined"), io.Boolean.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, times: int) -> Any:
        return "seven is too many" if times == 7 else True

    @classmethod
    def execute(cls, first: Any, by: Any, share: Any, times: int = 2, mine: Any = None) -> Any:
        return io.NodeOutput(f"{by.join([first] * times)} {share} {cls.hidden.unique_id}", mine is None)


class ShowText(io.ComfyNode):  # type: ignore[misc]  # ComfyUI has no types
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="SchemaShow",
            inputs=[io.AnyType.Input("value")],
            outputs=[],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    async def execute(cls, value: Any) -> Any:
        return io.NodeOutput(ui=ui.PreviewText(str(value)))


class Stop(io.ComfyNode):  # type: ignore[misc]  # ComfyUI has no types
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(node_id="SchemaStop", inputs=[], outputs=[io.String.Output()])

    @classmethod
    def execute(cls) -> Any:
        return io.NodeOutput(block_execution="not today")


class Change(io.ComfyNode):  # type: ignore[misc]  # ComfyUI has no types
    """Inputs that come and go."""

    @classmethod
    def define_schema(cls) -> Any:
        same = io.MatchType.Template("kind", [io.Int, io.Float])
        by = [io.DynamicCombo.Option("times", [io.Int.Input("factor", default=2)]), io.DynamicCombo.Option("minus", [])]
        more = io.Autogrow.TemplatePrefix(io.Int.Input("more", force_input=True), prefix="more", min=1, max=4)
        return io.Schema(
            node_id="SchemaChange",
            inputs=[
                io.MatchType.Input("value", template=same),
                io.DynamicCombo.Input("by", options=by),
                io.Autogrow.Input("rest", template=more),
            ],
            outputs=[io.MatchType.Output(template=same, display_name="changed")],
        )

    @classmethod
    def execute(cls, value: Any, by: Any, rest: Any) -> Any:
        changed = value * by["factor"] if by["by"] == "times" else -value
        return io.NodeOutput(changed + sum(rest.values()))


class Pack(ComfyExtension):  # type: ignore[misc]  # ComfyUI has no types
    async def get_node_list(self) -> Any:
        return [Join, ShowText, Stop, Change]


async def comfy_entrypoint() -> Any:
    return Pack()
