"""Image operations of the server: size, previews, single channels, masks written into images.

Pillow is imported at the first use. No image is decoded before its size is known to be acceptable.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FileFormatError, WorkflowError
from ..io import png
from ..io.embedded import read_workflow
from ..io.paths import openable

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 100_000_000  # about the largest image a camera makes; RGBA of it is 400 MB
FORMATS = {"webp": "image/webp", "jpeg": "image/jpeg"}
CHANNELS = ("rgba", "rgb", "a")


def size(path: Path, called: str = "") -> tuple[int, int]:
    """Width and height, from the header alone. Raises FileFormatError."""
    with opened(path, called) as image:
        return image.size


def preview(path: Path, form: str, quality: int) -> bytes:
    """The image as a smaller file. `form` is a key of FORMATS. Raises FileFormatError."""
    buffer = BytesIO()
    with opened(path) as image:
        colours = "RGBA" if form == "webp" and _has_alpha(image) else "RGB"
        image.convert(colours).save(buffer, form.upper(), quality=quality)
    return buffer.getvalue()


def channel(path: Path, wanted: str) -> bytes:
    """The colours without the alpha channel, or the alpha channel on black, as PNG. Raises FileFormatError."""
    from PIL import Image

    buffer = BytesIO()
    with opened(path) as image:
        if wanted == "rgb":
            shown = image.convert("RGB")
        else:
            shown = Image.new("RGBA", image.size)
            shown.putalpha(image.convert("RGBA").getchannel("A"))
        shown.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def with_alpha_of(picture: Path, mask: Path) -> bytes:
    """The image with the alpha channel of a mask of the same size, its workflow kept, as PNG."""
    with opened(picture) as image, opened(mask, "The mask") as other:
        if image.size != other.size:
            raise FileFormatError(f"The mask is {_by(other.size)}, the image {_by(image.size)}; they must be equal.")
        painted = image.convert("RGBA")
        painted.putalpha(other.convert("RGBA").getchannel("A"))
    try:
        embedded = read_workflow(picture)
    except WorkflowError:
        return png.encode(painted)
    workflow = {} if embedded.workflow is None else {"workflow": embedded.workflow}
    return png.encode(painted, embedded.prompt, workflow)


@contextmanager
def opened(path: Path, called: str = "") -> Iterator[Image.Image]:
    """An image of acceptable size, not decoded yet. All errors of Pillow become FileFormatError.

    called: the name for messages, if it is not the file's own.
    """
    from PIL import Image, UnidentifiedImageError

    name = called or path.name
    try:
        with Image.open(openable(path)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise FileFormatError(
                    f"{name} is {_by(image.size)}; images may have at most {MAX_PIXELS // 10**6} million pixels."
                )
            yield image
    except FileFormatError:
        raise
    except Image.DecompressionBombError:
        raise FileFormatError(f"{name} has too many pixels.") from None
    except UnidentifiedImageError:
        wrong = "not an image of a known format" if path.stat().st_size else "empty"
        raise FileFormatError(f"{name} is {wrong}.") from None
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, IndexError, OverflowError) as error:
        raise FileFormatError(f"{name} cannot be read as an image: {error}") from error


def _has_alpha(image: Image.Image) -> bool:
    return "A" in image.getbands() or "transparency" in image.info


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
