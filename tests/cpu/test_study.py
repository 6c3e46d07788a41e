"""`sluice train study`: both laws are found if they hold, and runs in the table are not run again."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from sluice.flux_core.commands.cli import main
from sluice.flux_core.training.digits.data import draw as draw_digits
from sluice.flux_core.training.study import Run, fits, read, summary


def runs(loss_of: dict[str, float], law: str) -> list[Run]:
    made = []
    for hidden in (32, 64, 128, 256):
        for seed in range(2):
            count = 100 * hidden**2
            if law == "log":
                loss = -(loss_of["a"] * math.log(count) + loss_of["b"])
            else:
                loss = loss_of["least"] + loss_of["factor"] * count ** -loss_of["exponent"]
            made.append(Run(hidden, seed, 10, 4, count, count, 1e9, 1.0, loss))
    return made


def test_each_law_is_found_where_it_holds() -> None:
    log, power = fits(runs({"a": 0.05, "b": -1.2}, "log"))
    assert log.coefficients == pytest.approx((0.05, -1.2)) and log.explained == pytest.approx(1.0)
    log, power = fits(runs({"least": 0.1, "factor": 30.0, "exponent": 0.5}, "power"))
    assert power.coefficients == pytest.approx((0.1, 30.0, 0.5), rel=0.05) and power.explained > 0.9999
    assert log.explained < 0.99 and max(map(abs, log.residuals)) > 10 * max(map(abs, power.residuals))


def test_a_study_is_a_table_and_a_figure_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sluice.flux_core.training.digits.data.draw", lambda seed: draw_digits(seed, 40))
    monkeypatch.setattr("sluice.flux_core.training.study.TRIPLES", 16)
    monkeypatch.setattr("sluice.flux_core.training.study.AT_ONCE", 8)
    words = ["train", "study", "--out", str(tmp_path), "--steps", "2", "--batch", "2", "--device", "cpu"]
    words += ["--widths", "32", "64", "96"]
    assert main([*words, "--seeds", "1"]) == 0
    before = read(tmp_path / "study.csv")
    assert [run.hidden for run in before] == [32, 64, 96] and all(math.isfinite(run.loss) for run in before)
    assert main([*words, "--seeds", "2"]) == 0
    after = read(tmp_path / "study.csv")
    assert after[:3] == before and len(after) == 6 and "R²" in capsys.readouterr().out
    assert (tmp_path / "study.svg").stat().st_size > 1000 < (tmp_path / "study.png").stat().st_size
    assert len(summary(after)) == 6
    assert main([*words[:-1], "--seeds", "1"]) == 1
    assert "three different multiples of 32" in capsys.readouterr().err
