"""`sluice compare`: settings as lines, likeness of images, results that are kept, and the whole command once."""

from __future__ import annotations

import json
import math
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
import sluice
from PIL import Image
from sluice.flux_core.compare import command
from sluice.flux_core.compare.results import Made, Price, Results, open_results, read, rows
from sluice.flux_core.compare.setting import parse, parse_all
from sluice.flux_core.errors import InputError, SluiceError
from sluice.flux_core.images.labelled_grid import labelled_grid
from sluice.flux_core.images.similarity import psnr, ssim

WORKFLOW = Path(__file__).parents[2] / "workflows/text_to_image.png"


def test_a_setting_is_the_rest_of_a_run_line() -> None:
    named = parse('fast one: "a folder/dev.png" --cache fast')
    assert (named.name, named.workflow, named.settings.cache) == ("fast one", Path("a folder/dev.png"), "fast")
    plain = parse("dev.png --set steps=4 --set 'Prompt.text=a fox' --vram 8G")
    assert (plain.name, plain.values) == (
        "dev --set steps=4 --set 'Prompt.text=a fox' --vram 8G",
        ("steps=4", "Prompt.text=a fox"),
    )
    assert plain.settings.budget.vram == 8 << 30
    assert parse("C:/models/dev.png").workflow == Path("C:/models/dev.png")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dev.png --cash fast", "^'dev.png --cash fast' is no setting: unrecognized arguments: --cash fast. Write it"),
        ("--cache fast", "required: workflow"),
        ("dev.png 'half", "No closing quotation"),
        ("dev.png --dtype fp64", "invalid choice"),
    ],
)
def test_what_is_no_setting_is_explained(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse(text)


def test_two_settings_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="give each a name"):
        parse_all(["dev.png", "dev.png"])


def images(seed: int, size: int = 40) -> tuple[Image.Image, Image.Image]:
    made = np.random.default_rng(seed)
    one = made.integers(0, 256, (size, size, 3))
    other = np.clip(one + made.integers(-40, 41, one.shape), 0, 255)
    return Image.fromarray(one.astype(np.uint8)), Image.fromarray(other.astype(np.uint8))


def ssim_by_loops(one: Image.Image, other: Image.Image) -> float:
    """The formula of the paper for each window, one after another."""
    a, b = (np.asarray(image, dtype=np.float64) for image in (one, other))
    at = np.arange(-5, 6)
    weights = np.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    found = []
    for channel in range(3):
        for top in range(a.shape[0] - 10):
            for left in range(a.shape[1] - 10):
                x, y = (image[top : top + 11, left : left + 11, channel] for image in (a, b))
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                covariance = (weights * (x - mx) * (y - my)).sum()
                c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                found.append((2 * mx * my + c1) * (2 * covariance + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(found))


def test_likeness_equals_the_formulas_written_out() -> None:
    one, other = images(1)
    found, error = ssim(one, other), np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2)
    assert found is not None and abs(found - ssim_by_loops(one, other)) < 1e-12
    assert psnr(one, other) == pytest.approx(20 * math.log10(255) - 10 * math.log10(error), abs=1e-9)
    assert psnr(one, one) == math.inf and ssim(one, one) == pytest.approx(1)
    assert psnr(one, images(1, 50)[0]) is None and ssim(*images(1, 8)) is None


def test_seconds_leave_out_the_image_that_loads_the_model(tmp_path: Path) -> None:
    made = [Made(0, n, 1, f"0/{n}.png", seconds, 5, None, None) for n, seconds in enumerate((9.0, 2.0, 4.0))]
    made += [
        Made(1, n, 1, f"1/{n}.png", seconds, 7, ratio, 0.5) for n, seconds, ratio in ((0, 9.0, 40.0), (1, 1.5, "equal"))
    ]
    results = Results([{"name": n, "words": n} for n in "ab"], ["x", "y", "z"], [1], "here", made)
    first, second = rows(results, Price(watts=500, per_kwh=0.3))
    assert (first["seconds"], second["seconds"], second["speed_up"]) == (3.0, 1.5, 2.0)
    assert (second["psnr"], second["psnr_worst"], second["peak_bytes"]) == (40.0, 40.0, 7)
    assert first["cost"] == pytest.approx(0.5 * 0.3 * 3 / 3600)
    results.save(tmp_path)
    assert read(tmp_path) == results == open_results(tmp_path, Results(results.settings, results.prompts, [1], "here"))
    with pytest.raises(SluiceError, match="another comparison"):
        open_results(tmp_path, Results(results.settings, ["other"], [1], "here"))


def test_our_prompts_are_at_least_sixty_and_all_different() -> None:
    prompts = command._prompts(command.PROMPTS)
    assert len(prompts) == len(set(prompts)) >= 60


def test_a_grid_of_two_inputs_carries_the_workflow_that_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command makes each cell by itself, the node grows a graph with all of them: the images are the same."""
    monkeypatch.chdir(tmp_path)
    parser = ArgumentParser()
    command.add_arguments(parser)
    axes = ["--x", "BasicScheduler.steps=1,2", "--y", "Prompt.text=a red circle, left;a blue star"]
    assert command.run(parser.parse_args([f"{WORKFLOW} --dtype fp32", *axes, "--seeds", "5", "--json"])) == 0
    (grid,) = json.loads(capsys.readouterr().out)["grids"]
    with Image.open(grid) as made:
        (again,) = sluice.workflow(grid, device="cpu", dtype="fp32", ram="8G")(progress=False)
        assert made.size > (2 * 128, 2 * 128) and again.convert("RGB").tobytes() == made.convert("RGB").tobytes()
        prompt = json.loads(made.info["prompt"])
    (node,) = (node for node in prompt.values() if node["class_type"] == "SluiceXYGrid")
    assert (node["inputs"]["x"], node["inputs"]["y"]) == (axes[1], axes[3])
    with pytest.raises(InputError, match="made of one setting"):
        command.run(parser.parse_args([str(WORKFLOW), f"b: {WORKFLOW}", *axes]))


def test_labels_stand_above_columns_and_beside_rows() -> None:
    cells = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue", "white")]
    grid = labelled_grid(cells, ["a", "a long label of several words"], ["", ""])
    left, top = grid.size[0] - 2 * 44, grid.size[1] - 2 * 34
    assert left == 0 and top > 30 and grid.getpixel((left + 1, top + 1)) == (255, 0, 0)
    assert grid.getpixel((left + 45, top + 35)) == (255, 255, 255) and grid.getpixel((left + 1, top + 35)) == (
        0,
        0,
        255,
    )
    plain = labelled_grid(cells, ["", ""], ["one", "two"])
    assert plain.size[1] == 2 * 34 and plain.size[0] > 2 * 44
    with pytest.raises(ValueError, match="3 images for 2 columns and 2 rows"):
        labelled_grid(cells[:3], ["", ""], ["", ""])


def test_a_comparison_is_made_shown_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red circle\n\n# no prompt\na <b>blue</b> star\n", "utf-8")
    parser = ArgumentParser()
    command.add_arguments(parser)
    line = [
        f"exact: {WORKFLOW} --dtype fp32 --set steps=4",
        f"short: {WORKFLOW} --dtype fp32 --set steps=2",
        f"int8: {WORKFLOW} --dtype bf16 --compute int8 --set steps=4",
        "--prompts",
        "prompts.txt",
    ]
    args = parser.parse_args([*line, "--out", "found", "--seeds", "3", "--json"])
    assert command.run(args) == 0
    told = json.loads(capsys.readouterr().out)
    exact, short, int8 = told["settings"]
    assert (exact["images"], exact["psnr"], exact["speed_up"]) == (2, None, 1.0) and 10 < short["psnr"] < 60
    assert short["psnr"] < int8["psnr"] < 60, "8-bit products are nearer to the exact image than half of the steps"
    page = (tmp_path / "found/index.html").read_text("utf-8")
    assert "&lt;b&gt;blue" in page and page.count("<img") == 6
    results = read(tmp_path / "found")
    assert all((tmp_path / "found" / made.file).is_file() for made in results.images)
    del results.images[-1]
    results.save(tmp_path / "found")
    before = (tmp_path / "found/0/000-3.png").stat().st_mtime_ns
    assert command.run(args) == 0
    assert len(read(tmp_path / "found").images) == 6
    assert (tmp_path / "found/0/000-3.png").stat().st_mtime_ns == before
