"""The losses of a LoRA training, as tables and drawings.

The loss of a single step says little, because it depends on the noise level t. So there are averages for four ranges of
t, and the loss of a fixed validation set, which first falls and later rises.

    loss.csv         step, t, loss, rate, seconds, norm        one row for each image of a step
    validation.csv   step, loss
    loss.svg, loss.png
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...io.saving import write_whole

BANDS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.01))
COLOURS = ("#4e79a7", "#59a14f", "#f28e2b", "#e15759", "#222222")
MEMORY = 0.95  # weight of the drawn moving average
WIDTH, HEIGHT, MARGIN = 760, 400, 46


@dataclass(frozen=True)
class Row:
    """One image of a step: its noise level and loss; the norm of the step's gradients."""

    step: int
    t: float
    loss: float
    rate: float
    seconds: float
    norm: float


FIELDS = ("step", "t", "loss", "rate", "seconds", "norm")
Points = list[tuple[float, float]]


class Curve:
    """The losses of one training, kept in its folder."""

    def __init__(self, folder: Path, until: int) -> None:
        """until: the step at which a run continues; later rows are removed because those steps are repeated."""
        self.folder = folder
        self.rows = [row for row in _rows(folder / "loss.csv") if row.step <= until]
        self.validation = [(s, v) for s, v in _validation(folder / "validation.csv") if s <= until]

    def add(self, row: Row) -> None:
        self.rows.append(row)

    def add_validation(self, step: int, loss: float) -> None:
        self.validation = [(s, v) for s, v in self.validation if s != step] + [(step, loss)]

    def save(self) -> None:
        """Write the tables and drawings."""
        rows = ((r.step, f"{r.t:.5f}", f"{r.loss:.6f}", f"{r.rate:.3g}", f"{r.seconds:.3f}", f"{r.norm:.5f}")
                for r in self.rows)  # fmt: skip
        write_whole(self.folder / "loss.csv", _csv(FIELDS, rows))
        write_whole(
            self.folder / "validation.csv", _csv(("step", "loss"), ((s, f"{v:.6f}") for s, v in self.validation))
        )
        lines = self.lines()
        write_whole(self.folder / "loss.svg", svg(lines, "steps", "loss").encode())
        write_whole(self.folder / "loss.png", png(lines, "steps", "loss"))

    def lines(self) -> dict[str, Points]:
        """The drawn lines, by their legend."""
        found: dict[str, Points] = {}
        for low, high in BANDS:
            points = smoothed([(row.step, row.loss) for row in self.rows if low <= row.t < high])
            if points:
                found[f"t {low:g} to {min(high, 1):g}"] = points
        if self.validation:
            found["validation"] = [(float(step), value) for step, value in self.validation]
        return found


def smoothed(points: Sequence[tuple[float, float]]) -> Points:
    """An exponential average, without the bias of its beginning."""
    total, weight, found = 0.0, 0.0, []
    for step, value in points:
        total, weight = MEMORY * total + (1 - MEMORY) * value, MEMORY * weight + (1 - MEMORY)
        found.append((float(step), total / weight))
    return found


def svg(lines: dict[str, Points], across: str, up: str) -> str:
    """A line chart as an SVG document."""
    frame = _Frame(lines)
    look = 'font-family="sans-serif" font-size="12"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {look}>',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']  # fmt: skip
    for (x1, y1, x2, y2), (tx, ty), text, anchor in frame.ticks():
        parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{tx:.1f}" y="{ty:.1f}" text-anchor="{anchor}" fill="#555">{text}</text>')
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(frame.place, points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(f'<text x="{WIDTH - 150}" y="{20 + 16 * number}" fill="{colour}">{name}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle" fill="#555">{across}</text>')
    parts.append(f'<text x="8" y="16" fill="#555">{up}</text></svg>')
    return "\n".join(parts)


def png(lines: dict[str, Points], across: str, up: str) -> bytes:
    """The same chart as a PNG."""
    from PIL import Image, ImageDraw

    frame, image = _Frame(lines), Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    anchors = {"end": "rs", "middle": "ms"}
    for line, place, text, anchor in frame.ticks():
        draw.line(line, fill="#dddddd")
        draw.text(place, text, fill="#555555", anchor=anchors[anchor])
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        placed = [frame.place(point) for point in points]
        if len(placed) > 1:
            draw.line(placed, fill=colour, width=2)
        draw.text((WIDTH - 150, 8 + 16 * number), name, fill=colour)
    draw.text((WIDTH / 2, HEIGHT - 6), across, fill="#555555", anchor="ms")
    draw.text((8, 6), up, fill="#555555")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class _Frame:
    """The axes of a chart."""

    def __init__(self, lines: dict[str, Points]) -> None:
        points = [point for line in lines.values() for point in line] or [(0.0, 0.0)]
        self.right = max([x for x, _ in points] + [1.0])
        low, high = min(y for _, y in points), max(y for _, y in points)
        room = (high - low) * 0.05 or max(abs(high) * 0.1, 0.1)
        self.low, self.high = low - room, high + room

    def place(self, point: tuple[float, float]) -> tuple[float, float]:
        x, y = point
        across = MARGIN + x / self.right * (WIDTH - MARGIN - 14)
        return across, HEIGHT - MARGIN + 10 - (y - self.low) / (self.high - self.low) * (HEIGHT - MARGIN - 14)

    def ticks(self) -> Iterator[tuple[tuple[float, float, float, float], tuple[float, float], str, str]]:
        """Grid lines, positions of their labels, the labels and their alignment."""
        for part in range(5):
            value = self.low + (self.high - self.low) * part / 4
            _, y = self.place((0, value))
            yield (MARGIN, y, WIDTH - 14, y), (MARGIN - 4, y + 4), f"{value:.3g}", "end"
            x, bottom = self.place((self.right * part / 4, self.low))
            yield (x, bottom, x, bottom + 4), (x, bottom + 18), f"{self.right * part / 4:.0f}", "middle"


def _csv(fields: Sequence[str], rows: Iterator[tuple[object, ...]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(fields)
    writer.writerows(rows)
    return text.getvalue().encode()


def _rows(path: Path) -> Iterator[Row]:
    for values in _read(path):
        if len(values) == len(FIELDS):
            yield Row(int(values[0]), *map(float, values[1:]))


def _validation(path: Path) -> Iterator[tuple[int, float]]:
    for values in _read(path):
        if len(values) == 2:
            yield int(values[0]), float(values[1])


def _read(path: Path) -> Iterator[list[str]]:
    if path.is_file():
        yield from list(csv.reader(path.read_text("utf-8").splitlines()))[1:]
