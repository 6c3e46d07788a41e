"""Reads a folder of images and captions in the usual layouts.

    cat.png, cat.txt          every line of the text is a caption; `{red|blue} cat` gives two (also cat.caption)
    cat.json                  {"caption": ..., "caption_short": ...}
    metadata.jsonl            {"file_name": "cat.png", "text": ...} in each line; text may be a list
    10_name/                  its images count ten times, and "name" is the caption of those without one
    masks/cat.png             white where cat.png is learned, black where not; also cat-masklabel.png

A trigger word is put before captions that do not contain it, and replaces `[trigger]`. Reads names and texts, no
pixels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import FileFormatError, InputError, MissingFileError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".tif", ".tiff")
TEXTS = (".txt", ".caption")
MASKS, MASK_LABEL = "masks", "-masklabel"
TABLE = "metadata.jsonl"
OF_A_TRAINING = ("settings.json", "cache")  # in its folder, which may be below that of the images
EXAMPLE, CAPTION = '{"file_name": "cat.png", "text": "a cat"}', '{"caption": "a cat"}'
MOST_VARIANTS = 16  # captions of one line with alternatives
_REPEATS = re.compile(r"(\d+)_(.*)")
_CHOICE = re.compile(r"\{([^{}|]*(?:\|[^{}|]*)+)\}")


@dataclass(frozen=True)
class Picture:
    """One image of the folder. captions: its variants, at least one."""

    path: Path
    captions: tuple[str, ...]
    repeats: int = 1
    mask: Path | None = None


@dataclass(frozen=True)
class TrainingFolder:
    """pictures: in the order of their paths. without_caption: the number of images without their own caption."""

    path: Path
    pictures: tuple[Picture, ...]
    without_caption: int
    not_there: tuple[str, ...] = ()  # names in tables of captions that no image has

    @property
    def captions(self) -> tuple[str, ...]:
        """Each caption once."""
        return tuple(dict.fromkeys(caption for picture in self.pictures for caption in picture.captions))


def read_folder(path: Path, trigger: str = "", repeats: int = 1) -> TrainingFolder:
    """Raises MissingFileError if the folder does not exist, InputError if there are no images, or neither captions nor
    a trigger, FileFormatError for a table of captions that cannot be read.
    """
    if path.is_file():
        raise InputError(f"{path} is a file. Give the folder of the pictures, each with a .txt beside it.")
    if not path.is_dir():
        raise MissingFileError(f"There is no folder {path}. Give a folder of pictures, each with a .txt beside it.")
    files = sorted(_pictures_below(path))
    if not files:
        raise InputError(
            f"There are no pictures in {path}. Put some there ({', '.join(PICTURES[:4])}), each with its caption in a "
            ".txt file of the same name."
        )
    tables = {folder: _table(folder) for folder in {path, *(file.parent for file in files)}}
    not_there = tuple(name for folder, table in tables.items() for name in table if not (folder / name).is_file())
    pictures, missing = [], 0
    for file in files:
        captions_of_file = _captions_of(file, path, tables)
        times, name = _counted(file, path)
        missing += not captions_of_file
        captions = [_with_trigger(caption, trigger) for caption in captions_of_file] or [_with_trigger(name, trigger)]
        pictures.append(Picture(file, tuple(dict.fromkeys(captions)), times * repeats, _mask_of(file)))
    empty = [picture.path for picture in pictures if picture.captions == ("",)]
    if len(empty) == len(pictures):
        raise InputError(
            f"No picture in {path} has a caption, and there is no trigger word. Write captions into .txt files of the "
            'same names, or give --trigger "a word": it becomes the caption of every picture.'
            + (f" {TABLE} names pictures that are not there; the first is {not_there[0]}." if not_there else "")
        )
    return TrainingFolder(path, tuple(pictures), missing, not_there)


def variants(text: str) -> list[str]:
    """The captions of a line with alternatives: `a {red|blue} cat` -> two. At most MOST_VARIANTS."""
    found = [text]
    while any(_CHOICE.search(each) for each in found):
        spread: list[str] = []
        for each in found:
            choice = _CHOICE.search(each)
            if choice is None:
                spread.append(each)
                continue
            spread += [each[: choice.start()] + part + each[choice.end() :] for part in choice[1].split("|")]
        found = spread[:MOST_VARIANTS]
    return found


def _pictures_below(path: Path) -> Iterator[Path]:
    """Files that may be images. Folders whose names begin with a dot or underscore, those of masks, and those with the
    files of a training are left out.
    """
    for entry in sorted(path.iterdir()):
        if entry.name.startswith((".", "_")):
            continue
        if entry.is_dir():
            if entry.name != MASKS and not all((entry / name).exists() for name in OF_A_TRAINING):
                yield from _pictures_below(entry)
        elif entry.suffix.lower() in PICTURES and not entry.stem.endswith(MASK_LABEL):
            yield entry


def _captions_of(file: Path, root: Path, tables: dict[Path, dict[str, list[str]]]) -> list[str]:
    """The captions of an image, from the first source that has any."""
    for suffix in TEXTS:
        beside = file.with_suffix(suffix)
        if beside.is_file():
            return [
                caption for line in _text(beside).splitlines() if line.strip() for caption in variants(line.strip())
            ]
    beside = file.with_suffix(".json")
    if beside.is_file():
        return _captions_in(_json(_text(beside), beside.name, f"Write {CAPTION}, or remove the file."), beside)
    for folder in (file.parent, root):
        listed = tables.get(folder, {}).get(file.relative_to(folder).as_posix())
        if listed is not None:
            return listed
    return []


def _table(folder: Path) -> dict[str, list[str]]:
    """metadata.jsonl: captions by file name relative to the folder."""
    file = folder / TABLE
    if not file.is_file():
        return {}
    found: dict[str, list[str]] = {}
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip():
            continue
        entry = _json(line, f"{file.name}, line {number},", f"Every line is like {EXAMPLE}.")
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise FileFormatError(f"{file.name}, line {number}, does not name a picture. Every line is like {EXAMPLE}.")
        found[entry["file_name"].replace("\\", "/")] = _captions_in(entry, file)
    return found


def _captions_in(entry: Any, where: Path) -> list[str]:
    if not isinstance(entry, dict):
        raise FileFormatError(f"{where.name} should hold an object such as {CAPTION}, not {type(entry).__name__}.")
    values = (entry.get(key) for key in ("text", "caption", "caption_short", "prompt"))
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    return [caption for text in texts if isinstance(text, str) and text.strip() for caption in variants(text.strip())]


def _counted(file: Path, root: Path) -> tuple[int, str]:
    """How many times an image counts, and its caption according to its folder."""
    for folder in (file.parent, *file.parent.parents):
        match = _REPEATS.fullmatch(folder.name)
        if match:
            return max(1, int(match[1])), match[2].replace("_", " ").strip()
        if folder == root:
            break
    return 1, ""


def _with_trigger(caption: str, trigger: str) -> str:
    if "[trigger]" in caption:
        return caption.replace("[trigger]", trigger)
    if not trigger or trigger.lower() in caption.lower():
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def _mask_of(file: Path) -> Path | None:
    there = (
        file.with_name(f"{file.stem}{MASK_LABEL}.png"),
        *(file.parent / MASKS / f"{file.stem}{s}" for s in PICTURES),
    )
    return next((mask for mask in there if mask.is_file()), None)


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        return file.read_text("cp1252", errors="replace")  # what Windows editors used to write
    except OSError as error:
        raise FileFormatError(f"{file} cannot be read: {error.strerror}.") from error


def _json(text: str, where: str, way_out: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise FileFormatError(f"{where} is not JSON: {error}. {way_out}") from error


def tag_frequency(pictures: Sequence[Picture], trigger: str) -> dict[str, int]:
    """How often each comma-separated part of a caption occurs, the trigger first: other programs show this for a
    LoRA.
    """
    counts: dict[str, int] = {trigger: sum(p.repeats for p in pictures)} if trigger else {}
    for picture in pictures:
        for caption in picture.captions:
            for tag in (part.strip() for part in caption.split(",")):
                if tag and tag != trigger:
                    counts[tag] = counts.get(tag, 0) + picture.repeats
    return counts
