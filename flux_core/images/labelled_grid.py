"""Images in rows and columns with a label above each column and beside each row."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ..limits import check_room

GAP = 4  # pixels between images
GROUND, INK = (255, 255, 255), (20, 20, 20)
LONGEST = 200  # letters of a label


def labelled_grid(images: Sequence[Image.Image], across: Sequence[str], down: Sequence[str]) -> Image.Image:
    """RGB images, row by row, as many as labels `across` times labels `down`; an empty label takes no space.

    Raises ValueError for another number of images, InputError for a grid that does not fit into memory.
    """
    if len(images) != len(across) * len(down):
        raise ValueError(f"{len(images)} images for {len(across)} columns and {len(down)} rows")
    width, height = (max(image.size[side] for image in images) for side in (0, 1))
    font = ImageFont.load_default(size=max(12, min(width, height) // 16))
    above = max(_wrapped(label, font, width)[1] for label in across)
    beside = max((round(font.getlength(label[:LONGEST])) + 2 * GAP if label else 0) for label in down)
    beside = min(beside, width)
    whole = beside + len(across) * (width + GAP), above + len(down) * (height + GAP)
    check_room(f"A grid of {whole[0]}x{whole[1]} pixels", whole[0] * whole[1] * 3 * 5)
    grid = Image.new("RGB", whole, GROUND)
    draw = ImageDraw.Draw(grid)
    for column, label in enumerate(across):
        text, _ = _wrapped(label, font, width)
        middle = beside + column * (width + GAP) + width // 2
        draw.multiline_text((middle, GAP), text, INK, font, anchor="ma", align="center")
    for row, label in enumerate(down):
        text, _ = _wrapped(label, font, max(1, beside))
        middle = above + row * (height + GAP) + height // 2
        draw.multiline_text((GAP, middle), text, INK, font, anchor="lm")
    for number, image in enumerate(images):
        row, column = divmod(number, len(across))
        grid.paste(image.convert("RGB"), (beside + column * (width + GAP), above + row * (height + GAP)))
    return grid


def _wrapped(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> tuple[str, int]:
    """The label in lines that are not wider than `width`, and its height with a margin."""
    lines: list[str] = []
    for word in label[:LONGEST].split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if not lines:
        return "", 0
    ascent = font.getbbox("Ag")[3]
    return "\n".join(lines), round(len(lines) * (ascent + 4)) + 2 * GAP
