"""Prints the table of docs/several-cards.md: two jobs or one image on two cards, as `sluice plan` predicts it.

python scripts/two_cards.py            from an installed Sluice
"""

from __future__ import annotations

import argparse

from sluice.flux_core.commands import plan, plan_cards
from sluice.flux_core.commands.plan_model import Beside, open_model
from sluice.flux_core.commands.plan_step import job_of

PAIRS = (
    ("rtx4060", "rtx4060"),
    ("rtx4060", "rtx4060@3.0x4"),
    ("rtx3060@4.0x8", "rtx3060@4.0x8"),
    ("rtx3060", "rtx3060@3.0x4"),
    ("rtx3090@4.0x8", "rtx3090@4.0x8"),
    ("rtx3090", "rtx3060@3.0x4"),
    ("rtx3060", "rtx2060"),
    ("rtx3060", "gtx1070@3.0x4"),
)
MODELS = ("flux1-dev-fp8", "flux1-dev")
HEADER = (
    "| pair | file | alone, s/step | two jobs at once | one image, tokens | one image, rows | for one image |",
    "|---|---|---|---|---|---|---|",
)


def row(pair: tuple[str, str], model: str) -> str:
    """One line of the table, for 1024x1024."""
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    args = parser.parse_args([model, *(word for card in pair for word in ("--card", card))])
    opened, cards = open_model(model), plan_cards.cards_of(args)
    jobs = [job_of(args, target) for target in cards.targets]
    ways = plan_cards.ways_of(opened, cards, jobs, Beside())
    alone = min(way.seconds for way in ways if len(way.steps) == 1)

    def times(name: str) -> str:
        found = next((way for way in ways if name in way.name), None)
        return "–" if found is None else f"{found.times:.2f}x" + (" (refused)" if found.refused else "")

    one = [way for way in ways if way.name.startswith("one image") and not way.refused]
    best = max(one, key=lambda way: way.times).command.partition(" ")[2].partition(" ")[2] if one else "the faster card"
    parts = [cards.names, model.removeprefix("flux1-dev-") if "fp8" in model else "bf16", f"{alone:.2f}"]
    parts += [times("jobs at once"), times("tokens"), times("rows"), f"`{best}`" if one else best]
    return f"| {' | '.join(parts)} |"


if __name__ == "__main__":
    print("\n".join([*HEADER, *(row(pair, model) for pair in PAIRS for model in MODELS)]))
