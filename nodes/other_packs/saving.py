"""Saving images as PNG, JPEG or WebP with their workflow, with the ids of other packs.

Additional output of the packs (settings as text, watermarks, lists of files) is left out with a note in the log.
"""

from __future__ import annotations

from typing import Any

from ..binding import HostedNode
from ..image_files import HIDDEN, prefix_problem
from ..sockets import IMAGE, STRING, Inputs, integer, socket
from .declared import OfAnotherPack, flag, line, one_of, unused, whole

ENDINGS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}


class _Saves(OfAnotherPack, HostedNode):
    """A node that saves images in the output folder."""

    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES: tuple[str, ...] = ()

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None = None) -> bool | str:
        return prefix_problem(cls.host, filename_prefix)

    def saved(
        self,
        images: Any,
        prefix: str,
        kind: str = "png",
        quality: int = 95,
        lossless: bool = False,
        prompt: Any = None,
        extra: Any = None,
    ) -> list[dict[str, str]]:
        """Save every image as a file. Returns the files in the form sent to clients. kind: png, jpeg or webp."""
        from ...flux_core.images.encode import as_file
        from ...flux_core.io.saving import place

        target = place(prefix, self.host.output, width=images.shape[2], height=images.shape[1])
        told = []
        for n, image in enumerate(images):
            data = as_file(image, kind, quality, lossless, prompt, extra)
            name = target.save(data, n, suffix=f".{kind}" if kind != "jpeg" else ".jpg")
            told.append({"filename": name, "subfolder": target.subfolder, "type": "output"})
        return told


def _prefix(default: str = "ComfyUI") -> Any:
    return line("Beginning of the file names. Slashes make folders.", default)


class SaveImagePlus(_Saves):
    """A node that saves in one of several formats, optionally without the workflow."""

    PACK = "comfyui-saveimage-plus"
    TITLE = "Save Image Plus"
    DESCRIPTION = "Saves images as PNG, JPEG or WebP, with or without their workflow."
    TYPES = ("PNG", "JPEG", "WEBP (lossless)", "WEBP (lossy)")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "images": socket(IMAGE, "The images to save."),
                "filename_prefix": _prefix(),
                "file_type": one_of(cls.TYPES, "The format."),
                "remove_metadata": flag(False, "Save without the workflow."),
            },
            "hidden": HIDDEN,
        }

    def save(
        self,
        images: Any,
        filename_prefix: str,
        file_type: str,
        remove_metadata: bool,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        kind = ENDINGS[file_type.split()[0].lower()]
        carried = {} if remove_metadata else {"prompt": prompt, "extra": extra_pnginfo}
        lossless = "lossless" in file_type
        return {"ui": {"images": self.saved(images, filename_prefix, kind, lossless=lossless, **carried)}}


class LayerSaveImagePlus(_Saves):
    """LayerStyle's node for saving."""

    PACK = "comfyui_layerstyle"
    TITLE = "LayerUtility: SaveImage Plus"
    DESCRIPTION = "Saves images as PNG or JPEG. Watermarks and folders outside the output folder are left out."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "images": socket(IMAGE, "The images to save."),
                "custom_path": unused(line("")),
                "filename_prefix": _prefix("comfyui"),
                "timestamp": unused(one_of(("None", "second", "millisecond"), "")),
                "format": one_of(("png", "jpg"), "The format."),
                "quality": integer(80, 10, 100, "The quality of JPEG; a higher value gives a larger and better file."),
                "meta_data": flag(False, "Save the workflow with them."),
                "blind_watermark": unused(line("")),
                "save_workflow_as_json": unused(flag(False, "")),
                "preview": unused(flag(True, "")),
            },
            "hidden": HIDDEN,
        }

    def save(
        self,
        images: Any,
        filename_prefix: str,
        format: str,
        quality: int,
        meta_data: bool,
        prompt: Any = None,
        extra_pnginfo: Any = None,
        **left_out: Any,
    ) -> dict[str, Any]:
        if left_out.get("blind_watermark") or left_out.get("custom_path"):
            self.tell("the watermark and the folder outside the output folder are left out.")
        from datetime import datetime

        now = datetime.now()
        prefix = filename_prefix.replace("%date", f"{now:%Y-%m-%d}").replace("%time", f"{now:%H-%M-%S}")
        carried = {"prompt": prompt, "extra": extra_pnginfo} if meta_data else {}
        return {"ui": {"images": self.saved(images, prefix, ENDINGS[format], quality, **carried)}}


class SaveImageWithMetaDataUniversal(_Saves):
    """A node that saves with the workflow; settings as text for other programs are left out."""

    PACK = "SaveImageWithMetaDataUniversal"
    TITLE = "Save Image w/ Metadata Universal"
    DESCRIPTION = "Saves images as PNG, JPEG or WebP with their workflow. Settings as text are not written."
    RETURN_TYPES = (IMAGE,)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("The same images.",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "images": socket(IMAGE, "The images to save."),
                "filename_prefix": _prefix(),
                "sampler_selection_method": unused(one_of(("Farthest", "Nearest", "By node ID"), "")),
                "sampler_selection_node_id": unused(whole("", 0, 0, 999999999)),
                "file_format": one_of(("png", "jpeg", "webp"), "The format."),
            },
            "optional": {
                "lossless_webp": flag(True, "Save WebP without loss."),
                "quality": integer(
                    100, 1, 100, "The quality of JPEG and lossy WebP; a higher value gives a larger and better file."
                ),
                "max_jpeg_exif_kb": unused(whole("", 60, 1, 64)),
                "save_workflow_json": unused(flag(False, "")),
                "add_counter_to_filename": unused(flag(True, "")),
                "civitai_sampler": unused(flag(False, "")),
                "guidance_as_cfg": unused(flag(False, "")),
                "extra_metadata": socket("EXTRA_METADATA", "Not used."),
                "save_workflow_image": unused(flag(True, "")),
                "include_lora_summary": unused(flag(False, "")),
            },
            "hidden": HIDDEN,
        }

    def save(
        self,
        images: Any,
        filename_prefix: str = "ComfyUI",
        file_format: str = "png",
        lossless_webp: bool = True,
        quality: int = 100,
        prompt: Any = None,
        extra_pnginfo: Any = None,
        **left_out: Any,
    ) -> dict[str, Any]:
        kind = ENDINGS[file_format]
        told = self.saved(images, filename_prefix, kind, quality, lossless_webp, prompt, extra_pnginfo)
        return {"ui": {"images": told}, "result": (images,)}


class WasImageSave(_Saves):
    """WAS's node for saving, in the output folder."""

    PACK = "was-node-suite-comfyui"
    TITLE = "Image Save"
    DESCRIPTION = "Saves images in a folder of the output folder, as PNG, JPEG or WebP."
    RETURN_TYPES = (IMAGE, STRING)
    RETURN_NAMES = ("images", "files")
    OUTPUT_TOOLTIPS = ("The same images.", "Their files.")
    BOTH = ("false", "true")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        formats = ("png", "jpg", "jpeg", "gif", "tiff", "webp", "bmp")
        history = {name: unused(one_of(cls.BOTH, "")) for name in ("show_history", "show_history_by_prefix")}
        return {
            "required": {
                "images": socket(IMAGE, "The images to save."),
                "output_path": line("A folder of the output folder; [time(%Y-%m-%d)] is replaced.", "[time(%Y-%m-%d)]"),
                "filename_prefix": _prefix(),
                "filename_delimiter": unused(line("", "_")),
                "filename_number_padding": unused(whole("", 4, 1, 9)),
                "filename_number_start": unused(one_of(cls.BOTH, "")),
                "extension": one_of(formats, "The format; gif, tiff and bmp are saved as png."),
                "dpi": unused(whole("", 300, 1, 2400)),
                "quality": integer(
                    100, 1, 100, "The quality of JPEG and lossy WebP; a higher value gives a larger and better file."
                ),
                "optimize_image": unused(one_of(cls.BOTH, "", "true")),
                "lossless_webp": one_of(cls.BOTH, "Save WebP without loss."),
                "overwrite_mode": unused(one_of(("false", "prefix_as_filename"), "")),
                **history,
                "embed_workflow": one_of(cls.BOTH, "Save the workflow with them.", "true"),
                "show_previews": unused(one_of(cls.BOTH, "", "true")),
            },
            "hidden": HIDDEN,
        }

    def save(
        self,
        images: Any,
        output_path: str,
        filename_prefix: str,
        extension: str,
        quality: int,
        lossless_webp: str,
        embed_workflow: str,
        prompt: Any = None,
        extra_pnginfo: Any = None,
        **left_out: Any,
    ) -> dict[str, Any]:
        import re
        from datetime import datetime

        def filled(text: str) -> str:
            return re.sub(r"\[time\((.*?)\)\]", lambda match: datetime.now().strftime(match[1]), text)

        folder = filled(output_path).strip().strip("/\\")
        prefix = "/".join(
            part for part in (folder if folder not in (".", "none") else "", filled(filename_prefix)) if part
        )
        carried = {"prompt": prompt, "extra": extra_pnginfo} if embed_workflow == "true" else {}
        kind = ENDINGS.get(extension, "png")
        told = self.saved(images, prefix, kind, quality, lossless_webp == "true", **carried)
        files = [f"{one['subfolder']}/{one['filename']}".lstrip("/") for one in told]
        return {"ui": {"images": told, "files": files}, "result": (images, files)}
