"""ComfyUI's example images for FLUX.1, made by ComfyUI and by the program from the same random weights in float32.

    python tests/comfyui/examples.py /path/to/ComfyUI /path/to/ComfyUI_examples/flux
    python tests/comfyui/examples.py ... --hidden 3072 --ram 2200M    # the published width, streamed under a budget

The second folder has the PNG and WebP files of https://github.com/comfyanonymous/ComfyUI_examples: each contains its
workflow. Weights are random (example_models.py). Workflows are as published, but for the size of the images, the number
of steps, and FluxKontextImageScale, which would enlarge images to a megapixel: ImageScale takes its place. Workflows
made from the examples try ControlNets of the other families, and Redux and USO with two images each. For each image the
largest difference, of 255, is printed, and how many values differ; they must not differ by more than one.

Set PYTHONPATH to ComfyUI's requirements if they are not in this environment. A budget that is stated forces the memory
manager; what the program says of the transformer (what is resident, what streamed) is shown.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]

import conftest  # noqa: E402, F401  # this checkout as `sluice`
from example_models import write_models  # noqa: E402
from pictures import THREADS, pixels, started  # noqa: E402

Prompt = dict[str, dict[str, Any]]

FLAGS = ("--force-fp32", "--fp32-vae", "--fp32-text-enc", "--disable-auto-launch", "--disable-all-custom-nodes")
WIDTH, HEIGHT = 128, 96
SIZED = ("EmptySD3LatentImage", "EmptyLatentImage", "ModelSamplingFlux")
PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import conftest; "
    "from sluice.flux_core.commands.cli import main; raise SystemExit(main())"
)


def examples(folder: Path) -> Iterator[tuple[str, Prompt]]:
    """The workflows of the images of a folder, those that have one."""
    from sluice.flux_core.commands.workflows import read
    from sluice.flux_core.errors import SluiceError
    from sluice.flux_core.worker.registry import standalone_tables
    from sluice.nodes.host import pack_host

    classes = standalone_tables(pack_host())[0]
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".png", ".webp")):
        try:
            prompt = read(path, classes).prompt
        except SluiceError as error:
            print(f"{path.stem}: {error}")
            continue
        yield path.stem, prompt


def others(prompts: dict[str, Prompt]) -> Iterator[tuple[str, Prompt]]:
    """Workflows with ControlNets of the other families, and with two images for Redux and for USO."""
    following = prompts["flux_controlnet_example"]
    (loader,) = of_class(following, "ControlNetLoader")
    (apply,) = of_class(following, "ControlNetApplySD3")
    (picture,) = of_class(following, "LoadImage")

    prompt = copy.deepcopy(following)
    prompt[loader]["inputs"]["control_net_name"] = "xlabs_canny.safetensors"
    yield "XLabs", prompt

    prompt = copy.deepcopy(following)
    prompt[loader]["inputs"]["control_net_name"] = "union.safetensors"
    named = {"control_net": [loader, 0], "type": "depth"}
    prompt["union"] = {"class_type": "SetUnionControlNetType", "inputs": named}
    prompt[apply]["inputs"] |= {"control_net": ["union", 0], "start_percent": 0.1, "end_percent": 0.8}
    yield "InstantX union", prompt

    prompt = copy.deepcopy(following)
    prompt[loader]["inputs"]["control_net_name"] = "alimama_inpaint.safetensors"
    prompt[apply]["class_type"] = "ControlNetInpaintingAliMamaApply"
    prompt[apply]["inputs"] |= {"image": [picture, 0], "mask": [picture, 1]}
    yield "alimama", prompt

    prompt = copy.deepcopy(prompts["flux_redux_model_example"])
    (apply,) = of_class(prompt, "StyleModelApply")
    (seen,) = of_class(prompt, "CLIPVisionEncode")
    (guider,) = of_class(prompt, "BasicGuider")
    prompt["seen"] = copy.deepcopy(prompt[seen])
    prompt["seen"]["inputs"] |= {"image": ["second", 0], "crop": "none"}
    prompt["second"] = {"class_type": "LoadImage", "inputs": {"image": "fennec_girl_sing.png"}}
    prompt["again"] = copy.deepcopy(prompt[apply])
    again = {"conditioning": [apply, 0], "clip_vision_output": ["seen", 0]}
    prompt["again"]["inputs"] |= again | {"strength": 0.5, "strength_type": "attn_bias"}
    prompt[guider]["inputs"]["conditioning"] = ["again", 0]
    yield "Redux, two images", prompt

    prompt = copy.deepcopy(prompts["flux_redux_model_example"])
    model = prompt[guider]["inputs"]["model"]
    prompt["second"] = {"class_type": "LoadImage", "inputs": {"image": "fennec_girl_sing.png"}}
    prompt["seen"] = copy.deepcopy(prompt[seen])
    prompt["seen"]["inputs"]["image"] = ["second", 0]
    prompt["patch"] = {"class_type": "ModelPatchLoader", "inputs": {"name": "uso-flux1-projector-v1.safetensors"}}
    for name, image in (("one", seen), ("two", "seen")):
        inputs = {"model": model, "model_patch": ["patch", 0], "clip_vision_output": [image, 0]}
        prompt[name], model = {"class_type": "USOStyleReference", "inputs": inputs}, [name, 0]
    prompt[guider]["inputs"] |= {"model": model, "conditioning": prompt[apply]["inputs"]["conditioning"]}
    yield "USO, two images", prompt


def of_class(prompt: Prompt, name: str) -> list[str]:
    return [node_id for node_id, node in prompt.items() if node["class_type"] == name]


def reduced(prompt: Prompt, steps: int) -> Prompt:
    """The same workflow for small images and fewer steps, as JSON that both programs take."""
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        inputs = node["inputs"]
        if node["class_type"] in SIZED:
            inputs |= {"width": WIDTH, "height": HEIGHT}
        if "steps" in inputs:
            inputs["steps"] = min(steps, inputs["steps"])
        if node["class_type"] == "FluxKontextImageScale":
            node["class_type"] = "ImageScale"
            inputs |= {"upscale_method": "lanczos", "width": WIDTH, "height": HEIGHT, "crop": "center"}
    return prompt


def write_images(folder: Path, prompts: dict[str, Prompt]) -> None:
    """An image with shapes and transparency for each that the workflows load."""
    import numpy
    from PIL import Image

    folder.mkdir(parents=True)
    names = {node["inputs"]["image"] for one in prompts.values() for node in one.values() if is_load(node)}
    for number, name in enumerate(sorted(names)):
        rows, columns = numpy.mgrid[:HEIGHT, :WIDTH] / (HEIGHT, WIDTH)[0]
        waves = [numpy.sin((7 + number + channel) * rows + (5 + channel) * columns**2) for channel in range(3)]
        alpha = ((rows - 0.5) ** 2 + (columns - 0.6) ** 2 > 0.05) * 2.0 - 1
        Image.fromarray(((numpy.stack([*waves, alpha], -1) + 1) * 127.5).astype("uint8")).save(folder / name)


def share_tokenizers(comfy: Path, folder: Path) -> None:
    """The program uses those that ComfyUI comes with."""
    folder.mkdir()
    (folder / "t5xxl").symlink_to(comfy / "text_encoders" / "t5_tokenizer")
    (folder / "clip_l").symlink_to(comfy / "sd1_tokenizer")


def is_load(node: dict[str, Any]) -> bool:
    return bool(node["class_type"] == "LoadImage")


def ours(prompt: Prompt, base: Path, out: Path, ram: str) -> tuple[list[bytes], list[str]]:
    """The images of the program, and its memory manager's report on the transformer."""
    file = base / "prompt.json"
    file.write_text(json.dumps(prompt))
    command = [sys.executable, "-c", PROGRAM, str(ROOT / "tests"), "run", str(file), "--out", str(out)]
    command += ["--models", str(base / "models"), "--input", str(base / "input"), "--device", "cpu", "--dtype", "fp32"]
    command += ["--ram", ram] if ram else []
    done = subprocess.run(command, env=os.environ | THREADS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    told = list(dict.fromkeys(line for line in lines if line.startswith("transformer:")))
    return [path.read_bytes() for path in sorted(out.glob("*.png"))], told


def compared(name: str, theirs: list[bytes], mine: list[bytes]) -> int:
    """Print how far they are apart, and return it. Raises AssertionError if the images show nothing."""
    import numpy

    assert theirs and len(theirs) == len(mine), f"{name}: ComfyUI made {len(theirs)} images, the program {len(mine)}"
    pairs = [(pixels(one).astype(int), pixels(other).astype(int)) for one, other in zip(theirs, mine, strict=True)]
    assert all(one.shape == other.shape for one, other in pairs), name
    apart = [numpy.abs(one - other) for one, other in pairs]
    worst, values = max(int(one.max()) for one in apart), sum(one.size for one in apart)
    differ, contrast = sum(int((one > 0).sum()) for one in apart), min(float(one.std()) for one, _ in pairs)
    assert contrast > 5, f"{name}: the image shows nothing, with values that vary by {contrast:.1f}"
    print(f"{name:32s} {worst}/255, {differ} of {values} values differ; they vary by {contrast:.0f}", flush=True)
    return worst


def all_different(images: dict[str, bytes]) -> None:
    """No two workflows make the same image: every model and every reference has an effect."""
    import numpy

    for (name, one), (other_name, other) in itertools.combinations(images.items(), 2):
        a, b = pixels(one).astype(int), pixels(other).astype(int)
        if a.shape == b.shape:
            apart = float(numpy.abs(a - b).mean())
            assert apart > 0.1, f"{name} and {other_name} are {apart:.2f}/255 apart on average: something has no effect"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", help="a ComfyUI checkout")
    parser.add_argument("examples", type=Path, help="the folder flux of a checkout of ComfyUI_examples")
    parser.add_argument("--hidden", type=int, default=256, help="width of the transformers (FLUX.1: 3072)")
    parser.add_argument("--depth", type=int, nargs=2, default=(2, 2), help="their double and single blocks")
    parser.add_argument("--ram", default="", metavar="SIZE", help="a budget that the program must keep")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="those whose names contain one of these"
    )
    parser.add_argument("--folder", type=Path, help="where the files of the models stay (default: they are deleted)")
    parser.add_argument("--port", type=int, default=8279)
    args = parser.parse_args()
    found = dict(examples(args.examples))
    prompts = {name: reduced(one, args.steps) for name, one in (found | dict(others(found))).items()}
    worst, images = {}, {}
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        models = args.folder.resolve() if args.folder else base / "files"
        if not models.exists():
            write_models(models, args.hidden, *args.depth)
            share_tokenizers(Path(args.comfyui).resolve() / "comfy", models / "tokenizers")
        (base / "models").symlink_to(models)
        write_images(base / "input", prompts)
        with started("other_sizes.py", [args.comfyui, *FLAGS], base, args.port) as server:
            for name, prompt in prompts.items():
                if not any(text in name for text in args.only):
                    continue
                theirs = [one for one in server.pictures(prompt) if one.startswith(b"\x89PNG")]
                server.ask("/free", {"unload_models": True, "free_memory": True})
                mine, told = ours(prompt, base, base / "ours" / name, args.ram)
                worst[name], images[name] = compared(name, theirs, mine), theirs[0]
                print(*(f"    {line.strip()}" for line in told), sep="\n", end="\n" if told else "")
        log = (base / "server.log").read_text().splitlines()
        print(*dict.fromkeys(line for line in log if "missing" in line and ("clip" in line or "key" in line)), sep="\n")
    all_different(images)
    within = [name for name, by in worst.items() if by <= 1]
    examples_within = [name for name in within if name in found]
    tried = sum(name in found for name in worst)
    print(f"within 1/255: {len(examples_within)} of {tried} examples, {len(within)} of {len(worst)} in all")
    assert len(within) == len(worst), worst


if __name__ == "__main__":
    main()
