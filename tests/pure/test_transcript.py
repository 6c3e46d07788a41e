"""Execution: a conversation recorded with ComfyUI, repeated event by event."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sluice.flux_core.errors import InputError
from sluice.flux_core.graph.execute import Executor
from sluice.flux_core.graph.validate import validate
from sluice.flux_core.io import saving

FIXTURES = Path(__file__).parents[1] / "fixtures"


class Pictures(list[tuple[int, int]]):
    """Sizes stand for pictures."""


def recorded_classes(output: Path) -> dict[str, type[Any]]:
    """The nodes of the recording as far as it shows them."""
    size = ("INT", {"default": 512, "min": 1, "max": 16384, "step": 1})
    count = ("INT", {"default": 1, "min": 1, "max": 4096})
    methods = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]

    def kind(function: Any, outputs: tuple[str, ...], required: dict[str, Any], **more: Any) -> type[Any]:
        declared = {"required": required, "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}}
        fixed = {"INPUT_TYPES": classmethod(lambda cls: declared), "RETURN_TYPES": outputs, "FUNCTION": "run"}
        return type("Recorded", (), fixed | {"run": function} | more)

    def load(self: Any, image: str, **_: Any) -> Any:
        if image == "broken.png":
            raise InputError("cannot identify image file '<BASE>/input/broken.png'")
        return (Pictures([(8, 8)]), None)

    def save(self: Any, images: Pictures, filename_prefix: str = "ComfyUI_temp_tcdtd", **_: Any) -> Any:
        place = saving.place(filename_prefix, output / self.folder, *images[0])
        names = [place.save(b"", number) for number in range(len(images))]
        shown = [{"filename": name, "subfolder": place.subfolder, "type": self.folder} for name in names]
        return {"ui": {"images": shown}}

    def fail(self: Any, **_: Any) -> Any:
        raise NotImplementedError(
            "Input Error: Only 3D, 4D and 5D input Tensors supported (got 4D) for the modes: nearest | linear | "
            "bilinear | bicubic | trilinear | lanczos | area | nearest-exact (got NOPE)"
        )

    def exists(cls: Any, image: str) -> Any:
        return image != "nope.png" or "Invalid image file: nope.png"

    models = ["flux1-dev.safetensors", "flux1-schnell.safetensors"]
    texts = ["clip_l.safetensors", "t5xxl_fp16.safetensors"]
    painted = {"model": ("MODEL",), "clip": ("CLIP",), "vae": ("VAE",)}
    return {
        "EmptyImage": kind(
            lambda self, width, height, batch_size, color, **_: (Pictures([(width, height)] * batch_size),),
            ("IMAGE",),
            {"width": size, "height": size, "batch_size": count, "color": ("INT", {})},
        ),
        "LoadImage": kind(load, ("IMAGE", "MASK"), {"image": (["good.png"], {})}, VALIDATE_INPUTS=classmethod(exists)),
        "SolidMask": kind(fail, ("MASK",), {}),
        "ImageScale": kind(fail, ("IMAGE",), {"image": ("IMAGE", {}), "upscale_method": (methods, {})}),
        "ImageScaleToTotalPixels": kind(
            fail,
            ("IMAGE",),
            {"image": ("IMAGE", {}), "upscale_method": ("COMBO", {"options": methods}), "megapixels": ("FLOAT", {})},
        ),
        "UNETLoader": kind(fail, ("MODEL",), {"unet_name": (models, {})}),
        "DualCLIPLoader": kind(fail, ("CLIP",), {"clip_name1": (texts, {}), "clip_name2": (texts, {})}),
        "VAELoader": kind(fail, ("VAE",), {"vae_name": (["ae.safetensors", "pixel_space"], {})}),
        "Paint": kind(fail, ("IMAGE",), painted),
        "PreviewImage": kind(save, (), {"images": ("IMAGE", {})}, OUTPUT_NODE=True, folder="temp"),
        "SaveImage": kind(
            save,
            (),
            {"images": ("IMAGE", {}), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
            OUTPUT_NODE=True,
            folder="output",
        ),
    }


def comparable(kind: str, data: dict[str, Any], expected: Any) -> Any:
    """An event without what differs from run to run: ids, times, tracebacks, and the text of our own errors."""
    data = json.loads(json.dumps({key: value for key, value in data.items() if key not in ("prompt_id", "timestamp")}))
    if kind == "progress_state":
        return {key: [node["value"], node["max"], node["state"]] for key, node in data["nodes"].items()}
    if kind == "execution_error":
        del data["traceback"]
        data["current_inputs"] = {key: data["current_inputs"].get(key) for key in expected["current_inputs"]}
        data["current_outputs"].sort()
        expected["current_outputs"].sort()
        if data["exception_type"].endswith("InputError"):
            data |= {key: expected[key] for key in ("exception_type", "exception_message")}
    return data


def test_the_recorded_conversation_with_comfyui_is_repeated(tmp_path: Path) -> None:
    classes = recorded_classes(tmp_path)
    sent: list[tuple[str, dict[str, Any]]] = []
    executor = Executor(classes, lambda kind, data: sent.append((kind, data)))
    for scene in json.loads((FIXTURES / "graph_transcript.json").read_text()):
        checked = validate(scene["prompt"], classes, scene.get("targets"))
        errors = json.loads(json.dumps(checked.node_errors))
        for node in errors.values():
            for error in node["errors"]:
                error["extra_info"].pop("traceback", None)
                if error["type"].startswith("exception"):  # ours says which input it was, too
                    error["extra_info"] = {"exception_type": error["extra_info"]["exception_type"]}
        assert {"error": checked.error, "node_errors": errors} == {"error": None} | scene["response"], scene["name"]
        sent.clear()
        if checked.error is None:
            extra = {"extra_pnginfo": {"workflow": {"nodes": [], "v": 1}}}
            executor.execute(checked.prompt, scene["name"], extra, scene.get("order", checked.outputs))
        assert [kind for kind, _ in sent] == [kind for kind, _ in scene["events"]], scene["name"]
        for (kind, data), (_, expected) in zip(sent, scene["events"], strict=True):
            assert comparable(kind, data, expected) == expected, scene["name"]
            assert data["prompt_id"] == scene["name"]
