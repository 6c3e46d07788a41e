"""Save and load latents."""

from __future__ import annotations

from typing import Any

from .binding import HostedNode
from .sockets import LATENT, STRING, Inputs, socket

Latent = dict[str, Any]
HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


class SaveLatent(HostedNode):
    """Save a latent in the output folder, with its workflow inside."""

    TITLE = "SaveLatent"
    DESCRIPTION = "Saves a latent as a file. Move the file to the input folder to load it later."
    CATEGORY = "_for_testing"
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tip = "Beginning of the file name. Slashes create folders; %year% %month% %day% are replaced."
        return {
            "required": {
                "samples": socket(LATENT, "The latent to save."),
                "filename_prefix": (STRING, {"default": "latents/ComfyUI", "tooltip": tip}),
            },
            "hidden": HIDDEN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None = None) -> bool | str:
        """Checked before anything runs. None: a link provides the value."""
        from .image_files import prefix_problem

        return prefix_problem(cls.host, filename_prefix)

    def save(
        self, samples: Latent, filename_prefix: str = "ComfyUI", prompt: Any = None, extra_pnginfo: Any = None
    ) -> dict[str, Any]:
        from ..flux_core.images.latent_files import encode
        from ..flux_core.io.saving import place

        target = place(filename_prefix, self.host.output)
        name = target.save(encode(samples, prompt, extra_pnginfo), suffix="_.latent")
        return {"ui": {"latents": [{"filename": name, "subfolder": target.subfolder, "type": "output"}]}}


class LoadLatent(HostedNode):
    """Load a latent from the input folder."""

    MODELS = False  # none on its links; declared here, because listing its inputs lists a folder
    TITLE = "LoadLatent"
    DESCRIPTION = "Loads a latent that SaveLatent has saved, from the input folder."
    CATEGORY = "_for_testing"
    FUNCTION = "load"
    RETURN_TYPES = (LATENT,)
    OUTPUT_TOOLTIPS = ("The latent.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"latent": (cls.host.inputs((".latent",)), {"tooltip": "A file in the input folder."})}}

    @classmethod
    def IS_CHANGED(cls, latent: str) -> str:
        from .image_files import fingerprint_of

        return fingerprint_of(cls.host, latent)

    @classmethod
    def VALIDATE_INPUTS(cls, latent: str) -> bool | str:
        from .image_files import missing_problem

        return missing_problem(cls.host, latent)

    def load(self, latent: str) -> tuple[Latent]:
        from ..flux_core.images.latent_files import decode

        return (decode(self.host.file(latent)),)
