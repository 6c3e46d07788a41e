"""ComfyUI's own training nodes under their own ids: a workflow that trains there trains here.

    LoadImageTextSetFromFolderNode   a folder of images with captions -> IMAGE, CONDITIONING with an entry for each
    TrainLoraNode                    latents and conditioning -> the model with the LoRA, LORA_MODEL, LOSS_MAP, steps
    LoraModelLoader, SaveLoRANode    add or save a LORA_MODEL, which is the tensors of a file by their names
    LossGraphNode                    a LOSS_MAP as an image

The training is that of `sluice train lora`: streamed within the memory budget, with float32 masters and an alpha that
is equal to the rank.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ....nodes.binding import HostedNode
from ....nodes.sockets import CLIP, CONDITIONING, IMAGE, LATENT, MODEL, Inputs, choice, integer, number, socket, switch
from .node_progress import NodeProgress

LORA_MODEL, LOSS_MAP = "LORA_MODEL", "LOSS_MAP"
NONE = "[None]"
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
RESIZES = ("None", "Stretch", "Crop", "Pad")
OPTIMISERS = {"AdamW": "adamw", "Adam": "adam", "SGD": "sgd", "RMSprop": "rmsprop"}
LOSSES = {"MSE": "l2", "L1": "l1", "Huber": "huber", "SmoothL1": "huber"}  # the last two are equal at their defaults
ALGORITHMS = ("LoRA", "LoHa", "LoKr", "OFT")
NAME = "trained"


class LoadImageTextSetFromFolderNode(HostedNode):
    """Images and captions of a folder."""

    TITLE = "Load Image and Text Dataset from Folder"
    DESCRIPTION = (
        "Loads the images of a folder in the input folder, with the caption of each from a .txt file of the same name. "
        "A folder in it whose name begins with a number, such as 10_cat, is repeated so many times."
    )
    CATEGORY = "loaders"
    FUNCTION = "load_images"
    RETURN_TYPES = (IMAGE, CONDITIONING)
    OUTPUT_TOOLTIPS = ("All images, of one size.", "An entry for each image.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        root = cls.host.input
        folders = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        return {
            "required": {
                "folder": choice(folders, "The folder to load images from."),
                "clip": socket(CLIP, "The text encoders."),
            },
            "optional": {
                "resize_method": choice(RESIZES, "For images of another size.", default="None"),
                "width": integer(-1, -1, 10_000, "Of all images; -1: as the first has it.", step=1),
                "height": integer(-1, -1, 10_000, "Of all images; -1: as the first has it.", step=1),
            },
        }

    def load_images(
        self, folder: str, clip: Any, resize_method: str = "None", width: int = -1, height: int = -1
    ) -> tuple[Any, list[list[Any]]]:
        import torch

        from ...conditioning.text import encode_prompt
        from ...errors import InputError
        from ...images.files import load
        from ...io.folders import confined

        root = confined(self.host.input, folder)
        files = list(_images_of(root)) if root.is_dir() else []
        if not files:
            raise InputError(
                f"There are no images in {root}. Put some there ({', '.join(ENDINGS)}), with .txt captions."
            )
        images = [load(path)[0][:1, ..., :3] for path in files]
        size = (
            width if width != -1 else images[0].shape[2],
            height if height != -1 else images[0].shape[1],
        )
        fitted = [_resized(image, size, resize_method, path) for image, path in zip(images, files, strict=True)]
        encoded: dict[str, list[list[Any]]] = {}
        entries = []
        for path in files:
            beside = path.with_suffix(".txt")
            text = beside.read_text("utf-8-sig").strip() if beside.is_file() else ""
            if text not in encoded:
                self.host.check_interrupted()
                encoded[text] = encode_prompt(clip, text, text)
            entries += encoded[text]
        return torch.cat(fitted), entries


def _images_of(root: Path) -> list[Path]:
    """The images in the folder, then those of each subfolder, repeated as often as its name says."""
    found = sorted(path for path in root.iterdir() if path.suffix.lower() in ENDINGS)
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        head = folder.name.split("_")[0]
        inside = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
        found += inside * (int(head) if head.isdigit() else 1)
    return found


def _resized(image: Any, size: tuple[int, int], method: str, path: Path) -> Any:
    """[1, H, W, 3] of this (width, height). Raises InputError if they differ and no method is chosen."""
    import torch.nn.functional as F

    from ...errors import InputError
    from ...images.resize import resize_image

    height, width = image.shape[1:3]
    if (width, height) == size:
        return image
    if method == "None":
        raise InputError(
            f"{path.name} is {width}x{height}, and the others are {size[0]}x{size[1]}. Choose a resize_method, or make "
            "all images the same size."
        )
    if method == "Crop":
        image = image[:, : size[1], : size[0]]
        missing = size[0] - image.shape[2], size[1] - image.shape[1]
        return F.pad(image, (0, 0, 0, missing[0], 0, missing[1]))
    return resize_image(image, *size, "lanczos")


class TrainLoraNode(HostedNode):
    """Trains a LoRA on latents with conditioning."""

    TITLE = "Train LoRA (latents)"
    DESCRIPTION = "Trains a LoRA of the transformer on latents and the conditioning of each, within the memory budget."
    CATEGORY = "training"
    FUNCTION = "train"
    RETURN_TYPES = (MODEL, LORA_MODEL, LOSS_MAP, "INT")
    RETURN_NAMES = ("model_with_lora", "lora", "loss", "steps")
    OUTPUT_TOOLTIPS = ("The model with the LoRA.", "The LoRA.", "The loss of each step.", "Steps in all.")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        types = "The number type that the model computes in."
        return {
            "required": {
                "model": socket(MODEL, "The transformer."),
                "latents": socket(LATENT, "What is learned."),
                "positive": socket(CONDITIONING, "An entry for each latent, or one for all."),
                "batch_size": integer(1, 1, 10_000, "Latents a step.", step=1),
                "grad_accumulation_steps": integer(1, 1, 1024, "Batches that are averaged for one update.", step=1),
                "steps": integer(16, 1, 100_000, "Updates of the LoRA."),
                "learning_rate": number(0.0005, 0.0000001, 1.0, 0.000001, "Learning rate."),
                "rank": integer(8, 1, 128, "Of the LoRA: how much it can hold."),
                "optimizer": choice(tuple(OPTIMISERS), "How gradients become steps.", default="AdamW"),
                "loss_function": choice(tuple(LOSSES), "Of the velocity.", default="MSE"),
                "seed": integer(0, 0, 2**64 - 1, "Of everything random."),
                "training_dtype": choice(("bf16", "fp32"), types, default="bf16"),
                "lora_dtype": choice(("bf16", "fp32"), "The number type of the finished LoRA.", default="bf16"),
                "algorithm": choice(ALGORITHMS, "LoRA is the one that is trained here.", default="LoRA"),
                "gradient_checkpointing": switch(True, "Blocks are always computed again here; nothing else fits."),
                "existing_lora": choice((*cls.host.filenames("loras"), NONE), "A LoRA to go on with.", default=NONE),
            }
        }

    def train(
        self, model: Any, latents: dict[str, Any], positive: list[list[Any]], batch_size: int,
        grad_accumulation_steps: int, steps: int, learning_rate: float, rank: int, optimizer: str, loss_function: str,
        seed: int, training_dtype: str, lora_dtype: str, algorithm: str, gradient_checkpointing: bool,
        existing_lora: str,
    ) -> tuple[Any, dict[str, Any], dict[str, list[float]], int]:  # fmt: skip
        from dataclasses import replace

        import torch

        from ...errors import InputError
        from ...models.latents import process_in
        from .given import GivenTraining, start_from
        from .lora_file import lora_tensors
        from .settings import LoraSettings

        if algorithm != "LoRA":
            raise InputError(f"algorithm {algorithm} cannot be trained here. Choose LoRA.")
        samples = latents["samples"]
        if len(positive) not in (1, len(samples)):
            raise InputError(
                f"There are {len(samples)} latents and {len(positive)} captions. Give one for each, or one in all."
            )
        types = {"bf16": torch.bfloat16, "fp32": torch.float32}
        settings = LoraSettings(
            NAME, steps=steps, rank=rank, batch=min(batch_size, len(samples)), accumulate=grad_accumulation_steps,
            rate=min(learning_rate, 0.999), warm_up=0, optimiser=OPTIMISERS[optimizer], loss=LOSSES[loss_function],
            seed=seed, clip=0.0, validate=0, dropout=0.0, save_every=steps, sample_every=steps,
        )  # fmt: skip
        before = 0 if existing_lora == NONE else _steps_of(existing_lora)
        with torch.inference_mode(False), torch.enable_grad():
            model.weights.unload()  # weights loaded for inference support no backward pass
            computes = replace(model, compute_dtype=types[training_dtype])
            place = Path(tempfile.mkdtemp(prefix="training-", dir=_made(self.host.temp)))
            try:
                training = GivenTraining(
                    settings, computes, process_in(samples.float().clone()), positive, place, NodeProgress(self.host)
                )
                if existing_lora != NONE:
                    start_from(training, self.host.full_path("loras", existing_lora))
                masters, losses = training.train()
            finally:
                shutil.rmtree(place, ignore_errors=True)
        shapes = {name: tuple(stored.shape) for name, stored in model.weights.tensors.items()}
        lora = lora_tensors(masters, settings.scale_alpha, "kohya", shapes, types[lora_dtype])
        return _with_lora(self.host, model, lora, 1.0), lora, {"loss": losses}, steps + before


def _steps_of(name: str) -> int:
    """The steps in a file name written by SaveLoRANode; 0 for others."""
    steps = name.split("_steps_")[0].split("_")[-1] if "_steps_" in name else ""
    return int(steps) if steps.isdigit() else 0


class LoraModelLoader(HostedNode):
    """Add a LoRA that was trained in the same workflow."""

    TITLE = "Load LoRA Model"
    DESCRIPTION = "Adds a LoRA from the Train LoRA node to the transformer."
    CATEGORY = "loaders"
    FUNCTION = "load_lora_model"
    RETURN_TYPES = (MODEL,)
    OUTPUT_TOOLTIPS = ("The model with the LoRA.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The transformer."),
                "lora": socket(LORA_MODEL, "The LoRA."),
                "strength_model": number(1.0, -100.0, 100.0, 0.01, "How strongly the transformer is changed."),
            }
        }

    def load_lora_model(self, model: Any, lora: dict[str, Any], strength_model: float) -> tuple[Any]:
        return (model if strength_model == 0 else _with_lora(self.host, model, lora, strength_model),)


class SaveLoRANode(HostedNode):
    """Save a LoRA that was trained in the same workflow."""

    TITLE = "Save LoRA Weights"
    DESCRIPTION = "Saves a LoRA from the Train LoRA node in the output folder."
    CATEGORY = "loaders"
    FUNCTION = "save"
    RETURN_TYPES: tuple[str, ...] = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tip = "Beginning of the file name; slashes make folders."
        return {
            "required": {
                "lora": socket(LORA_MODEL, "The LoRA."),
                "prefix": ("STRING", {"default": "loras/ComfyUI_trained_lora", "tooltip": tip}),
            },
            "optional": {"steps": ("INT", {"forceInput": True, "tooltip": "Written into the file name."})},
        }

    def save(self, lora: dict[str, Any], prefix: str, steps: int | None = None) -> dict[str, Any]:
        from ...checkpoint.whole_files import safetensors
        from ...io.saving import place

        target = place(prefix if steps is None else f"{prefix}_{steps}_steps", self.host.output)
        name = target.save(safetensors(lora, {"format": "pt"}), suffix="_.safetensors")
        return {"ui": {"text": [f"{target.subfolder}/{name}" if target.subfolder else name]}}


class LossGraphNode(HostedNode):
    """The losses of a training as an image."""

    TITLE = "Plot Loss Graph"
    DESCRIPTION = "Draws the loss of each step."
    CATEGORY = "training"
    FUNCTION = "plot_loss"
    RETURN_TYPES: tuple[str, ...] = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tip = "Beginning of the file name."
        return {
            "required": {
                "loss": socket(LOSS_MAP, "From the Train LoRA node."),
                "filename_prefix": ("STRING", {"default": "loss_graph", "tooltip": tip}),
            }
        }

    def plot_loss(self, loss: dict[str, list[float]], filename_prefix: str) -> dict[str, Any]:
        from ...io.saving import place
        from .curve import png, smoothed

        points = [(step, value) for step, value in enumerate(loss["loss"], start=1)]
        lines = {"loss": [(float(step), value) for step, value in points], "average": smoothed(points)}
        target = place(filename_prefix, _made(self.host.temp))
        name = target.save(png(lines, "steps", "loss"))
        return {"ui": {"images": [{"filename": name, "subfolder": target.subfolder, "type": "temp"}]}}


CLASSES: dict[str, type[Any]] = {
    each.__name__: each
    for each in (LoadImageTextSetFromFolderNode, TrainLoraNode, LoraModelLoader, SaveLoRANode, LossGraphNode)
}


def _with_lora(host: Any, model: Any, lora: dict[str, Any], strength: float) -> Any:
    """The model with these tensors, which are written to a temporary file named by its content."""
    from ...checkpoint.whole_files import safetensors
    from ...io.saving import write_whole
    from ...runtime.lora_files import read_lora

    data = safetensors(lora, {"format": "pt"})
    path = _made(host.temp) / f"lora-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    if not path.is_file():
        write_whole(path, data)
    return read_lora(model, None, path).added_to(model, None, strength)[0]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
