"""Prompts to token rows: CLIP's in chunks of 77, T5's in one row of at least 256.

A tokenizer is a folder with `tokenizer.json`, or for CLIP with `vocab.json` and `merges.txt`, as published with the
encoders. All special ids come from these files, so that a small vocabulary works like a large one. Knows the
vocabulary and the row layout; knows no encoder, no weights arithmetic and no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from ..errors import FileFormatError, MissingFileError
from .weighting import EmbeddingName, pieces, segments

log = logging.getLogger(__name__)

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
T5_END, T5_PAD = "</s>", "<pad>"
CLIP_LENGTH = 77  # rows of CLIP-L's position table
T5_LENGTH = 256  # what FLUX.1 pads T5 to
SPARE = 128  # T5's table has 28 rows more than its vocabulary, for the sake of alignment
SPLITTABLE = 8  # a group of at least this many tokens may be cut in two by the end of a chunk


@dataclass(frozen=True)
class Vector:
    """One row of a textual inversion file, standing where a token id would."""

    source: Hashable  # which file, in which state
    row: int
    values: Any = field(compare=False, repr=False)  # Tensor [width]


Token = int | Vector
Lookup = Callable[[str], Sequence[Vector] | None]  # what an `embedding:` name stands for, None if nothing


@dataclass(frozen=True)
class Row:
    """What an encoder reads in one go: tokens and their prompt weights, equally many."""

    tokens: tuple[Token, ...]
    weights: tuple[float, ...]

    @property
    def weighted(self) -> bool:
        return any(weight != 1.0 for weight in self.weights)


_Group = list[tuple[Token, float]]


@dataclass(frozen=True)
class ClipTokenizer:
    """CLIP's byte-pair encoding, laid out as start, up to `length` - 2 tokens, end, padding."""

    vocabulary: Tokenizer
    start: int
    end: int
    pad: int
    length: int = CLIP_LENGTH

    def rows(self, prompt: str, lookup: Lookup | None = None) -> list[Row]:
        """The prompt in chunks of `length`, at least one."""
        chunks: list[_Group] = [[]]
        room = self.length - 2
        for group in _groups(self.vocabulary, prompt, lookup):
            moves_whole = len(group) < SPLITTABLE and len(group) <= room
            while len(group) > room - len(chunks[-1]):
                cut = 0 if moves_whole else room - len(chunks[-1])
                chunks[-1] += group[:cut]
                group = group[cut:]
                chunks.append([])
            chunks[-1] += group
        return [self._row(chunk) for chunk in chunks]

    def empty_row(self, length: int) -> Row:
        """What weights are measured against: start, end, padding."""
        return _row([(token, 1.0) for token in (self.start, self.end)], self.pad, length)

    def _row(self, chunk: _Group) -> Row:
        return _row([(self.start, 1.0), *chunk, (self.end, 1.0)], self.pad, self.length)


@dataclass(frozen=True)
class T5Tokenizer:
    """T5's SentencePiece vocabulary, laid out as tokens, end, padding to at least `length`; never cut."""

    vocabulary: Tokenizer
    end: int
    pad: int
    length: int = T5_LENGTH

    def row(
        self, prompt: str, lookup: Lookup | None = None, *, min_padding: int = 0, min_length: int | None = None
    ) -> Row:
        """The whole prompt in one row. `min_padding` counts pad tokens that are always added behind the end."""
        tokens = [token for group in _groups(self.vocabulary, prompt, lookup) for token in group]
        tokens.append((self.end, 1.0))
        least = self.length if min_length is None else min_length
        return _row(tokens, self.pad, max(len(tokens) + min_padding, least))

    def empty_row(self, length: int) -> Row:
        """What weights are measured against: end, padding."""
        return _row([(self.end, 1.0)], self.pad, length)


_Tokenizer = TypeVar("_Tokenizer", ClipTokenizer, T5Tokenizer)


def _row(tokens: _Group, pad: int, length: int) -> Row:
    padded = [*tokens, *[(pad, 1.0)] * (length - len(tokens))]
    return Row(tuple(token for token, _ in padded), tuple(weight for _, weight in padded))


def _groups(vocabulary: Tokenizer, prompt: str, lookup: Lookup | None) -> Iterator[_Group]:
    """The prompt's tokens in groups that were tokenised together: a segment's text, or one embedding."""
    for segment in segments(prompt):
        for piece in pieces(segment.text) if lookup else [segment.text]:
            text = piece
            if lookup and isinstance(piece, EmbeddingName):
                vectors, text = _find_embedding(piece, lookup)
                if vectors is None:
                    log.warning("embedding:%s is in none of the embeddings folders; it is left out.", piece.name)
                else:
                    yield [(vector, segment.weight) for vector in vectors]
            if text:
                ids = vocabulary.encode(text, add_special_tokens=False).ids
                yield [(token, segment.weight) for token in ids]


def _find_embedding(piece: EmbeddingName, lookup: Lookup) -> tuple[Sequence[Vector] | None, str]:
    """The vectors of a name and the text left over; commas around a name are tried as part of it, then as text."""
    vectors = lookup(piece.name)
    bare = piece.name.strip(",")
    if vectors is None and bare and bare != piece.name:
        return lookup(bare), f"{piece.name.replace(bare, '', 1)} {piece.rest}"
    return vectors, piece.rest


# -- where a tokenizer lies ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """A tokenizer as its makers publish it, and the names its folder goes by."""

    title: str
    end: str  # the token that tells its file from the other's
    files: str
    address: str
    folders: tuple[str, ...]  # below a `tokenizers` folder
    pipeline: str  # its folder in Hugging Face's pipeline layout
    comfyui: str  # its folder inside a ComfyUI installation


CLIP_L = Published(
    title="CLIP-L",
    end=CLIP_END,
    files="tokenizer.json, or vocab.json and merges.txt",
    address="https://huggingface.co/openai/clip-vit-large-patch14",
    folders=("clip_l", "clip-vit-large-patch14", "openai/clip-vit-large-patch14"),
    pipeline="tokenizer",
    comfyui="comfy/sd1_tokenizer",
)
T5XXL = Published(
    title="T5-XXL",
    end=T5_END,
    files="tokenizer.json",
    address="https://huggingface.co/black-forest-labs/FLUX.1-dev in tokenizer_2 (google/t5-v1_1-xxl has the same one)",
    folders=("t5xxl", "t5-v1_1-xxl", "google/t5-v1_1-xxl"),
    pipeline="tokenizer_2",
    comfyui="comfy/text_encoders/t5_tokenizer",
)


def find_clip(
    weights: Path | None, folders: Iterable[Path], *, vocabulary: int, length: int = CLIP_LENGTH
) -> ClipTokenizer:
    """The tokenizer that belongs to a CLIP encoder with `vocabulary` token and `length` position embeddings.

    `folders` are the `tokenizers` folders of the model stores. Looked for, in this order: in a folder beside the
    weight file named like it, in the store the weight file lies in, in Hugging Face's layout around it, in the
    stores given, and in a ComfyUI that a store belongs to. Raises MissingFileError and FileFormatError.
    """
    return _find(CLIP_L, lambda folder: load_clip(folder, length), weights, folders, vocabulary)


def find_t5(weights: Path | None, folders: Iterable[Path], *, vocabulary: int) -> T5Tokenizer:
    """The tokenizer that belongs to a T5 encoder with `vocabulary` token embeddings; looked for as `find_clip` does."""
    return _find(T5XXL, load_t5, weights, folders, vocabulary)


def _find(
    wanted: Published,
    load: Callable[[Path], _Tokenizer],
    weights: Path | None,
    folders: Iterable[Path],
    vocabulary: int,
) -> _Tokenizer:
    searched = list(dict.fromkeys(_places(wanted, weights, list(folders))))
    looked = []
    for folder in searched:
        if not _holds(wanted, folder):
            looked.append(str(folder))
            continue
        tokenizer = load(folder)
        tokens = tokenizer.vocabulary.get_vocab_size()
        if vocabulary - SPARE <= tokens <= vocabulary:
            return tokenizer
        looked.append(f"{folder} (belongs to another encoder: it has {tokens} tokens)")
    raise MissingFileError(
        f"The tokenizer of {wanted.title} for {weights or 'this encoder'} with its {vocabulary} token embeddings is "
        f"missing. Needed: {wanted.files}, published at {wanted.address}. Put it into the folder "
        f"tokenizers/{wanted.folders[0]} of your models folder. Looked in:\n  " + "\n  ".join(looked)
    )


def _places(wanted: Published, weights: Path | None, folders: Sequence[Path]) -> Iterator[Path]:
    if weights is not None:
        yield weights.with_suffix("")
        yield from (weights.parent.parent / "tokenizers" / name for name in wanted.folders)
        yield weights.parent.parent / wanted.pipeline
        yield weights.parent
    for folder in folders:
        yield from (folder / name for name in wanted.folders)
        yield folder.parent / wanted.pipeline
    yield from (folder.parent.parent / wanted.comfyui for folder in folders)


def _holds(wanted: Published, folder: Path) -> bool:
    if wanted is CLIP_L and all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        return True
    file = folder / "tokenizer.json"
    return file.is_file() and f'"{wanted.end}"'.encode() in file.read_bytes()


# -- reading one -----------------------------------------------------------------------------------------------------


def load_clip(folder: Path, length: int = CLIP_LENGTH) -> ClipTokenizer:
    """Read CLIP's tokenizer; `length` is the size of the encoder's position table. Raises FileFormatError."""
    file = folder / "tokenizer.json"
    vocabulary = _from_json(file) if file.is_file() else _from_merges(folder)
    start, end = (_special(vocabulary, token, folder) for token in (CLIP_START, CLIP_END))
    return ClipTokenizer(vocabulary, start, end, pad=end, length=length)


def load_t5(folder: Path) -> T5Tokenizer:
    """Read T5's tokenizer.

    A fixed length in the file's own `padding` section replaces the usual 256. Raises FileFormatError.
    """
    vocabulary = _from_json(folder / "tokenizer.json")
    padding = vocabulary.padding or {}
    vocabulary.no_padding()
    end, pad = (_special(vocabulary, token, folder) for token in (T5_END, T5_PAD))
    return T5Tokenizer(vocabulary, end, pad, length=padding.get("length") or T5_LENGTH)


def _from_json(file: Path) -> Tokenizer:
    try:
        vocabulary = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for whatever it cannot read
        raise FileFormatError(f"{file} cannot be read as a tokenizer: {error}. Download it again.") from error
    vocabulary.no_truncation()
    return vocabulary


def _from_merges(folder: Path) -> Tokenizer:
    """CLIP's byte-pair encoding from its two published files (Radford et al. 2021, section 2.4)."""
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    try:
        ids, merges = models.BPE.read_file(*files)
        model = models.BPE(ids, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=CLIP_END)
    except Exception as error:  # as above
        raise FileFormatError(f"{files[0]} and {files[1]} cannot be read: {error}. Download them again.") from error
    vocabulary = Tokenizer(model)
    vocabulary.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    word = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(word), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    vocabulary.add_special_tokens([AddedToken(token, normalized=True) for token in (CLIP_START, CLIP_END)])
    return vocabulary


def _special(vocabulary: Tokenizer, token: str, folder: Path) -> int:
    found = vocabulary.token_to_id(token)
    if found is None:
        raise FileFormatError(f"The tokenizer in {folder} has no token {token}: it belongs to another text encoder.")
    return int(found)
