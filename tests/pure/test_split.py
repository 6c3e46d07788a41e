"""The shares of tokens, heads and rows: each belongs to exactly one device, and impossible shares are refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sluice.flux_core.errors import InputError
from sluice.flux_core.parallel.split import Split, Tokens, exchanged_bytes, gathered_bytes, parsed_shares, spans


@given(st.integers(0, 500), st.one_of(st.integers(1, 9), st.lists(st.floats(0.1, 9.0), min_size=1, max_size=6)))
def test_runs_cover_everything_in_order(total: int, shares: int | list[float]) -> None:
    cut = spans(total, shares)
    assert cut[0][0] == 0 and cut[-1][1] == total
    assert all(a[1] == b[0] for a, b in zip(cut, cut[1:], strict=False)) and all(start <= end for start, end in cut)
    if isinstance(shares, int):
        lengths = [end - start for start, end in cut]
        assert len(cut) == shares and max(lengths) - min(lengths) <= 1
    else:
        wanted = [total * share / sum(shares) for share in shares]
        assert all(abs(end - start - want) <= 1 for (start, end), want in zip(cut, wanted, strict=True))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 5))
def test_places_of_all_devices_are_all_places(text: int, image: int, size: int) -> None:
    tokens = Tokens.of(text, image, size)
    places = [place for rank in range(size) for span in tokens.places(rank) for place in range(*span)]
    assert sorted(places) == list(range(text + image)) and tokens.total == text + image
    assert sum(tokens.count(rank) for rank in range(size)) == text + image


@pytest.mark.parametrize(
    ("text", "devices", "mesh", "expected"),
    [
        ("auto", 2, None, Split(2, 1)), ("sp", 3, None, Split(3, 1)), ("tp", 2, None, Split(1, 2)),
        ("sp4tp2", 8, None, Split(4, 2)), ("sp2-ring", 2, None, Split(2, 1, "ring")), ("tp2", 2, None, Split(1, 2)),
        ("cfg", 3, None, Split(cfg=3)), ("cfg2sp2", 4, None, Split(2, 1, cfg=2)),
        ("((2, 0), (4, 1))", 8, "2x4", Split(2, 4)), ("((4,1),(2,0))", 8, "2x4", Split(4, 2)),
    ],
)  # fmt: skip
def test_ways_to_split_are_read(text: str, devices: int, mesh: str | None, expected: Split) -> None:
    assert Split.parse(text, devices, mesh) == expected


@pytest.mark.parametrize(
    ("text", "devices", "mesh", "said"),
    [
        ("sp4tp2", 4, None, "for 8 devices, and 4 are given"), ("fast", 2, None, "not a way to divide"),
        ("sp-flash", 2, None, "no attention 'flash'"), ("((2, 0), (4, 1))", 8, None, "written --mesh 2x4"),
        ("((2, 0), (4, 0))", 8, "2x4", "each used once"), ("((4, 0), (2, 1))", 8, "2x4", "has 2 and 4 devices there"),
        ("((2, 0), (4, 1))", 6, "2x4", "has 8 devices, and 6 are given"), ("", 2, None, "not a way to divide"),
        ("sp0tp2", 2, None, "for 0 devices"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(text: str, devices: int, mesh: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Split.parse(text, devices, mesh)


def test_too_few_heads_and_wrong_shares_are_refused() -> None:
    Split(3, 1).check(heads=3)
    Split(4, 1, "gather").check(heads=3)
    with pytest.raises(InputError, match="has 3 heads, too few for 4 devices"):
        Split(4, 1).check(heads=3)
    assert parsed_shares("2,1", 2) == (2.0, 1.0) and parsed_shares(None, 3) == 3
    for wrong in ("1", "1,0", "1,x", "1,2,3"):
        with pytest.raises(InputError, match="takes 2 positive numbers"):
            parsed_shares(wrong, 2)


@pytest.mark.parametrize(
    ("split", "gigabytes"),
    [(Split(2), 1.61), (Split(4), 1.21), (Split(8), 0.71), (Split(4, 1, "gather"), 2.42), (Split(8, 1, "ring"), 2.82)],
)
def test_bytes_of_a_step_at_1024_squared_are_those_of_the_study(split: Split, gigabytes: float) -> None:
    assert abs(exchanged_bytes(split, 57, 1, 4608, 3072, 2) / 1e9 - gigabytes) < 0.006


def test_bytes_of_divided_rows_at_1024_squared() -> None:
    sizes = SimpleNamespace(depth=19, depth_single=38, hidden=3072, mlp=12288)
    assert abs(gathered_bytes(Split(1, 2), sizes, 1, 4608, 2) / 1e9 - 6.72) < 0.01
