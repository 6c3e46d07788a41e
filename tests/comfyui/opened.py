"""Images of `sluice run`, dropped on a real ComfyUI in a real browser and run there: with our pack and without.

    PLAYWRIGHT=/folder/node_modules/playwright-core CHROMIUM=/usr/bin/chromium
    python tests/comfyui/opened.py /path/to/ComfyUI

Without the pack: the template of FLUX.1 dev, whose nodes are ComfyUI's own, with text encoders and autoencoder of the
published sizes (5.3 GB of random weights, written first) and two blocks of the transformer. With the pack: the first
shipped workflow with our nodes. ComfyUI must queue what the image was made with and make an image of it; with the pack
the same image, to the pixel. Without, the texts are tokenized differently: the T5 tokenizer written here is made up.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pictures import ROOT, THREADS, comfyui, install, own_package, pixels

HERE = Path(__file__).parent
MODELS = {"flux1-dev": "flux-2-blocks", "t5xxl_fp16": "t5-fp8", "clip_l": "clip-fp16", "ae": "ae-fp32"}
SIZE = ["--set", "Size.width=64", "--set", "Size.height=64", "--set", "Schedule.steps=2"]


def made(base: Path, workflow: dict[str, Any], *options: str) -> Path:
    """The image of a workflow, by `sluice run`."""
    file, out = base / "workflow.json", base / "made"
    file.write_text(json.dumps(workflow))
    command = [sys.executable, "-m", "sluice", "run", str(file), "--out", str(out), "--models", str(base / "models")]
    package = {"PYTHONPATH": f"{base / 'package'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run([*command, "--device", "cpu", *options], check=True, env=os.environ | THREADS | package)
    (image,) = out.glob("*.png")
    return image


def dropped(address: str, image: Path, shots: Path) -> dict[str, Any]:
    """What a browser saw that dropped the image on ComfyUI's page and ran it."""
    environment = os.environ | {"SLUICE_URL": address, "SCREENSHOTS": str(shots)}
    run = subprocess.run(["node", HERE / "opened.mjs", image], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    seen: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return seen


def opened(args: argparse.Namespace, base: Path, image: Path, what: str) -> bool:
    """Drop the image, compare what is queued, and return whether the image made there has the same pixels."""
    from sluice.flux_core.io.embedded import read_workflow

    with comfyui(args.comfyui, base, base / "package", args.port) as server:
        seen = dropped(server.address, image, args.shots)
        (entry,) = server.ask("/history").values()
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    queued, ours = entry["prompt"][2], read_workflow(image).prompt
    assert ours is not None and plain(queued) == plain(ours), (queued, ours)
    (shown,) = [one for node in entry["outputs"].values() for one in node["images"]]
    again = base / "output" / shown["subfolder"] / shown["filename"]
    print(f"{what}: {len(seen['nodes'])} nodes opened, {len(queued)} queued as in the image, image made", flush=True)
    return bool((pixels(again.read_bytes()) == pixels(image.read_bytes())).all())


def plain(prompt: dict[str, Any]) -> dict[str, Any]:
    """Class and inputs of each node."""
    return {key: (node["class_type"], node["inputs"]) for key, node in prompt.items()}


def without_pack(args: argparse.Namespace, base: Path) -> None:
    from sluice.flux_core.bench import random_model
    from sluice.flux_core.bench.files import FORMATS, Make, written
    from sluice.flux_core.bench.stopping import lay_out

    files: dict[str, tuple[Make, str]] = {
        "flux-2-blocks": (functools.partial(random_model.flux, 1, 1), FORMATS["fp8"]),
        "t5-fp8": (random_model.t5, FORMATS["fp8"]),
        "clip-fp16": (random_model.clip, "F16"), "ae-fp32": (random_model.autoencoder, "F32"),
    }  # fmt: skip
    text = (ROOT / "workflows" / "flux1" / "dev.json").read_text("utf-8")
    for published, random in MODELS.items():
        text = text.replace(f"{published}.safetensors", f"{random}.safetensors")
    install(base)
    (base / "custom_nodes").rename(base / "no_custom_nodes")
    (base / "custom_nodes").mkdir()
    with written(args.folder, files, args.keep):
        lay_out(args.folder, base / "models", "flux-2-blocks")
        opened(args, base, made(base, json.loads(text), *SIZE), "without the pack")


def with_pack(args: argparse.Namespace, base: Path) -> None:
    from sluice.flux_core.graph.translate import read_table, swap

    install(base)
    (base / "models").mkdir()
    canvas = json.loads((ROOT / "workflows" / "text_to_image.json").read_text("utf-8"))
    same = opened(args, base, made(base, swap(canvas, read_table()).workflow), "with the pack")
    assert same, "the image is not that of the standalone program"
    print("with the pack: equal to the pixel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comfyui", help="a ComfyUI checkout")
    parser.add_argument("--port", type=int, default=8279)
    parser.add_argument("--folder", type=Path, default=Path("bench-models"), help="where files are written")
    parser.add_argument("--keep", action="store_true", help="leave the files for another run")
    parser.add_argument("--shots", type=Path, default=Path(), help="where pictures of the page go")
    args = parser.parse_args()
    own_package()
    for work in (without_pack, with_pack):
        with tempfile.TemporaryDirectory() as folder:
            work(args, Path(folder))


if __name__ == "__main__":
    main()
