"""`sluice bench workflow`: a workflow with everything that FLUX.1-dev supports, at full size, under a memory budget.

    sluice bench workflow --ram 8G --tokenizers DIR

Two ControlNets (a union model of InstantX's kind, one of XLabs'), Redux with its vision encoder, a LoRA, T5-XXL, and an
upscale model after the decoder (with spandrel). Files of the published sizes with random weights are written first
(24 GB, or 12 GB if the transformer's file exists already) and deleted afterwards. The workflow runs in a process of its
own; for each run of a model the largest memory use is printed with the predicted one. The image is noise.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import SluiceError
from ..memory.budget import Allowed, format_size
from ..models.clip_vision import VisionConfig, VisionEncoder
from ..models.controlnet import ControlNet
from ..models.controlnet_config import ControlNetConfig
from ..models.flux_config import FluxConfig
from ..models.redux import Redux, ReduxConfig
from ..runtime.published import picture_size
from . import random_model
from .child_process import end_with_parent
from .files import FULL, path_of, written

RANK = 16
SEED = 7
CATEGORIES = (
    *("diffusion_models", "text_encoders", "vae", "loras", "controlnet", "clip_vision", "style_models"),
    "upscale_models",
)
Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Setup:
    """The measurement, the argument of its process."""

    folder: str
    files: Mapping[str, str]  # purpose of a file -> its name
    tokenizers: str
    device: str
    vram: str
    ram: str
    width: int
    height: int
    steps: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sluice bench workflow`."""
    parser.add_argument("--ram", default="8G", metavar="SIZE", help="RAM budget (default: 8G)")
    parser.add_argument("--vram", default="auto", metavar="SIZE", help="GPU memory budget (default: what is free)")
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda")
    parser.add_argument("--size", default="256x256", metavar="WxH", help="size of the image before it is enlarged")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tokenizers", type=Path, required=True, help="a folder with clip_l and t5xxl tokenizer files")
    parser.add_argument("--folder", type=Path, default=Path("bench-models"), help="folder for the model files")
    parser.add_argument("--keep", action="store_true", help="keep the model files for another run")
    parser.add_argument(
        "--depth", type=int, nargs=2, default=FULL, help="number of double and single blocks; fewer for a quick try"
    )
    parser.add_argument("--hidden", type=int, default=3072, help="width of the blocks; smaller for a quick try")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Write the files, run the workflow, delete them. Raises InputError before it writes."""
    Allowed.parse(args.vram, args.ram)
    width, height = picture_size(args.size)
    files = _files(args.depth, args.hidden)
    names = {part: path_of("", name).name for part, (name, _, _) in files.items()}
    setup = Setup(
        str(args.folder.absolute()), names, str(args.tokenizers.absolute()),
        args.device, args.vram, args.ram, width, height, args.steps,
    )  # fmt: skip
    with written(args.folder, {name: (make, format) for name, make, format in files.values()}, args.keep):
        with multiprocessing.get_context("spawn").Pool(1, end_with_parent) as pool:
            result: dict[str, Any] = pool.apply(run, (setup,))
    _tell(result)
    return result


def _files(depth: tuple[int, int], hidden: int) -> dict[str, tuple[str, Make, str]]:
    """Purpose of a file -> (name, its module, format)."""
    full = (*depth, hidden) == (*FULL, 3072)
    mark = "" if full else f"-{depth[0]}-{depth[1]}-{hidden}"
    flux = partial(random_model.flux, *depth, hidden)
    with torch.device("meta"):
        config = flux().config
    assert isinstance(config, FluxConfig)
    union = ControlNetConfig(replace(config, depth=min(6, depth[0]), depth_single=0), "latent", 16, 10)
    xlabs = ControlNetConfig(replace(config, depth=min(2, depth[0]), depth_single=0), "picture", 16)
    vision = VisionConfig(1152, 4304, 27 if full else 2, 16, 14, 384, True, "tanh")
    files: dict[str, tuple[str, Make, str]] = {
        "flux": ("flux-fp8", flux, "F8_E4M3"),
        "t5": ("t5-fp8", partial(random_model.t5, 24 if full else 2), "F8_E4M3"),
        "clip": ("clip-fp16", random_model.clip, "F16"),
        "autoencoder": ("ae-fp32", random_model.autoencoder, "F32"),
        "union": ("controlnet-union-bf16", partial(ControlNet, union), "BF16"),
        "xlabs": ("controlnet-xlabs-bf16", partial(ControlNet, xlabs), "BF16"),
        "vision": ("siglip-fp16", partial(VisionEncoder, vision), "F16"),
        "redux": ("redux-bf16", partial(Redux, ReduxConfig(1152, 12288, 4096)), "BF16"),
        "lora": ("lora-bf16", partial(_Lora, flux), "BF16"),
        "upscaler": ("4x-fp32", _upscaler, "F32"),
    }
    return {part: (name + mark, make, format) for part, (name, make, format) in files.items()}


class _Lora(nn.Module):
    """The tensors of a LoRA for all matrices of the blocks."""

    def __init__(self, flux: Make) -> None:
        super().__init__()
        self.matrices = {
            name: tuple(module.weight.shape)
            for name, module in flux().named_modules()
            if "_blocks." in name and getattr(module, "weight", None) is not None and module.weight.ndim == 2
        }

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # all that is read
        made = {}
        for name, (rows, columns) in self.matrices.items():
            made[f"diffusion_model.{name}.lora_A.weight"] = torch.empty(RANK, columns)
            made[f"diffusion_model.{name}.lora_B.weight"] = torch.empty(rows, RANK)
        return made


def _upscaler() -> nn.Module:
    """ESRGAN's network, which enlarges an image four times."""
    from ..runtime.spandrel import spandrel

    spandrel()
    network: nn.Module = import_module("spandrel.architectures.ESRGAN.__arch.RRDB").RRDBNet(
        in_nc=3, out_nc=3, num_filters=64, num_blocks=23, scale=4
    )
    return network


def prompt_of(setup: Setup) -> dict[str, Any]:
    """The workflow."""

    def node(class_type: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": class_type, "inputs": inputs}

    file = setup.files
    both = {"positive": ["follow1", 0], "negative": ["follow1", 1]}
    numbers = {"seed": SEED, "steps": setup.steps, "cfg": 1.0, "denoise": 1.0}
    percent = {"start_percent": 0.0, "end_percent": 1.0}
    names = {"sampler_name": "euler", "scheduler": "simple"}
    return {
        "model": node("UNETLoader", unet_name=file["flux"], weight_dtype="default"),
        "lora": node("LoraLoaderModelOnly", model=["model", 0], lora_name=file["lora"], strength_model=0.5),
        "clip": node("DualCLIPLoader", clip_name1=file["clip"], clip_name2=file["t5"], type="flux"),
        "vae": node("VAELoader", vae_name=file["autoencoder"]),
        "image": node("LoadImage", image="bench.png"),
        "text": node("CLIPTextEncode", clip=["clip", 0], text="a fox with a lantern"),
        "guided": node("FluxGuidance", conditioning=["text", 0], guidance=3.5),
        "vision": node("CLIPVisionLoader", clip_name=file["vision"]),
        "seen": node("CLIPVisionEncode", clip_vision=["vision", 0], image=["image", 0], crop="center"),
        "style": node("StyleModelLoader", style_model_name=file["redux"]),
        "styled": node(
            "StyleModelApply", conditioning=["guided", 0], style_model=["style", 0], clip_vision_output=["seen", 0],
            strength=1.0, strength_type="multiply",
        ),
        "union": node("ControlNetLoader", control_net_name=file["union"]),
        "xlabs": node("ControlNetLoader", control_net_name=file["xlabs"]),
        "follow0": node(
            "ControlNetApplyAdvanced", positive=["styled", 0], negative=["guided", 0], control_net=["union", 0],
            vae=["vae", 0], image=["image", 0], strength=0.6, **percent,
        ),
        "follow1": node(
            "ControlNetApplyAdvanced", positive=["follow0", 0], negative=["follow0", 1], control_net=["xlabs", 0],
            image=["image", 0], strength=0.5, **percent,
        ),
        "empty": node("EmptySD3LatentImage", width=setup.width, height=setup.height, batch_size=1),
        "sampled": node("KSampler", model=["lora", 0], latent_image=["empty", 0], **both, **numbers, **names),
        "decoded": node("VAEDecode", samples=["sampled", 0], vae=["vae", 0]),
        "enlarger": node("UpscaleModelLoader", model_name=file["upscaler"]),
        "enlarged": node("ImageUpscaleWithModel", upscale_model=["enlarger", 0], image=["decoded", 0]),
        "saved": node("SaveImage", images=["enlarged", 0], filename_prefix="bench"),
    }  # fmt: skip


def run(setup: Setup) -> dict[str, Any]:
    """Run the workflow in this process. Raises the errors of its nodes.

    The largest resident set is read whenever a node begins, because each run of a model sets the counter back.
    """
    from ...nodes.host import Host
    from ..graph.execute import Executor
    from ..graph.validate import validate
    from ..io.folders import standard_folders
    from ..memory import meter
    from ..runtime.runtime import Runtime
    from ..runtime.settings import Settings
    from ..worker.registry import standalone_tables

    with tempfile.TemporaryDirectory() as place:
        base, runtime = Path(place), Runtime(Settings.parse(setup.device, "auto", setup.vram, setup.ram))
        runs: list[dict[str, Any]] = []

        def ended(event: dict[str, Any]) -> None:
            if event["type"] == "memory.job":
                runs.append(event)
                predicted, actual = (format_size(size) for size in (event["plan"]["peak_bytes"], event["peak_bytes"]))
                print(f"{event['line']}\n  peak predicted {predicted}, actual {actual}", flush=True)

        runtime.events.listen(ended)
        paths = base / "paths.yaml"
        lines = [f"  {category}: {setup.folder}" for category in CATEGORIES]
        paths.write_text("\n".join(["bench:", *lines, f"  tokenizers: {setup.tokenizers}"]))
        folders = standard_folders(base, extra=[paths])
        for folder in (folders.input, folders.output):
            folder.mkdir(parents=True, exist_ok=True)
        _image(setup).save(folders.input / "bench.png")
        peaks: dict[str, int] = {}
        running = ["start"]

        def hear(event: str, data: Mapping[str, Any]) -> None:
            if event in ("executing", "execution_success"):
                peaks[running[0]] = meter.peak_resident_bytes()
                running[0] = str(data.get("node"))

        host = Host(folders, make_runtime=lambda: runtime)
        classes, _ = standalone_tables(host)
        found = validate(prompt_of(setup), classes)
        if found.problems:
            raise SluiceError("The workflow of the measurement was refused: " + " ".join(found.sentences))
        began = time.perf_counter()
        executor = Executor(classes, emit=hear, around=torch.inference_mode)
        result = executor.execute(found.prompt, "bench", {}, found.outputs)
        if result.exception is not None:
            raise result.exception
        seconds = time.perf_counter() - began
    limit = max(one["limit_bytes"] for one in runs)
    peak = max(*peaks.values(), *(one["peak_bytes"] for one in runs))
    return {
        "seconds": seconds, "peak_bytes": peak, "limit_bytes": limit, "met": peak <= limit, "peaks": peaks,
        "runs": [_of(one) for one in runs],
    }  # fmt: skip


def _of(event: Mapping[str, Any]) -> dict[str, Any]:
    """One run of a model."""
    predicted = event["plan"]["peak_bytes"]
    told = ("model", "line", "peak_bytes", "limit_bytes", "actual_seconds", "restarts")
    return {name: event[name] for name in told} | {"predicted_peak_bytes": predicted}


def _image(setup: Setup) -> Any:
    from PIL import Image

    return Image.linear_gradient("L").convert("RGB").resize((setup.width, setup.height))


def _tell(result: Mapping[str, Any]) -> None:
    largest = max(result["peaks"], key=lambda node: result["peaks"][node])
    budget = format_size(result["limit_bytes"])
    print(
        f"the whole workflow: {result['seconds']:.0f} s, peak {format_size(result['peak_bytes'])} of {budget} "
        f"(largest between nodes: {format_size(result['peaks'][largest])} at {largest})"
    )
