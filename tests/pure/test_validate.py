"""Validation: every problem at once, in ComfyUI's shapes and in sentences, and nothing that can be run is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sluice.flux_core.graph.execute import Executor
from sluice.flux_core.graph.interface import Interface
from sluice.flux_core.graph.object_info import object_info
from sluice.flux_core.graph.validate import types_fit, validate


def node_class(outputs: tuple[Any, ...] = (), output_node: bool = False, **more: Any) -> type[Any]:
    sections = {key: more.pop(key) for key in ("required", "optional", "hidden") if key in more}
    fixed = {
        "INPUT_TYPES": classmethod(lambda cls: sections),
        "RETURN_TYPES": outputs,
        "FUNCTION": "run",
        "OUTPUT_NODE": output_node,
        "run": lambda self, **inputs: outputs,
    }
    return type("FakeNode", (), fixed | more)


class Any_(str):
    """The type that packs use to match every type."""

    def __ne__(self, other: object) -> bool:
        return False


class Equal(Any_):
    """One that is equal to every other name as well, and so has no hash."""

    def __eq__(self, other: object) -> bool:
        return True


MODELS = [f"model{i}.safetensors" for i in range(30)]
CLASSES = {
    "Number": node_class(("INT", "FLOAT")),
    "Image": node_class(("IMAGE", "MASK"), required={"width": ("INT", {"min": 1, "max": 16384}), "scale": ("FLOAT",)}),
    "Load": node_class(("MODEL",), required={"name": (MODELS,), "kind": (["fast", "exact"], {})}),
    "Empty": node_class(("MODEL",), required={"name": ([],)}),
    "Mix": node_class(("IMAGE",), required={"a": ("IMAGE,MASK",)}, optional={"b": ("IMAGE", {}), "c": ("MODEL",)}),
    "Wild": node_class((Any_("*"),), optional={"x": (Any_("*"),), "n": ("INT", {"forceInput": True})}),
    "Wilder": node_class((Equal("*"),), optional={"x": (Equal("any"), {"default": 1})}),
    "Kinds": node_class(("IMAGE",), optional={"s": ("STRING",), "b": ("BOOLEAN",), "v": ("COMBO", {"options": ["a"]})}),
    "Save": node_class((), True, required={"images": ("IMAGE", {}), "prefix": ("STRING", {"default": "x"})}),
}


def n(class_type: str, title: str | None = None, **inputs: Any) -> dict[str, Any]:
    node: dict[str, Any] = {"class_type": class_type, "inputs": inputs}
    return node | ({"_meta": {"title": title}} if title else {})


def image(**inputs: Any) -> dict[str, Any]:
    return n("Image", **({"width": 64, "scale": 1.0} | inputs))


def save(source: Any = "1", **inputs: Any) -> dict[str, Any]:
    return n("Save", images=[source, 0], prefix="x", **inputs)


def problems(prompt: dict[str, Any], classes: Any = None, **options: Any) -> tuple[str, ...]:
    return validate(prompt, classes or CLASSES, **options).sentences


class TestConversion:
    def test_constants_become_what_they_are_declared_as_in_a_copy(self) -> None:
        prompt = {"1": image(width="72", scale=2), "2": save()}
        before = json.dumps(prompt)
        found = validate(prompt, CLASSES)
        assert found.sentences == () and found.error is None and found.outputs == ("2",)
        assert found.prompt["1"]["inputs"] == {"width": 72, "scale": 2.0} and json.dumps(prompt) == before
        assert isinstance(found.prompt["1"]["inputs"]["scale"], float)

    def test_python_decides_what_converts(self) -> None:
        prompt = {"1": n("Kinds", s=5, b="x"), "2": save()}
        assert validate(prompt, CLASSES).prompt["1"]["inputs"] == {"s": "5", "b": True}

    def test_wrapped_values_are_unwrapped_but_lists_stay_wrapped_for_the_saved_prompt(self) -> None:
        classes = CLASSES | {"L": node_class(("IMAGE",), required={"l": ("CURVE",), "i": ("INT",)})}
        prompt = {"1": n("L", l={"__value__": ["a", 1]}, i={"__value__": "4"}), "2": save()}
        checked = validate(prompt, classes)
        assert checked.prompt["1"]["inputs"] == {"l": {"__value__": ["a", 1]}, "i": 4}
        seen: list[dict[str, Any]] = []

        def run(self: Any, **inputs: Any) -> tuple[str]:
            seen.append(inputs)
            return ("img",)

        classes["L"].run = run
        Executor(classes).execute(checked.prompt, outputs=checked.outputs)
        assert seen == [{"l": ["a", 1], "i": 4}]

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), "nan", "-inf", "1e999"])
    def test_numbers_are_finite(self, number: Any) -> None:
        (problem,) = problems({"1": image(scale=number), "2": save()})
        assert (
            problem == f"Node 1 (Image), input scale: it takes FLOAT, but {number!r} cannot be converted to that type."
        )

    @pytest.mark.parametrize("constant", [5, 0.5, "model.safetensors", True])
    def test_what_only_nodes_give_cannot_be_written_down(self, constant: Any) -> None:
        prompt = {"1": n("Mix", a=["3", 0], c=constant), "2": save(), "3": image()}
        (problem,) = problems(prompt)
        assert problem == f"Node 1 (Mix), input c: it takes MODEL, but {constant!r} cannot be converted to that type."

    def test_packs_may_bring_widgets_for_types_of_their_own(self) -> None:
        classes = CLASSES | {"L": node_class(("IMAGE",), required={"l": ("CURVE",)})}
        assert problems({"1": n("L", l="0,0 1,1"), "2": save()}, classes) == ()

    @pytest.mark.parametrize("link", [["a", "b"], ["9", None], [9, 0]])
    def test_lists_that_are_no_links_are_told(self, link: list[Any]) -> None:
        (problem,) = problems({"1": image(width=link), "2": save()})
        assert problem.endswith("is not a link; a link is [node id, number of the output].")

    def test_unknown_inputs_are_ignored(self) -> None:
        assert problems({"1": image(upload="image", old=[1, 2, 3]), "2": save()}) == ()

    def test_combos_of_the_newer_style_are_not_checked(self) -> None:
        assert problems({"1": n("Kinds", v="nope"), "2": save()}) == ()


class TestTypes:
    @pytest.mark.parametrize(
        ("received", "wanted", "fits"),
        [
            ("IMAGE", "IMAGE", True),
            ("IMAGE", "MASK", False),
            ("IMAGE, MASK", "X,MASK", True),
            ("IMAGE", "*", True),
            (Any_("*"), "IMAGE", True),
            (["a"], ["a"], True),
            (["a"], ["b"], False),
            (["a"], "STRING", False),
        ],
    )
    def test_types_fit_when_equal_or_with_a_part_in_common(self, received: Any, wanted: Any, fits: bool) -> None:
        assert types_fit(received, wanted) is fits

    def test_wildcards_of_packs_take_and_give_everything(self) -> None:
        assert problems({"1": n("Number"), "3": n("Wild", x=["1", 0], n=["1", 0]), "2": save("3")}) == ()
        assert problems({"1": n("Number"), "3": n("Wilder", x=["1", 0]), "2": save("3")}) == ()
        assert Interface(CLASSES["Wilder"]).inputs()[0].type == "*"  # and neither a combo nor without a hash


class TestSentences:
    def test_every_problem_of_every_node_is_found_at_once(self) -> None:
        prompt = {
            "1": image(width="72.0", scale="wide"),
            "2": n("Load", kind="exaxt", name="MODEL7.safetensors"),
            "3": n("Mix", "Blend", a=["2", 0], b=["1"], c=["77", 0]),
            "4": n("Save", images=["3", 0]),
            "5": n("Mix", a=["1", 9], b=["6", 0]),
            "6": image(width=0),
            "7": save("5"),
            "8": n("Save", images=["9", 0], prefix="p"),
            "9": image(width=10**6),
            "10": n("Savv"),
            "11": {"inputs": {}},
        }
        assert problems(prompt) == (
            "Node 10 (Savv) cannot run: there is no node class 'Savv' here. Did you mean 'Save'? If it belongs to a "
            "node pack, name the pack's folder with --node-packs FOLDER.",
            "Node 11 has no class_type.",
            "Node 2 (Load), input name: 'MODEL7.safetensors' is not available. Did you mean 'model7.safetensors' or "
            "'model27.safetensors' or 'model17.safetensors'?",
            "Node 2 (Load), input kind: 'exaxt' is not available. Did you mean 'exact'? Possible: fast, exact.",
            'Node 3 "Blend" (Mix), input a: it takes IMAGE,MASK, but output 0 of node 2 (Load) gives MODEL.',
            "Node 3 \"Blend\" (Mix), input b: ['1'] is not a link; a link is [node id, number of the output].",
            'Node 3 "Blend" (Mix), input c: it is linked to node 77, which is not in the workflow.',
            "Node 4 (Save), input prefix: it is required, but it has neither a value nor a link.",
            "Node 1 (Image), input width: it takes INT, but '72.0' cannot be converted to that type.",
            "Node 1 (Image), input scale: it takes FLOAT, but 'wide' cannot be converted to that type.",
            "Node 6 (Image), input width: 0 is below the smallest possible value, 1.",
            "Node 5 (Mix), input a: it is linked to output 9 of node 1 (Image), which has no such output.",
            "Node 9 (Image), input width: 1000000 is above the largest possible value, 16384.",
        )

    def test_a_file_in_another_folder_is_suggested_by_its_name(self) -> None:
        classes = CLASSES | {"Load": node_class(("IMAGE",), required={"name": (["flux\\dev.sft", *MODELS],)})}
        found = problems({"1": n("Load", name="DEV.sft"), "2": save()}, classes)
        assert found == (r"Node 1 (Load), input name: 'DEV.sft' is not available. Did you mean 'flux\\dev.sft'?",)

    def test_an_empty_list_of_choices_is_told_as_such(self) -> None:
        found = problems({"1": n("Empty", name="a"), "3": n("Mix", a=["1", 0]), "2": save("3")})
        assert found[0] == "Node 1 (Empty), input name: 'a' is not available: the list of choices is empty."

    def test_no_output_is_told(self) -> None:
        assert problems({}) == ("The workflow has no output, because it has no nodes. Add one, for example SaveImage.",)
        assert "none of its nodes saves or shows anything" in problems({"1": image()})[0]

    def test_an_unknown_class_names_the_pack_it_came_from(self) -> None:
        prompt = {"1": n("Alien") | {"_meta": {"cnr_id": "comfyui-alien"}}, "2": n("Other"), "3": save()}
        first, second = problems(prompt, packs={"Other": "someone/else"})
        assert first.endswith("from the node pack comfyui-alien. Load packs with --node-packs FOLDER.")
        assert second.endswith("from the node pack someone/else. Load packs with --node-packs FOLDER.")

    def test_long_values_are_cut(self) -> None:
        assert len(problems({"1": image(width="9" * 5000), "2": save()})[0]) < 200


class TestCycles:
    def test_a_cycle_is_named_with_its_path_once(self) -> None:
        prompt = {
            "1": n("Mix", a=["2", 0]),
            "2": n("Mix", a=["3", 0]),
            "3": n("Mix", a=["1", 0]),
            "4": save("1"),
            "5": save("6"),
            "6": image(),
        }
        found = validate(prompt, CLASSES)
        circle = "3 (Mix) -> 2 (Mix) -> 1 (Mix) -> 3 (Mix)"
        assert found.sentences == (f"Nodes wait for each other in a circle: {circle}. Remove one of these links.",)
        assert found.outputs == ("5",)
        assert {node["errors"][0]["type"] for node in found.node_errors.values()} == {"dependency_cycle"}
        assert sorted(found.node_errors) == ["1", "2", "3"]

    def test_a_node_linked_to_itself_is_a_cycle(self) -> None:
        assert "1 (Mix) -> 1 (Mix)" in problems({"1": n("Mix", a=["1", 0]), "2": save()})[0]

    def test_a_chain_of_ten_thousand_nodes_is_no_problem(self) -> None:
        chain = {str(i): n("Mix", a=[str(i - 1), 0]) for i in range(1, 9_998)}
        assert problems({"0": image(), **chain, "s": save("9997")}) == ()
        told = problems({"0": n("Mix", a=["9997", 0]), **chain, "s": save("9997")})
        assert len(told) == 1 and "circle" in told[0] and len(told[0]) < 500


class TestShapes:
    def test_bad_outputs_are_dropped_and_good_ones_run(self) -> None:
        found = validate({"1": image(), "2": save(), "3": image(width=0), "4": save("3")}, CLASSES)
        assert found.outputs == ("2",) and found.error is None
        assert found.node_errors["3"]["dependent_outputs"] == ["4"] and list(found.node_errors) == ["3"]

    def test_targets_limit_what_is_checked(self) -> None:
        prompt = {"1": image(), "2": save(), "3": image(width=0), "4": save("3")}
        assert validate(prompt, CLASSES, targets=["2"]).sentences == ()
        nothing = validate(prompt, CLASSES, targets=[])
        assert nothing.error is not None
        assert nothing.outputs == () and nothing.error["type"] == "prompt_no_outputs"

    def test_a_shared_fault_lists_every_output_that_needs_it(self) -> None:
        found = validate({"1": image(width=0), "2": save(), "3": n("Mix", a=["1", 0]), "4": save("3")}, CLASSES)
        assert found.node_errors["1"]["dependent_outputs"] == ["2", "4"] and found.outputs == ()
        assert found.error is not None and found.error["type"] == "prompt_outputs_failed_validation"

    def test_lists_of_over_twenty_choices_are_counted_not_sent(self) -> None:
        found = validate({"1": n("Load", name="x", kind="y"), "3": n("Mix", a=["1", 0]), "2": save("3")}, CLASSES)
        long, short = found.node_errors["1"]["errors"]
        assert long["details"] == "name: 'x' not in (list of length 30)" and long["extra_info"]["input_config"] is None
        assert short["details"] == "kind: 'y' not in ['fast', 'exact']"
        assert short["extra_info"]["input_config"] == [["fast", "exact"], {}]

    def test_faults_above_an_output_have_a_type_of_their_own(self) -> None:
        found = validate({"1": n("Mix", a=["99", 0]), "2": save(), "3": save("98")}, CLASSES)
        assert found.node_errors["1"]["errors"][0]["type"] == "exception_during_inner_validation"
        assert found.node_errors["3"]["errors"][0]["type"] == "exception_during_validation"
        assert found.node_errors["3"]["errors"][0]["details"] == "'98'"

    @pytest.mark.parametrize("link", [["1", -1], ["1", "0"], ["1", 0.5], [4, 0], [["1"], 0], ["1", None], ["1", True]])
    def test_odd_links_are_errors_not_crashes(self, link: Any) -> None:
        found = validate({"1": image(), "2": n("Save", images=link, prefix="x")}, CLASSES)
        assert found.outputs == () and len(found.sentences) == 1 and "Node 2 (Save), input images" in found.sentences[0]

    def test_everything_reported_is_json(self) -> None:
        found = validate({"1": image(width=[1]), "2": save(), "3": n("Mix", a=["3", 0]), "4": save("3")}, CLASSES)
        json.dumps([found.node_errors, found.error, found.sentences, found.prompt])


class TestOwnChecks:
    def classes(self, check: Any, **more: Any) -> dict[str, Any]:
        file = {"file": (["a.png"],), "size": ("INT", {"max": 9})}
        node = node_class(("IMAGE",), required=file, optional={"pic": ("IMAGE",)}, VALIDATE_INPUTS=check, **more)
        return CLASSES | {"Own": node}

    def run(self, check: Any, **inputs: Any) -> tuple[str, ...]:
        given: dict[str, Any] = {"file": "a.png", "size": 5, **inputs}
        prompt = {"0": image(), "1": n("Own", **given), "2": save()}
        return problems(prompt, self.classes(check))

    def test_an_input_it_names_is_not_checked_by_us(self) -> None:
        def check(cls: Any, file: Any) -> Any:
            return file != "bad" or "No such file: bad"

        assert self.run(classmethod(check), file="x [output]") == ()
        assert self.run(classmethod(check), file="bad") == ("Node 1 (Own), input file: No such file: bad.",)
        assert "largest possible" in self.run(classmethod(check), size=10)[0]

    def test_one_that_takes_anything_covers_every_input_and_sees_links_as_nothing(self) -> None:
        seen = []

        def check(cls: type[Any], /, **inputs: Any) -> bool:
            seen.append(inputs)
            return True

        assert self.run(classmethod(check), file="x", size=10, pic=["0", 0]) == ()
        assert seen == [{"file": "x", "size": 10, "pic": None}]

    def test_false_refuses_without_a_reason_and_an_exception_with_its_own(self) -> None:
        def refuse(cls: Any, size: Any) -> bool:
            return False

        def fail(cls: Any, size: Any) -> bool:
            raise LookupError("no disk")

        assert self.run(classmethod(refuse)) == ("Node 1 (Own), input size: the node refuses this value.",)
        assert self.run(classmethod(fail)) == ("Node 1 (Own): it could not be checked (LookupError: no disk).",)

    def test_one_that_names_input_types_decides_about_links(self) -> None:
        def check(cls: Any, input_types: Any) -> Any:
            return input_types == {"pic": "INT"}

        prompt = {"0": n("Number"), "1": n("Own", file="a.png", size=5, pic=["0", 0]), "2": save()}
        assert problems(prompt, self.classes(classmethod(check))) == ()

    def test_it_may_be_asynchronous(self) -> None:
        async def check(cls: Any, size: Any) -> Any:
            return "too slow"

        assert self.run(classmethod(check)) == ("Node 1 (Own), input size: too slow.",)

    def test_a_class_whose_declaration_fails_is_a_problem_not_a_crash(self) -> None:
        def fail(cls: Any) -> Any:
            raise OSError("folder is gone")

        classes = self.classes(None, INPUT_TYPES=classmethod(fail))
        found = problems({"1": n("Own"), "2": save()}, classes)
        assert found == ("Node 1 (Own): it could not be checked (OSError: folder is gone).",)
        assert "Own" not in object_info(classes) and "Save" in object_info(classes)


class TestObjectInfo:
    def test_a_class_is_described_as_the_browser_expects(self) -> None:
        declared = {"x": ("INT", {"max": float("inf")}), "y": (("a", "b"),)}
        said = {"RETURN_NAMES": ("i", "m"), "CATEGORY": "a/b", "DEPRECATED": True, "DESCRIPTION": "d"}
        sections = {"required": declared, "hidden": {"id": "UNIQUE_ID"}}
        node = node_class(("IMAGE", "MASK"), True, **sections, **said, OUTPUT_TOOLTIPS=("t",))
        assert object_info({"N": node}, {"N": "A node"})["N"] == {
            "input": {
                "required": {"x": ["INT", {"max": None}], "y": [["a", "b"]]},
                "hidden": {"id": "UNIQUE_ID"},
            },
            "input_order": {"required": ["x", "y"], "hidden": ["id"]},
            "output": ["IMAGE", "MASK"],
            "output_is_list": [False, False],
            "output_name": ["i", "m"],
            "name": "N",
            "display_name": "A node",
            "description": "d",
            "python_module": "nodes",
            "category": "a/b",
            "output_node": True,
            "output_tooltips": ["t"],
            "deprecated": True,
        }

    def test_every_description_is_strict_json(self) -> None:
        json.dumps(object_info(CLASSES), allow_nan=False)


@pytest.mark.parametrize(
    ("class_type", "pack"),
    [
        ("Power Puter (rgthree)", "rgthree-comfy"),
        ("easy fullLoader", "comfyui-easy-use"),
        ("LayerUtility: ImageBlend", "comfyui_layerstyle"),
        ("KSamplerVariationsWithNoise+", "comfyui_essentials"),
        ("ClownsharKSampler_Beta", "RES4LYF"),
        ("LoadTheMistoFluxControlNet", "ComfyUI-MistoControlNet-Flux-dev"),
    ],
)
def test_an_id_that_nobody_explains_is_told_with_its_likely_pack(class_type: str, pack: str) -> None:
    found = validate({"1": {"class_type": class_type, "inputs": {}}}, {})
    assert f"probably from the node pack {pack}." in found.sentences[0] and "--node-packs" in found.sentences[0]


@pytest.mark.parametrize(
    ("class_type", "purpose", "advice"),
    [
        ("TripleCLIPLoader", "Stable Diffusion 3", "DualCLIPLoader"),
        ("EmptyHunyuanLatentVideo", "videos", "EmptySD3LatentImage"),
        ("LotusConditioning", "the depth model Lotus", "LoadImage"),
        ("KlingImageToVideoNode", "a service of another company", "remove the node"),
    ],
)
def test_a_node_of_comfyui_for_another_model_is_told_as_such(class_type: str, purpose: str, advice: str) -> None:
    (found,) = validate({"1": {"class_type": class_type, "inputs": {}}}, {class_type + "GGUF": object}).sentences
    assert "belongs to ComfyUI itself" in found and purpose in found and advice in found and "Did you mean" not in found


def test_a_loaded_pack_without_the_node_is_told_as_such() -> None:
    class Other:
        RELATIVE_PYTHON_MODULE = "custom_nodes.ComfyUI-Inpaint-CropAndStitch"

    for pack in ("comfyui-inpaint-cropandstitch", "lquesada/ComfyUI-Inpaint-CropAndStitch"):
        prompt = {"1": {"class_type": "InpaintCrop", "inputs": {}}}
        (found,) = validate(prompt, {"Other": Other}, packs={"InpaintCrop": pack}).sentences
        assert f"from the node pack {pack}, which is loaded here without it" in found and "Update the pack" in found
        (found,) = validate(prompt, {}, packs={"InpaintCrop": pack}).sentences
        assert found.endswith(f"from the node pack {pack}. Load packs with --node-packs FOLDER.")
