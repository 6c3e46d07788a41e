"""EXIF blocks, which contain the workflow of WebP, JPEG and AVIF images, and how each container stores them.

    WebP: RIFF chunk "EXIF" | JPEG: segment APP1 "Exif" 0 0 | AVIF: an item of type "Exif", placed by `iinf` and `iloc`
    the block is a TIFF header; ComfyUI's editor reads texts "prompt:{...}" and "workflow:{...}" in its directory

Reading decodes no pixels, and all sizes have limits. Independent of: the contents of a workflow.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from ..errors import WorkflowError
from . import strict_json

MAX_TEXT = strict_json.MAX_BYTES
FILES_FIELD = "sluice_files"  # a text beside prompt and workflow, which ComfyUI does not read
KEYWORDS = ("prompt", "workflow", "parameters", FILES_FIELD)

_MAX_PARTS = 1_000_000
_ASCII, _BYTES = 2, (1, 2, 7)  # types of values
_EXIF_DIRECTORY, _USER_COMMENT = 0x8769, 0x9286  # tags


def texts(tiff: bytes) -> Iterator[tuple[str, str]]:
    """The keyword and the text of each entry "keyword:text", and the contents of the user comment.

    byte order (2), 42 (2), offset of the directory (4); there: count (2), then entries of tag (2), type (2; 2 = ASCII),
    count (4), value or its offset (4). A comment that is JSON holds prompt and workflow as its own keys; any other is
    yielded as `parameters`.
    """
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return
    budget = MAX_TEXT  # many entries may have the same offset
    inner = None
    for tag, kind, length, offset in _entries(tiff, order, *struct.unpack_from(order + "I", tiff, 4)):
        inner = offset if tag == _EXIF_DIRECTORY else inner
        if kind != _ASCII or length <= 4 or offset + length > len(tiff) or (budget := budget - length) < 0:
            continue
        key = tiff[offset : offset + 16].partition(b":")[0].decode("latin-1")
        if key.lower() in KEYWORDS:
            yield key, strict_json.decode(tiff[offset + len(key) + 1 : offset + length].rstrip(b"\0"))
    for tag, kind, length, offset in _entries(tiff, order, inner) if inner is not None else ():
        if tag == _USER_COMMENT and kind in _BYTES and 8 < length <= budget and offset + length <= len(tiff):
            yield from _comment(tiff[offset : offset + 8], tiff[offset + 8 : offset + length])
            return


def _entries(tiff: bytes, order: str, start: int) -> Iterator[tuple[int, int, int, int]]:
    """Tag, type, count and offset of each entry of a directory."""
    if start + 2 > len(tiff):
        return
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        yield struct.unpack_from(order + "HHII", tiff, entry)


def _comment(coding: bytes, raw: bytes) -> Iterator[tuple[str, str]]:
    """UserComment: 8 bytes that name the character code, then the text (UNICODE is UTF-16 in either byte order)."""
    if coding == b"UNICODE\0":
        text = raw.decode("utf-16-be" if raw[:1] == b"\0" else "utf-16-le", errors="replace")
    else:
        text = strict_json.decode(raw)
    text = text.strip("\0 ")
    try:
        document = strict_json.loads(text)
    except WorkflowError:
        document = None
    found = {key: document[key] for key in ("prompt", "workflow") if key in document} if _object(document) else {}
    if found:
        for key, value in found.items():
            yield key, value if isinstance(value, str) else strict_json.dumps(value)
    elif text:
        yield "parameters", text


def _object(value: object) -> bool:
    return isinstance(value, dict)


# WebP ----------------------------------------------------------------------------------------------------------------


def webp_texts(file: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """RIFF, size, WEBP, then chunks: type (4), length (4, little endian), data padded to an even length."""
    size = file.seek(0, 2)
    position = 12
    for _ in range(_MAX_PARTS):
        file.seek(position)
        header = file.read(8)
        if len(header) < 8:
            return
        kind, length = struct.unpack("<4sI", header)
        position += 8 + length + length % 2
        if file.tell() + length > size:
            raise WorkflowError(f"{name} is cut off after {size} bytes. Download or copy it again.")
        if kind == b"EXIF":
            _bounded(length, name)
            yield from texts(file.read(length).removeprefix(b"Exif\0\0"))


# JPEG ----------------------------------------------------------------------------------------------------------------


def jpeg_texts(file: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """FF D8, then segments: FF, type (1), length (2, big endian, counts itself), data; pixels follow type DA."""
    file.seek(2)
    for _ in range(_MAX_PARTS):
        mark = file.read(2)
        while mark == b"\xff\xff":  # padding
            mark = b"\xff" + file.read(1)
        if len(mark) < 2 or mark[0] != 0xFF or mark[1] in (0xD9, 0xDA):
            return
        if mark[1] == 0x01 or 0xD0 <= mark[1] <= 0xD7:  # these have no length
            continue
        length = int.from_bytes(file.read(2), "big") - 2
        if length < 0:
            return
        body = file.read(length)
        if len(body) < length:
            raise WorkflowError(f"{name} is cut off. Download or copy it again.")
        if mark[1] == 0xE1 and body.startswith(b"Exif\0\0"):
            yield from texts(body[6:])


# AVIF ----------------------------------------------------------------------------------------------------------------


def avif_texts(file: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """ISO base media boxes: size (4, big endian), type (4), content; `meta` says where the item "Exif" lies."""
    size = file.seek(0, 2)
    position = 0
    for _ in range(_MAX_PARTS):
        file.seek(position)
        kind, start, end = _box(file.read(16), position, size)
        if end <= position:
            return
        if kind == b"meta":
            _bounded(end - start, name)
            file.seek(start)
            yield from _items_texts(file, file.read(end - start), name)
        position = end


def _items_texts(file: BinaryIO, meta: bytes, name: str) -> Iterator[tuple[str, str]]:
    boxes = dict(_boxes(meta, 4))
    wanted = {item for item, kind in _item_types(boxes.get(b"iinf", b"")) if kind == b"Exif"}
    for item, inside, extents in _item_places(boxes.get(b"iloc", b"")):
        if item not in wanted:
            continue
        block = b""
        for offset, length in extents:
            _bounded(len(block) + length, name)
            if inside:  # in the box `idat` of `meta`
                block += boxes.get(b"idat", b"")[offset : offset + length]
            else:
                file.seek(offset)
                block += file.read(length)
        starts = [at for mark in (b"II*\0", b"MM\0*") if (at := block.find(mark, 0, 64)) >= 0]
        if starts:
            yield from texts(block[min(starts) :])


def _box(header: bytes, position: int, size: int) -> tuple[bytes, int, int]:
    """Type, start and end of a box whose first 16 bytes are given. Its end is 0 if there is none."""
    if len(header) < 8:
        return b"", 0, 0
    length, start = _number(header, 0, 4), position + 8
    if length == 1:
        length, start = _number(header, 8, 8), position + 16
    end = size if length == 0 else position + length
    return header[4:8], start, end if start <= end <= size else 0


def _boxes(data: bytes, position: int) -> Iterator[tuple[bytes, bytes]]:
    while position < len(data):
        kind, start, end = _box(data[position : position + 16], position, len(data))
        if end <= position:
            return
        yield kind, data[start:end]
        position = end


def _item_types(iinf: bytes) -> Iterator[tuple[int, bytes]]:
    """version, flags (3), count (2, or 4 after version 0), then boxes `infe`: version, flags, item, (2), type."""
    for kind, entry in _boxes(iinf, 6 if iinf[:1] == b"\0" else 8):
        width = 2 if entry[:1] == b"\2" else 4
        if kind == b"infe" and entry[:1] in (b"\2", b"\3"):
            yield _number(entry, 4, width), entry[6 + width : 10 + width]


def _item_places(iloc: bytes) -> Iterator[tuple[int, bool, list[tuple[int, int]]]]:
    """Item, whether it lies in `idat` (else in the file), and offset and length of its extents."""
    if len(iloc) < 8 or iloc[0] > 2:
        return
    version, offsets, lengths, bases = iloc[0], iloc[4] >> 4, iloc[4] & 15, iloc[5] >> 4
    indices = iloc[5] & 15 if version else 0
    wide = 4 if version == 2 else 2
    at = 6 + wide
    for _ in range(_number(iloc, 6, wide)):
        if at >= len(iloc):
            return
        item, at = _number(iloc, at, wide), at + wide
        method, at = (_number(iloc, at, 2) & 15, at + 2) if version else (0, at)
        base, at = _number(iloc, at + 2, bases), at + 2 + bases
        count, at = _number(iloc, at, 2), at + 2
        extents = []
        for _ in range(count):
            at += indices
            extents.append((base + _number(iloc, at, offsets), _number(iloc, at + offsets, lengths)))
            at += offsets + lengths
            if at > len(iloc):
                return
        if method < 2:
            yield item, method == 1, extents


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def _bounded(length: int, name: str) -> None:
    if length > MAX_TEXT:
        raise WorkflowError(f"The EXIF data in {name} is longer than {MAX_TEXT >> 20} MiB.")
