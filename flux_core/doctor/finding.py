"""One line of `sluice doctor`: what was looked at, whether it is good, and what to do if it is not."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Finding:
    """`advice` is empty if nothing has to be done. `needed`: nothing can be computed before it is done."""

    subject: str
    text: str
    advice: str = ""
    needed: bool = False

    @property
    def good(self) -> bool:
        return not self.advice

    def record(self) -> dict[str, object]:
        """As JSON: {"subject", "text", "advice", "needed", "good"}."""
        return {**asdict(self), "good": self.good}
