"""Reads the vocabularies of CLIP and T5 from every published form; all forms of a vocabulary give the same ids.

    CLIP   tokenizer.json | vocab.json and merges.txt | OpenAI's byte-pair list, as packages carry it
    T5     tokenizer.json | spiece.model (SentencePiece) | the tables in the header of a GGUF file

Independent of: where files are, rows, encoders.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from ..checkpoint.gguf_file import read_values
from ..errors import FileFormatError
from .tokenizer import CLIP_LENGTH, T5_LENGTH, ClipTokenizer, T5Tokenizer

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
CLIP_MERGES = 48894  # the number of entries of OpenAI's list that CLIP uses; the list itself is longer
T5_END, T5_PAD, T5_UNKNOWN = "</s>", "<pad>", "<unk>"
T5_EXTRA = 100  # <extra_id_99> to <extra_id_0>, which follow the pieces of SentencePiece
_LIST_BEGINS = b"#version: 0.2\n"
_UNUSED = 5  # SentencePiece's type of a piece that only fills a place in the table


def load_clip(folder: Path, length: int = CLIP_LENGTH) -> ClipTokenizer:
    """Read CLIP's tokenizer; `length` is the size of the encoder's position table. Raises FileFormatError."""
    file = folder / "tokenizer.json"
    vocabulary = _from_json(file) if file.is_file() else _from_merges(folder)
    return _clip(vocabulary, folder, length)


def load_clip_list(file: Path, length: int = CLIP_LENGTH) -> ClipTokenizer:
    """Read OpenAI's byte-pair list: as text, compressed with gzip, or within a compiled extension that contains it.

    Raises FileFormatError.
    """
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    start = data.find(_LIST_BEGINS)
    lines = data[start + len(_LIST_BEGINS) :].split(b"\n", CLIP_MERGES)[:CLIP_MERGES] if start >= 0 else []
    try:
        merges = [(left, right) for left, right in (line.decode().split(" ") for line in lines)]
    except ValueError as error:
        raise FileFormatError(f"The byte-pair list in {file} is damaged: {error}. Install its package again.") from None
    if len(merges) < CLIP_MERGES:
        raise FileFormatError(f"{file} contains no byte-pair list of CLIP. Install its package again.")
    alphabet = _byte_letters()
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *(left + right for left, right in merges)]
    ids = {word: number for number, word in enumerate([*words, CLIP_START, CLIP_END])}
    return _clip(_byte_pairs(ids, merges), file, length)


def load_t5(folder: Path) -> T5Tokenizer:
    """Read T5's tokenizer from tokenizer.json, or else from spiece.model.

    A fixed length in the `padding` section of tokenizer.json replaces the usual 256. Raises FileFormatError.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return _t5(_unigram(_sentencepiece(folder / "spiece.model")), folder)
    vocabulary = _from_json(file)
    padding = vocabulary.padding or {}
    vocabulary.no_padding()
    return _t5(vocabulary, folder, padding.get("length") or T5_LENGTH)


def load_t5_gguf(file: Path) -> T5Tokenizer | None:
    """The tokenizer in the header of a GGUF file of T5; None if there is none. Raises FileFormatError."""
    names = ("model", "tokens", "scores", "token_type", "precompiled_charsmap")
    values: Mapping[str, Any] = read_values(file, [f"tokenizer.ggml.{name}" for name in names])
    kind, tokens, scores, types, charsmap = (values.get(f"tokenizer.ggml.{name}") for name in names)
    if kind != "t5" or not tokens or len(tokens) != len(scores or ()):
        return None
    pieces, types = list(zip(tokens, scores or (), strict=True)), types or ()
    while pieces and len(types) >= len(pieces) and types[len(pieces) - 1] == _UNUSED:
        pieces.pop()
    return _t5(_unigram(_Pieces(pieces, bytes(value & 0xFF for value in charsmap or ()))), file)


# -- CLIP --------------------------------------------------------------------------------------------------------------


def _clip(vocabulary: Tokenizer, source: Path, length: int) -> ClipTokenizer:
    start, end = (_special(vocabulary, token, source) for token in (CLIP_START, CLIP_END))
    return ClipTokenizer(vocabulary, start, end, pad=end, length=length)


def _from_merges(folder: Path) -> Tokenizer:
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    try:
        return _byte_pairs(*models.BPE.read_file(*files))
    except Exception as error:  # the library raises a bare Exception for anything that it cannot read
        raise FileFormatError(f"{files[0]} and {files[1]} cannot be read: {error}. Download them again.") from error


def _byte_pairs(ids: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """CLIP's byte-pair encoding (Radford et al. 2021, section 2.4)."""
    model = models.BPE(ids, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=CLIP_END)
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


def _byte_letters() -> list[str]:
    """The letters that represent the 256 bytes, in the order of CLIP's vocabulary: the printable ones come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, printable), *(chr(256 + number) for number in range(256 - len(printable)))]


# -- T5 ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pieces:
    """SentencePiece's unigram model: pieces with their log-probabilities, and its table of characters to replace."""

    pieces: Sequence[tuple[str, float]]
    charsmap: bytes


def _t5(vocabulary: Tokenizer, source: Path, length: int = T5_LENGTH) -> T5Tokenizer:
    end, pad = (_special(vocabulary, token, source) for token in (T5_END, T5_PAD))
    return T5Tokenizer(vocabulary, end, pad, length=length)


def _unigram(read: _Pieces) -> Tokenizer:
    """The content of T5's tokenizer.json, built from its components (Raffel et al. 2020; Kudo 2018)."""
    extra = [f"<extra_id_{number}>" for number in reversed(range(T5_EXTRA))]
    pieces = [*read.pieces, *((name, 0.0) for name in extra)]
    unknown = next((number for number, (piece, _) in enumerate(pieces) if piece == T5_UNKNOWN), None)
    vocabulary = Tokenizer(models.Unigram(pieces, unk_id=unknown))
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(read.charsmap)] if read.charsmap else []
    steps += [normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), "▁")]
    vocabulary.normalizer = normalizers.Sequence(steps)
    vocabulary.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    there = {piece for piece, _ in pieces}
    special = [token for token in (T5_PAD, T5_END, T5_UNKNOWN, *extra) if token in there]
    vocabulary.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return vocabulary


def _sentencepiece(file: Path) -> _Pieces:
    """A SentencePiece model: a protocol buffer of pieces (1: text 1, score 2) and a normaliser (3: its table 2)."""
    pieces: list[tuple[str, float]] = []
    charsmap = b""
    try:
        for number, value in _fields(file.read_bytes()):
            if number == 1:
                parts = dict(_fields(value))
                pieces.append((parts[1].decode(), struct.unpack("<f", parts.get(2, bytes(4)))[0]))
            elif number == 3:
                charsmap = dict(_fields(value)).get(2, b"")
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise FileFormatError(f"{file} cannot be read as a SentencePiece model. Download it again.") from error
    return _Pieces(pieces, charsmap)


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protocol buffer message: number and bytes; varints are skipped."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == 0:
            _, position = _varint(data, position)
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"wire type {kind}")
        length, position = _varint(data, position) if kind == 2 else ({1: 8, 5: 4}[kind], position)
        if position + length > len(data):
            raise ValueError("cut short")
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits per byte, least significant first, and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        value, shift, position = value | (byte & 0x7F) << shift, shift + 7, position + 1
        if byte < 0x80:
            return value, position


# -- both --------------------------------------------------------------------------------------------------------------


def _from_json(file: Path) -> Tokenizer:
    try:
        vocabulary = Tokenizer.from_file(str(file))
    except Exception as error:  # as above
        raise FileFormatError(f"{file} cannot be read as a tokenizer: {error}. Download it again.") from error
    vocabulary.no_truncation()
    return vocabulary


def _special(vocabulary: Tokenizer, token: str, source: Path) -> int:
    found = vocabulary.token_to_id(token)
    if found is None:
        raise FileFormatError(f"The tokenizer in {source} has no token {token}: it belongs to another text encoder.")
    return int(found)
