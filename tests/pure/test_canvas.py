"""Canvas workflows become the prompt that the browser would send."""

from __future__ import annotations

import copy
import json
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sluice.flux_core.errors import WorkflowError
from sluice.flux_core.graph.canvas import read_canvas
from sluice.flux_core.graph.flatten import canvas_to_prompt
from sluice.flux_core.graph.interface import Interface
from sluice.flux_core.graph.placeholders import choices_made, fields_filled
from sluice.flux_core.graph.validate import validate
from sluice.flux_core.graph.widgets import widget_values
from sluice.flux_core.io.embedded import is_prompt

SUBGRAPH = "2c61139d-9c34-4c7e-a083-7a67cc4770ad"


def node_class(outputs: tuple[str, ...] = (), output_node: bool = False, **sections: dict[str, Any]) -> type[Any]:
    return type(
        "FakeNode",
        (),
        {
            "INPUT_TYPES": classmethod(lambda cls: sections),
            "RETURN_TYPES": outputs,
            "FUNCTION": "run",
            "OUTPUT_NODE": output_node,
        },
    )


SEED = ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True})
SAMPLER = {
    "model": ("MODEL",),
    "seed": SEED,
    "steps": ("INT", {"default": 20}),
    "cfg": ("FLOAT", {"default": 8.0}),
    "sampler_name": (["euler", "heun"],),
    "latent": ("LATENT",),
    "denoise": ("FLOAT", {"default": 1.0}),
}
CLASSES = {
    "Load": node_class(("MODEL", "CLIP"), required={"name": (["a", "b"],)}),
    "Sampler": node_class(("LATENT",), required=SAMPLER, optional={"note": ("STRING", {"default": "n"})}),
    "Empty": node_class(("LATENT",), required={"width": ("INT", {"default": 512}), "height": ("INT", {})}),
    "Noise": node_class(("NOISE",), required={"noise_seed": ("INT", {"default": 0})}),
    "Text": node_class(("COND",), required={"text": ("STRING", {"dynamicPrompts": True}), "clip": ("CLIP",)}),
    "LoadImage": node_class(
        ("IMAGE", "MASK"),
        required={"image": (["x.png"], {"image_upload": True}), "channel": (["alpha", "red"],)},
        optional={"word": ("STRING", {"default": "w"})},
    ),
    "Mix": node_class(("LATENT",), required={"one": ("LATENT",)}, optional={"two": ("LATENT",), "mask": ("MASK",)}),
    "Odd": node_class(
        ("LATENT", "MODEL"),
        required={"force": ("INT", {"forceInput": True}), "v3": ("COMBO", {"options": ["p", "q"]}), "no": ([],)},
    ),
    "SaveImage": node_class(output_node=True, required={"images": ("LATENT",), "filename_prefix": ("STRING", {})}),
}


def node(node_id: Any, kind: str, values: Any = None, **more: Any) -> dict[str, Any]:
    return {"id": node_id, "type": kind, "mode": 0, "inputs": [], "outputs": [], "widgets_values": values, **more}


def canvas(*nodes: dict[str, Any], links: Any = (), **more: Any) -> dict[str, Any]:
    """A workflow; `links` are (from, slot, to, input name, type?), and the inputs they end at are made."""
    nodes = tuple(copy.deepcopy(one) for one in nodes)
    return {"nodes": list(nodes), "links": [list(one) for one in wired(nodes, links)], "version": 0.4, **more}


def wired(nodes: Any, links: Any, first: int = 1) -> list[tuple[Any, ...]]:
    drawn = []
    by_id = {one["id"]: one for one in nodes}
    for link_id, (source, slot, target, name, *kind) in enumerate(links, first):
        inputs = by_id[target]["inputs"]
        slots = [one["name"] for one in inputs]
        if name not in slots:
            widget = {"widget": {"name": name}} if kind == ["INT"] else {}
            inputs.append({"name": name, "type": kind[0] if kind else "*", "link": None, **widget})
            slots.append(name)
        inputs[slots.index(name)]["link"] = link_id
        drawn.append((link_id, source, slot, target, slots.index(name), kind[0] if kind else "*"))
    return drawn


def inputs_of(workflow: dict[str, Any], node_id: str, **options: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = canvas_to_prompt(workflow, CLASSES, **options)[node_id]["inputs"]
    return inputs


def subgraph(*nodes: dict[str, Any], links: Any, inputs: Any = (), outputs: Any = (), **more: Any) -> dict[str, Any]:
    """A definition; links in the form of new files, -10 and -20 being its ends."""
    nodes = tuple(copy.deepcopy(one) for one in nodes)
    inner = [one for one in links if one[2] != -20]
    drawn = wired(nodes, inner, first=100)
    drawn += [(200 + i, one[0], one[1], -20, one[3], "*") for i, one in enumerate(links) if one[2] == -20]
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return {
        "id": SUBGRAPH,
        "nodes": list(nodes),
        "links": [dict(zip(keys, one, strict=True)) for one in drawn],
        "inputs": [{"name": name, "type": kind} for name, kind in inputs],
        "outputs": [{"name": name, "type": kind} for name, kind in outputs],
        "inputNode": {"id": -10},
        "outputNode": {"id": -20},
        **more,
    }


class TestWidgetValues:
    SAMPLER = [7, "randomize", 30, 1, "heun", 0.5, "x"]

    def test_values_follow_the_declaration_with_the_seeds_companion_skipped(self) -> None:
        found = inputs_of(canvas(node(3, "Sampler", self.SAMPLER)), "3")
        assert found == {"seed": 7, "steps": 30, "cfg": 1, "sampler_name": "heun", "denoise": 0.5, "note": "x"}

    @pytest.mark.parametrize("word", ["fixed", "increment", "decrement", "randomize", True, False, None])
    def test_every_age_of_the_seeds_companion_is_skipped(self, word: Any) -> None:
        assert inputs_of(canvas(node(3, "Sampler", [7, word, 30])), "3")["steps"] == 30
        assert inputs_of(canvas(node(3, "Noise", [7, word])), "3") == {"noise_seed": 7}

    def test_a_seed_without_companion_is_read_too(self) -> None:
        assert inputs_of(canvas(node(3, "Sampler", [7, 30, 1.5])), "3")["cfg"] == 1.5

    @pytest.mark.parametrize("values", [None, [], "nonsense", 5, {}, [None] * 9])
    def test_missing_values_take_their_defaults(self, values: Any) -> None:
        expected = {"seed": 0, "steps": 20, "cfg": 8.0, "sampler_name": "euler", "denoise": 1.0, "note": "n"}
        assert inputs_of(canvas(node(3, "Sampler", values)), "3") == expected

    def test_values_may_be_saved_by_name(self) -> None:
        assert inputs_of(canvas(node(3, "Sampler", {"steps": 5, "other": 1})), "3")["steps"] == 5
        named = node(3, "Sampler", [1, "fixed", 2], widgets_values_named={"steps": 6})
        assert inputs_of(canvas(named), "3")["steps"] == 6

    @pytest.mark.parametrize("values", [["y.png", "red", "image", "hi"], ["y.png", "red", "hi"]])
    def test_the_word_of_the_upload_button_is_skipped(self, values: list[Any]) -> None:
        expected = {"image": "y.png", "channel": "red", "word": "hi"}
        assert inputs_of(canvas(node(1, "LoadImage", values)), "1") == expected

    def test_sockets_have_no_value_and_empty_combos_none_either(self) -> None:
        assert inputs_of(canvas(node(1, "Odd", None)), "1") == {"v3": "p"}

    def test_lists_are_wrapped(self) -> None:
        assert inputs_of(canvas(node(1, "Empty", [[1, 2], 3])), "1") == {"width": {"__value__": [1, 2]}, "height": 3}

    def test_a_driven_widget_keeps_its_place_in_the_list(self) -> None:
        work = canvas(node(1, "Noise", [5]), node(3, "Sampler", self.SAMPLER), links=[(1, 0, 3, "steps", "INT")])
        found = inputs_of(work, "3")
        assert found["steps"] == ["1", 0] and found["cfg"] == 1

    @pytest.mark.parametrize(
        "saved", [["", "characters", 80, 5, "fixed", ""], ["characters", 80, 5, "fixed"], ["characters", 80]]
    )
    def test_values_of_inputs_that_became_sockets_are_left_out(self, saved: list[Any]) -> None:
        text = ("STRING", {"forceInput": True})
        required = {"text": text, "by": (["words", "characters"],), "to": ("INT", {}), "seed": ("INT", {"default": 5})}
        truncate = Interface(node_class(required=required, optional={"text_b": text}))
        assert widget_values(truncate, saved) == {"by": "characters", "to": 80, "seed": 5}

    def test_the_interface_decides_and_nothing_else(self) -> None:
        assert widget_values(Interface(CLASSES["Empty"]), [64, 32, 7, 7]) == {"width": 64, "height": 32}


class TestLinks:
    def test_ids_are_texts_titles_and_packs_are_kept_notes_are_not(self) -> None:
        load = node(4, "Load", ["b"], title="My model", properties={"cnr_id": "comfy-core", "ver": "1", "x": 2})
        work = canvas(load, node(5, "Note", ["hi"]), node(6, "MarkdownNote", ["hi"]))
        meta = {"title": "My model", "cnr_id": "comfy-core", "ver": "1"}
        assert canvas_to_prompt(work, CLASSES) == {"4": {"class_type": "Load", "inputs": {"name": "b"}, "_meta": meta}}

    def test_nodes_come_in_the_order_the_browser_computed(self) -> None:
        work = canvas(node(1, "Load", order=2), node(2, "Load", order=0), node(3, "Load", order=1))
        assert list(canvas_to_prompt(work, CLASSES)) == ["2", "3", "1"]

    def test_links_may_be_lists_or_objects_and_nulls_are_no_links(self) -> None:
        work = canvas(node("a", "Empty"), node(2, "Mix"), links=[("a", 0, 2, "one")])
        keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        work["links"] = [None, dict(zip(keys, work["links"][0], strict=True)), [1], "x"]
        assert inputs_of(work, "2") == {"one": ["a", 0]}

    @pytest.mark.parametrize("inputs", [None, [{"name": "one", "link": None}], [{"name": "one", "link": 99}], ["x"]])
    def test_missing_and_dangling_links_leave_the_input_open(self, inputs: Any) -> None:
        assert inputs_of({"nodes": [node(2, "Mix") | {"inputs": inputs}], "links": None}, "2") == {}

    def test_links_to_inputs_that_no_longer_exist_are_dropped(self) -> None:
        assert inputs_of(canvas(node(1, "Empty"), node(2, "Mix"), links=[(1, 0, 2, "gone")]), "2") == {}

    def test_a_link_in_the_table_stands_though_the_input_does_not_name_it(self) -> None:
        work = canvas(node(1, "Empty"), node(2, "Mix"), links=[(1, 0, 2, "one")])
        work["nodes"][1]["inputs"] = [{"name": "one", "link": None}]
        assert inputs_of(work, "2") == {"one": ["1", 0]}
        work["nodes"][1]["inputs"] = []
        work["links"][0][4] = 2  # the third socket of its class
        assert inputs_of(work, "2") == {"mask": ["1", 0]}

    def test_a_link_that_an_input_names_stands_there_whatever_its_number(self) -> None:
        work = canvas(node(1, "Empty"), node(2, "Mix"), links=[(1, 0, 2, "two")])
        work["links"][0][4] = 7
        assert inputs_of(work, "2") == {"two": ["1", 0]}

    @pytest.mark.parametrize(("named", "expected"), [(None, "1"), (1, "1"), (2, "3")])
    def test_of_two_links_to_an_input_the_first_or_the_named_one_stays(self, named: Any, expected: str) -> None:
        work = canvas(node(1, "Empty"), node(3, "Empty"), node(2, "Mix"), links=[(1, 0, 2, "one")])
        work["links"].append([2, 3, 0, 2, 0, "LATENT"])
        work["nodes"][2]["inputs"] = [{"name": "one", "link": named}]
        assert inputs_of(work, "2") == {"one": [expected, 0]}

    def test_an_input_that_names_a_link_of_another_node_is_open(self) -> None:
        work = canvas(node(1, "Empty"), node(2, "Mix"), node(3, "Mix"), links=[(1, 0, 2, "one")])
        work["nodes"][2]["inputs"] = [{"name": "one", "link": 1}]
        assert inputs_of(work, "3") == {} and inputs_of(work, "2") == {"one": ["1", 0]}

    def test_reroutes_are_followed(self) -> None:
        chain = [node(i, "Reroute") for i in range(10, 3000)]
        links = [(1, 0, 10, ""), *[(i, 0, i + 1, "") for i in range(10, 2999)], (2999, 0, 2, "one", "LATENT")]
        assert inputs_of(canvas(node(1, "Empty"), node(2, "Mix"), *chain, links=links), "2") == {"one": ["1", 0]}

    def test_link_level_reroutes_mean_nothing(self) -> None:
        work = canvas(node(1, "Empty"), node(2, "Mix"), links=[(1, 0, 2, "one")])
        work["extra"] = {"reroutes": [{"id": 1, "linkIds": [1]}], "linkExtensions": [{"id": 1, "parentId": 1}]}
        assert inputs_of(work, "2") == {"one": ["1", 0]}

    def test_a_primitive_copies_its_value_also_through_a_reroute(self) -> None:
        links = [(9, 0, 1, "width", "INT"), (9, 0, 8, ""), (8, 0, 1, "height", "INT")]
        nodes = node(9, "PrimitiveNode", [64, "fixed"]), node(8, "Reroute"), node(1, "Empty", [1, 2])
        work = canvas(*nodes, links=links)
        assert inputs_of(work, "1") == {"width": 64, "height": 64}
        assert list(canvas_to_prompt(work, CLASSES)) == ["1"]

    @pytest.mark.parametrize(
        ("options", "value", "expected"),
        [
            (("INT", {"step": 8, "min": 4}), 2901, 2900),
            (("INT", {}), 2.5, 3),
            (("FLOAT", {"step": 0.01, "max": 1.0}), 0.625, 0.63),
            (("FLOAT", {"step": 0.1, "round": 0.01, "max": 100.0}), 3.14, 3.1),
            (("FLOAT", {"step": 0.01, "min": 0.0, "max": 1.0}), 7.0, 1.0),
            (("STRING", {}), "x", "x"),
        ],
    )
    def test_a_primitives_number_is_rounded_as_the_widget_rounds(self, options: Any, value: Any, expected: Any) -> None:
        classes = {"A": node_class(required={"n": options})}
        nodes = node(9, "PrimitiveNode", [value], outputs=[{"name": "n", "type": options[0]}]), node(1, "A", [0])
        found = canvas_to_prompt(canvas(*nodes, links=[(9, 0, 1, "n", "INT")]), classes)["1"]["inputs"]["n"]
        assert found == expected

    def test_a_primitive_of_another_type_drives_nothing(self) -> None:
        primitive = node(9, "PrimitiveNode", ["seven"], outputs=[{"name": "n", "type": "STRING"}])
        links = [(9, 0, 1, "width", "INT"), (9, 0, 2, "one")]
        prompt = canvas_to_prompt(canvas(primitive, node(1, "Empty", [64, 32]), node(2, "Mix"), links=links), CLASSES)
        assert prompt["1"]["inputs"]["width"] == 64 and prompt["2"]["inputs"] == {}

    def test_invisible_links_are_followed_by_name(self) -> None:
        nodes = [node(1, "Empty"), node(5, "SetNode", ["L"]), node(6, "GetNode", ["L"]), node(2, "Mix")]
        assert inputs_of(canvas(*nodes, links=[(1, 0, 5, "*"), (6, 0, 2, "one")]), "2") == {"one": ["1", 0]}
        nodes[2]["type"] = "OutputGet"
        assert inputs_of(canvas(*nodes, links=[(1, 0, 5, "*"), (6, 0, 2, "one")]), "2") == {"one": ["1", 0]}

    def test_what_an_unknown_pack_draws_on_the_canvas_is_left_out(self) -> None:
        drawn, linked = node(1, "PictureOfAlien"), node(5, "AlienMix")
        work = canvas(drawn, linked, node(2, "Mix"), links=[(5, 0, 2, "one")])
        assert canvas_to_prompt(work, CLASSES).keys() == {"2", "5"}

    def test_muted_nodes_vanish_with_their_links(self) -> None:
        work = canvas(node(1, "Empty", mode=2), node(2, "Mix"), links=[(1, 0, 2, "one")])
        assert canvas_to_prompt(work, CLASSES)["2"]["inputs"] == {} and "1" not in canvas_to_prompt(work, CLASSES)

    def test_what_a_muted_node_feeds_has_its_own_value(self) -> None:
        nodes = node(1, "Odd", mode=2), node(8, "Reroute"), node(2, "Empty", [64, 32])
        work = canvas(*nodes, links=[(1, 0, 8, ""), (8, 0, 2, "width", "INT")])
        assert inputs_of(work, "2") == {"width": 64, "height": 32}

    def test_muted_reroutes_and_primitives_do_their_work(self) -> None:
        nodes = node(1, "Empty"), node(8, "Reroute", mode=2), node(9, "PrimitiveNode", [7], mode=2), node(2, "Mix")
        links = [(1, 0, 8, ""), (8, 0, 2, "one", "LATENT"), (9, 0, 1, "width", "INT")]
        prompt = canvas_to_prompt(canvas(*nodes, links=links), CLASSES)
        assert prompt["2"]["inputs"] == {"one": ["1", 0]} and prompt["1"]["inputs"]["width"] == 7

    def test_bypassed_nodes_pass_on_the_input_of_the_same_type(self) -> None:
        bypassed = node(5, "Mix", mode=4, outputs=[{"name": "o", "type": "LATENT"}])
        bypassed["inputs"] = [{"name": "mask", "type": "MASK"}, {"name": "one", "type": "LATENT"}]
        links = [(1, 1, 5, "mask"), (2, 0, 5, "one"), (5, 0, 3, "one", "LATENT")]
        work = canvas(node(1, "LoadImage"), node(2, "Empty"), bypassed, node(3, "Mix"), links=links)
        assert inputs_of(work, "3") == {"one": ["2", 0]}

    def test_a_bypassed_node_without_a_fitting_input_cuts_the_link(self) -> None:
        bypassed = node(5, "Empty", mode=4, outputs=[{"name": "o", "type": "LATENT"}])
        assert inputs_of(canvas(bypassed, node(3, "Mix"), links=[(5, 0, 3, "one", "LATENT")]), "3") == {}

    def test_the_input_of_the_same_number_is_preferred(self) -> None:
        bypassed = node(5, "Mix", mode=4, outputs=[{"type": "LATENT"}, {"type": "LATENT"}])
        bypassed["inputs"] = [{"name": "one", "type": "LATENT"}, {"name": "two", "type": "LATENT"}]
        links = [(1, 0, 5, "one"), (2, 0, 5, "two"), (5, 1, 3, "one", "LATENT")]
        work = canvas(node(1, "Empty"), node(2, "Empty"), bypassed, node(3, "Mix"), links=links)
        assert inputs_of(work, "3") == {"one": ["2", 0]}

    def test_reroutes_in_a_circle_are_told(self) -> None:
        links = [(5, 0, 6, ""), (6, 0, 5, ""), (6, 0, 2, "one")]
        with pytest.raises(WorkflowError, match="circle"):
            canvas_to_prompt(canvas(node(5, "Reroute"), node(6, "Reroute"), node(2, "Mix"), links=links), CLASSES)

    def test_an_unknown_class_keeps_its_links_and_names_its_pack(self) -> None:
        alien = node(5, "AlienMix", [1], properties={"aux_id": "someone/ComfyUI-Alien"})
        work = canvas(node(1, "Empty"), alien, node(3, "SaveImage", ["p"]), links=[(1, 0, 5, "x"), (5, 0, 3, "images")])
        prompt = canvas_to_prompt(work, CLASSES)
        assert prompt["5"]["inputs"] == {"x": ["1", 0]}
        problems = validate(prompt, CLASSES).sentences
        assert problems == (
            "Node 5 (AlienMix) cannot run: there is no node class 'AlienMix' here. "
            "It comes from the node pack someone/ComfyUI-Alien. Load packs with --node-packs FOLDER.",
        )
        assert read_canvas(work).pack_names() == {"AlienMix": "someone/ComfyUI-Alien"}


class TestSubgraphs:
    PAINTING = subgraph(
        node(13, "Sampler", [7, "fixed", 30, 1, "heun", 0.5]),
        node(14, "Empty", [64, 32]),
        links=[(-10, 0, 13, "model", "MODEL"), (14, 0, 13, "latent"), (-10, 1, 13, "steps", "INT"), (13, 0, -20, 0)],
        inputs=[("model", "MODEL"), ("steps", "INT")],
        outputs=[("LATENT", "LATENT")],
    )

    def workflow(self, *instances: dict[str, Any], links: Any = (), definitions: Any = ()) -> dict[str, Any]:
        nodes = [node(1, "Load"), *instances, node(9, "SaveImage", ["p"])]
        return canvas(*nodes, links=links, definitions={"subgraphs": [self.PAINTING, *definitions]})

    def test_an_instance_is_replaced_by_its_nodes(self) -> None:
        work = self.workflow(node(38, SUBGRAPH), links=[(1, 0, 38, "model"), (38, 0, 9, "images", "LATENT")])
        prompt = canvas_to_prompt(work, CLASSES)
        assert list(prompt) == ["1", "38:13", "38:14", "9"]
        assert prompt["9"]["inputs"]["images"] == ["38:13", 0]
        assert prompt["38:13"]["inputs"]["model"] == ["1", 0] and prompt["38:13"]["inputs"]["latent"] == ["38:14", 0]
        assert prompt["38:13"]["inputs"]["steps"] == 30

    def test_each_instance_sets_its_own_values(self) -> None:
        promoted = {"proxyWidgets": [["-1", "steps"], ["14", "width"], ["13", "seed"], ["13", "no such"]]}
        first = node(38, SUBGRAPH, [11, 128], properties=promoted)
        second = node(39, SUBGRAPH, [12, None, 99, "fixed"], properties=promoted)
        prompt = canvas_to_prompt(self.workflow(first, second), CLASSES)
        picked = [
            prompt[f"{i}:{inner}"]["inputs"][name]
            for i in (38, 39)
            for inner, name in ((13, "steps"), (14, "width"), (13, "seed"))
        ]
        assert picked == [11, 128, 7, 12, 64, 99]

    def test_values_follow_the_widget_inputs_where_there_is_no_list_of_them(self) -> None:
        assert inputs_of(self.workflow(node(38, SUBGRAPH, [17])), "38:13")["steps"] == 17
        named = node(38, SUBGRAPH, [17], widgets_values_named={"steps": 18})
        assert inputs_of(self.workflow(named), "38:13")["steps"] == 18

    def test_a_link_into_an_instance_beats_its_value(self) -> None:
        prim = node(2, "PrimitiveNode", [77])
        work = self.workflow(prim, node(38, SUBGRAPH, [17]), links=[(2, 0, 38, "steps", "INT")])
        assert inputs_of(work, "38:13")["steps"] == 77

    def test_subgraphs_nest_and_values_reach_the_innermost(self) -> None:
        outer = subgraph(
            node(5, SUBGRAPH, [21], properties={"proxyWidgets": [["-1", "steps"]]}),
            links=[(-10, 0, 5, "model", "MODEL"), (5, 0, -20, 0)],
            inputs=[("model", "MODEL")],
            outputs=[("LATENT", "LATENT")],
        ) | {"id": "outer"}
        instance = node(40, "outer", [33], properties={"proxyWidgets": [["5", "steps"]]})
        links = [(1, 0, 40, "model"), (40, 0, 9, "images", "LATENT")]
        prompt = canvas_to_prompt(self.workflow(instance, links=links, definitions=[outer]), CLASSES)
        assert prompt["40:5:13"]["inputs"]["steps"] == 33 and prompt["40:5:13"]["inputs"]["model"] == ["1", 0]
        assert prompt["9"]["inputs"]["images"] == ["40:5:13", 0]

    def test_an_input_may_run_straight_to_an_output(self) -> None:
        through = subgraph(links=[(-10, 0, -20, 0)], inputs=[("a", "LATENT")], outputs=[("b", "LATENT")]) | {"id": "t"}
        links = [(2, 0, 41, "a"), (41, 0, 9, "images", "LATENT")]
        work = self.workflow(node(2, "Empty"), node(41, "t"), links=links, definitions=[through])
        assert inputs_of(work, "9")["images"] == ["2", 0]

    @pytest.mark.parametrize(("mode", "expected"), [(2, None), (4, ["1", 0])])
    def test_a_muted_or_bypassed_instance_takes_its_nodes_with_it(self, mode: int, expected: Any) -> None:
        ends = {"inputs": [("a", "LATENT")], "outputs": [("b", "LATENT")]}
        inside = subgraph(node(5, "Empty"), links=[(5, 0, -20, 0)], **ends) | {"id": "latents"}
        instance = node(38, "latents", mode=mode)
        links = [(1, 0, 38, "a"), (38, 0, 9, "images", "LATENT")]
        prompt = canvas_to_prompt(self.workflow(instance, links=links, definitions=[inside]), CLASSES)
        assert list(prompt) == ["1", "9"] and prompt["9"]["inputs"].get("images") == expected

    def test_subgraphs_that_contain_themselves_are_told(self) -> None:
        me = subgraph(node(1, "me"), links=[]) | {"id": "me"}
        with pytest.raises(WorkflowError, match="contain each other"):
            canvas_to_prompt(self.workflow(node(2, "me"), definitions=[me]), CLASSES)

    def test_subgraphs_that_double_thirty_times_are_told(self) -> None:
        levels = [subgraph(node(1, f"l{i + 1}"), node(2, f"l{i + 1}"), links=[]) | {"id": f"l{i}"} for i in range(30)]
        with pytest.raises(WorkflowError, match="10000 nodes"):
            canvas_to_prompt(self.workflow(node(2, "l0"), definitions=levels), CLASSES)


class TestGroupNodes:
    def group(self, slots: bool, config: Any = None) -> dict[str, Any]:
        """Noise, and a sampler fed by a reroute and an empty latent. `slots`: widgets named as inputs, as now done."""
        steps = [{"name": "steps", "type": "INT", "widget": {"name": "steps"}, "link": None}] if slots else []
        nodes = [
            {"index": 0, "type": "Noise", "inputs": None, "outputs": [], "widgets_values": [1, "fixed"]},
            {"index": 1, "type": "Reroute", "inputs": [{"name": "", "type": "*"}], "outputs": [{"type": "*"}]},
            {"index": 2, "type": "Empty", "inputs": None, "outputs": [], "widgets_values": [64, 32]},
            {
                "index": 3,
                "type": "Sampler",
                "inputs": [{"name": "model", "type": "MODEL"}, {"name": "latent", "type": "LATENT"}, *steps],
                "widgets_values": [5, "fixed", 10, 1, "heun", 0.5],
            },
            {"index": 4, "type": "Mix", "inputs": [{"name": "one"}, {"name": "two"}], "widgets_values": None},
        ]
        links = [[None, 0, 1, 0, 4, "MODEL"], [1, 0, 3, 0, 9, "MODEL"], [2, 0, 3, 1, 9, "LATENT"], [3, 0, 4, 0, 9, "L"]]
        external = [[{"type": "Sampler", "index": 3}, 0, "LATENT"]]
        return {"nodes": nodes, "links": links, "external": external, "config": config}

    def flat(self, instance: dict[str, Any], group: dict[str, Any], links: Any) -> dict[str, Any]:
        nodes = [node(1, "Load"), node(2, "Empty"), instance, node(8, "SaveImage", ["p"]), node(9, "SaveImage", ["p"])]
        return canvas_to_prompt(canvas(*nodes, links=links, extra={"groupNodes": {"G": group}}), CLASSES)

    @pytest.mark.parametrize("kind", ["workflow>G", "workflow/G"])
    @pytest.mark.parametrize("slots", [False, True])
    def test_a_group_is_taken_apart(self, kind: str, slots: bool) -> None:
        values = [41, "randomize", 128, 256, 42, "fixed", *([] if slots else [11]), 2.5, "euler", 0.75, "said"]
        instance = node(37, kind, values + ([11] if slots else []))
        instance["inputs"] = [{"name": n, "link": None} for n in ("model", "two", "mask")]
        links = [(1, 0, 37, "model"), (2, 0, 37, "two"), (37, 1, 9, "images"), (37, 2, 8, "images")]
        prompt = self.flat(instance, self.group(slots), links)
        assert prompt["37:0"]["inputs"] == {"noise_seed": 41}
        assert prompt["37:2"]["inputs"] == {"width": 128, "height": 256}
        expected = {"seed": 42, "steps": 11, "cfg": 2.5, "sampler_name": "euler", "denoise": 0.75, "note": "said"}
        assert prompt["37:3"]["inputs"] == expected | {"model": ["1", 0], "latent": ["37:2", 0]}
        assert prompt["37:4"]["inputs"] == {"one": ["37:3", 0], "two": ["2", 0]}
        assert prompt["9"]["inputs"]["images"] == ["37:3", 0]  # linked inside, but marked external
        assert prompt["8"]["inputs"]["images"] == ["37:4", 0]

    def test_a_widget_turned_into_an_input_may_have_no_value_in_the_list(self) -> None:
        instance = node(37, "workflow>G", [41, "fixed", 128, 256, 42, "fixed", 2.5])
        instance["inputs"] = [{"name": n, "link": None} for n in ("model", "two", "mask", "steps")]
        prompt = self.flat(instance, self.group(True), [(2, 0, 37, "steps")])
        assert prompt["37:3"]["inputs"]["cfg"] == 2.5 and prompt["37:3"]["inputs"]["steps"] == ["2", 0]

    def test_hidden_widgets_have_their_values_in_the_list_too(self) -> None:
        hidden = {"2": {"input": {"width": {"visible": False}, "height": {"visible": False}}}}
        prompt = self.flat(node(37, "workflow>G", [41, "fixed", 640, 320, 43]), self.group(False, hidden), [])
        assert prompt["37:2"]["inputs"] == {"width": 640, "height": 320}
        assert prompt["37:3"]["inputs"]["seed"] == 43

    def test_a_primitive_inside_drives_its_target(self) -> None:
        slot = {"name": "width", "type": "INT", "widget": {"name": "width"}}
        group = {
            "nodes": [
                {"type": "PrimitiveNode", "outputs": [{"type": "INT"}], "widgets_values": [1, "fixed"]},
                {"type": "Empty", "inputs": [slot], "widgets_values": [64, 32]},
            ],
            "links": [[0, 0, 1, 0, 5, "INT"]],
        }
        prompt = self.flat(node(37, "workflow>G", [99, "fixed", 55]), group, [(37, 0, 9, "images")])
        assert prompt["37:1"]["inputs"] == {"width": 99, "height": 55}
        assert prompt["9"]["inputs"]["images"] == ["37:1", 0]


class TestTexts:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a {red|blue} ball", "a blue ball"),
            ("{a|{b|c} d}", "c d"),
            ("{x}", "x"),
            (r"\{a|b\} \| c\d", r"{a|b} | c\d"),
            ("a // to the end\nb /* gone\n */c", "a \nb c"),
            ("see /* never closed // x", "see /* never closed "),
            ("/* a *///c", ""),
            ("a } b | c {open|end", "a } b | c end"),
            ("{" * 300 + "a", "{" * 200 + "a"),
            ("", ""),
        ],
    )
    def test_choices_are_made_and_comments_removed(self, text: str, expected: str) -> None:
        assert choices_made(text, lambda options: options[-1]) == expected

    def test_hostile_comments_cost_no_more_than_their_length(self) -> None:
        assert choices_made("/*-" * 500_000, min) == "/*-" * 500_000

    def test_file_names_are_filled_with_date_and_widgets(self) -> None:
        now = datetime(2026, 3, 1, 9, 5, 7)
        values = {("KSampler", "seed"): 42, ("Bad", "x"): 'a/b:c*"\n'}

        def value_of(name: str, widget: str) -> Any:
            return values.get((name, widget))

        filled = fields_filled("%date:yyyy-MM-dd_hh.m.s%/%KSampler.seed%_%width%_%No.such%_%Bad.x%", value_of, now)
        assert filled == "2026-03-01_09.5.7/42_%width%_%No.such%_a_b_c___"

    def test_the_browser_fills_prefixes_and_prompts_so_we_do(self) -> None:
        sampler = node(3, "Sampler", [42, "fixed"], properties={"Node name for S&R": "KSampler"})
        text = node(5, "Text", ["a {big|small} cat"], title="Prompt")
        save = node(9, "SaveImage", ["%KSampler.seed%/%Prompt.text%/%year%"])
        work = canvas(sampler, text, save)
        assert inputs_of(work, "9", choose=max)["filename_prefix"] == "42/a {big_small} cat/%year%"
        assert inputs_of(work, "5", choose=max)["text"] == "a small cat"


FULL = TestSubgraphs().workflow(
    node(38, SUBGRAPH, [11], properties={"proxyWidgets": [["-1", "steps"]]}),
    node(37, "workflow>G", [41, "fixed"]),
    node(7, "Reroute"),
    node(6, "PrimitiveNode", [64, "fixed"]),
    node(5, "Mix", mode=4, outputs=[{"name": "o", "type": "LATENT"}]),
    links=[
        (1, 0, 38, "model"),
        (38, 0, 7, ""),
        (7, 0, 5, "one", "LATENT"),
        (5, 0, 9, "images", "LATENT"),
        (6, 0, 37, "x"),
    ],
) | {"extra": {"groupNodes": {"G": TestGroupNodes().group(True, {"2": {"input": {"width": {"visible": False}}}})}}}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


PLACES = [place for place in places(FULL) if place]
ODD_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, True, -1, 0, 7, 38, 10**30, 0.5, "", "x", "38", SUBGRAPH, "workflow>G", "GetNode", [], {}]),
    st.lists(st.integers(-2, 40) | st.none(), max_size=6),
    st.dictionaries(st.sampled_from(["id", "type", "name", "link", "0"]), st.integers(-2, 40), max_size=3),
)


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    """Change what is at a path, or delete it for ...; a path that earlier changes have cut off changes nothing."""
    for key in path[:-1]:
        known = isinstance(value, dict) and key in value or isinstance(value, list) and key in range(len(value))
        value = value[key] if known else None
    last = path[-1]
    if isinstance(value, dict) and new is ...:
        value.pop(last, None)
    elif isinstance(value, dict) or isinstance(value, list) and last in range(len(value)):
        value[last] = None if new is ... else new


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), ODD_VALUES | st.just(...)), min_size=1, max_size=4))
def test_a_damaged_workflow_is_read_or_refused_with_one_error(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    work = copy.deepcopy(FULL)
    for path, new in changes:
        put(work, path, new)
    try:
        prompt = canvas_to_prompt(work, CLASSES)
    except WorkflowError:
        return
    assert prompt == {} or is_prompt(prompt)
    json.dumps(prompt)
    validate(prompt, CLASSES)


ANYTHING = st.recursive(
    ODD_VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner), max_leaves=8
)


@settings(max_examples=100, deadline=None)
@given(ANYTHING)
def test_any_json_in_place_of_a_workflow_is_refused_with_one_error(value: Any) -> None:
    for document in (value, {"nodes": value}, {"nodes": [value]}, {"nodes": [], "links": value, "definitions": value}):
        try:
            canvas_to_prompt(document, CLASSES)
        except WorkflowError:
            pass
