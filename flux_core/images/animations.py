"""Several images as one animated file, with the workflow where ComfyUI's editor reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..io import strict_json
from ..io.png import with_workflow
from .files import to_pil

if TYPE_CHECKING:
    from PIL import Image

PROMPT_TAG, FIRST_EXTRA_TAG = 0x0110, 0x010F  # EXIF's camera model and maker, which editors read

WEBP_METHODS = {"default": 4, "fastest": 0, "slowest": 6}  # effort, as Pillow counts it


def webp(
    images: Tensor,
    fps: float,
    lossless: bool,
    quality: int,
    method: str,
    prompt: Mapping[str, Any] | None,
    extra: Mapping[str, Any] | None,
) -> bytes:
    """Images [B, H, W, C] as an animated WebP. `quality` 0 to 100; `method` is one of WEBP_METHODS."""
    frames = [to_pil(image) for image in images]
    exif = frames[0].getexif()
    for tag, text in texts(prompt, extra):
        exif[tag] = text
    more = {"exif": exif, "lossless": lossless, "quality": quality, "method": WEBP_METHODS[method]}
    return _encoded(frames, "WEBP", fps, **more)


def apng(
    images: Tensor,
    fps: float,
    compress_level: int,
    prompt: Mapping[str, Any] | None,
    extra: Mapping[str, Any] | None,
) -> bytes:
    """Images [B, H, W, C] as an animated PNG; `compress_level` 0 to 9."""
    frames = [to_pil(image) for image in images]
    return with_workflow(_encoded(frames, "PNG", fps, compress_level=compress_level), prompt, extra)


def texts(prompt: Mapping[str, Any] | None, extra: Mapping[str, Any] | None) -> list[tuple[int, str]]:
    """EXIF tags and their texts: "prompt:{...}", "workflow:{...}"."""
    found = [] if prompt is None else [(PROMPT_TAG, f"prompt:{strict_json.dumps(prompt)}")]
    lines = [f"{key}:{strict_json.dumps(value)}" for key, value in (extra or {}).items()]
    return found + [(FIRST_EXTRA_TAG - number, line) for number, line in enumerate(lines)]


def _encoded(frames: Sequence[Image.Image], form: str, fps: float, **options: Any) -> bytes:
    buffer = BytesIO()
    duration = int(1000.0 / fps)  # of a frame in milliseconds
    frames[0].save(buffer, form, save_all=True, duration=duration, append_images=frames[1:], **options)
    return buffer.getvalue()
