"""The training of a LoRA as a node: a job in the queue with progress, memory panel and cancel."""

from __future__ import annotations

from typing import Any

from ....nodes.binding import HostedNode
from ....nodes.sockets import CLIP, MODEL, VAE, Inputs, integer, number, socket
from .node_progress import NodeProgress


class TrainLora(HostedNode):
    """Trains a LoRA on a folder of images."""

    TITLE = "Train LoRA"
    DESCRIPTION = (
        "Trains a LoRA on a folder of images, each with its caption in a .txt of the same name. Cancelling keeps the "
        "steps that are done, and so does a restart of the program: the same values go on from there."
    )
    CATEGORY = "training"
    FUNCTION = "train"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("lora_name",)
    OUTPUT_TOOLTIPS = ("The name of the LoRA file, as Load LoRA lists it.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": socket(MODEL, "The transformer, without LoRAs."),
                "clip": socket(CLIP, "The text encoders."),
                "vae": socket(VAE, "The autoencoder."),
                "folder": ("STRING", {"default": "", "tooltip": "A folder of images in the input folder."}),
                "name": ("STRING", {"default": "my-lora", "tooltip": "Of the LoRA and its files."}),
                "trigger": ("STRING", {"default": "", "tooltip": "A word that stands for what is trained."}),
                "steps": integer(1500, 1, 100_000, "Updates of the LoRA."),
                "rank": integer(16, 1, 512, "Of the LoRA: how much it can hold."),
                "size": integer(512, 32, 2048, "Images have about the area of a square of this side.", step=16),
                "batch": integer(1, 1, 64, "Images a step."),
                "rate": number(1e-4, 1e-7, 0.1, 1e-6, "Learning rate."),
                "seed": integer(0, 0, 2**32 - 1, "Of everything random."),
                "save_every": integer(250, 1, 100_000, "Steps from one checkpoint to the next."),
            },
            "optional": {
                "others_first": ("BOOLEAN", {"default": False, "tooltip": "Other jobs of the queue go first: the "
                    "training begins when none waits, and stops between two steps while others run."}),
            },
        }  # fmt: skip

    def train(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        folder: str,
        name: str,
        trigger: str,
        steps: int,
        rank: int,
        size: int,
        batch: int,
        rate: float,
        seed: int,
        save_every: int,
        others_first: bool = False,
    ) -> dict[str, Any]:
        import torch

        from ...errors import InputError
        from ...io.folders import TINY_MODELS, confined
        from .settings import LoraSettings
        from .training import LoraTraining, Parts

        settings = LoraSettings(
            name, trigger, steps, rank, size=size, batch=batch, rate=rate, seed=seed, save_every=save_every
        )
        places = [place for place in self.host.directories("loras") if not place.is_relative_to(TINY_MODELS)]
        if not places:
            raise InputError("There is no folder for LoRAs. Start the program with --models, or make models/loras.")
        source = confined(
            self.host.input, folder
        )  # a user who may queue jobs must not be able to read any folder of the machine
        with torch.inference_mode(False), torch.enable_grad():
            model.weights.unload()  # tensors of models loaded for inference support no backward pass
            training = LoraTraining(
                settings, Parts(model, clip, vae), source, confined(places[0], name), NodeProgress(self.host)
            )
            if others_first:
                training.others_wait = self.host.others_wait
            path = training.run()
        lora = path.relative_to(places[0]).as_posix()
        return {"ui": {"text": [lora]}, "result": (lora,)}
