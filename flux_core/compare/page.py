"""A comparison as one HTML file beside its images: a table of the settings, and the images side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..io.saving import write_whole
from ..memory.budget import format_size
from .results import Price, Results, rows

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Comparison: {title}</title>
<style>
  :root {{ color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }}
  body {{ margin: 24px auto; max-width: 1500px; padding: 0 16px; }}
  .table {{ overflow-x: auto; }}
  table {{ border-collapse: collapse; }}
  th, td {{ padding: 6px 12px; text-align: right; border-bottom: 1px solid #8886; white-space: nowrap; }}
  th:first-child, td:first-child {{ text-align: left; }}
  code {{ opacity: 0.75; font-size: 13px; }}
  h2 {{ font-size: 1rem; margin: 28px 0 8px; }}
  .row {{ display: grid; grid-template-columns: repeat({columns}, minmax(120px, 1fr)); gap: 12px; overflow-x: auto; }}
  figure {{ margin: 0; }}
  img {{ width: 100%; height: auto; display: block; border-radius: 4px; background: #8883; }}
  figcaption {{ font-size: 13px; padding: 4px 0; }}
</style>
<h1>{title}</h1>
<p>{machine}. PSNR and SSIM are to the first setting's image of the same prompt and seed. Seconds are the median
without the first image, which also loads the model.</p>
<div class="table"><table>
<tr><th>setting</th><th>seconds</th><th>speed-up</th>{cost_head}<th>peak memory</th>
<th>PSNR median</th><th>worst</th><th>SSIM</th><th>images</th></tr>
{table}
</table></div>
{images}
</html>
"""


def write_page(results: Results, folder: Path, price: Price) -> Path:
    """index.html in the folder."""
    table = list(rows(results, price))
    has_cost = any(row["cost"] is not None for row in table)
    page = _PAGE.format(
        title=escape(" · ".join(setting["name"] for setting in results.settings)),
        machine=escape(results.machine),
        columns=len(results.settings),
        cost_head="<th>cost an image</th>" if has_cost else "",
        table="\n".join(_row(row, has_cost) for row in table),
        images="\n".join(_images(results)),
    )
    write_whole(folder / "index.html", page.encode())
    return folder / "index.html"


def _row(row: dict[str, Any], has_cost: bool) -> str:
    cells = [
        f"{escape(row['name'])}<br><code>{escape(row['words'])}</code>",
        f"{row['seconds']:.2f} ({row['first_seconds']:.2f} first)",
        f"{row['speed_up']:.2f} x",
        *([f"{row['cost']:.5f}" if row["cost"] is not None else "–"] if has_cost else []),
        format_size(row["peak_bytes"]),
        decibels(row["psnr"]),
        decibels(row["psnr_worst"]),
        "–" if row["ssim"] is None else f"{row['ssim']:.4f}",
        str(row["images"]),
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def decibels(value: float | None) -> str:
    """A PSNR for people."""
    return "–" if value is None else "equal" if math.isinf(value) else f"{value:.1f} dB"


def _images(results: Results) -> Sequence[str]:
    made: list[str] = []
    for number, prompt in enumerate(results.prompts):
        for seed in results.seeds:
            figures = "".join(_figure(results, setting, number, seed) for setting in range(len(results.settings)))
            made.append(f'<h2>{escape(prompt)} <code>seed {seed}</code></h2>\n<div class="row">{figures}</div>')
    return made


def _figure(results: Results, setting: int, prompt: int, seed: int) -> str:
    name, found = escape(results.settings[setting]["name"]), results.find(setting, prompt, seed)
    if found is None:
        return f"<figure><figcaption>{name}: not made yet</figcaption></figure>"
    likeness = "" if found.psnr is None else f", {decibels(math.inf if found.psnr == 'equal' else float(found.psnr))}"
    caption = f"{name}: {found.seconds:.2f} s{likeness}"
    return (
        f'<figure><a href="{found.file}"><img src="{found.file}" alt="{name}: {escape(results.prompts[prompt])}" '
        f'loading="lazy"></a><figcaption>{caption}</figcaption></figure>'
    )
