"""Finds the files of a pipeline, and saves an image with its workflow."""

from __future__ import annotations

import filecmp
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.detect import detect, refuse
from ..checkpoint.files import open_weights
from ..checkpoint.kinds import KINDS, Detected
from ..errors import MissingFileError, SluiceError
from ..io.folders import TINY_MODELS, Folders
from ..io.published_files import published
from ..io.saving import write_whole
from .text_to_image import Files

if TYPE_CHECKING:
    from PIL import Image

CONTEXT, VECTOR = "txt_in.weight", "vector_in.in_layer.weight"  # the transformer's inputs from T5 and from CLIP
ALL_IN_ONE = ("Comfy-Org/flux1-dev", "Comfy-Org/flux1-schnell")  # publish files for the checkpoints folder
T5_TABLE, CLIP_TABLE = "shared.weight", "text_model.embeddings.token_embedding.weight"


def found_files(
    folders: Folders, name: str, text_encoders: tuple[str, str] | None, vae: str | None
) -> tuple[Files, Path, Detected]:
    """The files to load for a model of this name, the transformer's file, and what was detected in it.

    Encoders and autoencoder that are not named are those of the model folders whose sizes fit the transformer. Opens
    headers only. Raises MissingFileError, FileFormatError.
    """
    place = folders.located(name, ("diffusion_models", "checkpoints"))
    if place is None:
        both = ("diffusion_models", "checkpoints")
        target, other = reversed(both) if published(name) in ALL_IN_ONE else both
        raise MissingFileError(folders.explain_missing(target, name, also=(other,)))
    category, listed = place
    path = folders.path(category, listed)
    found = detect(open_weights(path))
    if "flux" not in found.parts:
        refuse(path, found, "flux")
    if {"clip_l", "t5", "autoencoder"} <= found.parts.keys() and not (text_encoders or vae):
        if category == "checkpoints":
            return Files(checkpoint=listed), path, found
    tensors = found.parts["flux"]
    if text_encoders is None:
        widths = {"t5": tensors[CONTEXT].shape[1], "clip_l": tensors[VECTOR].shape[1]}
        text_encoders = (_fitting(folders, "t5", widths["t5"]), _fitting(folders, "clip_l", widths["clip_l"]))
    if vae is None:
        vae = _autoencoder(folders, shipped=is_shipped(path))
    return Files(None, listed, text_encoders, vae), path, found


def is_shipped(path: Path) -> bool:
    """Whether this is a file of the shipped model, or a copy of one, wherever it lies."""
    if path.is_relative_to(TINY_MODELS):
        return True
    size = path.stat().st_size
    same_size = (own for own in TINY_MODELS.rglob("*.safetensors") if own.stat().st_size == size)
    return path.is_file() and any(filecmp.cmp(own, path, shallow=False) for own in same_size)


def _fitting(folders: Folders, part: str, width: int) -> str:
    """The first text encoder file whose embeddings have `width` numbers, as the transformer needs them."""
    table = {"t5": T5_TABLE, "clip_l": CLIP_TABLE}[part]
    for listed in folders.filenames("text_encoders"):
        try:
            tensors = detect(open_weights(folders.path("text_encoders", listed))).parts.get(part, {})
        except SluiceError:
            continue
        if table in tensors and tensors[table].shape[1] == width:
            return listed
    noun, name = KINDS[part].noun, {"t5": "t5xxl_fp8_e4m3fn.safetensors", "clip_l": "clip_l.safetensors"}[part]
    raise MissingFileError(
        f"The model needs {noun} with embeddings of {width} numbers. " + folders.explain_missing("text_encoders", name)
    )


def _autoencoder(folders: Folders, shipped: bool) -> str:
    """The first autoencoder file; the shipped model's is used for the shipped model only."""
    for listed in folders.filenames("vae"):
        path = folders.path("vae", listed)
        if is_shipped(path) != shipped:
            continue
        try:
            if "autoencoder" in detect(open_weights(path)).parts:
                return listed
        except SluiceError:
            continue
    raise MissingFileError("The model needs FLUX.1's autoencoder. " + folders.explain_missing("vae", "ae.safetensors"))


def save(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write a PNG that carries the image's workflow, for the editor and for `sluice run`. Replaces the file atomically.

    Raises SluiceError if the path does not end in .png or cannot be written.
    """
    from PIL import PngImagePlugin

    target = Path(path)
    if target.suffix.lower() != ".png":
        raise SluiceError(f"The workflow is saved in PNG files: name the file {target.with_suffix('.png').name}.")
    texts = PngImagePlugin.PngInfo()
    for key in ("prompt", "workflow"):
        if isinstance(image.info.get(key), str):
            texts.add_text(key, image.info[key])
    data = io.BytesIO()
    image.save(data, "PNG", pnginfo=texts)
    try:
        write_whole(target, data.getvalue())
    except OSError as error:
        raise SluiceError(f"The image could not be saved as {target}: {error.strerror or error}.") from error
    return target
