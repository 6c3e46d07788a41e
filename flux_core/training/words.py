"""The tiny model's two tokenizers, written in the file formats of the real ones.

T5's is a Unigram `tokenizer.json` of whole words: any other word becomes one `<unk>`, so a prompt is never long.
CLIP's is `vocab.json` and `merges.txt`, a byte-pair encoding learned from the same words, so unknown words are
spelled out. The words come from captions.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

T5_SPECIAL = ("<pad>", "</s>", "<unk>")
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def write_t5(folder: Path, words: Sequence[str], length: int) -> None:
    """`tokenizer.json`: lower case, punctuation ignored, one id per known word, padded to `length` ids."""
    pieces = [(piece, 0.0) for piece in T5_SPECIAL] + [(f"▁{word}", -5.0) for word in words]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=T5_SPECIAL.index("<unk>"), byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[\s.,;:!?\"'()\-]+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>", length=length)
    tokenizer.add_special_tokens(list(T5_SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_clip(folder: Path, words: Sequence[str]) -> None:
    """`vocab.json` and `merges.txt`: 256 bytes, 256 bytes at a word's end, one entry per merge, start and end."""
    letters = [_byte_letter(byte) for byte in range(256)]
    merges = learn_merges([word.encode() for word in words])
    entries = [*letters, *(letter + WORD_END for letter in letters), *(a + b for a, b in merges), CLIP_START, CLIP_END]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=True, indent=0) + "\n", "utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")


def learn_merges(words: Sequence[bytes]) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich et al. 2016) until every word is one entry; ties go to the first in order."""
    spelled = [[_byte_letter(byte) for byte in word] for word in words]
    for letters in spelled:
        letters[-1] += WORD_END
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for letters in spelled for pair in zip(letters, letters[1:], strict=False)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merged(letters, best) for letters in spelled]
    return merges


def _merged(letters: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for letter in letters:
        if out and (out[-1], letter) == pair:
            out[-1] += letter
        else:
            out.append(letter)
    return out


def _byte_letter(byte: int) -> str:
    """The printable character for a byte in BPE files: itself, or shifted beyond U+0100 (Radford 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [other for other in range(256) if other not in printable].index(byte))
