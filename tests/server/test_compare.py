"""Blind votes through the routes; the rates equal an independent computation. Sixty pairs: tests/web."""

from __future__ import annotations

import csv
import io
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from doubles.client import Server
from doubles.comparison import NAMES, comparison, setting_of, wilson
from PIL import Image
from sluice.flux_core.server.votes import rate


def test_two_people_judge_all_pairs_blindly(start: Callable[..., Server]) -> None:
    server = start()
    assert server.get("/sluice/comparisons").json == []
    comparison(server.base / "output", 5)  # 3 pairs of settings for each prompt: 15 pairs
    assert [one["name"] for one in server.get("/sluice/comparisons").json] == ["three ways"]
    chance, score, seen = random.Random(1), Counter[tuple[str, str]](), Counter[str]()
    for voter in ("Ada", "Ben"):
        judged: set[tuple[str, frozenset[str]]] = set()
        for _ in range(15):
            pair = server.post("/sluice/comparisons/draw", {"comparison": "three ways", "voter": voter}).json
            shown = [shown_by(server.get(pair[side]).body) for side in ("left", "right")]
            seen[shown[0]] += 1
            assert not any(name in json.dumps(pair) for name in NAMES), "the pair does not tell its settings"
            judged.add((pair["prompt"], frozenset(shown)))
            choice = chance.choice(["left", "left", "right", "same"])
            server.post("/sluice/comparisons/vote", {"pair": pair["pair"], "choice": choice})
            for side, word in enumerate(("left", "right")):
                outcome = "tie" if choice == "same" else "win" if choice == word else "loss"
                score[shown[side], outcome] += 1
        assert len(judged) == 15, "nobody is asked twice"
        done = server.post("/sluice/comparisons/draw", {"comparison": "three ways", "voter": voter}).json
        assert done == {"judged": 15}
    told = server.get("/sluice/comparisons/three%20ways/votes").json
    assert told["voters"] == ["Ada", "Ben"] and all(0 < seen[name] < 20 for name in NAMES), "left and right by chance"
    for row in told["settings"]:
        wins, losses, ties = (score[row["name"], outcome] for outcome in ("win", "loss", "tie"))
        assert (row["wins"], row["losses"], row["ties"]) == (wins, losses, ties) and wins + losses + ties == 20
        low, high = wilson((wins + ties / 2) / 20, 20)
        assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-12)
    lines = list(csv.DictReader(io.StringIO(server.get("/sluice/comparisons/three%20ways/votes.csv").body.decode())))
    preferred = Counter(line["preferred"] for line in lines)
    assert len(lines) == 30 and all(preferred[name] == score[name, "win"] for name in NAMES)


def shown_by(image: bytes) -> str:
    """The setting of an image; the file carries no text that would tell."""
    with Image.open(io.BytesIO(image)) as opened:
        assert opened.info == {}
        pixel: Any = opened.getpixel((0, 0))
    return setting_of(pixel)


def test_bad_requests_are_answered_and_files_stay_inside(server: Server) -> None:
    comparison(server.base / "output", 1)
    name = "/sluice/comparisons/three%20ways"
    assert server.get("/sluice/compare").status == server.get("/sluice/compare/vote.mjs").status == 200
    assert server.get(f"{name}/files/index.html").body == b"<p>side by side"
    assert server.get(f"{name}/files/0/000-1.png").status == 200
    assert server.get(f"{name}/files/..%2F..%2Fsecret.png").status in (403, 404)
    assert server.get("/sluice/comparisons/..%2F..%2F/votes").status in (403, 404)
    assert server.get("/sluice/comparisons/none/votes").status == 404
    assert server.get("/sluice/comparisons/pairs/99999/left").status == 403
    for body in ({"pair": 99999, "choice": "left"}, {"pair": "1", "choice": "left"}, {"choice": "left"}):
        assert server.post("/sluice/comparisons/vote", body).status == 403
    pair = server.post("/sluice/comparisons/draw", {"comparison": "three ways", "voter": "x"}).json["pair"]
    assert server.post("/sluice/comparisons/vote", {"pair": pair, "choice": "best"}).status == 403
    assert server.post("/sluice/comparisons/draw", {"comparison": "three ways", "voter": " "}).status == 403


def test_without_votes_there_is_no_rate() -> None:
    assert (rate(0, 0, 0).rate, rate(0, 0, 0).low) == (None, None)
    assert rate(0, 5, 0).low == pytest.approx(0, abs=1e-12) and (rate(5, 0, 0).high or 0) == pytest.approx(1)
