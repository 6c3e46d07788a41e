"""The node pack as the registry ships it, in a folder of any name, inside a stand-in for ComfyUI.

What is shipped is what git knows less .comfyignore. The stand-in has the few functions of ComfyUI's that nodes/host.py
and nodes/bridge_memory.py call, and runs prompts as its executor runs classic nodes.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import sluice

ROOT = Path(sluice.__file__).parent
CORE_IDS = set(json.loads((ROOT / "tests/fixtures/nodes_object_info.json").read_text(encoding="utf-8")))

STAND_IN = """
import importlib.util, json, sys, types
from pathlib import Path

folder, store = Path(sys.argv[1]), Path(sys.argv[2])

def module(name, **contents):
    made = sys.modules[name] = types.ModuleType(name)
    made.__dict__.update(contents)
    return made

ledger, asked, bars, events = [], [], [], []

class ModelPatcher:
    def __init__(self, model, load_device, offload_device, size=0):
        self.model, self.load_device, self.offload_device, self.size = model, load_device, offload_device, size

def get_torch_device():
    import torch
    return torch.device("cpu")

def load_models_gpu(models, memory_required=0, minimum_memory_required=None):
    for model in models:
        if not any(entry is model for entry in ledger):
            ledger.append(model)
        asked.append(model.model_size())
        model.partially_load(model.load_device, 1e32)

class ProgressBar:
    def __init__(self, total): self.total = total
    def update_absolute(self, done, total, preview): bars.append((done, total, preview and preview[1].size))

class PromptServer:
    instance = types.SimpleNamespace(send_sync=lambda event, data: events.append(event))

module("server", PromptServer=PromptServer)
comfy = module("comfy")
comfy.model_management = module(
    "comfy.model_management", get_torch_device=get_torch_device, load_models_gpu=load_models_gpu,
    throw_exception_if_processing_interrupted=lambda: None, extra_reserved_memory=lambda: 0,
)
comfy.model_patcher = module("comfy.model_patcher", ModelPatcher=ModelPatcher)
comfy.utils = module("comfy.utils", ProgressBar=ProgressBar)
settings = types.SimpleNamespace(preview_method="auto", preview_size=512)
methods = types.SimpleNamespace(NoPreviews="none", TAESD="taesd")
module("comfy.cli_args", args=settings, LatentPreviewMethod=methods)
places = {kind: ([str(store / "models" / kind)], set()) for kind in ("vae", "diffusion_models", "text_encoders")}
module(
    "folder_paths", folder_names_and_paths=places, models_dir=str(store / "models"),
    **{f"get_{kind}_directory": (lambda kind=kind: str(store / kind)) for kind in ("input", "output", "temp", "user")},
)

name = str(folder).replace(".", "_x_")
before = set(sys.modules)
spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
pack = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
classes, titles = pack.NODE_CLASS_MAPPINGS, pack.NODE_DISPLAY_NAME_MAPPINGS
for node_class in classes.values():
    node_class.INPUT_TYPES()
new = {found for found in set(sys.modules) - before if not found.startswith(name)}
foreign = {found.partition(".")[0] for found in new} - set(sys.stdlib_module_names)
told = {
    "ids": list(classes), "titles": list(titles), "foreign": sorted(foreign), "path": sys.path[:2],
    "web": (folder / pack.WEB_DIRECTORY / "sluice.js").is_file(),
}

def run(prompt, key, done):
    if key not in done:
        node = prompt[key]
        inputs = {n: run(prompt, v[0], done)[v[1]] if isinstance(v, list) else v for n, v in node["inputs"].items()}
        node_class = classes[node["class_type"]]
        done[key] = getattr(node_class(), node_class.FUNCTION)(**inputs)
    return done[key]

if len(sys.argv) > 3:
    import torch
    from torch import zeros

    prompt, done = json.loads(sys.argv[3]), {"size": ({"samples": zeros(1, 4, 8, 8)},)}
    with torch.inference_mode():
        (image,) = run(prompt, "8", done)
    told |= {"shape": list(image.shape), "sum": float(image.double().sum()), "bars": list(bars), "kinds": len(ledger)}
    told |= {"held": [entry.loaded_size() > 0 for entry in ledger], "fits": all(size > 1 for size in asked)}
    for entry in ledger:
        entry.detach()
    classes["SluiceUNETLoader"].host.runtime.events.emit({"type": "memory.step"})
    told["events"] = events
    told["after"] = [entry.loaded_size() for entry in ledger]
    with torch.inference_mode():
        told["again"] = float(run(prompt, "8", {"size": done["size"]})[0].double().sum())
print(json.dumps(told))
"""

PROMPT: dict[str, Any] = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "sluice-tiny.safetensors", "weight_dtype": "default"}},
    "2": {"class_type": "DualCLIPLoader", "inputs": {
        "clip_name1": "sluice-tiny-clip_l.safetensors", "clip_name2": "sluice-tiny-t5xxl.safetensors", "type": "flux",
    }},
    "3": {"class_type": "VAELoader", "inputs": {"vae_name": "sluice-tiny-ae.safetensors"}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 0], "text": "a red circle"}},
    "7": {"class_type": "KSampler", "inputs": {
        "model": ["1", 0], "seed": 1, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple",
        "positive": ["4", 0], "negative": ["4", 0], "latent_image": ["size", 0], "denoise": 1.0,
    }},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["3", 0]}},
}  # fmt: skip


def known_to_git() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [file for file in listed.split("\0") if file and (ROOT / file).is_file()]


def left_out() -> list[str]:
    """The rules of .comfyignore: files, or folders by a slash at the end."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def falls_under(rule: str, file: str) -> bool:
    return file.startswith(rule) if rule.endswith("/") else fnmatch.fnmatch(file, rule)


def shipped() -> list[str]:
    """The files of the registry's archive."""
    rules = left_out()
    return [file for file in known_to_git() if not any(falls_under(rule, file) for rule in rules)]


def opened_by_the_pack() -> set[str]:
    """What ComfyUI's node tables import (the door itself offers the Python API too), at once or when a node runs."""
    found = {"__init__.py"}
    waiting = ["flux_core/worker/registry.py", "nodes/host.py"]
    while waiting:
        file = waiting.pop()
        if file not in found and (ROOT / file).is_file():
            found.add(file)
            waiting += imported_by(file)
    return found


def imported_by(file: str) -> Iterator[str]:
    """What a file's relative imports can mean: modules, packages, and modules named in a package."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = PurePosixPath(file).parents[node.level - 1]
            base = folder / (node.module or "").replace(".", "/")
            for module in (base, *(base / alias.name for alias in node.names)):
                yield from (str(module.with_suffix(".py")), str(module / "__init__.py"))


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("custom nodes") / "sluice v1.2-main"
    for file in shipped():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, folder / file)
    return folder


def inside(pack: Path, store: Path, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-c", STAND_IN, str(pack), str(store), *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=store)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_the_registry_leaves_out_what_the_pack_never_opens_and_nothing_else() -> None:
    files, opened = known_to_git(), opened_by_the_pack()
    assert [rule for rule in left_out() if not any(falls_under(rule, file) for file in files)] == []
    assert len(opened) > 100 and opened - set(shipped()) == set()
    # A folder of which nothing is opened belongs to the program.
    folders = {str(PurePosixPath(file).parent) for file in opened}
    code = [file for file in shipped() if file.endswith(".py") and not file.endswith("__init__.py")]
    assert [file for file in code if str(PurePosixPath(file).parent) not in folders] == []


def test_it_starts_in_a_folder_of_any_name_and_imports_nothing_of_others(pack: Path, tmp_path: Path) -> None:
    told = inside(pack, tmp_path)
    assert told["foreign"] == [], "beside the standard library nothing is imported before a node runs"
    assert told["web"]
    assert not any(str(pack) in place for place in told["path"])


def test_no_id_of_core_is_in_its_tables(pack: Path, tmp_path: Path) -> None:
    told = inside(pack, tmp_path)
    assert told["ids"] and set(told["ids"]) == set(told["titles"])
    assert all(name.startswith("Sluice") for name in told["ids"])
    assert not CORE_IDS & {*told["ids"], *told["titles"]}


def test_a_workflow_runs_and_its_memory_is_on_the_ledger(pack: Path, tmp_path: Path) -> None:
    prompt = {key: {**node, "class_type": f"Sluice{node['class_type']}"} for key, node in PROMPT.items()}
    told = inside(pack, tmp_path, json.dumps(prompt))
    assert told["shape"] == [1, 64, 64, 3]
    assert told["bars"] == [[1, 2, [8, 8]], [2, 2, [8, 8]]]
    assert told["kinds"] == 4 and told["fits"], "transformer, both text encoders, autoencoder"
    assert all(told["held"]) and not any(told["after"])
    assert "sluice.memory.step" in told["events"]
    assert told["again"] == told["sum"], "what was taken away is loaded again"
    assert told["sum"] == pytest.approx(standalone())


def standalone() -> float:
    """The same picture by the standalone nodes."""
    import torch
    from sluice.flux_core.io.folders import standard_folders
    from sluice.flux_core.worker.registry import standalone_tables
    from sluice.nodes.host import Host

    classes, _ = standalone_tables(Host(standard_folders(ROOT)))
    done: dict[str, Any] = {"size": ({"samples": torch.zeros(1, 4, 8, 8)},)}
    with torch.inference_mode():
        for key, node in PROMPT.items():
            inputs = node["inputs"].items()
            values = {name: done[v[0]][v[1]] if isinstance(v, list) else v for name, v in inputs}
            node_class = classes[node["class_type"]]
            done[key] = getattr(node_class(), node_class.FUNCTION)(**values)
    return float(done["8"][0].double().sum())


def test_the_archive_leaves_the_program_out(pack: Path) -> None:
    rooms = {path.name for path in (pack / "flux_core").iterdir()}
    assert not rooms & {"server", "commands", "cli.py", "worker.py", "training", "bench"}
    assert not (pack / "tests").exists()
    assert (pack / "web/comfyui/docs/SluiceKSampler.md").is_file() and (pack / "workflows/text_to_image.json").is_file()


def test_every_template_has_a_thumbnail() -> None:
    templates = sorted((ROOT / "workflows").glob("*.json"))
    assert templates and all(path.with_suffix(".jpg").is_file() for path in templates)
