"""One image as the bytes of a file: PNG with 8 or 16 bits, JPEG, WebP, OpenEXR, AVIF, each with the workflow inside.

Images are [H, W, C] with 1 (grey), 3 or 4 channels. Only OpenEXR keeps values beyond 0..1.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, SluiceError
from ..io import strict_json
from ..io.png import encode as encode_png
from ..io.png import from_samples, with_workflow
from .animations import texts
from .files import to_pil

log = logging.getLogger(__name__)

Json = Mapping[str, Any] | None

# Red, green, blue and white in CIE x and y: of BT.709 (sRGB) and BT.2020.
CHROMATICITIES = {
    "BT.709": (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290),
    "BT.2020": (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290),
}
MAX_CRF = 63
JPEG_SEGMENT = 65_533  # bytes


def png(image: Tensor, bits: int, prompt: Json, extra: Json) -> bytes:
    """A PNG with 8 or 16 bits a channel; values are cut to 0..1 and truncated."""
    if bits == 8:
        return encode_png(to_pil(image), prompt, extra)
    height, width, channels = image.shape
    samples = (image.cpu().float() * 65535.0).clamp(0, 65535).to(torch.int32).numpy().astype(">u2")
    return with_workflow(from_samples(samples.tobytes(), width, height, channels, depth=16), prompt, extra)


def exr(image: Tensor, colour_space: str, prompt: Json, extra: Json) -> bytes:
    """Linear light in 32-bit floats. `colour_space` is that of the picture: "sRGB", "HDR" (BT.2100 HLG) or "linear"."""
    try:
        import OpenEXR
    except ModuleNotFoundError as missing:
        raise SluiceError("To save as EXR takes the package OpenEXR: pip install OpenEXR") from missing
    colours, alpha = image.cpu().float()[..., :3], image.cpu().float()[..., 3:]
    if colour_space != "linear":
        colours = srgb_to_linear(colours) if colour_space == "sRGB" else hlg_to_linear(colours)
    planes = torch.cat((colours, alpha), dim=-1).numpy()
    names = "Y" if planes.shape[-1] == 1 else "RGBA"[: planes.shape[-1]]
    header: dict[str, Any] = {
        "compression": OpenEXR.ZIP_COMPRESSION,
        "type": OpenEXR.scanlineimage,
        "chromaticities": CHROMATICITIES["BT.2020" if colour_space == "HDR" else "BT.709"],
    }
    header |= {key: strict_json.dumps(value) for key, value in {"prompt": prompt, **(extra or {})}.items() if value}
    channels = {name: np.ascontiguousarray(planes[..., number]) for number, name in enumerate(names)}
    with tempfile.TemporaryDirectory() as folder:  # the library writes files only
        path = Path(folder) / "picture.exr"
        with OpenEXR.File(header, channels) as file:
            file.write(str(path))
        return path.read_bytes()


def avif(
    images: Tensor, depth: str, colour_space: str, crf: int, fps: float | None, prompt: Json, extra: Json
) -> bytes:
    """Images [B, H, W, C] as one AVIF of 8 bits, animated if there are several. `crf` from 1 (best) to 63.

    Raises InputError for 10 bits and for colours beyond sRGB, which Pillow does not write.
    """
    from PIL import Image, features

    if not features.check("avif"):
        raise SluiceError("To save as AVIF takes a newer Pillow: pip install --upgrade pillow")
    if colour_space != "sRGB" or depth.startswith("10"):
        raise InputError("AVIF is saved with 8 bits in sRGB here. Choose these, or exr for more.")
    frames = [to_pil(image) for image in images]
    exif = Image.Exif()
    for tag, text in texts(prompt, extra):
        exif[tag] = text
    options: dict[str, Any] = {"quality": round(100 * (1 - crf / MAX_CRF)), "exif": exif}
    if len(frames) > 1:
        options |= {"save_all": True, "append_images": frames[1:], "duration": int(1000.0 / (fps or 1.0))}
    buffer = BytesIO()
    frames[0].save(buffer, "AVIF", **options)
    return buffer.getvalue()


def srgb_to_linear(light: Tensor) -> Tensor:
    """IEC 61966-2-1, inverse."""
    return torch.where(light <= 0.04045, light / 12.92, ((light.clamp(min=0) + 0.055) / 1.055) ** 2.4)


def hlg_to_linear(light: Tensor) -> Tensor:
    """The inverse OETF of hybrid log-gamma (ITU-R BT.2100, table 5): scene light in 0..1."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return torch.where(light <= 0.5, light**2 / 3, (((light.clamp(min=0.5) - c) / a).exp() + b) / 12)


def as_file(image: Tensor, kind: str, quality: int, lossless: bool, prompt: Json = None, extra: Json = None) -> bytes:
    """An image as "png", "jpeg" or "webp", with the workflow. quality: 1 to 100, of JPEG and of lossy WebP."""
    if kind == "png":
        return encode_png(to_pil(image), prompt, extra)
    from PIL import Image

    exif = Image.Exif()
    for tag, text in texts(prompt, extra):
        exif[tag] = text
    buffer = BytesIO()
    picture = to_pil(image)
    if kind == "jpeg":
        carried = exif.tobytes()
        if len(carried) > JPEG_SEGMENT:
            log.warning("The workflow is too large for a JPEG and is left out; PNG and WebP hold it.")
            carried = b""
        picture.convert("RGB").save(buffer, "JPEG", quality=quality, exif=carried)
    else:
        picture.save(buffer, "WEBP", quality=quality, lossless=lossless, exif=exif)
    return buffer.getvalue()
