"""The rooms: which may import which, what runs without torch, and what the packaging must list.

RANKS is the map: a file imports only from its own room and from rooms above it in that list.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sluice

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it along there
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
# From the ground up. `.` is the package itself: ComfyUI's door.
RANKS = (
    *("errors", "limits", "cancel", "io", "graph", "workers", "server"),
    *("processor", "models", "quant", "checkpoint", "convert"),
    *("images", "conditioning", "adapters", "memory", "sampling", "parallel", "runtime", "doctor"),
    *("nodes", "facade", "training", "worker", "commands", "api", "compare", "bench", "entry", "."),
)
TORCH_FREE = ("errors", "io", "graph", "workers", "server")  # and so they may not import the rooms of tensors
# What an absolute import would find inside ComfyUI or on somebody's path, instead of the file beside it.
FOREIGN = {
    *("comfy", "comfy_api", "comfy_config", "comfy_execution", "comfy_extras", "folder_paths", "execution", "server"),
    *(
        "nodes",
        "node_helpers",
        "latent_preview",
        "utils",
        "app",
        "main",
        "protocol",
        "cuda_malloc",
        "sluice",
        "flux_core",
    ),
}
SOURCES = [ROOT / "__init__.py", *sorted(ROOT.glob("flux_core/**/*.py")), *sorted(ROOT.glob("nodes/**/*.py"))]


def room_of(module: tuple[str, ...]) -> str:
    """The room of a module named by its path below the root."""
    if module[:1] == ("nodes",):
        return "nodes"
    return module[1] if len(module) > 1 else "."


def module_of(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> tuple[tuple[str, ...], ...]:
    """What a file imports, wherever in it: our own modules by their path, others as ("", name)."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[tuple[str, ...]]:
    folder = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (("", alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield "", str(node.module).partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] + tuple((node.module or "").split(".") if node.module else ())
            yield from (base + (alias.name,) if len(base) < 2 and base != ("nodes",) else base for alias in node.names)


def id_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_a_file_imports_only_from_rooms_above_its_own() -> None:
    wrong = {}
    for path in SOURCES:
        own = RANKS.index(room_of(module_of(path)))
        opened = {target: room_of(target) for target in imports(path) if target[0] != ""}
        wrong[id_of(path)] = {target for target, room in opened.items() if room != "." and RANKS.index(room) > own}
    assert offenders(wrong) == {}


def test_rooms_without_torch_import_no_room_of_tensors_and_never_name_it() -> None:
    wrong = {}
    for path in SOURCES:
        if room_of(module_of(path)) in TORCH_FREE:
            rooms = {room_of(target) for target in imports(path) if target[0] != ""}
            named = {target[1] for target in imports(path) if target[0] == ""} & {"torch", "torchsde", "safetensors"}
            wrong[id_of(path)] = (rooms - {*TORCH_FREE, "limits", "cancel", "."}) | named
    assert offenders(wrong) == {}


def test_imports_of_our_own_are_relative_and_comfyui_is_known_to_the_host_and_the_bridges() -> None:
    wrong = {}
    for path in SOURCES:
        named = {target[1] for target in imports(path) if target[0] == ""}
        if module_of(path) == ("nodes", "host") or path.name.startswith("bridge_"):
            named -= {"comfy", "comfy_extras", "folder_paths"}
        if module_of(path)[:2] == ("flux_core", "entry") and path.stem in ("worker", "team_member"):
            named -= {"sluice"}  # started as files, they load the package by that name
        wrong[id_of(path)] = named & FOREIGN
    assert offenders(wrong) == {}


def offenders(wrong: dict[str, set[Any]]) -> dict[str, set[Any]]:
    """Of the files, those that break the rule, and how."""
    assert len(wrong) > 50
    return {name: what for name, what in wrong.items() if what}


def loaded_by(modules: list[str]) -> set[str]:
    """The top-level modules that are loaded after importing some of ours in a fresh interpreter."""
    code = (
        "import importlib, sys; sys.path.insert(0, sys.argv[1]); import conftest\n"
        "for name in sys.argv[2:]: importlib.import_module(name)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    arguments = [sys.executable, "-c", code, str(ROOT / "tests"), *modules]
    return set(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split())


def names_in(*rooms: str) -> list[str]:
    paths = [path for path in SOURCES if len(module_of(path)) > 1 and module_of(path)[1] in rooms]
    return [".".join(("sluice", *module_of(path))) for path in paths]


def test_rooms_without_torch_start_without_it() -> None:
    loaded = loaded_by(names_in(*TORCH_FREE))
    assert loaded & {"torch", "torchsde", "scipy", "safetensors", "transformers", "comfy"} == set()


def test_headers_and_plans_are_read_without_torch() -> None:
    plan = [name for name in names_in("memory") if name.endswith(".plan")]
    headers = [name for name in names_in("checkpoint") if not name.endswith((".load", ".integers", ".whole_files"))]
    assert plan and "torch" not in loaded_by([*headers, *plan])


def test_the_package_and_the_command_line_open_at_once() -> None:
    heavy = {"torch", "numpy", "scipy", "PIL", "aiohttp", "tokenizers"}
    assert loaded_by(["sluice", "sluice.flux_core.commands.cli"]) & heavy == set()


def test_rooms_are_opened_by_no_other_room() -> None:
    inits = [path for path in SOURCES if path.name == "__init__.py" and path.parent not in (ROOT, ROOT / "nodes")]
    assert [id_of(path) for path in inits if path.read_text(encoding="utf-8").strip()] == []


def test_a_file_says_at_its_top_what_it_is() -> None:
    written = [path for path in SOURCES if path.stat().st_size and path.name != "__main__.py"]
    assert [id_of(path) for path in written if not ast.get_docstring(tree_of(path))] == []


def test_packages_are_listed_as_they_lie() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent for path in SOURCES}
    found = {".".join(("sluice", *folder.relative_to(ROOT).parts)) for folder in folders}
    assert sorted(settings["tool"]["setuptools"]["packages"]) == sorted(found)


def test_there_is_one_version_number_and_pip_and_the_registry_read_it() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in settings["project"] and settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "sluice.__version__"}
    # ComfyUI's registry runs nothing: it looks for a line of this form in the file.
    text = (ROOT / settings["tool"]["comfy"]["version"]["path"]).read_text(encoding="utf-8")
    assert re.findall(r'(?m)^__version__ = "(\d+\.\d+\.\d+)"$', text) == [sluice.__version__]


def test_the_wheel_says_that_it_is_typed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert (ROOT / "py.typed").is_file() and "py.typed" in settings["tool"]["setuptools"]["package-data"]["sluice"]


def test_every_folder_with_code_is_a_package() -> None:
    assert [id_of(path.parent) for path in SOURCES if not (path.parent / "__init__.py").is_file()] == []


def test_nothing_heavy_is_asked_of_a_comfyui_user() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # Python packages that ComfyUI itself requires, unpinned: installing us changes nothing there.
    comfyui = {"aiohttp", "numpy", "pillow", "pyyaml", "psutil", "tokenizers", "tqdm", "scipy", "einops", "safetensors"}
    assert set(settings["dependencies"]) <= comfyui


def texts() -> Iterator[Path]:
    kinds = {".py", ".md", ".toml", ".txt", ".js", ".css", ".html", ".yaml", ".yml"}
    for place in (*ROOT.glob("*"), *(ROOT / ".ci").glob("*")):
        if place.is_file() and place.name != ".git":
            yield place
    for room in ("flux_core", "nodes", "scripts", "web", "workflows", "tests"):
        yield from (path for path in (ROOT / room).rglob("*") if path.suffix in kinds)


@pytest.mark.parametrize("paper", ["README.md", "DESIGN.md", "CONTRIBUTING.md", "SECURITY.md", "docs/guide.md"])
def test_files_named_in_the_documents_exist(paper: str) -> None:
    text = (ROOT / paper).read_text(encoding="utf-8")
    text = re.sub(r"(?ms)^ *```.*?^ *```$", "", text)
    named = re.findall(r"`((?:[\w.]+/)+[\w.]*)`", text)
    made = {"tests/cpu/test_image_gamma.py", "flux_core/models/latent_rgb.py", "tests/cpu/test_latent_rgb.py"}
    users = re.compile(r"(?:models|output|photos|ComfyUI)/")  # folders of those who use it
    looked = {name for name in named if name not in made and not users.match(name)}
    # DESIGN names files of flux_core from there.
    assert [name for name in looked if not any((base / name).exists() for base in (ROOT, ROOT / "flux_core"))] == []


def test_files_mention_only_the_product() -> None:
    places = r"(?<![\w.])/work/|\.\./shared|/tmp/v/|golden/"
    talk = r"\bissue \d|\bworker [A-H]\b|\bthis session\b"
    pattern = re.compile(f"{places}|{talk}", re.IGNORECASE)
    told = [
        id_of(path) for path in texts() if path != Path(__file__) and pattern.search(path.read_text("utf-8", "replace"))
    ]
    assert told == []
