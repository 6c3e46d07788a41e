"""Tokenizers in every published form and in all usual places of a machine: each gives the same ids."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from sluice.flux_core.conditioning import tokenizer_files as f
from sluice.flux_core.conditioning import vocabulary as v
from sluice.flux_core.conditioning.tokenizer import ClipTokenizer, T5Tokenizer
from sluice.flux_core.errors import FileFormatError, MissingFileError
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

CORPUS = 3 * ["a red cat and a blue dog in the park", "an old town at night; 35mm, f/1.8", "it's here", "日本 déjà vu"]
PARTS = ["a", "cat", "Red", "the", " ", "  ", "\n", "\t", "日本", "ü", "🦊", ",", "'s", "1.8", "(", "\u00a0", "Ａ", "é"]
PARTS += ["<|endoftext|>", "</s>", "<pad>", "<extra_id_7>"]


def prompts(count: int = 200) -> list[str]:
    rng = random.Random(7)
    return ["", *CORPUS[:4], *("".join(rng.choices(PARTS, k=rng.randint(1, 12))) for _ in range(count))]


def ids(tokenizer: ClipTokenizer | T5Tokenizer) -> list[list[int]]:
    return [tokenizer.vocabulary.encode(prompt, add_special_tokens=False).ids for prompt in prompts()]


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other tokenizers of the machine that runs the tests are hidden."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("COMFYUI_PATH", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(f, "package_folder", lambda name: None)
    monkeypatch.setattr("sluice.flux_core.io.other_programs._ABSOLUTE", ())


# -- CLIP --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def merges() -> list[str]:
    """As many byte pairs as CLIP has: those of a small corpus, and fillers."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700, end_of_word_suffix="</w>", show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    trained.train_from_iterator(CORPUS, trainer)
    learned = [" ".join(pair) for pair in merges_of(trained)]
    made = {pair.replace(" ", "") for pair in learned}
    fillers = (
        f"{a} {b}"
        for a, b in itertools.product(sorted(pre_tokenizers.ByteLevel.alphabet()), repeat=2)
        if a + b not in made
    )
    return [*learned, *itertools.islice(fillers, v.CLIP_MERGES - len(learned))]


def merges_of(trained: Tokenizer) -> list[list[str]]:
    pairs: list[str | list[str]] = json.loads(trained.to_str())["model"]["merges"]
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in pairs]


@pytest.fixture(scope="module")
def clip_folder(merges: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json and merges.txt as OpenAI's vocabulary is laid out: bytes, bytes that end words, merges, specials."""
    folder = tmp_path_factory.mktemp("store") / "tokenizers" / "clip_l"
    folder.mkdir(parents=True)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(256 - len(printable))]
    words = [*letters, *(letter + "</w>" for letter in letters), *(pair.replace(" ", "") for pair in merges)]
    vocabulary = {word: number for number, word in enumerate([*words, v.CLIP_START, v.CLIP_END])}
    model = models.BPE(
        vocabulary,
        [(first, second) for first, second in (pair.split(" ") for pair in merges)],
        end_of_word_suffix="</w>",
    )
    model.save(str(folder))
    return folder


@pytest.fixture(scope="module")
def pair_list(merges: list[str]) -> bytes:
    """OpenAI's file, which has further entries after the pairs that CLIP uses."""
    return "\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *merges, "zz zz", ""]).encode()


def test_the_byte_pair_list_of_a_package_gives_the_same_ids(
    clip_folder: Path, pair_list: bytes, tmp_path: Path
) -> None:
    compressed, compiled = tmp_path / "bpe_simple_vocab_16e6.txt.gz", tmp_path / "tokenizer.so"
    compressed.write_bytes(gzip.compress(pair_list))
    compiled.write_bytes(b"\x7fELF\x00code" + pair_list + b"\x00more")
    published = v.load_clip(clip_folder)
    for file in (compressed, compiled):
        ours = v.load_clip_list(file)
        assert ours.vocabulary.get_vocab() == published.vocabulary.get_vocab()
        assert ids(ours) == ids(published) and (ours.start, ours.end, ours.pad) == (49406, 49407, 49407)


@pytest.mark.parametrize("damage", [lambda data: data[:5000], lambda data: data.replace(b"#version", b"#Version")])
def test_a_damaged_list_is_named(pair_list: bytes, tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    (tmp_path / "tokenizer.so").write_bytes(damage(pair_list))
    with pytest.raises(FileFormatError, match=r"tokenizer\.so"):
        v.load_clip_list(tmp_path / "tokenizer.so")


# -- T5 ----------------------------------------------------------------------------------------------------------------


def charsmap() -> bytes:
    """A table that makes an A of the wide A, which is one key of a double array: see the Darts-clone format."""
    key, units = "Ａ".encode(), [0] * 1280
    units[0] = 256 << 10
    place = 256
    for number, byte in enumerate(key):
        here, place = place ^ byte, 256 * (number + 2)
        units[here] = byte | (here ^ place) << 10 | (number == len(key) - 1) << 8
    units[place] = 0 | 1 << 31
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + b"A\0"


@pytest.fixture(scope="module")
def pieces() -> list[tuple[str, float]]:
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    special = [v.T5_PAD, v.T5_END, v.T5_UNKNOWN]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token=v.T5_UNKNOWN, show_progress=False
    )
    trained.train_from_iterator([*CORPUS, "A cat"], trainer)
    read = json.loads(trained.to_str())["model"]["vocab"]
    return [(piece, struct.unpack("<f", struct.pack("<f", score))[0]) for piece, score in read]


@pytest.fixture(scope="module")
def t5_folder(pieces: list[tuple[str, float]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.json as T5's is made of its SentencePiece model."""
    folder = tmp_path_factory.mktemp("store") / "tokenizers" / "t5xxl"
    folder.mkdir(parents=True)
    extra = [(f"<extra_id_{number}>", 0.0) for number in range(99, -1, -1)]
    vocabulary = Tokenizer(models.Unigram([*pieces, *extra], unk_id=2))
    vocabulary.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap()), normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), "▁")]
    )
    vocabulary.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    vocabulary.add_special_tokens([AddedToken(name, normalized=False) for name, _ in [*pieces[:3], *extra]])
    vocabulary.save(str(folder / "tokenizer.json"))
    return folder


def write_gguf(file: Path, pieces: list[tuple[str, float]], kind: str = "t5", unused: int = 28 + v.T5_EXTRA) -> Path:
    """A GGUF file of T5 as llama.cpp makes them: the table is padded with unused pieces."""
    names = [piece for piece, _ in pieces] + [f"[PAD{len(pieces) + number}]" for number in range(unused)]
    scores, types = [score for _, score in pieces] + [-10000.0] * unused, [3, 3, 2] + [1] * (len(pieces) - 3)
    writer = gguf.GGUFWriter(str(file), "t5encoder")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(names)
    writer.add_token_scores(scores)
    writer.add_token_types(types + [5] * unused)
    writer.add_precompiled_charsmap(charsmap())
    writer.add_tensor("x", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def field(number: int, data: bytes) -> bytes:
    """One field of a protocol buffer message, with bytes in it."""
    length, size = b"", len(data)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


def write_spiece(folder: Path, pieces: list[tuple[str, float]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    parts = [field(1, field(1, piece.encode()) + b"\x15" + struct.pack("<f", score)) for piece, score in pieces]
    normaliser = field(1, b"nmt_nfkc") + field(2, charsmap()) + b"\x18\x01"
    (folder / "spiece.model").write_bytes(b"".join([*parts, field(2, b"how it was trained"), field(3, normaliser)]))
    return folder


def test_gguf_and_sentencepiece_files_give_the_ids_of_the_published_one(
    t5_folder: Path, pieces: list[tuple[str, float]], tmp_path: Path
) -> None:
    published = v.load_t5(t5_folder)
    ours = [v.load_t5_gguf(write_gguf(tmp_path / "t5.gguf", pieces)), v.load_t5(write_spiece(tmp_path, pieces))]
    wide, narrow = (published.vocabulary.encode(text).ids for text in ("Ａ cat", "A cat"))
    assert wide == narrow, "the table of characters is at work"
    for one in ours:
        assert one is not None and one.vocabulary.get_vocab() == published.vocabulary.get_vocab()
        assert ids(one) == ids(published) and (one.end, one.pad, one.length) == (1, 0, 256)


def test_gguf_files_without_the_tables_of_t5_carry_none(tmp_path: Path, pieces: list[tuple[str, float]]) -> None:
    assert v.load_t5_gguf(write_gguf(tmp_path / "t5.gguf", pieces, kind="llama")) is None
    (tmp_path / "x.gguf").write_bytes(b"no GGUF")
    assert v.load_t5_gguf(tmp_path / "x.gguf") is None


@pytest.mark.parametrize("cut", [1, 40, 300, 5000])
def test_a_damaged_sentencepiece_model_is_named(tmp_path: Path, pieces: list[tuple[str, float]], cut: int) -> None:
    file = write_spiece(tmp_path, pieces) / "spiece.model"
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(FileFormatError, match=r"spiece\.model"):
        v.load_t5(tmp_path)


# -- places ------------------------------------------------------------------------------------------------------------


def test_a_gguf_file_needs_no_other_file(tmp_path: Path, pieces: list[tuple[str, float]]) -> None:
    file = write_gguf(tmp_path / "t5xxl.gguf", pieces)
    found = f.find_t5(file, [], vocabulary=len(pieces) + v.T5_EXTRA + 28)
    assert found.vocabulary.token_to_id("<extra_id_0>") == len(pieces) + 99


@pytest.mark.parametrize(
    "repository", ["models--black-forest-labs--FLUX.1-dev", "models--google--t5-v1_1-xxl"], ids=["pipeline", "encoder"]
)
def test_t5_is_found_in_the_hugging_face_cache(
    tmp_path: Path, pieces: list[tuple[str, float]], repository: str
) -> None:
    below = "tokenizer_2" if "FLUX" in repository else ""
    write_spiece(tmp_path / "cache" / repository / "snapshots" / "0123" / below, pieces)
    assert f.find_t5(None, [], vocabulary=len(pieces) + v.T5_EXTRA).length == 256


def test_clip_is_found_in_a_comfyui_in_the_cache_and_in_a_package(
    clip_folder: Path, pair_list: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> bool:
        return f.find_clip(None, [], vocabulary=f.CLIP_VOCABULARY).end == f.CLIP_VOCABULARY - 1

    with pytest.raises(MissingFileError, match="instant-clip-tokenizer"):
        found()
    _copy(clip_folder, tmp_path / "home" / "ComfyUI" / "comfy" / "sd1_tokenizer")
    assert found()
    (tmp_path / "home" / "ComfyUI").rename(tmp_path / "mine")
    with pytest.raises(MissingFileError):
        found()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "mine"))
    assert found()
    monkeypatch.delenv("COMFYUI_PATH")
    snapshot = tmp_path / "cache" / "models--openai--clip-vit-large-patch14" / "snapshots" / "0123"
    _copy(clip_folder, snapshot)
    assert found()
    snapshot.rename(tmp_path / "moved")
    package = tmp_path / "package"
    package.mkdir()
    (package / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(pair_list))
    monkeypatch.setattr(f, "package_folder", lambda name: package if name == "open_clip" else None)
    assert found()


def test_tokenizers_are_found_in_every_store(clip_folder: Path, t5_folder: Path) -> None:
    weights = clip_folder.parent.parent / "text_encoders" / "clip_l.safetensors"
    size = v.load_clip(clip_folder).vocabulary.get_vocab_size()
    assert f.find_clip(weights, [], vocabulary=size) is not None
    assert f.find_clip(None, [t5_folder.parent, clip_folder.parent], vocabulary=size, length=9).length == 9
    t5_size = v.load_t5(t5_folder).vocabulary.get_vocab_size()
    assert f.find_t5(None, [clip_folder.parent, t5_folder.parent], vocabulary=t5_size + 28).length == 256


@pytest.mark.parametrize(
    ("weights", "place"),
    [
        ("text_encoders/my_clip.safetensors", "text_encoders/my_clip"),
        ("text_encoder/model.safetensors", "tokenizer"),
        ("text_encoder/model.safetensors", "text_encoder"),
        ("text_encoders/x.safetensors", "tokenizers/openai/clip-vit-large-patch14"),
    ],
)
def test_tokenizers_are_found_in_the_usual_places(clip_folder: Path, tmp_path: Path, weights: str, place: str) -> None:
    _copy(clip_folder, tmp_path / place)
    size = v.load_clip(clip_folder).vocabulary.get_vocab_size()
    assert f.find_clip(tmp_path / weights, [], vocabulary=size).vocabulary.get_vocab_size() == size


def test_tokenizers_are_found_in_a_comfyui_around_the_store(clip_folder: Path, tmp_path: Path) -> None:
    _copy(clip_folder, tmp_path / "comfy" / "sd1_tokenizer")
    size = v.load_clip(clip_folder).vocabulary.get_vocab_size()
    assert f.find_clip(None, [tmp_path / "models" / "tokenizers"], vocabulary=size) is not None


def test_a_tokenizer_of_another_encoder_is_passed_over(clip_folder: Path, t5_folder: Path) -> None:
    with pytest.raises(MissingFileError, match="belongs to another encoder"):
        f.find_clip(None, [clip_folder.parent], vocabulary=1000)
    with pytest.raises(MissingFileError, match="t5xxl"):
        f.find_t5(None, [clip_folder.parent], vocabulary=32128)


def test_a_missing_tokenizer_says_what_is_needed_and_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"merges\.txt.*openai/clip-vit-large-patch14.*tokenizers/clip_l"):
        f.find_clip(None, [tmp_path], vocabulary=49408)
    with pytest.raises(MissingFileError, match=r"spiece\.model.*google/t5-v1_1-xxl.*tokenizers/t5xxl"):
        f.find_t5(None, [tmp_path], vocabulary=32128)


def test_a_broken_tokenizer_file_is_named(clip_folder: Path, tmp_path: Path) -> None:
    _copy(clip_folder, tmp_path / "clip")
    (tmp_path / "clip" / "merges.txt").write_text("one-word-only\n")
    with pytest.raises(FileFormatError, match=r"merges\.txt"):
        v.load_clip(tmp_path / "clip")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(FileFormatError, match=r"tokenizer\.json"):
        v.load_t5(tmp_path)
    v.load_clip(clip_folder).vocabulary.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(FileFormatError, match="</s>"):
        v.load_t5(tmp_path)


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
