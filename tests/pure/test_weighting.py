"""Prompt syntax: parentheses, escapes and embedding names, as in ComfyUI."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sluice.flux_core.conditioning.weighting import EmbeddingName, pieces, segments


def read(prompt: str) -> list[tuple[str, Any]]:
    return [(segment.text, pytest.approx(segment.weight)) for segment in segments(prompt)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("()", []),
        (
            "a (cat:1.3) and ((dog)) in (the [park])",
            [("a ", 1), ("cat", 1.3), (" and ", 1), ("dog", 1.21), (" in ", 1), ("the [park]", 1.1)],
        ),
        (
            "nested (outer (inner:1.5) text:1.2)",
            [("nested ", 1), ("outer ", 1.2), ("inner", 1.5), (" text", 1.2)],
        ),
        ("((a:1.5))", [("a", 1.5)]),
        ("(a:1.2:1.3)", [("a:1.2", 1.3)]),
        ("(:1.2)", [(":1.2", 1.1)]),
        ("(word:abc)", [("word:abc", 1.1)]),
        ("(a:-1)", [("a", -1)]),
        ("(a: 1e-1 )", [("a", 0.1)]),
        ("(((x)))", [("x", 1.331)]),
        (r"escaped \(paren\) text", [("escaped (paren) text", 1)]),
        (r"(a \(b\):0.5)", [("a (b)", 0.5)]),
        ("(a:nan) (b:inf)", [("a:nan", 1.1), (" ", 1), ("b:inf", 1.1)]),
    ],
)
def test_weights_are_read_as_comfyui_reads_them(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert read(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("(a (b) c", [("(a (b) c", 1)]),
        ("x (a (b:1.5)", [("x ", 1), ("a ", 1.5), ("(b", 1.5)]),
        ("a) (b:1.3) c", [("a) (b:1.3) c", 1)]),
        ("a) ((b:1.3)) c", [("a) (", 1), ("b", 1.3), (") c", 1)]),
        ("(", [("(", 1)]),
        (")", [(")", 1)]),
    ],
)
def test_unbalanced_parentheses_count_on(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert read(prompt) == expected


@given(st.text(st.characters(blacklist_characters="()\\", blacklist_categories=["Co", "Cs"])))
def test_text_without_parentheses_is_one_segment(text: str) -> None:
    assert read(text) == ([(text, 1)] if text else [])


@given(st.text(st.sampled_from("ab (:1.2)"), min_size=1))
def test_escaping_every_parenthesis_switches_weights_off(text: str) -> None:
    assert read(text.replace("(", r"\(").replace(")", r"\)")) == [(text, 1)]


@given(st.integers(1, 90))
def test_each_group_multiplies_by_emphasis(depth: int) -> None:
    assert read("(" * depth + "x" + ")" * depth) == [("x", 1.1**depth)]


@pytest.mark.parametrize("prompt", ["(" * 20_000, "(" * 5_000 + ")" * 5_000, "()" * 20_000, ")(" * 20_000])
def test_no_nesting_is_too_deep_to_be_read(prompt: str) -> None:
    assert "".join(segment.text for segment in segments(prompt)).count("(") <= prompt.count("(")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain words", ["plain words"]),
        ("embedding:style", [EmbeddingName("style", "")]),
        ("a embedding:style of  x", ["a", EmbeddingName("style", "of x")]),
        ("a\nembedding:one embedding:two", ["a", EmbeddingName("one", ""), EmbeddingName("two", "")]),
        ("aembedding:style", ["aembedding:style"]),
        ("embedding: x", [EmbeddingName("x", "")]),
        ("embedding:", ["embedding:"]),
    ],
)
def test_embeddings_begin_at_a_space_or_newline(text: str, expected: list[str | EmbeddingName]) -> None:
    assert list(pieces(text)) == expected
