"""Nodes keep ComfyUI's interfaces to the letter, and translate without changing anything on the way."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sluice
from sluice.flux_core.worker.registry import PREFIX, comfyui_tables, standalone_tables
from sluice.nodes import NODE_CLASSES
from sluice.nodes.binding import bound_to
from sluice.nodes.host import pack_host
from sluice.nodes.other_packs.table import OTHER_CLASSES

ROOT = Path(sluice.__file__).parent
FIXTURES = Path(__file__).parents[1] / "fixtures"
# By a running ComfyUI 0.3.64, and from the sources of newer versions for what came later.
REFERENCE = {
    **json.loads((FIXTURES / "nodes_object_info.json").read_text()),
    **json.loads((FIXTURES / "newer_nodes_object_info.json").read_text()),
}
HOST = pack_host()
BOUND = bound_to(HOST, NODE_CLASSES)
FILE_LISTS = {
    "unet_name",
    "clip_name1",
    "clip_name2",
    "clip_name",
    "vae_name",
    "ckpt_name",
    "lora_name",
    "image",
    "latent",
    "control_net_name",
    "style_model_name",
    "model_name",
    "name",
}


def declared(node_class: type[Any]) -> dict[str, Any]:
    """INPUT_TYPES without tooltips, and with the names of files left out."""
    sections: dict[str, Any] = {}
    for section, inputs in node_class.INPUT_TYPES().items():
        sections[section] = {}
        for name, spec in inputs.items():
            if section == "hidden":
                sections[section][name] = spec
                continue
            kind, options = spec
            kind = ["<files>"] if isinstance(kind, list) and name in FILE_LISTS else kind
            sections[section][name] = [kind, without_prose(options)]
    return sections


def without_prose(options: Any) -> Any:
    """As JSON returns it, without tooltips, also in nested inputs."""
    if isinstance(options, dict):
        return {key: without_prose(value) for key, value in options.items() if key != "tooltip"}
    return [without_prose(one) for one in options] if isinstance(options, (list, tuple)) else options


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_a_node_declares_what_comfyui_declares(name: str) -> None:
    node_class = BOUND[PREFIX + name]
    reference = REFERENCE[name]
    ours = declared(node_class)
    assert ours == reference["input"]
    for section in ours:
        assert list(ours[section]) == list(reference["input"][section]), "widgets are stored by their position"
    assert list(node_class.RETURN_TYPES) == reference["output"]
    assert list(getattr(node_class, "RETURN_NAMES", node_class.RETURN_TYPES)) == reference["output_name"]
    assert node_class.CATEGORY == reference["category"]
    assert getattr(node_class, "OUTPUT_NODE", False) == reference["output_node"]
    assert getattr(node_class, "EXPERIMENTAL", False) == reference["experimental"]
    assert getattr(node_class, "TITLE", None) == reference["title"]


def test_every_node_of_ours_is_compared() -> None:
    ours = {
        "FluxToModel",
        "MemoryBudget",
        "ModelProducts",
        "StepCache",
        "XYGrid",
        "LabelledImageGrid",
    }  # what only we have
    ours |= {"ApplyFBCacheOnModel", "TeaCache", "TeaCacheForImgGen", "MagCache"}  # of other packs
    assert {name.removeprefix(PREFIX) for name in NODE_CLASSES} == set(REFERENCE) | ours


@pytest.mark.parametrize("name", sorted(NODE_CLASSES))
def test_a_node_explains_itself(name: str) -> None:
    node_class = BOUND[name]
    assert node_class.DESCRIPTION.endswith(".")
    sections = node_class.INPUT_TYPES()
    for section in ("required", "optional"):
        for input_name, (_, options) in sections.get(section, {}).items():
            assert options.get("tooltip", "").endswith("."), f"{input_name} has no tooltip"
    if node_class.RETURN_TYPES and not node_class.CATEGORY.startswith("utils"):
        assert len(node_class.OUTPUT_TOOLTIPS) == len(node_class.RETURN_TYPES)


@pytest.mark.parametrize("name", sorted(NODE_CLASSES))
def test_inputs_are_the_parameters_of_the_method(name: str) -> None:
    node_class = BOUND[name]
    sections = node_class.INPUT_TYPES()
    inputs = {input_name for section in sections.values() for input_name in section}
    parameters = inspect.signature(getattr(node_class, node_class.FUNCTION)).parameters
    takes = set(parameters) - {"self"}
    assert inputs <= takes
    for left_over in takes - inputs:
        given = parameters[left_over]
        assert given.default is not given.empty or given.kind is given.VAR_KEYWORD
    for optional in [*sections.get("optional", {}), *sections.get("hidden", {})]:
        assert parameters[optional].default is not inspect.Parameter.empty


def test_file_widgets_say_which_folder_they_mean() -> None:
    said = [(one, name) for one in BOUND.values() for name in getattr(one, "FILES", {})]
    assert len(said) >= 10 and all(name in node_class.INPUT_TYPES()["required"] for node_class, name in said)


def test_sampler_and_scheduler_widgets_offer_what_there_is() -> None:
    from sluice.flux_core.sampling.schedule import SCHEDULES
    from sluice.flux_core.sampling.solvers import SOLVERS
    from sluice.nodes.guiders import SAMPLERS
    from sluice.nodes.sigmas import SCHEDULERS

    assert list(SOLVERS) == list(SAMPLERS)
    assert list(SCHEDULES) == list(SCHEDULERS)


def test_standalone_every_class_has_both_ids() -> None:
    classes, titles = standalone_tables(HOST)
    ours = set(classes) - set(OTHER_CLASSES)
    assert ours == {*NODE_CLASSES, *(name.removeprefix(PREFIX) for name in NODE_CLASSES)}
    assert classes["KSampler"] is classes["SluiceKSampler"]
    assert titles["UNETLoader"] == "Load Diffusion Model"
    assert titles["SluiceUNETLoader"] == "Load Diffusion Model (Sluice)"
    assert titles.keys() == classes.keys()


def test_inside_comfyui_only_prefixed_nodes_that_touch_our_models_are_offered() -> None:
    classes, titles = comfyui_tables(HOST)
    assert all(name.startswith(PREFIX) for name in classes)
    assert all(title.endswith("(Sluice)") for title in titles.values())
    assert {"SluiceUNETLoader", "SluiceKSampler", "SluiceCLIPTextEncode", "SluiceVAEDecode"} <= classes.keys()
    assert not {"SluiceSaveImage", "SluiceRandomNoise", "SluiceFluxGuidance", "SluiceSplitSigmas"} & classes.keys()


def test_the_catalogue_is_a_literal_with_comfyuis_ids_behind_the_prefix() -> None:
    tree = ast.parse((ROOT / "nodes" / "__init__.py").read_text())
    (table,) = [node.value for node in tree.body if isinstance(node, ast.AnnAssign)]
    assert isinstance(table, ast.Dict)
    keys = [ast.literal_eval(key) for key in table.keys if key is not None]
    written = dict(zip(keys, map(ast.unparse, table.values), strict=True))
    assert written == {name: node_class.__name__ for name, node_class in NODE_CLASSES.items()}
    assert all(name == PREFIX + class_name for name, class_name in written.items())


INSIDE = """
import sys, types
sys.path.insert(0, {tests!r})
comfy, management, paths = (types.ModuleType(n) for n in ("comfy", "comfy.model_management", "folder_paths"))
paths.folder_names_and_paths = {{}}
paths.models_dir = paths.get_input_directory = None
for place in ("input", "output", "temp", "user"):
    setattr(paths, f"get_{{place}}_directory", lambda: "/nowhere")
paths.models_dir = "/nowhere"
sys.modules.update({{"comfy": comfy, "comfy.model_management": management, "folder_paths": paths}})
import conftest
import sluice
classes = sluice.NODE_CLASS_MAPPINGS
print(classes["SluiceUNETLoader"].RETURN_TYPES, classes["SluiceVAEDecode"].INPUT_TYPES()["required"]["vae"][0])
print(sorted(set(sys.modules) & {{"torch", "numpy", "PIL", "aiohttp", "yaml", "tokenizers", "nodes"}}))
"""


def test_inside_comfyui_our_models_have_sockets_of_their_own_and_nothing_heavy_is_imported() -> None:
    code = INSIDE.format(tests=str(ROOT / "tests"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["('FLUX_MODEL',) FLUX_VAE", "[]"], done.stderr
