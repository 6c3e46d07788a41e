"""Finds the tokenizers of CLIP-L and T5-XXL: beside the encoders, in the model stores, elsewhere on this machine.

Searched in this order: a folder beside the weight file with the same name, the weight file itself (GGUF files of T5
contain theirs), the `tokenizers` folder of its store, Hugging Face's layout around it, the given stores and a ComfyUI
around them; then other ComfyUI installations, the Hugging Face cache, and a package that contains CLIP's byte-pair
list. Nothing is downloaded. Uses no rows and no encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Generic, TypeVar

from ..errors import MissingFileError
from ..io.other_programs import comfyui_installations, hugging_face_snapshots, package_folder
from .tokenizer import CLIP_LENGTH, ClipTokenizer, T5Tokenizer
from .vocabulary import CLIP_END, T5_END, load_clip, load_clip_list, load_t5, load_t5_gguf

SPARE = 128  # T5's table has 28 rows more than its vocabulary, for alignment
CLIP_VOCABULARY, T5_VOCABULARY = 49408, 32128  # rows of the published encoders' tables
_Tokenizer = TypeVar("_Tokenizer", ClipTokenizer, T5Tokenizer)


@dataclass(frozen=True)
class Published:
    """A tokenizer as its authors publish it, and the possible names of its folder."""

    title: str
    end: str  # the token that distinguishes its file from the other's
    files: str
    address: str
    folders: tuple[str, ...]  # below a `tokenizers` folder
    pipelines: tuple[str, ...]  # its folder in Hugging Face's pipeline layout
    comfyui: str  # its folder inside a ComfyUI installation
    cached: tuple[str, ...]  # words in the names of repositories that contain it
    hint: str = ""


CLIP_L = Published(
    title="CLIP-L",
    end=CLIP_END,
    files="tokenizer.json, or vocab.json and merges.txt",
    address="https://huggingface.co/openai/clip-vit-large-patch14",
    folders=("clip_l", "clip-vit-large-patch14", "openai/clip-vit-large-patch14"),
    pipelines=("tokenizer",),
    comfyui="comfy/sd1_tokenizer",
    cached=("clip-vit", "flux", "stable-diffusion"),
    hint=" Or install a package that contains it: pip install instant-clip-tokenizer (Python up to 3.12), or "
    "pip install --no-deps open-clip-torch.",
)
T5XXL = Published(
    title="T5-XXL",
    end=T5_END,
    files="spiece.model or tokenizer.json",
    address="https://huggingface.co/google/t5-v1_1-xxl",
    folders=("t5xxl", "t5-v1_1-xxl", "google/t5-v1_1-xxl"),
    pipelines=("tokenizer_2", "tokenizer_3"),
    comfyui="comfy/text_encoders/t5_tokenizer",
    cached=("t5", "flux", "stable-diffusion-3"),
    hint=" GGUF files of T5 contain it and need no other file.",
)


@dataclass(frozen=True)
class _Place(Generic[_Tokenizer]):
    """A place where the tokenizer may be, and how to read it."""

    where: Path
    load: Callable[[], _Tokenizer | None]


@lru_cache(maxsize=8)
def clip_tokenizer(weights: Path | None, folders: tuple[Path, ...], vocabulary: int, length: int) -> ClipTokenizer:
    """`find_clip`; the result is kept for the life of the process."""
    return find_clip(weights, folders, vocabulary=vocabulary, length=length)


@lru_cache(maxsize=8)
def t5_tokenizer(weights: Path | None, folders: tuple[Path, ...], vocabulary: int) -> T5Tokenizer:
    """`find_t5`; the result is kept for the life of the process."""
    return find_t5(weights, folders, vocabulary=vocabulary)


def find_clip(
    weights: Path | None, folders: Sequence[Path], *, vocabulary: int, length: int = CLIP_LENGTH
) -> ClipTokenizer:
    """The tokenizer that belongs to a CLIP encoder with `vocabulary` token and `length` position embeddings.

    `folders` are the `tokenizers` folders of the model stores. Raises MissingFileError and FileFormatError.
    """
    read = partial(load_clip, length=length)
    places = _files(CLIP_L, read, _named(CLIP_L, weights, folders))
    elsewhere = _files(CLIP_L, read, _elsewhere(CLIP_L))
    carried = (_Place(file, partial(load_clip_list, file, length)) for file in _byte_pair_lists())
    return _fitting(CLIP_L, weights, vocabulary, folders, _chain(places, elsewhere, carried))


def find_t5(weights: Path | None, folders: Sequence[Path], *, vocabulary: int) -> T5Tokenizer:
    """The tokenizer that belongs to a T5 encoder with `vocabulary` token embeddings, searched in the order of
    `find_clip`.
    """
    own = [weights] if weights is not None and weights.suffix == ".gguf" and weights.is_file() else []
    beside = _files(T5XXL, load_t5, [weights.with_suffix("")] if weights is not None else [])
    carried = (_Place(file, partial(load_t5_gguf, file)) for file in own)
    places = _files(T5XXL, load_t5, [*_named(T5XXL, weights, folders), *_elsewhere(T5XXL)])
    return _fitting(T5XXL, weights, vocabulary, folders, _chain(beside, carried, places))


def _fitting(
    wanted: Published,
    weights: Path | None,
    vocabulary: int,
    folders: Sequence[Path],
    places: Iterable[_Place[_Tokenizer]],
) -> _Tokenizer:
    """The first tokenizer that has as many tokens as the encoder."""
    passed_over: list[str] = []
    for place in places:
        tokenizer = place.load()
        if tokenizer is None:
            continue
        tokens = tokenizer.vocabulary.get_vocab_size()
        if vocabulary - SPARE <= tokens <= vocabulary:
            return tokenizer
        passed_over.append(f"{place.where} (belongs to another encoder: it has {tokens} tokens)")
    named: list[str] = [
        str(folder) for folder in dict.fromkeys(_named(wanted, weights, folders)) if not _holds(wanted, folder)
    ]
    looked = "\n  ".join([*passed_over, *named, "the ComfyUI installations and the Hugging Face cache of this machine"])
    raise MissingFileError(
        f"The tokenizer of {wanted.title} for {weights or 'this encoder'} with its {vocabulary} token embeddings is "
        f"missing. Needed: {wanted.files}, published at {wanted.address}. Put it into the folder "
        f"tokenizers/{wanted.folders[0]} of your models folder.{wanted.hint} Looked in:\n  {looked}"
    )


def _chain(*groups: Iterable[_Place[_Tokenizer]]) -> Iterator[_Place[_Tokenizer]]:
    for group in groups:
        yield from group


def _files(
    wanted: Published, load: Callable[[Path], _Tokenizer], folders: Iterable[Path]
) -> Iterator[_Place[_Tokenizer]]:
    for folder in dict.fromkeys(folders):
        if _holds(wanted, folder):
            yield _Place(folder, partial(load, folder))


def _named(wanted: Published, weights: Path | None, folders: Sequence[Path]) -> Iterator[Path]:
    """The folders that belong to the encoder or to one of the model stores."""
    if weights is not None:
        yield weights.with_suffix("")
        yield from (weights.parent.parent / "tokenizers" / name for name in wanted.folders)
        yield weights.parent.parent / wanted.pipelines[0]
        yield weights.parent
    for folder in folders:
        yield from (folder / name for name in wanted.folders)
        yield folder.parent / wanted.pipelines[0]
    yield from (folder.parent.parent / wanted.comfyui for folder in folders)


def _elsewhere(wanted: Published) -> Iterator[Path]:
    """The folders in which other programs on this machine may have it."""
    yield from (place / wanted.comfyui for place in comfyui_installations())
    for snapshot in hugging_face_snapshots(*wanted.cached):
        yield from (snapshot / name for name in ("", *wanted.pipelines))


def _byte_pair_lists() -> Iterator[Path]:
    """Files of installed packages that contain OpenAI's byte-pair list."""
    for name in ("open_clip", "clip"):
        folder = package_folder(name)
        if folder is not None:
            yield from folder.glob("bpe_simple_vocab_16e6.txt*")
    compiled = package_folder("instant_clip_tokenizer")
    if compiled is not None:
        yield from (file for file in sorted(compiled.iterdir()) if file.suffix in (".so", ".pyd"))


def _holds(wanted: Published, folder: Path) -> bool:
    if wanted is CLIP_L and all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        return True
    file = folder / "tokenizer.json"
    if file.is_file():
        return f'"{wanted.end}"'.encode() in file.read_bytes()
    return wanted is T5XXL and (folder / "spiece.model").is_file()
