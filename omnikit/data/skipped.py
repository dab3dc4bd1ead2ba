"""What was left out of a corpus, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Skipped:
    """Recordings or rows that were left out, by reason."""

    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # reason -> the first of them

    def add(self, reason: str, example: str, count: int = 1) -> None:
        self.reasons[reason] += count
        self.examples.setdefault(reason, example)

    def update(self, other: Skipped) -> None:
        """Add what another one counted."""
        for reason, count in other.reasons.items():
            self.add(reason, other.examples[reason], count)

    def total(self) -> int:
        """How many were left out."""
        return self.reasons.total()

    def __bool__(self) -> bool:
        return bool(self.reasons)

    def __str__(self) -> str:
        listed = (f"{n} {reason} (such as {self.examples[reason]})" for reason, n in self.reasons.items())
        return ", ".join(listed) or "none"
