"""ComfyUI's training nodes: a LoRA is trained on a folder of images, added to a model, saved, and trained further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sluice.flux_core.errors import InputError, Interrupted
from sluice.flux_core.io.folders import TINY_MODELS, Folders
from sluice.flux_core.memory.budget import Allowed
from sluice.flux_core.memory.workload import MiB
from sluice.flux_core.runtime.handles import load_autoencoder, load_flux, load_text
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.training.lora.comfyui_nodes import CLASSES
from sluice.nodes.binding import bound_to
from sluice.nodes.host import Host

VALUES: dict[str, Any] = {
    "batch_size": 2, "grad_accumulation_steps": 1, "steps": 3, "learning_rate": 0.01, "rank": 2, "optimizer": "AdamW",
    "loss_function": "MSE", "seed": 5, "training_dtype": "fp32", "lora_dtype": "fp32", "algorithm": "LoRA",
    "gradient_checkpointing": True, "existing_lora": "[None]",
}  # fmt: skip


class Program:
    """The nodes, bound to folders of a test, and the shipped model."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.interrupted = folder, False
        self.runtime = Runtime(Settings("cpu", "fp32"))
        models = {"loras": [folder / "output" / "loras"]}
        places = {name: folder / name for name in ("input", "output", "temp", "user")}
        self.host = Host(
            Folders(models, **places), interrupted=lambda: self.interrupted, make_runtime=lambda: self.runtime
        )
        self.nodes = {name: made() for name, made in bound_to(self.host, CLASSES).items()}
        text = [TINY_MODELS / "text_encoders" / f"sluice-tiny-{name}.safetensors" for name in ("clip_l", "t5xxl")]
        self.model = load_flux(self.runtime, TINY_MODELS / "diffusion_models" / "sluice-tiny.safetensors")
        self.text = load_text(self.runtime, text, tokenizers=[TINY_MODELS / "tokenizers"])
        self.vae = load_autoencoder(self.runtime, TINY_MODELS / "vae" / "sluice-tiny-ae.safetensors")

    def data(self) -> tuple[dict[str, Any], Any]:
        images, positive = self.nodes["LoadImageTextSetFromFolderNode"].load_images("set", self.text)
        return {"samples": self.vae.encode_image(images)}, positive


@pytest.fixture
def program(tmp_path: Path) -> Program:
    folder = tmp_path / "input" / "set"
    (folder / "2_blue").mkdir(parents=True)
    for name, colour, text in (("a", "red", "a red thing"), ("b", "green", None), ("2_blue/c", "blue", "blue")):
        Image.new("RGB", (64, 64), colour).save(folder / f"{name}.png")
        if text is not None:
            (folder / f"{name}.txt").write_text(text)
    return Program(tmp_path)


def test_a_folder_becomes_images_and_an_entry_for_each(program: Program) -> None:
    load = program.nodes["LoadImageTextSetFromFolderNode"].load_images
    images, positive = load("set", program.text)
    assert images.shape == (4, 64, 64, 3) and len(positive) == 4, "one is repeated, and the empty caption counts once"
    assert images[:, 0, 0].tolist()[0] == [1.0, 0.0, 0.0]
    assert torch.equal(positive[2][0], positive[3][0]) and not torch.equal(positive[0][0], positive[1][0])
    Image.new("RGB", (32, 80), "white").save(program.folder / "input" / "set" / "z.png")
    with pytest.raises(InputError, match="c.png is 64x64|z.png is 32x80.*Choose a resize_method"):
        load("set", program.text)
    for method in ("Stretch", "Crop", "Pad"):
        assert load("set", program.text, method, 48, 40)[0].shape == (5, 40, 48, 3)
    (program.folder / "input" / "none").mkdir()
    with pytest.raises(InputError, match="There are no images"):
        load("none", program.text)
    with pytest.raises(InputError, match="leads out of the folder"):
        load("../output", program.text)


@pytest.mark.parametrize("budget", [None, 6 * MiB], ids=["whole", "streamed"])
def test_a_lora_is_trained_added_saved_and_gone_on_with(program: Program, budget: int | None) -> None:
    latents, positive = program.data()
    train = program.nodes["TrainLoraNode"].train
    if budget is not None:
        from doubles.simulated import SimulatedMemory
        from sluice.flux_core.memory.manager import Manager

        cpu = torch.device("cpu")
        program.runtime.budget = Allowed(ram=budget)
        program.runtime.managers[cpu] = Manager(cpu, program.runtime.budget)
        program.runtime.managers[cpu].memory = SimulatedMemory(budget + 128 * MiB)
    with torch.inference_mode():
        made, lora, losses, steps = train(program.model, latents, positive, **VALUES)
    assert steps == len(losses["loss"]) == 3 and len(made.loras) == 1
    assert all(value.dtype == torch.float32 for value in lora.values()) and len(lora) % 3 == 0
    assert any(value.count_nonzero() for name, value in lora.items() if name.endswith("lora_up.weight"))
    added = program.nodes["LoraModelLoader"].load_lora_model(program.model, lora, 0.5)[0]
    assert added.loras[0].strength == 0.5 and added.loras[0].lora.changes.keys() == made.loras[0].lora.changes.keys()
    assert program.nodes["LoraModelLoader"].load_lora_model(program.model, lora, 0.0)[0] is program.model
    name = program.nodes["SaveLoRANode"].save(lora, "loras/mine", steps)["ui"]["text"][0]
    assert name == "loras/mine_3_steps_00001_.safetensors" and (program.folder / "output" / name).is_file()
    again = {**VALUES, "existing_lora": Path(name).name, "steps": 1}
    assert train(program.model, latents, positive, **again)[3] == 4
    with pytest.raises(InputError, match="should have rank 4"):
        train(program.model, latents, positive, **{**again, "rank": 4})
    shown = program.nodes["LossGraphNode"].plot_loss(losses, "loss_graph")["ui"]["images"][0]
    assert Image.open(program.folder / "temp" / shown["filename"]).size[0] > 300
    assert not list((program.folder / "temp").glob("training-*")), "checkpoints are deleted"


@pytest.mark.parametrize("optimizer", ["Adam", "SGD", "RMSprop"])
def test_every_optimiser_moves_the_lora(program: Program, optimizer: str) -> None:
    latents, positive = program.data()
    values = {**VALUES, "optimizer": optimizer, "steps": 1, "loss_function": "Huber", "lora_dtype": "bf16"}
    _, lora, _, _ = program.nodes["TrainLoraNode"].train(program.model, latents, positive[:1], **values)
    assert any(value.count_nonzero() for name, value in lora.items() if name.endswith("lora_up.weight"))
    assert all(value.dtype == torch.bfloat16 for value in lora.values())


def test_what_cannot_be_trained_is_told(program: Program) -> None:
    latents, positive = program.data()
    train = program.nodes["TrainLoraNode"].train
    with pytest.raises(InputError, match="LoKr cannot be trained here. Choose LoRA"):
        train(program.model, latents, positive, **{**VALUES, "algorithm": "LoKr"})
    with pytest.raises(InputError, match="4 latents and 2 captions"):
        train(program.model, latents, positive[:2], **VALUES)
    program.interrupted = True
    with pytest.raises(Interrupted):
        train(program.model, latents, positive, **VALUES)
    assert not list((program.folder / "temp").glob("training-*"))
