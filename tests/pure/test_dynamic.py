"""Inputs whose number varies: distinguished by validation, collected for the call, read from the canvas."""

from __future__ import annotations

from typing import Any

from sluice.flux_core.graph.calls import ExecutionBlocker
from sluice.flux_core.graph.dynamic import find, nested, present
from sluice.flux_core.graph.execute import Executor
from sluice.flux_core.graph.flatten import canvas_to_prompt
from sluice.flux_core.graph.interface import Interface
from sluice.flux_core.graph.object_info import describe
from sluice.flux_core.graph.validate import validate
from sluice.flux_core.graph.widgets import widget_values

INT = ("INT", {"default": 7, "min": 0, "max": 99})
MODE = {
    "options": [
        {"key": "still", "inputs": {"required": {}}},
        {"key": "moving", "inputs": {"required": {"fps": ("FLOAT", {"default": 6.0})}}},
    ]
}
FORMAT = {
    "options": [
        {"key": "png", "inputs": {"required": {"bits": ([8, 16], {})}}},
        {
            "key": "avif",
            "inputs": {
                "required": {"crf": INT, "mode": ("COMFY_DYNAMICCOMBO_V3", MODE)},
                "optional": {"like": ("IMAGE,MASK", {})},
            },
        },
    ]
}
VALUES = {
    "template": {"input": {"required": {"value": ("INT", {"forceInput": True})}}, "prefix": "v", "min": 1, "max": 3}
}
NAMED = {"template": {"input": {"optional": {"value": ("INT,FLOAT", {})}}, "names": ["a", "b"], "min": 1}}
MATCH = {"template": {"template_id": "t", "allowed_types": "IMAGE,MASK"}}


def node_class(inputs: dict[str, Any], outputs: tuple[str, ...] = (), output: bool = False, **more: Any) -> type[Any]:
    """A node that shows its arguments."""
    fixed = {
        "INPUT_TYPES": classmethod(lambda cls: inputs),
        "RETURN_TYPES": outputs,
        "FUNCTION": "run",
        "OUTPUT_NODE": output,
        "run": lambda self, **given: {"ui": {"x": [given]}, "result": (1,) * len(outputs)},
    }
    return type("FakeNode", (), fixed | more)


CLASSES = {
    "Save": node_class({"required": {"format": ("COMFY_DYNAMICCOMBO_V3", FORMAT), "name": ("STRING", {})}}, (), True),
    "Sum": node_class({"required": {"values": ("COMFY_AUTOGROW_V3", VALUES)}}, ("INT",), True),
    "Formula": node_class({"required": {"values": ("COMFY_AUTOGROW_V3", NAMED)}}, ("INT",), True),
    "Same": node_class(
        {"required": {"x": ("COMFY_MATCHTYPE_V3", MATCH)}}, ("COMFY_MATCHTYPE_V3",), True, OUTPUT_MATCHTYPES=("t",)
    ),
    "Number": node_class({"required": {"n": INT}}, ("INT",)),
    "Picture": node_class({}, ("IMAGE", "MODEL")),
    "Choice": node_class(
        {"required": {"choice": ([], {})}},
        ("STRING",),
        True,
        ACCEPT_ALL_INPUTS=True,
        EDITOR_WIDGETS=("index", "option{}"),
        VALIDATE_INPUTS=classmethod(lambda cls, choice, **_: True),
    ),
}
SAVE = Interface(CLASSES["Save"])


def n(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": {name.replace("__", "."): value for name, value in inputs.items()}}


def names(interface: Interface, **given: Any) -> list[str]:
    return [declared.name for declared in present(interface, given)]


def called(*nodes: dict[str, Any]) -> Any:
    """The arguments of the last node."""
    prompt = {str(number): node for number, node in enumerate(nodes, start=1)}
    found = validate(prompt, CLASSES)
    assert found.sentences == (), found.sentences
    result = Executor(CLASSES).execute(found.prompt, outputs=[str(len(nodes))])
    assert result.exception is None, result.exception
    return result.outputs[str(len(nodes))]["x"][0]


class TestDeclarations:
    def test_an_option_brings_its_inputs(self) -> None:
        assert names(SAVE, format="png") == ["format", "format.bits", "name"]
        assert names(SAVE, **{"format": "avif", "format.mode": "moving"}) == [
            "format", "format.crf", "format.mode", "format.mode.fps", "format.like", "name",
        ]  # fmt: skip
        assert names(SAVE) == ["format", "name"]

    def test_a_list_grows_with_what_is_there(self) -> None:
        interface = Interface(CLASSES["Sum"])
        assert names(interface) == ["values.v0"]
        found = list(present(interface, {"values.v2": 1}))
        assert [(one.name, one.category) for one in found] == [("values.v0", "required"), ("values.v2", "optional")]
        assert names(Interface(CLASSES["Formula"])) == []

    def test_inputs_are_found_by_their_dotted_names(self) -> None:
        kinds = {
            name: found.type for name in ("format.mode.fps", "format.crf", "format") if (found := find(SAVE, name))
        }
        assert kinds == {"format.mode.fps": "FLOAT", "format.crf": "INT", "format": ["png", "avif"]}
        assert find(SAVE, "format.other") is None and find(SAVE, "other.crf") is None
        assert find(Interface(CLASSES["Sum"]), "values.v2") is not None
        assert find(Interface(CLASSES["Sum"]), "values.v3") is None

    def test_the_editor_is_told_which_outputs_follow_their_inputs(self) -> None:
        assert describe("Same", CLASSES["Same"], "Same")["output_matchtypes"] == ["t"]
        assert "output_matchtypes" not in describe("Sum", CLASSES["Sum"], "Sum")


class TestValidation:
    def test_what_is_missing_wrong_or_too_large_is_told_by_its_name(self) -> None:
        prompt = {"1": n("Save", format="avif", format__crf=100, name="x")}
        assert validate(prompt, CLASSES).sentences == (
            "Node 1 (Save), input format.crf: 100 is above the largest possible value, 99.",
            "Node 1 (Save), input format.mode: it is required, but it has neither a value nor a link.",
        )
        (problem,) = validate({"1": n("Save", format="gif", name="x")}, CLASSES).sentences
        assert problem.startswith("Node 1 (Save), input format: 'gif' is not available.")

    def test_nested_constants_are_converted(self) -> None:
        found = validate({"1": n("Save", format="avif", format__crf="5", format__mode="still", name=1)}, CLASSES)
        assert found.sentences == () and found.prompt["1"]["inputs"]["format.crf"] == 5

    def test_types_of_matching_sockets(self) -> None:
        picture = n("Picture")
        assert validate({"1": picture, "2": n("Same", x=["1", 0])}, CLASSES).sentences == ()
        (problem,) = validate({"1": picture, "2": n("Same", x=["1", 1])}, CLASSES).sentences
        assert "it takes IMAGE,MASK" in problem and "gives MODEL" in problem
        chain = {"1": picture, "2": n("Same", x=["1", 0]), "3": n("Save", format="avif", format__like=["2", 0])}
        chain["3"]["inputs"] |= {"format.crf": 1, "format.mode": "still", "name": "x"}
        assert validate(chain, CLASSES).sentences == ()


class TestCalls:
    def test_a_node_is_called_with_one_dict_for_each_input(self) -> None:
        given = {"format": "avif", "format__crf": 5, "format__mode": "moving", "format__mode__fps": 2, "name": "x"}
        assert called(n("Save", **given)) == {
            "format": {"format": "avif", "crf": 5, "mode": {"mode": "moving", "fps": 2.0}}, "name": "x",
        }  # fmt: skip

    def test_linked_members_reach_the_node(self) -> None:
        assert called(n("Number", n=1), n("Sum", values__v0=["1", 0])) == {"values": {"v0": 1}}
        assert called(n("Formula")) == {"values": {}}

    def test_values_beside_those_declared_reach_only_who_wants_them(self) -> None:
        assert called(n("Choice", choice="b", index=1, option1="a")) == {"choice": "b", "index": 1, "option1": "a"}
        assert "other" not in called(n("Save", format="png", format__bits=8, name="x", other=1))

    def test_a_blocked_member_blocks_the_call(self) -> None:
        blocks = node_class({}, ("INT",), run=lambda self: (ExecutionBlocker(None),))
        classes = {**CLASSES, "Blocks": blocks}
        prompt = {"1": n("Blocks"), "2": n("Sum", values__v0=["1", 0])}
        result = Executor(classes).execute(prompt, outputs=["2"])
        assert result.status == "success" and result.outputs == {}

    def test_names_are_folded_whatever_their_order(self) -> None:
        flat = {"format.mode.fps": 1, "format.mode": "moving", "format": "avif", "a.b": 2}
        assert nested(SAVE, flat) == {"format": {"mode": {"fps": 1, "mode": "moving"}, "format": "avif"}, "a.b": 2}


class TestWidgets:
    def test_saved_values_of_an_option_follow_it(self) -> None:
        saved = ["avif", 5, "moving", 2.0, "x"]
        expected = {"format": "avif", "format.crf": 5, "format.mode": "moving", "format.mode.fps": 2.0, "name": "x"}
        assert widget_values(SAVE, saved) == expected
        assert widget_values(SAVE, None, expected) == expected
        assert widget_values(SAVE, ["png", 16, "x"]) == {"format": "png", "format.bits": 16, "name": "x"}

    def test_fresh_widgets_have_the_first_option(self) -> None:
        assert widget_values(SAVE, None) == {"format": "png", "format.bits": 8, "name": ""}
        assert widget_values(SAVE, ["avif"]) == {
            "format": "avif", "format.crf": 7, "format.mode": "still", "name": "",
        }  # fmt: skip

    def test_what_the_editor_adds_to_a_list_of_options(self) -> None:
        interface = Interface(CLASSES["Choice"])
        assert widget_values(interface, ["b", 1, "a", "b", ""]) == {
            "choice": "b", "index": 1, "option1": "a", "option2": "b", "option3": "",
        }  # fmt: skip

    def test_a_canvas_with_dynamic_inputs(self) -> None:
        links = [[1, 1, 0, 2, 0, "INT"], [2, 1, 0, 2, 1, "INT"]]
        slots = [{"name": f"values.v{i}", "type": "INT", "link": link} for i, link in enumerate((1, 2, None))]
        drawn = [
            {"id": 1, "type": "Number", "widgets_values": [3], "outputs": [{"name": "INT", "type": "INT"}]},
            {"id": 2, "type": "Sum", "inputs": slots, "outputs": []},
        ]
        prompt = canvas_to_prompt({"nodes": drawn, "links": links}, CLASSES)
        assert prompt["2"]["inputs"] == {"values.v0": ["1", 0], "values.v1": ["1", 0]}
        assert validate(prompt, CLASSES).sentences == ()
