"""A drawn sketch of a canvas as an SVG of a few kilobytes: its nodes as boxes, its links as curves, its title below.

For workflows without an image of their own. It shows the graph and makes no claim about results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, EDGE, CAPTION = 384, 288, 14, 46  # of the drawing, of its margin, of the strip with the title
_TITLE_BAR = 30  # of a node, above its position
_KINDS = (  # (what a class is named like, colour of its box)
    (("Loader",), "#5b6b8c"),
    (("TextEncode", "Guidance", "Conditioning", "ReferenceLatent"), "#4f7d57"),
    (("LoadImage", "ImageScale", "Canny", "VAE", "SaveImage"), "#8a6d3b"),
    (("Sampler", "Sigmas", "Scheduler", "Noise", "Guider", "Sampling"), "#7d5a8c"),
)
_OTHER = "#66707a"


def sketch(canvas: Mapping[str, Any], title: str) -> str:
    """The canvas (the editor's format 0.4) as SVG."""
    nodes = {node["id"]: node for node in canvas["nodes"] if node["type"] != "MarkdownNote"}
    boxes = {number: _box(node) for number, node in nodes.items()}
    left, top = min(b[0] for b in boxes.values()), min(b[1] for b in boxes.values())
    right, bottom = max(b[2] for b in boxes.values()), max(b[3] for b in boxes.values())
    scale = min((WIDTH - 2 * EDGE) / (right - left), (HEIGHT - CAPTION - 2 * EDGE) / (bottom - top))
    across = (WIDTH - scale * (right - left)) / 2
    down = EDGE + (HEIGHT - CAPTION - 2 * EDGE - scale * (bottom - top)) / 2

    def placed(x: float, y: float) -> tuple[float, float]:
        return across + scale * (x - left), down + scale * (y - top)

    lines = []
    for _, source, slot, target, target_slot, _ in canvas["links"]:
        (_, y, x, _), (x2, y2, _, _) = boxes[source], boxes[target]
        (ax, ay), (bx, by) = (
            placed(x, y + _slot(slot, boxes[source])),
            placed(x2, y2 + _slot(target_slot, boxes[target])),
        )
        bend = max(12.0, abs(bx - ax) / 2)
        lines.append(f"M{ax:.0f} {ay:.0f}C{ax + bend:.0f} {ay:.0f} {bx - bend:.0f} {by:.0f} {bx:.0f} {by:.0f}")
    shapes = []
    for number, (x, y, x2, y2) in boxes.items():
        (ax, ay), (bx, by) = placed(x, y), placed(x2, y2)
        shapes.append(
            f'<rect x="{ax:.0f}" y="{ay:.0f}" width="{bx - ax:.0f}" height="{max(5.0, by - ay):.0f}" rx="3" '
            f'fill="{_colour(nodes[number]["type"])}"/>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#20242b"/>\n'
        f'<path d="{"".join(lines)}" fill="none" stroke="#9aa4b2" stroke-width="1.2"/>\n'
        + "\n".join(shapes)
        + f'\n<text x="{WIDTH / 2:.0f}" y="{HEIGHT - 18}" fill="#f2f4f7" font-family="system-ui,sans-serif" '
        f'font-size="17" font-weight="600" text-anchor="middle">{escape(title)}</text>\n</svg>\n'
    )


def _box(node: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a node with its title bar."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - _TITLE_BAR, x + width, y + (0 if node["flags"].get("collapsed") else height)


def _slot(number: int, box: tuple[float, float, float, float]) -> float:
    """How far below the top of a box a slot lies."""
    return float(min(_TITLE_BAR + 14 + 20 * number, box[3] - box[1]))


def _colour(kind: str) -> str:
    return next((colour for words, colour in _KINDS if any(word in kind for word in words)), _OTHER)
