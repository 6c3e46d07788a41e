"""The shipped workflows in a real ComfyUI, with our nodes in them, against the standalone program: equal to the pixel.

    python tests/comfyui/pictures.py /path/to/ComfyUI

A fresh clone of this repository is the node pack. Beside it the same is installed as a package, and a second pack
offers its nodes under other ids, so that both copies live in one process; they must make the same pictures.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Of both: in bfloat16 the last bits of the autoencoder's GroupNorm depend on how its sums are divided among threads.
THREADS = {"OMP_NUM_THREADS": str(os.cpu_count())}
SECOND = """
from sluice import NODE_CLASS_MAPPINGS as theirs

NODE_CLASS_MAPPINGS = {"Second" + name: node_class for name, node_class in theirs.items()}
"""


def install(base: Path) -> Path:
    """A clone among the custom nodes, and a package with a pack that uses it. Returns where the package lies."""
    packs, package = base / "custom_nodes", base / "package"
    (base / "input").mkdir(parents=True)
    subprocess.run(["git", "clone", "-q", str(ROOT), str(packs / "sluice")], check=True)
    for file in (packs / "sluice" / "flux_core" / "tiny" / "input").iterdir():
        shutil.copy(file, base / "input")
    source = base / "source"
    shutil.copytree(packs / "sluice", source)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(package)]
    subprocess.run([*command, str(source)], check=True)
    (packs / "second").mkdir()
    (packs / "second" / "__init__.py").write_text(SECOND)
    return package


class Server:
    def __init__(self, port: int, log: Path) -> None:
        self.address, self.log = f"http://127.0.0.1:{port}", log

    def ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            found = answer.read()
        return json.loads(found) if found else None

    def pictures(self, prompt: dict[str, Any]) -> list[bytes]:
        """Run a prompt; the files it saved, by name."""
        prompt_id = self.ask("/prompt", {"prompt": prompt})["prompt_id"]
        while not (history := self.ask(f"/history/{prompt_id}")):
            time.sleep(0.2)
        told = history[prompt_id]
        assert told["status"]["status_str"] == "success", told["status"]["messages"][-1]
        images = [image for output in told["outputs"].values() for image in output.get("images", [])]
        names = sorted(image["filename"] for image in images if image["type"] == "output")
        return [(self.log.parent / "output" / name).read_bytes() for name in names]


@contextmanager
def comfyui(checkout: str, base: Path, package: Path, port: int) -> Iterator[Server]:
    path = {"PYTHONPATH": f"{package}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with started("inside.py", [checkout, "--disable-auto-launch"], base, port, path) as server:
        yield server


@contextmanager
def started(
    script: str, arguments: Sequence[str], base: Path, port: int, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """ComfyUI as a script of this folder runs it, in the folder `base`."""
    log = base / "server.log"
    place = ["--base-directory", str(base), "--listen", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments, *place]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **THREADS, **(environment or {})}
        )
    try:
        while "To see the GUI" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.3)
        yield Server(port, log)
    finally:
        process.terminate()
        process.wait()


def standalone(file: Path, out: Path) -> list[bytes]:
    command = [sys.executable, "-m", "sluice", "run", str(file), "--out", str(out), "--device", "cpu"]
    subprocess.run(command, check=True, env=os.environ | THREADS | {"PYTHONPATH": str(out.parent / "package")})
    return [path.read_bytes() for path in sorted(out.glob("*.png"))]


def pixels(png: bytes) -> Any:
    import io

    import numpy
    from PIL import Image

    return numpy.array(Image.open(io.BytesIO(png)))


def own_package() -> None:
    """Register this checkout as `sluice` in this process."""
    places = [str(ROOT)]
    spec = importlib.util.spec_from_file_location("sluice", ROOT / "__init__.py", submodule_search_locations=places)
    assert spec and spec.loader
    sys.modules["sluice"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def prompts(file: Path) -> dict[str, dict[str, Any]]:
    """The workflow as API prompts: with our nodes, and with those of the second copy."""
    from sluice.flux_core.commands.workflows import read
    from sluice.flux_core.graph.translate import read_table, swap
    from sluice.flux_core.worker.registry import standalone_tables
    from sluice.nodes.host import pack_host

    prompt = read(file, standalone_tables(pack_host())[0]).prompt
    plain = swap(prompt, read_table(), back=True)
    swapped = swap(plain.workflow, read_table())
    assert swapped.changed and not plain.left and not swapped.left
    second = json.loads(json.dumps(swapped.workflow).replace('"class_type": "Sluice', '"class_type": "SecondSluice'))
    return {"clone": swapped.workflow, "package": second}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comfyui", help="a ComfyUI checkout")
    parser.add_argument("--port", type=int, default=8278)
    args = parser.parse_args()
    own_package()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        package = install(base)
        with comfyui(args.comfyui, base, package, args.port) as server:
            lines = server.log.read_text().splitlines()
            ours = [line for line in lines if "sluice" in line.lower()]
            assert not [line for line in ours if "WARN" in line or "FAIL" in line], ours
            print(*[line for line in ours if "seconds" in line], sep="\n")
            for file in sorted((ROOT / "workflows").glob("*.json")):
                alone = standalone(file, base / file.stem)
                for copy, prompt in prompts(file).items():
                    made = server.pictures(prompt)
                    same = len(made) == len(alone) and all(
                        (pixels(a) == pixels(b)).all() for a, b in zip(made, alone, strict=True)
                    )
                    assert same, f"{file.stem}, {copy}: {len(made)} pictures, not those of the standalone program"
                    print(f"{file.stem:24s} {copy:8s} {len(made)} pictures, equal", flush=True)
            server.ask("/free", {"unload_models": True, "free_memory": True})


if __name__ == "__main__":
    main()
