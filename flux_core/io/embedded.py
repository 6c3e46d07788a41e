"""The workflow that a file contains: in the texts of an image, or as JSON in any of its usual forms.

    a canvas            {"nodes": [...], "links": [...]}                     what the editor saves
    an API prompt       {"3": {"class_type": ..., "inputs": {...}}, ...}     what the editor sends
    around either       {"prompt": ...}, {"input": {"workflow": ...}}, {"output": ..., "workflow": ...}, an entry of the
                        history: bodies of requests and answers

Files are not trusted: of an API prompt only `class_type`, `inputs` and the names in `_meta` stay. Uses no node class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import MissingFileError, WorkflowError
from . import exif, png, strict_json
from .paths import openable

MAX_NODES = 10_000
MAX_TEXT = strict_json.MAX_BYTES

_WRAPPERS = ("input", "prompt", "output", "workflow", "workflow_api", "api_prompt", "workflow_json", "data", "body")
_DEEPEST = 4  # wrappers in wrappers


@dataclass(frozen=True)
class Embedded:
    """The contents of a file. At least one of the first three is not None."""

    prompt: dict[str, Any] | None = None  # API format: {id: {"class_type", "inputs", "_meta"?}}
    workflow: dict[str, Any] | None = None  # canvas format, as it was written
    parameters: str | None = None  # the text of other programs: not a graph, only for display
    files: Any | None = None  # the files it was made with (worker/used_files.py); not checked
    notes: tuple[str, ...] = ()  # sentences about the parts that were left out in reading


def read_workflow(path: str | Path) -> Embedded:
    """The workflow in a PNG, WebP, JPEG, AVIF or JSON file.

    Raises MissingFileError, or WorkflowError when the file is damaged, hostile, no image, or carries no workflow.
    """
    path = Path(path)
    try:
        with open(openable(path), "rb") as file:
            return _read(file, path.name)
    except FileNotFoundError:
        raise MissingFileError(f"There is no file {path}.") from None
    except OSError as error:
        raise WorkflowError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_workflow_bytes(data: bytes, name: str = "the picture") -> Embedded:
    """As `read_workflow`, for a file that is in memory; `name` stands for it in errors."""
    return _read(BytesIO(data), name)


def _read(file: BinaryIO, name: str) -> Embedded:
    head = file.read(16)
    file.seek(0)
    if head.startswith(png.SIGNATURE):
        return _from_texts(png.texts(file, name), name)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _from_texts(exif.webp_texts(file, name), name)
    if head.startswith(b"\xff\xd8\xff"):
        return _from_texts(exif.jpeg_texts(file, name), name)
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return _from_texts(exif.avif_texts(file, name), name)
    if head.startswith(strict_json.UTF16) or head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        return from_document(strict_json.loads(file.read(MAX_TEXT + 1), name), name)
    if not head:
        raise WorkflowError(f"{name} is empty.")
    raise WorkflowError(f"{name} is neither an image (PNG, WebP, JPEG, AVIF) nor a JSON workflow.")


_STRIPPED = (
    "Chat programs, image hosts and editors often strip or re-encode pictures: ask for the original file, "
    "or for the workflow as .json."
)


# Images ------------------------------------------------------------------------------------------------------------


_Texts = Iterable[tuple[str, str | WorkflowError]]


def _from_texts(texts: _Texts, name: str) -> Embedded:
    """From the texts of an image. One that is damaged is left out with a note if another is whole."""
    found = {key.lower(): text for key, text in texts}  # the last of two is used, as in the browser
    parts: dict[str, Any] = {}
    damages: list[WorkflowError] = []
    for key, part in (("prompt", _prompt_text), ("workflow", _workflow_text), ("parameters", lambda text, name: text)):
        text = found.get(key)
        try:
            if isinstance(text, WorkflowError):
                raise text
            parts[key] = None if text is None else part(text, name)
        except WorkflowError as error:
            damages.append(error)
    recorded = found.get(exif.FILES_FIELD)
    if isinstance(recorded, str):
        with suppress(WorkflowError):
            parts["files"] = strict_json.loads(recorded, f"The list of files in {name}")
    embedded = Embedded(**parts)
    if embedded.prompt is None and embedded.workflow is None and damages:
        raise damages[0]
    if replace(embedded, files=None) == Embedded():
        raise WorkflowError(f"{name} carries no workflow. {_STRIPPED}")
    return replace(embedded, notes=tuple(f"{damage} It is left out." for damage in damages))


def _prompt_text(text: str, name: str) -> dict[str, Any] | None:
    value = strict_json.loads(text, f"The prompt in {name}")
    return clean_prompt(value, f"The prompt in {name}") if is_prompt(value) else None


def _workflow_text(text: str, name: str) -> dict[str, Any] | None:
    value = strict_json.loads(text, f"The workflow in {name}")
    return _checked_workflow(value, name) if isinstance(value, dict) else None


# JSON ----------------------------------------------------------------------------------------------------------------


def from_document(document: Any, name: str) -> Embedded:
    """From JSON that holds a canvas or an API prompt, alone or inside a request or an answer.

    Raises WorkflowError if there is neither.
    """
    found = _find(document, name, 0)
    if found is None:
        raise WorkflowError(f"{name} is JSON, but neither a canvas workflow (with `nodes`) nor an API prompt.")
    return found


def _find(document: Any, name: str, depth: int) -> Embedded | None:
    if isinstance(document, str) and depth and document.lstrip().startswith("{"):
        document = strict_json.loads(document, name)
    if not isinstance(document, dict) or depth > _DEEPEST:
        return None
    if isinstance(document.get("nodes"), list):
        return Embedded(workflow=_checked_workflow(document, name))
    if any(_names_class(node) for node in document.values()):
        return _with_extra_keys(document, name)
    if "prompt" in document:
        return _request(document, name, depth)
    inner = [found for key in _WRAPPERS if (found := _find(document.get(key), name, depth + 1)) is not None]
    if not inner and len(document) == 1:  # /history answers {id: entry}
        inner = [found for value in document.values() if (found := _find(value, name, depth + 1)) is not None]
    if not inner:
        return None
    prompt = next((one.prompt for one in inner if one.prompt is not None), None)
    workflow = next((one.workflow for one in inner if one.workflow is not None), None)
    return Embedded(prompt, workflow, notes=tuple(note for one in inner for note in one.notes))


def _request(document: Mapping[str, Any], name: str, depth: int) -> Embedded | None:
    """The body of a request, or an entry of the history: its `prompt` is [number, id, prompt, extra data, outputs]."""
    prompt, extra = document["prompt"], document.get("extra_data")
    if isinstance(prompt, list) and len(prompt) > 3:
        prompt, extra = prompt[2:4]
    info = extra.get("extra_pnginfo") if isinstance(extra, dict) else None
    workflow = info.get("workflow") if isinstance(info, dict) else document.get("workflow")
    if isinstance(prompt, dict) and not prompt:
        return Embedded(prompt={})
    found = _find(prompt, name, depth + 1)
    if found is None:
        return _find(workflow, name, depth + 1)
    if found.workflow is None and isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list):
        return replace(found, workflow=_checked_workflow(workflow, name))
    return found


def _with_extra_keys(document: Mapping[str, Any], name: str) -> Embedded:
    """An API prompt, without the other entries that some programs add to its nodes."""
    extra = [key for key, node in document.items() if not _names_class(node) and not _has_inputs(node)]
    nodes = {key: node for key, node in document.items() if key not in extra}
    notes = (f"{name} has keys that are no nodes; they are left out: {', '.join(extra)}.",) if extra else ()
    return Embedded(prompt=clean_prompt(nodes, f"The prompt in {name}"), notes=notes)


def _names_class(node: Any) -> bool:
    return isinstance(node, dict) and "class_type" in node


def _has_inputs(node: Any) -> bool:
    """Whether it is a node that lacks its class: that is for validation to report."""
    return isinstance(node, dict) and isinstance(node.get("inputs"), dict)


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

    ComfyUI would use an `is_changed` beside them and show an older image. A missing class_type stays missing:
    validation reports it. Raises WorkflowError for a wrong shape or too many nodes.
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
