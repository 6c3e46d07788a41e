"""Prompts to conditioning: the weight formula, what each encoder contributes, and the cache."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from sluice.flux_core.conditioning import text as e
from sluice.flux_core.conditioning.tokenizer import ClipTokenizer, Row, T5Tokenizer, Vector
from sluice.flux_core.errors import InputError
from sluice.flux_core.models.clip_text import ClipConfig, ClipTextModel
from sluice.flux_core.models.t5 import T5Config, T5Encoder
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

WORDS = 20
CPU = torch.device("cpu")


def words(*special: str) -> Tokenizer:
    ids = {f"w{i}": i for i in range(WORDS - len(special))}
    ids |= {word: WORDS - len(special) + i for i, word in enumerate(special)}
    vocabulary = Tokenizer(models.WordLevel(ids, unk_token="w0"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return vocabulary


CLIP = ClipTokenizer(words("start", "end"), start=WORDS - 2, end=WORDS - 1, pad=WORDS - 1, length=12)
T5 = T5Tokenizer(words("end", "pad"), end=WORDS - 2, pad=WORDS - 1, length=16)


class Pair:
    """Small random encoders that count their uses."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.clip_model = ClipTextModel(ClipConfig(WORDS, 12, 32, 64, layers=2, heads=2, eos_token_id=CLIP.end))
        self.t5_model = T5Encoder(T5Config(WORDS, 24, 32, 4, 40, layers=3))
        for model in (self.clip_model, self.t5_model):
            model.init_weights()
            for parameter in model.parameters():
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        self.clip_identity: Any = object()
        self.t5_identity: Any = object()
        self.options = e.TextOptions()
        self.encodings = e.Cache()
        self.device = CPU
        self.clip_tokenizer, self.t5_tokenizer = CLIP, T5
        self.asked: list[str] = []
        self.vectors: dict[str, list[Vector]] = {}

    def clip(self) -> ClipTextModel:
        self.asked.append("clip_l")
        return self.clip_model

    def t5(self) -> T5Encoder:
        self.asked.append("t5xxl")
        return self.t5_model

    def embeddings(self, encoder: str) -> Any:
        return self.vectors.get

    def unsound(self, encoder: str) -> str | None:
        return None


def encode(pair: Pair, clip_text: str, t5_text: str | None = None) -> tuple[Tensor, Tensor]:
    pair.encodings = e.Cache()
    ((text, rest),) = e.encode_prompt(pair, clip_text, clip_text if t5_text is None else t5_text)
    return text, rest["pooled_output"]


def t5_states(pair: Pair, row: Row) -> Tensor:
    with torch.no_grad():
        states: Tensor = pair.t5_model(torch.tensor([row.tokens]))
        return states


def test_conditioning_is_t5_states_and_clip_pooled() -> None:
    pair = Pair()
    text, pooled = encode(pair, "w1 w2", "w3 w4 w5")
    torch.testing.assert_close(text, t5_states(pair, T5.row("w3 w4 w5")))
    with torch.no_grad():
        torch.testing.assert_close(pooled, pair.clip_model(torch.tensor([CLIP.rows("w1 w2")[0].tokens]))[1])
    assert text.shape == (1, 16, 24) and pooled.shape == (1, 32)
    assert text.dtype == pooled.dtype == torch.float32


REFERENCE = Path(__file__).parents[1] / "fixtures" / "text_encode.safetensors"


def test_conditioning_equals_that_of_comfyui(fill: Any) -> None:
    """Prompts with weights, in several chunks and of an earlier layer, on the same small encoders."""
    pair = Pair()
    fill(pair.clip_model), fill(pair.t5_model)
    with safe_open(REFERENCE, "pt") as reference:
        for number, prompt in enumerate(json.loads(reference.metadata()["prompts"])):
            for last_layer in (None, -2):
                pair.options = e.TextOptions(last_layer=last_layer)
                text, pooled = encode(pair, prompt)
                torch.testing.assert_close(text, reference.get_tensor(f"{number}.text{last_layer or ''}"))
                torch.testing.assert_close(pooled, reference.get_tensor(f"{number}.pooled"))


def test_a_weight_moves_a_token_along_the_line_from_the_empty_prompt() -> None:
    pair = Pair()
    row = T5.row("w1 (w2:1.4) w3 (w4 w5:-0.5)")
    z, empty = t5_states(pair, row), t5_states(pair, T5.empty_row(16))
    w = torch.tensor(row.weights)[None, :, None]
    text, _ = encode(pair, "", "w1 (w2:1.4) w3 (w4 w5:-0.5)")
    torch.testing.assert_close(text, z * w + empty * (1 - w))


def test_tokens_of_weight_one_are_what_they_are_without_weights() -> None:
    pair = Pair()
    plain, _ = encode(pair, "w1 w2 w3")
    weighted, _ = encode(pair, "w1 (w2:7) w3")
    same = torch.tensor([0, 2, *range(3, 16)])
    torch.testing.assert_close(weighted[:, same], plain[:, same])
    assert (weighted[:, 1] - plain[:, 1]).abs().max() > 0.1


def test_weight_zero_leaves_the_empty_prompt() -> None:
    pair = Pair()
    text, _ = encode(pair, "", "(w1 w2:0)")
    torch.testing.assert_close(text[:, :2], t5_states(pair, T5.empty_row(16))[:, :2])


def test_pooled_is_of_the_first_chunk_and_knows_no_weights() -> None:
    pair = Pair()
    first = " ".join(f"w{i}" for i in range(1, 11))
    _, pooled = encode(pair, first)
    assert torch.equal(encode(pair, first + " w11 w12")[1], pooled)
    assert torch.equal(encode(pair, f"({first}:0.3)")[1], pooled)
    assert not torch.equal(encode(pair, first.replace("w3", "w4"))[1], pooled)


def test_an_end_token_in_the_prompt_ends_what_is_pooled() -> None:
    pair = Pair()
    assert torch.allclose(encode(pair, "w1 end w2 w3")[1], encode(pair, "w1")[1], atol=1e-6)


def test_last_layer_counts_blocks_from_the_end() -> None:
    pair = Pair()
    plain, pooled = encode(pair, "w1 w2")
    for last_layer, layer in ((-1, 2), (-2, 1), (-3, 0), (-4, 2), (-24, 2)):
        pair.options = e.TextOptions(last_layer=last_layer)
        text, same_pooled = encode(pair, "w1 w2")
        with torch.no_grad():
            expected = pair.t5_model(torch.tensor([T5.row("w1 w2").tokens]), layer)
        torch.testing.assert_close(text, expected)
        assert torch.equal(same_pooled, pooled)


def test_row_options_reach_t5() -> None:
    pair = Pair()
    pair.options = e.TextOptions(min_length=0)
    assert encode(pair, "w1 w2")[0].shape[1] == 3
    pair.options = e.TextOptions(min_length=0, min_padding=5)
    assert encode(pair, "w1 w2")[0].shape[1] == 8


def test_a_vector_acts_as_the_token_whose_embedding_it_is() -> None:
    pair = Pair()
    clip_table = pair.clip_model.text_model.embeddings.token_embedding.weight
    for table, which in ((clip_table, 1), (pair.t5_model.shared.weight, 0)):
        pair.vectors = {"style": [Vector("file", i, table[i + 4].detach().half()) for i in range(2)]}
        expected = encode(pair, "w1 w4 w5 w2")[which]
        torch.testing.assert_close(encode(pair, "w1 embedding:style w2")[which], expected, atol=2e-3, rtol=2e-3)


def test_a_vector_of_another_width_makes_way_for_padding(caplog: pytest.LogCaptureFixture) -> None:
    pair = Pair()
    pair.vectors = {"style": [Vector("file", 0, torch.zeros(7))]}
    text, pooled = encode(pair, "w1 embedding:style w2")
    plain, plain_pooled = encode(pair, "w1 w2")
    torch.testing.assert_close(text, plain)
    torch.testing.assert_close(pooled, plain_pooled)
    assert "24 wide" in caplog.text and "32 wide" in caplog.text


def test_a_tokenizer_that_knows_more_words_than_the_encoder_is_refused() -> None:
    pair = Pair()
    pair.t5_tokenizer = dataclasses.replace(T5, pad=WORDS + 5)
    with pytest.raises(InputError, match="do not belong together"):
        encode(pair, "w1")


# -- cache -----------------------------------------------------------------------------------------------------------


def test_the_same_prompt_asks_no_encoder_twice_and_a_changed_half_only_its_own() -> None:
    pair = Pair()
    first = e.encode_prompt(pair, "w1", "w2")
    again = e.encode_prompt(pair, "w1", "w2")
    assert pair.asked == ["t5xxl", "clip_l"]
    assert torch.equal(first[0][0], again[0][0]) and first[0] is not again[0] and first[0][1] is not again[0][1]
    e.encode_prompt(pair, "w3", "w2")
    assert pair.asked[2:] == ["clip_l"]
    e.encode_prompt(pair, "w3", "(w2:1.1)")
    assert pair.asked[3:] == ["t5xxl"]


def test_what_changes_the_numbers_changes_the_key() -> None:
    pair = Pair()
    e.encode_prompt(pair, "w1", "w1")
    pair.options = e.TextOptions(last_layer=-2)
    e.encode_prompt(pair, "w1", "w1")
    pair.clip_identity = "with a LoRA"
    e.encode_prompt(pair, "w1", "w1")
    assert pair.asked[3:] == ["clip_l"]
    pair.t5_identity = "with a LoRA of its own"
    e.encode_prompt(pair, "w1", "w1")
    for source in ("file", "the same file, written again"):
        pair.vectors = {"style": [Vector(source, 0, torch.full((24,), float(len(source))))]}
        e.encode_prompt(pair, "w1", "w1 embedding:style")
    assert pair.asked == ["t5xxl", "clip_l", "t5xxl", "clip_l", "t5xxl", "t5xxl", "t5xxl"]


def test_the_cache_keeps_to_its_bytes_and_drops_what_was_not_used_longest() -> None:
    cache = e.Cache(limit=1000)
    computed: list[int] = []

    def ask(key: int) -> Tensor:
        def compute() -> Tensor:
            computed.append(key)
            return torch.zeros(100)  # 400 bytes

        return cache.get(key, compute)

    for key in (1, 2, 1, 3, 1, 2):
        ask(key)
    assert computed == [1, 2, 3, 2]
    assert cache.nbytes <= 1000
    cache.clear()
    assert cache.nbytes == 0
