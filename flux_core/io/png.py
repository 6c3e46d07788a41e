"""PNG as a container of texts: read them out of its chunks, and write an image with texts in it.

    89 'PNG' 0D 0A 1A 0A | IHDR | tEXt "prompt" NUL json | tEXt "workflow" NUL json | IDAT ... | IEND
    each chunk: length (4, big endian), type (4), data (length), CRC (4)

Reading walks the chunks with limits and never decodes a pixel. Independent of folders, file names or nodes.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import WorkflowError
from . import strict_json
from .exif import KEYWORDS, MAX_TEXT

if TYPE_CHECKING:
    from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 1_000_000

_KEYWORD = re.compile(r"[!-~](?:[ -~]{0,77}[!-~])?")


def with_workflow(png: bytes, prompt: Mapping[str, Any] | None, extra: Mapping[str, Any] | None = None) -> bytes:
    """A copy of a PNG with `prompt` and one tEXt chunk per key of `extra` (usually `workflow`) before its pixels.

    Existing chunks with these keywords are dropped, the pixels are not changed. Keys of `extra` that are no PNG
    keywords (1 to 79 printable ASCII characters) are left out, because no reader could find them.
    """
    texts = {key: value for key, value in (extra or {}).items() if _KEYWORD.fullmatch(key)}
    if prompt is not None:
        texts = {"prompt": prompt, **{key: value for key, value in texts.items() if key != "prompt"}}
    chunks = [_chunk(b"tEXt", f"{key}\0{strict_json.dumps(value)}".encode("ascii")) for key, value in texts.items()]
    out = [SIGNATURE]
    for kind, data in _whole_chunks(png):
        if kind in _TEXT_OF and data.split(b"\0", 1)[0].decode("latin-1") in texts:
            continue
        out.append(_chunk(kind, data))
        if kind == b"IHDR":
            out += chunks
    return b"".join(out)


def encode(
    image: Image.Image,
    prompt: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    compress_level: int = 4,
) -> bytes:
    """A PIL image as PNG bytes with its workflow inside (see `with_workflow`)."""
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=compress_level)
    return with_workflow(buffer.getvalue(), prompt, extra)


def from_samples(samples: bytes, width: int, height: int, channels: int, depth: int) -> bytes:
    """A PNG of raw samples, row after row, big endian: 1 (grey), 3 or 4 `channels` of 8 or 16 bits."""
    colour = {1: 0, 3: 2, 4: 6}[channels]
    row = width * channels * depth // 8
    filtered = b"".join(b"\0" + samples[at : at + row] for at in range(0, row * height, row))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(filtered, 4)), (b"IEND", b"")
    return SIGNATURE + b"".join(_chunk(kind, data) for kind, data in parts)


# Reading -------------------------------------------------------------------------------------------------------------


def texts(file: BinaryIO, name: str) -> Iterator[tuple[str, str | WorkflowError]]:
    """Keyword and text of the chunks that may hold a workflow, or the error of a text.

    Raises WorkflowError if the file is cut off or has too much text.
    """
    budget = MAX_TEXT
    for kind, length in _chunks(file, name):
        if kind not in _TEXT_OF or length == 0:
            continue
        start = file.read(min(length, 80))
        keyword, _, _ = start.partition(b"\0")
        key = keyword.decode("latin-1")
        if key.lower() not in KEYWORDS:
            continue
        budget -= length
        if budget < 0:
            raise WorkflowError(f"The text in {name} is longer than {MAX_TEXT >> 20} MiB, too long for a workflow.")
        body = (start + file.read(length - len(start)))[len(keyword) + 1 :]
        try:
            text = strict_json.decode(_TEXT_OF[kind](body, name))
        except WorkflowError as error:
            yield key, error
        else:
            yield key, text


def _chunks(file: BinaryIO, name: str) -> Iterator[tuple[bytes, int]]:
    """Type and length of each chunk; the file's position is that of its data. WorkflowError if the file has no IEND."""
    size = file.seek(0, 2)
    position = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        file.seek(position)
        header = file.read(8)
        if len(header) < 8:
            raise WorkflowError(f"{name} is cut off after {size} bytes: its end is missing. Download or copy it again.")
        length, kind = struct.unpack(">I4s", header)
        position += 12 + length
        if position > size:
            missing = f"a {kind.decode('latin-1')!r} chunk needs {position - size} bytes more"
            raise WorkflowError(f"{name} is cut off after {size} bytes: {missing}. Download or copy it again.")
        yield kind, length
        if kind == b"IEND":
            return
    raise WorkflowError(f"{name} has more than {MAX_CHUNKS} chunks.")


def _plain(body: bytes, name: str) -> bytes:
    return body


def _compressed(body: bytes, name: str) -> bytes:
    """zTXt: compression method (0), zlib stream."""
    return _inflate(body[1:], name)


def _international(body: bytes, name: str) -> bytes:
    """iTXt: compressed?, method, language NUL, translated keyword NUL, UTF-8 text."""
    parts = body[2:].split(b"\0", 2)
    if len(parts) < 3:
        raise WorkflowError(f"{name} has a broken iTXt chunk.")
    return _inflate(parts[2], name) if body[0] else parts[2]


_TEXT_OF: Mapping[bytes, Callable[[bytes, str], bytes]] = {
    b"tEXt": _plain,
    b"comf": _plain,  # ComfyUI's animated PNGs, after the pixels
    b"zTXt": _compressed,
    b"iTXt": _international,
}


def _inflate(stream: bytes, name: str) -> bytes:
    try:
        text = zlib.decompressobj().decompress(stream, MAX_TEXT + 1)
    except zlib.error as error:
        raise WorkflowError(f"{name} has a compressed text that cannot be read: {error}.") from error
    if len(text) > MAX_TEXT:
        raise WorkflowError(f"{name} has a text that unpacks to over {MAX_TEXT >> 20} MiB, too long for a workflow.")
    return text


def _whole_chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    file = BytesIO(png)
    if not png.startswith(SIGNATURE):
        raise WorkflowError("The image to be saved is not a PNG.")
    for kind, length in _chunks(file, "The image to be saved"):
        yield kind, file.read(length)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
