"""Nodes with the ids of other packs: declared as there, with the same results."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sluice.flux_core.graph.flatten import canvas_to_prompt
from sluice.flux_core.graph.interface import Interface
from sluice.flux_core.graph.validate import validate
from sluice.flux_core.graph.widgets import default, is_widget
from sluice.flux_core.io.folders import standard_folders
from sluice.flux_core.worker.node_packs import load_packs
from sluice.flux_core.worker.registry import comfyui_tables, standalone_tables
from sluice.flux_core.worker.required_models import wanted_files
from sluice.nodes import NODE_CLASSES
from sluice.nodes.host import Host, pack_host
from sluice.nodes.other_packs.declared import OfAnotherPack
from sluice.nodes.other_packs.table import OTHER_CLASSES

CLASSES, TITLES = standalone_tables(pack_host())


def called(name: str, /, **values: Any) -> Any:
    """The result of the node with this id; inputs that are not given have their defaults."""
    node_class = CLASSES[name]
    defaults = {
        one.name: default(one)
        for one in Interface(node_class).inputs()
        if is_widget(one) and one.name not in values and one.category == "required"
    }
    return getattr(node_class(), node_class.FUNCTION)(**defaults, **values)


def given(name: str, /, **values: Any) -> tuple[Any, ...]:
    """The outputs of the node of this id."""
    made = called(name, **values)
    outputs = made["result"] if isinstance(made, dict) else made
    assert isinstance(outputs, tuple)
    return outputs


@pytest.mark.parametrize("name", sorted(OTHER_CLASSES))
def test_a_node_explains_itself_and_can_be_called_by_its_inputs(name: str) -> None:
    node_class: Any = CLASSES[name]
    assert OfAnotherPack in node_class.__mro__
    assert node_class.DESCRIPTION.endswith(".") and TITLES[name]
    interface = Interface(node_class)
    for one in interface.inputs():
        assert str(one.options.get("tooltip", "")).endswith("."), f"{one.name} has no tooltip"
    parameters = inspect.signature(getattr(node_class, node_class.FUNCTION)).parameters
    if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        assert {one.name for one in interface.inputs()} <= set(parameters)
    assert len(getattr(node_class, "OUTPUT_TOOLTIPS", node_class.RETURN_TYPES)) == len(node_class.RETURN_TYPES)
    assert set(getattr(node_class, "FILES", {})) <= {one.name for one in interface.inputs()}


def test_no_id_is_one_of_ours_and_inside_comfyui_none_is_offered() -> None:
    assert not set(OTHER_CLASSES) & {name.removeprefix("Sluice") for name in NODE_CLASSES}
    assert not set(OTHER_CLASSES) & set(comfyui_tables(pack_host())[0])


def test_a_loaded_pack_takes_its_ids_back(tmp_path: Path) -> None:
    from sluice.flux_core.facade.engine import Engine
    from sluice.flux_core.graph.execute import Executor

    pack = tmp_path / "packs" / "theirs"
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text(
        "class Own:\n"
        "    INPUT_TYPES = classmethod(lambda cls: {'required': {}})\n"
        "    RETURN_TYPES, FUNCTION = ('INT',), 'go'\n"
        "import nodes\n"
        "SEEN = {'ImageResize+', 'CompileModel'} & set(nodes.NODE_CLASS_MAPPINGS)\n"
        "IDS = ('ImageResize+', 'CompileModel', 'KSampler', 'Seen' if SEEN else 'Unseen')\n"
        "NODE_CLASS_MAPPINGS = dict.fromkeys(IDS, Own)\n"
    )
    (pack.parent / "viewer.py").write_text(
        "from nodes import NODE_CLASS_MAPPINGS as TABLE\nNODE_CLASS_MAPPINGS = {'Viewed': TABLE['CompileModel']}\n"
    )
    folders = standard_folders(tmp_path)
    host = Host(folders)
    classes, titles = standalone_tables(host)
    ours, accelerator = classes["KSampler"], classes["CompileModel"]
    packs = load_packs([tmp_path / "packs"], Engine(host, folders, classes, titles, Executor(classes)))
    assert classes["ImageResize+"].__name__ == "Own" and classes["KSampler"] is ours
    assert "Unseen" in classes, packs.packs
    theirs, viewer = packs.packs
    assert theirs["taken"] == ("CompileModel", "KSampler"), "the pack's own would change ComfyUI's network"
    assert classes["CompileModel"] is accelerator and viewer["nodes"] == ("Viewed",)
    assert classes["Viewed"].__name__ == "Own"


class TestLoaders:
    @pytest.mark.parametrize("name", [name for name in OTHER_CLASSES if "MultiGPU" in name])
    def test_placement_comes_after_the_loaders_own_widgets(self, name: str) -> None:
        plain = name.replace("DisTorch2", "").replace("DisTorch", "").removesuffix("MultiGPU")
        own = [one.name for one in Interface(CLASSES[plain]).inputs()]
        names = [one.name for one in Interface(CLASSES[name]).inputs()]
        assert names[: len(own)] == own and set(names) - set(own) <= {
            *("device", "compute_device", "virtual_vram_gb", "donor_device", "use_other_vram"),
            *("expert_mode_allocations", "high_precision_loras", "eject_models"),
        }

    @pytest.mark.parametrize("device", ["cuda:1", "cpu"])
    def test_placement_is_a_hint(self, device: str) -> None:
        files = {"clip_name1": "sluice-tiny-clip_l.safetensors", "clip_name2": "sluice-tiny-t5xxl.safetensors"}
        plain = given("DualCLIPLoader", **files, type="flux", device="cpu" if device == "cpu" else "default")
        assert given("DualCLIPLoaderMultiGPU", **files, type="flux", device=device) == plain
        tiny = "sluice-tiny.safetensors"
        other = given("UNETLoaderDisTorch2MultiGPU", unet_name=tiny, weight_dtype="default", compute_device=device)
        assert other == given("UNETLoader", unet_name=tiny, weight_dtype="default")

    def test_nunchakus_loaders_read_any_file_and_keep_their_settings(self) -> None:
        (model,) = given("NunchakuFluxDiTLoader", model_path="sluice-tiny.safetensors", cache_threshold=0.12)
        assert model.own_step_cache.threshold == pytest.approx(0.06)
        assert given("NunchakuFluxDiTLoader", model_path="sluice-tiny.safetensors")[0].own_step_cache is None
        files = {"text_encoder1": "sluice-tiny-t5xxl.safetensors", "text_encoder2": "sluice-tiny-clip_l.safetensors"}
        (clip,) = given("NunchakuTextEncoderLoaderV2", model_type="flux.1", **files, t5_min_length=512)
        assert clip.options.min_length == 512
        four = {"use_4bit_t5": "enable", "int4_model": "sluice-tiny-t5xxl.safetensors", "t5_min_length": 256}
        (clip,) = called("NunchakuTextEncoderLoader", model_type="flux", **files, **four)
        assert clip.options.min_length == 256
        with pytest.raises(Exception, match="awq-int4"):
            called("NunchakuTextEncoderLoader", model_type="flux", **files, **four | {"int4_model": "awq-int4"})

    def test_a_canvas_of_multigpu_is_read_with_its_values(self) -> None:
        box = {
            "id": 1,
            "type": "UNETLoaderMultiGPU",
            "mode": 0,
            "widgets_values": ["a.safetensors", "default", "cuda:0"],
        }
        prompt = canvas_to_prompt({"nodes": [box], "links": []}, CLASSES)
        assert prompt["1"]["inputs"] == {"unet_name": "a.safetensors", "weight_dtype": "default", "device": "cuda:0"}


class TestLoras:
    ROWS = (
        {"on": True, "lora": "a.safetensors", "strength": 0.8, "strengthTwo": None},
        {"on": False, "lora": "b.safetensors", "strength": 1},
        {"on": True, "lora": "c.safetensors", "strength": 1, "strengthTwo": 0.5},
    )

    @pytest.fixture
    def added(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """What the nodes ask to be added, instead of it being read."""
        asked: list[Any] = []
        base = OTHER_CLASSES["Power Lora Loader (rgthree)"].__mro__[1]

        def note(self: Any, model: Any, clip: Any, entries: Any) -> tuple[Any, Any]:
            asked.extend(entries)
            return model, clip

        monkeypatch.setattr(base, "added", note)
        return asked

    def test_the_power_lora_loader_takes_what_is_switched_on(self, added: list[Any]) -> None:
        rows = {f"lora_{n}": row for n, row in enumerate(self.ROWS, 1)}
        assert given("Power Lora Loader (rgthree)", model="m", clip="c", **rows) == ("m", "c")
        assert added == [("a.safetensors", 0.8, 0.8), ("c.safetensors", 1.0, 0.5)]

    def test_its_rows_are_read_from_a_canvas(self, added: list[Any]) -> None:
        values = [None, {"type": "PowerLoraLoaderHeaderWidget"}, *self.ROWS, None, ""]
        box = {"id": 1, "type": "Power Lora Loader (rgthree)", "mode": 0, "widgets_values": values}
        prompt = json.loads(json.dumps(canvas_to_prompt({"nodes": [box], "links": []}, CLASSES)))
        assert not validate(prompt, CLASSES).node_errors
        called("Power Lora Loader (rgthree)", **prompt["1"]["inputs"])
        assert [name for name, _, _ in added] == ["a.safetensors", "c.safetensors"]

    def test_lists_are_collected_and_applied(self, added: list[Any]) -> None:
        row = {"lora_1_name": "a", "lora_1_strength": 0.5, "lora_1_model_strength": 1.0, "lora_1_clip_strength": 0.25}
        (first,) = given("easy loraStack", toggle=True, mode="advanced", num_loras=2, **row)
        assert first == [("a", 1.0, 0.25)]
        assert given("easy loraStack", toggle=False, optional_lora_stack=first, mode="simple", num_loras=1)[0] is first
        (second,) = given(
            "LoRA Stacker", input_mode="simple", lora_count=1, lora_name_1="b", lora_wt_1=0.3, lora_stack=first
        )
        assert second == [("b", 0.3, 0.3), ("a", 1.0, 0.25)]
        (third, _) = given(
            "CR LoRA Stack",
            switch_2="On",
            lora_name_2="d",
            model_weight_2=0.1,
            lora_stack=second,
            **{f"switch_{n}": "Off" for n in (1, 3)},
        )
        assert third == [*second, ("d", 0.1, 1.0)]
        given("CR Apply LoRA Stack", model="m", clip="c", lora_stack=third)
        assert added == third

    def test_none_is_no_file_that_is_missing(self) -> None:
        prompt = {"1": {"class_type": "NunchakuFluxLoraStack", "inputs": {"lora_name_1": "None", "lora_name_2": "x"}}}
        found = wanted_files(prompt, CLASSES, standard_folders(Path.cwd()))
        assert [one.name for one in found] == ["x"]


class TestAccelerators:
    @pytest.mark.parametrize(
        "name",
        [
            *("TorchCompileModel", "TorchCompileModelFluxAdvanced", "TorchCompileModelFluxAdvancedV2"),
            *("EnhancedCompileModel", "CompileModel", "PathchSageAttentionKJ", "PatchModelPatcherOrder"),
            *("ModelPatchTorchSettings", "MZ_Flux1PartialLoad_Patch", "FluxForwardOverrider"),
        ],
    )
    def test_a_model_passes_through(self, name: str) -> None:
        model = object()
        assert given(name, model=model) == (model,)

    def test_a_chosen_attention_belongs_to_the_model(self) -> None:
        named = {"unet_name": "sluice-tiny.safetensors", "weight_dtype": "default"}
        (model,) = given("UNETLoader", **named)
        (chosen,) = given("PathchSageAttentionKJ", model=model, sage_attention="auto")
        loaded = {"model_name": "sluice-tiny.safetensors", "weight_dtype": "default"}
        (other,) = given("DiffusionModelLoaderKJ", **loaded, sage_attention="sageattn_qk_int8_pv_fp16_cuda")
        assert (model.attention, chosen.attention, other.attention) == ("pytorch", "sage", "sage")
        (off,) = given("PathchSageAttentionKJ", model=chosen, sage_attention="disabled")
        assert off.attention == "sage", "disabled leaves the model as it is"

    @pytest.mark.parametrize(
        ("name", "values", "threshold"),
        [
            ("ApplyTeaCachePatch", {"rel_l1_thresh": 0.4}, 0.1),
            ("CacheModelAuto", {"speed_factor": 0.5}, 0.1),
            ("CacheModelPeriodic", {"cache_interval": 2, "start_step": 2}, 0.1),
            ("CacheModelAdaptive", {"threshold": 0.01, "max_skip_steps": 4}, 0.1),
        ],
    )
    def test_caches_set_ours(self, name: str, values: dict[str, Any], threshold: float) -> None:
        (model,) = given("UNETLoader", unet_name="sluice-tiny.safetensors", weight_dtype="default")
        (cached,) = given(name, model=model, **values)
        assert cached.own_step_cache.threshold == pytest.approx(threshold)

    def test_what_clears_memory_passes_its_value_on(self) -> None:
        assert given("easy cleanGpuUsed", anything=5) == given("LayerUtility: PurgeVRAM V2", anything=5) == (5,)
        assert given("LayerUtility: PurgeVRAM", anything=5) == ()
        image = torch.zeros(1, 8, 8, 3)
        assert given("VRAM_Debug", image_pass=image)[1] is image
