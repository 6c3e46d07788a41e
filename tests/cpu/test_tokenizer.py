"""Tokenizers against `transformers`, on small vocabularies trained here, and the layout of token rows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from sluice.flux_core.conditioning import tokenizer as t
from sluice.flux_core.conditioning import vocabulary as v
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = 3 * [
    "a red cat and a blue dog in the park",
    "the words of a prompt, some of them longer than others",
    "photograph of an old town at night; 35mm, f/1.8",
    "it's the painter's brush, they're here",
    "déjà vu ünïcödé 日本",
]
PARTS = ["a", "cat", "Red", "the", " ", "  ", "\n", "\t", "日本", "ü", "🦊", ",", ".", "'s", "1.8", "(", "\u00a0"]
PARTS += ["e\u0301", "İ"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "tokenizers" / "clip_l"
    folder.mkdir(parents=True)
    vocabulary = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    vocabulary.normalizer = normalizers.Lowercase()
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        end_of_word_suffix="</w>",
        special_tokens=[v.CLIP_START, v.CLIP_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    vocabulary.train_from_iterator(CORPUS, trainer)
    vocabulary.model.save(str(folder))
    return folder


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "tokenizers" / "t5xxl"
    folder.mkdir(parents=True)
    vocabulary = Tokenizer(models.Unigram())
    vocabulary.normalizer = normalizers.NFKC()
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=[v.T5_PAD, v.T5_END, "<unk>"], unk_token="<unk>", show_progress=False
    )
    vocabulary.train_from_iterator(CORPUS, trainer)
    vocabulary.post_processor = processors.TemplateProcessing(
        single=f"$A {v.T5_END}", special_tokens=[(v.T5_END, vocabulary.token_to_id(v.T5_END))]
    )
    vocabulary.save(str(folder / "tokenizer.json"))
    return folder


def prompts(count: int) -> list[str]:
    rng = random.Random(7)
    return ["", *CORPUS[:5], *("".join(rng.choices(PARTS, k=rng.randint(1, 12))) for _ in range(count))]


def test_clip_ids_equal_those_of_transformers(clip_folder: Path) -> None:
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    ours = v.load_clip(clip_folder)
    theirs = CLIPTokenizer.from_pretrained(clip_folder)
    for prompt in [*prompts(300), "<|startoftext|>cat <|endoftext|> dog"]:
        expected = theirs(prompt)["input_ids"]
        assert [ours.start, *ours.vocabulary.encode(prompt, add_special_tokens=False).ids, ours.end] == expected, prompt


def test_a_published_tokenizer_json_gives_the_same_ids_as_its_vocabulary_and_merges(
    clip_folder: Path, tmp_path: Path
) -> None:
    ours = v.load_clip(clip_folder)
    ours.vocabulary.save(str(tmp_path / "tokenizer.json"))
    other = v.load_clip(tmp_path)
    for prompt in prompts(50):
        assert other.rows(prompt) == ours.rows(prompt)


def test_t5_ids_equal_those_of_transformers(t5_folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    ours = v.load_t5(t5_folder)
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(t5_folder / "tokenizer.json"), eos_token=v.T5_END, pad_token=v.T5_PAD, unk_token="<unk>"
    )
    for prompt in [*prompts(300), "cat </s> <pad> dog"]:
        escaped = prompt.replace("(", r"\(")
        expected = theirs(prompt, padding="max_length", max_length=max(256, len(theirs(prompt)["input_ids"])))
        assert list(ours.row(escaped).tokens) == expected["input_ids"], prompt


# -- rows ------------------------------------------------------------------------------------------------------------


def words(*extra: str) -> Tokenizer:
    """A vocabulary in which w0..w9 are words with ids 0..9, and the extra words follow."""
    ids = {f"w{i}": i for i in range(10)} | {word: 10 + i for i, word in enumerate(extra)}
    vocabulary = Tokenizer(models.WordLevel(ids, unk_token="w0"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return vocabulary


def clip(length: int = 77) -> t.ClipTokenizer:
    return t.ClipTokenizer(words("start", "end"), start=10, end=11, pad=11, length=length)


def t5(length: int = 256) -> t.T5Tokenizer:
    return t.T5Tokenizer(words("end", "pad"), end=10, pad=11, length=length)


def test_every_clip_row_is_start_tokens_end_padding() -> None:
    for count in (0, 1, 74, 75, 76, 150, 151, 400):
        rows = clip().rows(" ".join(["w1"] * count))
        assert len(rows) == max(1, -(-count // 75))
        for number, row in enumerate(rows):
            inside = min(75, count - 75 * number)
            assert row.tokens == (10, *[1] * inside, 11, *[11] * (75 - inside))


def test_a_short_group_moves_to_the_next_chunk_and_a_long_one_is_cut() -> None:
    filling = " ".join(["w1"] * 72)
    short = clip().rows(f"({filling}:1)(w2 w2 w2 w2 w2:1.5)")
    assert [row.tokens.count(2) for row in short] == [0, 5]
    assert short[0].tokens[73:] == (11, 11, 11, 11)
    long = clip().rows(f"({filling}:1)({' '.join(['w2'] * 8)}:1.5)")
    assert [row.tokens.count(2) for row in long] == [3, 5]
    assert long[1].weights[:7] == (1.0, *[1.5] * 5, 1.0)


def test_a_chunk_shorter_than_a_group_still_takes_it() -> None:
    rows = clip(length=6).rows("w1 w2 w3 w4 w5 w6 w7")
    assert [row.tokens for row in rows] == [(10, 1, 2, 3, 4, 11), (10, 5, 6, 7, 11, 11)]


def test_t5_has_one_row_that_is_padded_but_never_cut() -> None:
    for count in (0, 3, 255, 256, 400):
        row = t5().row(" ".join(["w1"] * count))
        assert row.tokens == (*[1] * count, 10, *[11] * (255 - count))
        assert not row.weighted


def test_t5_options_replace_the_length_and_add_padding() -> None:
    assert t5().row("w1", min_length=0).tokens == (1, 10)
    assert t5().row("w1", min_length=4).tokens == (1, 10, 11, 11)
    assert t5().row("w1", min_length=4, min_padding=3).tokens == (1, 10, 11, 11, 11)
    assert len(t5(length=16).row("w1", min_padding=1).tokens) == 16


def test_a_fixed_padding_length_in_the_file_is_the_row_length(t5_folder: Path, tmp_path: Path) -> None:
    vocabulary = Tokenizer.from_file(str(t5_folder / "tokenizer.json"))
    vocabulary.enable_padding(length=16, pad_id=0, pad_token=v.T5_PAD)
    vocabulary.enable_truncation(8)
    vocabulary.save(str(tmp_path / "tokenizer.json"))
    ours = v.load_t5(tmp_path)
    assert len(ours.row("a cat").tokens) == 16
    assert len(ours.row("a cat " * 20).tokens) > 40


def test_each_segment_is_tokenised_on_its_own(t5_folder: Path) -> None:
    ours = v.load_t5(t5_folder)
    apart = [*ours.vocabulary.encode("red", add_special_tokens=False).ids]
    apart += ours.vocabulary.encode(", blue", add_special_tokens=False).ids
    row = ours.row("(red:1.2), blue")
    assert list(row.tokens[: len(apart)]) == apart
    assert row.weights[0] == 1.2 and row.weights[len(apart)] == 1.0


# -- embeddings ------------------------------------------------------------------------------------------------------


def lookup(name: str) -> list[t.Vector] | None:
    return [t.Vector("file", row, None) for row in range(2)] if name == "style" else None


A, B = t.Vector("file", 0, None), t.Vector("file", 1, None)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("w1 embedding:style w2", (1, A, B, 2)),
        ("embedding:style", (A, B)),
        ("w1 embedding:nobody w2", (1, 2)),
        ("w1 embedding:style, w2", (1, A, B, 0, 2)),  # the comma is not in this vocabulary
        ("(embedding:style:0.5)", (A, B)),
    ],
)
def test_an_embedding_stands_where_its_name_stood(prompt: str, expected: tuple[t.Token, ...]) -> None:
    assert t5(length=0).row(prompt, lookup).tokens == (*expected, 10)
    assert clip().rows(prompt, lookup)[0].tokens[: len(expected) + 2] == (10, *expected, 11)


def test_a_name_without_a_file_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    t5().row("embedding:nobody", lookup)
    assert "nobody" in caplog.text
