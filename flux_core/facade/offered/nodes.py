"""nodes: the core node classes, the tables of all nodes, and the functions that nodes share.

A class of this module is ours, called as ComfyUI's is. The tables are plain dicts: what a pack adds to them while it is
imported becomes a node of that pack.
"""

from __future__ import annotations

import os
import random
from typing import Any

from ...io import png, saving
from ..engine import current
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
    found = None if name.startswith("_") else table().get(name)
    if found is None or name not in current().own:
        raise AttributeError(name)
    return found


def table() -> dict[str, Any]:
    """Id -> class, of everything there is, ours as packs call them."""
    made: dict[str, Any] = current().keep("nodes", _first_table)
    return made


def _first_table() -> dict[str, Any]:
    engine = current()
    special = {"SaveImage": Saver, "PreviewImage": Previewer}
    own = {name: for_packs(name, ours) for name, ours in engine.classes.items() if name in engine.own}
    for name, kept in special.items():
        if name in own:
            own[name] = type(name, (kept, own[name]), {"FUNCTION": "save_images"})
    # Packs see a ComfyUI without what is answered here of packs that are missing.
    others = {name: one for name, one in engine.classes.items() if not getattr(one, "YIELDS", False)}
    return Table({**others, **own})


class Table(dict[str, Any]):
    """The loaders of ComfyUI that are not here are absent for packs that build on them; `in` and `get` tell so."""

    def __missing__(self, node_id: str) -> Any:
        if node_id not in _ABSENT_LOADERS:
            raise KeyError(node_id)
        return current().absent(f"nodes.{node_id}")


def before_node_execution() -> None:
    """Raises Interrupted if the run is to stop."""
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
    """comfy_extras.nodes_mask.composite: planes [B, C, H, W] laid over planes, x and y in units of 1/`multiplier`."""
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
    """Denoise a latent; (latent,)."""
    from .comfy import sample

    samples = sample.fix_empty_latent_channels(model, latent["samples"])
    noise = sample.prepare_noise(samples, seed, latent.get("batch_index"))
    done = sample.sample(
        model, noise, steps, cfg, sampler_name, scheduler, positive, negative, samples, denoise, disable_noise,
        start_step, last_step, force_full_denoise, latent.get("noise_mask"), seed=seed,
    )  # fmt: skip
    return ({**latent, "samples": done},)


class Saver:
    """Images into the output folder. Packs derive from it and set where to: `output_dir`, `type`, `prefix_append`."""

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
    """Images into the folder for temporary files."""

    def __init__(self) -> None:
        super().__init__()
        self.output_dir = str(current().folders.temp)
        self.type = "temp"
        self.prefix_append = "_temp_" + "".join(random.choices("abcdefghijklmnopqrstupvxyz", k=5))
        self.compress_level = 1
