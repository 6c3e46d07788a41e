"""nodes: the core node classes, the tables of all nodes, and the functions that nodes share.

The classes of this module are ours, with the interface of ComfyUI's. The tables are plain dicts: a class that a pack
adds during its import becomes a node of that pack.
"""

from __future__ import annotations

import os
import random
from typing import Any

from ...io import png, saving
from ..engine import current
from ..module_names import CLASS_NAMES
from ..node_classes import for_packs

__all__ = [
    "MAX_RESOLUTION",
    "before_node_execution",
    "composite",
    "common_ksampler",
    "get_module_name",
    "interrupt_processing",
]

COMPUTED = ("EXTENSION_WEB_DIRS", "LOADED_MODULE_DIRS", "NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS")
MAX_RESOLUTION = 16384
_ABSENT_LOADERS = (
    *("TripleCLIPLoader", "QuadrupleCLIPLoader", "DiffusersLoader", "GLIGENLoader", "unCLIPCheckpointLoader"),
)


def __getattr__(name: str) -> Any:
    """The tables of this process, and the class of an id."""
    if name in ("EXTENSION_WEB_DIRS", "LOADED_MODULE_DIRS"):
        return current().keep(name, dict)
    if name == "NODE_CLASS_MAPPINGS":
        return table()
    if name == "NODE_DISPLAY_NAME_MAPPINGS":
        return current().titles
    if name in ("Noise_RandomNoise", "Noise_EmptyNoise"):  # of comfy_extras.nodes_custom_sampler
        from ...sampling.sample import DisableNoise, RandomNoise

        return RandomNoise if name == "Noise_RandomNoise" else DisableNoise
    if name == "Guider_Basic":
        from .comfy.samplers import BasicGuider

        return BasicGuider
    node_id = CLASS_NAMES.get(name, name)
    found = None if name.startswith("_") else table().get(node_id)
    if found is None or node_id not in current().own:
        raise AttributeError(name)
    return found


def table() -> dict[str, Any]:
    """Id -> class for all nodes; ours have the interface for packs."""
    made: dict[str, Any] = current().keep("nodes", _first_table)
    return made


def _first_table() -> dict[str, Any]:
    engine = current()
    special = {"SaveImage": Saver, "PreviewImage": Previewer}
    own = {name: for_packs(name, ours) for name, ours in engine.classes.items() if name in engine.own}
    for name, kept in special.items():
        if name in own:
            own[name] = type(name, (kept, own[name]), {"FUNCTION": "save_images"})
    # Packs do not see substitutes for nodes of missing packs.
    others = {name: one for name, one in engine.classes.items() if not getattr(one, "STANDS_IN", False)}
    return Table({**others, **own})


class Table(dict[str, Any]):
    """Loaders of ComfyUI that do not exist here are absent classes, for packs that derive from them; `in` and `get` do
    not find them.
    """

    def __missing__(self, node_id: str) -> Any:
        if node_id not in _ABSENT_LOADERS:
            raise KeyError(node_id)
        return current().absent(f"nodes.{node_id}")


def before_node_execution() -> None:
    """Raises Interrupted if the run must stop."""
    current().check_interrupted()


def interrupt_processing(value: bool = True) -> None:
    if value:
        current().stop()


def get_module_name(module_path: str) -> str:
    return os.path.splitext(os.path.basename(os.path.normpath(module_path)))[0]


def composite(
    destination: Any,
    source: Any,
    x: int,
    y: int,
    mask: Any = None,
    multiplier: int = 8,
    resize_source: bool = False,
) -> Any:
    """comfy_extras.nodes_mask.composite: places [B, C, H, W] on [B, C, H, W], with x and y in units of
    1/`multiplier`.
    """
    from ...images import resize

    return resize.composite(destination, source.to(destination.device), x, y, mask, resize_source, multiplier)


def common_ksampler(
    model: Any,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    denoise: float = 1.0,
    disable_noise: bool = False,
    start_step: int | None = None,
    last_step: int | None = None,
    force_full_denoise: bool = False,
) -> tuple[dict[str, Any]]:
    """Denoise a latent. Returns (latent,)."""
    from .comfy import sample

    samples = sample.fix_empty_latent_channels(model, latent["samples"])
    noise = sample.prepare_noise(samples, seed, latent.get("batch_index"))
    done = sample.sample(
        model, noise, steps, cfg, sampler_name, scheduler, positive, negative, samples, denoise, disable_noise,
        start_step, last_step, force_full_denoise, latent.get("noise_mask"), seed=seed,
    )  # fmt: skip
    return ({**latent, "samples": done},)


class Saver:
    """Saves images in the output folder. Packs derive from it and set the target: `output_dir`, `type`,
    `prefix_append`.
    """

    def __init__(self) -> None:
        self.output_dir = str(current().folders.output)
        self.type = "output"
        self.prefix_append = ""
        self.compress_level = 4

    def save_images(
        self, images: Any, filename_prefix: str = "ComfyUI", prompt: Any = None, extra_pnginfo: Any = None
    ) -> dict[str, Any]:
        """Saves each image of a batch with its workflow; {"ui": {"images": [...]}}."""
        from ...images.files import to_pil

        height, width = images.shape[1:3]
        place = saving.place(filename_prefix + self.prefix_append, self.output_dir, width, height)
        shown = []
        for number, image in enumerate(images):
            data = png.encode(to_pil(image), prompt, extra_pnginfo)
            name = place.save(data, number)
            shown.append({"filename": name, "subfolder": place.subfolder, "type": self.type})
        return {"ui": {"images": shown}}


class Previewer(Saver):
    """Saves images in the folder for temporary files."""

    def __init__(self) -> None:
        super().__init__()
        self.output_dir = str(current().folders.temp)
        self.type = "temp"
        self.prefix_append = "_temp_" + "".join(random.choices("abcdefghijklmnopqrstupvxyz", k=5))
        self.compress_level = 1
