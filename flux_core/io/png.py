"""The workflow inside a picture: read it out of PNG, WebP or JSON files, and write it into a PNG.

    89 'PNG' 0D 0A 1A 0A | IHDR | tEXt "prompt" NUL json | tEXt "workflow" NUL json | IDAT ... | IEND
    each chunk: length (4, big endian), type (4), data (length), CRC (4)

Reading walks the chunks with limits and never decodes a pixel. It trusts nothing: of an embedded prompt only
`class_type`, `inputs` and the names in `_meta` survive. Knows nothing of folders, file names or nodes.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import MissingFileError, WorkflowError
from . import strict_json

if TYPE_CHECKING:
    from PIL import Image

MAX_TEXT = strict_json.MAX_BYTES
MAX_NODES = 10_000
MAX_CHUNKS = 1_000_000
KEYWORDS = ("prompt", "workflow", "parameters")

_PNG = b"\x89PNG\r\n\x1a\n"
_KEYWORD = re.compile(r"[!-~](?:[ -~]{0,77}[!-~])?")


@dataclass(frozen=True)
class Embedded:
    """What a file carries. At least one of the three is there."""

    prompt: dict[str, Any] | None = None  # API format: {id: {"class_type", "inputs", "_meta"?}}
    workflow: dict[str, Any] | None = None  # canvas format, as it was written
    parameters: str | None = None  # the text other programs leave: not a graph, only to be shown


def read_workflow(path: str | Path) -> Embedded:
    """The workflow in a PNG, WebP or JSON file.

    Raises MissingFileError, or WorkflowError when the file is damaged, hostile, no picture, or carries no workflow.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _read(file, path.name)
    except FileNotFoundError:
        raise MissingFileError(f"There is no file {path}.") from None
    except OSError as error:
        raise WorkflowError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_workflow_bytes(data: bytes, name: str = "the picture") -> Embedded:
    """As `read_workflow`, for a file that is in memory; `name` stands for it in errors."""
    return _read(BytesIO(data), name)


def with_workflow(png: bytes, prompt: Mapping[str, Any] | None, extra: Mapping[str, Any] | None = None) -> bytes:
    """A copy of a PNG with `prompt` and one tEXt chunk per key of `extra` (usually `workflow`) before its pixels.

    Chunks with these keywords that are already there are dropped, the pixels are not touched. Keys of `extra` that
    cannot be a PNG keyword (1 to 79 printable ASCII characters) are left out, since no reader could ask for them.
    """
    texts = {key: value for key, value in (extra or {}).items() if _KEYWORD.fullmatch(key)}
    if prompt is not None:
        texts = {"prompt": prompt, **{key: value for key, value in texts.items() if key != "prompt"}}
    chunks = [_chunk(b"tEXt", f"{key}\0{strict_json.dumps(value)}".encode("ascii")) for key, value in texts.items()]
    out = [_PNG]
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


# Reading -------------------------------------------------------------------------------------------------------------


def _read(file: BinaryIO, name: str) -> Embedded:
    head = file.read(16)
    file.seek(0)
    if head.startswith(_PNG):
        return _from_texts(_png_texts(file, name), name)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _from_texts(_webp_texts(file, name), name)
    if head.startswith(b"\xff\xd8\xff"):
        raise WorkflowError(f"{name} is a JPEG, which carries no ComfyUI workflow. {_STRIPPED}")
    if head.startswith(strict_json.UTF16) or head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        return _from_json(strict_json.loads(file.read(MAX_TEXT + 1), name), name)
    if not head:
        raise WorkflowError(f"{name} is empty.")
    raise WorkflowError(f"{name} is neither a PNG or WebP picture nor a JSON workflow.")


_STRIPPED = (
    "Chat programs, image hosts and editors often strip or re-encode pictures: ask for the original file, "
    "or for the workflow as .json."
)


def _from_texts(texts: Iterator[tuple[str, str]], name: str) -> Embedded:
    found = {key.lower(): text for key, text in texts}  # the last of two wins, as in the browser
    prompt = _load(found, "prompt", name)
    workflow = _load(found, "workflow", name)
    embedded = Embedded(
        prompt=clean_prompt(prompt, f"The prompt in {name}") if is_prompt(prompt) else None,
        workflow=_checked_workflow(workflow, name) if isinstance(workflow, dict) else None,
        parameters=found.get("parameters"),
    )
    if embedded == Embedded():
        raise WorkflowError(f"{name} carries no workflow. {_STRIPPED}")
    return embedded


def _load(found: Mapping[str, str], key: str, name: str) -> Any:
    return strict_json.loads(found[key], f"The {key} in {name}") if key in found else None


def _from_json(document: Any, name: str) -> Embedded:
    """A saved canvas, an API prompt, or the body of a request that has the prompt under `prompt`."""
    if isinstance(document, dict) and isinstance(document.get("prompt"), dict) and "nodes" not in document:
        extra = document.get("extra_data")
        info = extra.get("extra_pnginfo") if isinstance(extra, dict) else None
        workflow = info.get("workflow") if isinstance(info, dict) else document.get("workflow")
        prompt = document["prompt"]
        return Embedded(
            prompt=clean_prompt(prompt, f"The prompt in {name}"),
            workflow=_checked_workflow(workflow, name) if isinstance(workflow, dict) else None,
        )
    if is_prompt(document):
        return Embedded(prompt=clean_prompt(document, name))
    if isinstance(document, dict) and isinstance(document.get("nodes"), list):
        return Embedded(workflow=_checked_workflow(document, name))
    raise WorkflowError(f"{name} is JSON, but neither a canvas workflow (with `nodes`) nor an API prompt.")


def _checked_workflow(workflow: dict[str, Any], name: str) -> dict[str, Any]:
    nodes = workflow.get("nodes")
    if isinstance(nodes, (list, dict)) and len(nodes) > MAX_NODES:
        raise WorkflowError(f"The workflow in {name} has {len(nodes)} nodes; at most {MAX_NODES} are read.")
    return workflow


def is_prompt(value: Any) -> bool:
    """Whether a value looks like an API prompt: a filled object whose every value names a class."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(node, dict) and "class_type" in node for node in value.values())


def clean_prompt(value: Any, what: str = "The prompt") -> dict[str, Any]:
    """A copy of an API prompt holding only class_type, inputs and the strings of _meta.

    ComfyUI would believe an `is_changed` found beside them and show yesterday's picture. A node without class_type
    keeps lacking it: that is for validation to report. Raises WorkflowError for a wrong shape or too many nodes.
    """
    if not isinstance(value, dict):
        raise WorkflowError(f"{what} is not an object of nodes.")
    if len(value) > MAX_NODES:
        raise WorkflowError(f"{what} has {len(value)} nodes; at most {MAX_NODES} are read.")
    cleaned = {}
    for node_id, node in strict_json.plain(value, what).items():
        if not isinstance(node, dict) or not isinstance(node.get("inputs", {}), dict):
            raise WorkflowError(f"{what}: node {node_id} is not an object with inputs.")
        if not isinstance(node.get("class_type", ""), str):
            raise WorkflowError(f"{what}: the class_type of node {node_id} is not a text.")
        kept: dict[str, Any] = {key: node[key] for key in ("class_type",) if key in node}
        kept["inputs"] = node.get("inputs", {})
        if isinstance(node.get("_meta"), dict):
            kept["_meta"] = {key: text for key, text in node["_meta"].items() if isinstance(text, str)}
        cleaned[str(node_id)] = kept
    return cleaned


# PNG -----------------------------------------------------------------------------------------------------------------


def _png_texts(file: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
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
        yield key, strict_json.decode(_TEXT_OF[kind](body, name))


def _chunks(file: BinaryIO, name: str) -> Iterator[tuple[bytes, int]]:
    """Type and length of each chunk, the file standing at its data. WorkflowError if the file ends before IEND does."""
    size = file.seek(0, 2)
    position = len(_PNG)
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
    if not png.startswith(_PNG):
        raise WorkflowError("The picture to be saved is not a PNG.")
    for kind, length in _chunks(file, "The picture to be saved"):
        yield kind, file.read(length)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# WebP ----------------------------------------------------------------------------------------------------------------


def _webp_texts(file: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """RIFF, size, WEBP, then chunks: type (4), length (4, little endian), data padded to an even length."""
    size = file.seek(0, 2)
    position = 12
    for _ in range(MAX_CHUNKS):
        file.seek(position)
        header = file.read(8)
        if len(header) < 8:
            return
        kind, length = struct.unpack("<4sI", header)
        position += 8 + length + length % 2
        if file.tell() + length > size:
            raise WorkflowError(f"{name} is cut off after {size} bytes. Download or copy it again.")
        if kind == b"EXIF":
            if length > MAX_TEXT:
                raise WorkflowError(f"The EXIF data in {name} is longer than {MAX_TEXT >> 20} MiB.")
            yield from _exif_texts(file.read(length).removeprefix(b"Exif\0\0"))


def _exif_texts(tiff: bytes) -> Iterator[tuple[str, str]]:
    """The texts "key:json" among the ASCII entries of a TIFF block's first directory.

    byte order (2), 42 (2), offset of the directory (4); there: count (2), then entries of tag (2), type (2; 2 = ASCII),
    count (4), value or its offset (4).
    """
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return
    (count,) = struct.unpack_from(order + "H", tiff, start)
    budget = MAX_TEXT  # many entries may point at the same bytes
    for entry in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        _, kind, length, offset = struct.unpack_from(order + "HHII", tiff, entry)
        budget -= length
        if kind != 2 or length <= 4 or offset + length > len(tiff) or budget < 0:
            continue
        key = tiff[offset : offset + 16].partition(b":")[0].decode("latin-1")
        if key.lower() in KEYWORDS:
            yield key, strict_json.decode(tiff[offset + len(key) + 1 : offset + length].rstrip(b"\0"))
