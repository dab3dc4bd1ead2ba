"""What was left out of a corpus, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from omnikit.audio import reader

REASONS = {
    "missing": "a text names a recording that is not there",
    "empty": "the recording has no samples",
    "unreadable": "the recording is no audio, damaged or cut short",
    "too long": "it is longer than `--max_seconds` or than 600 s",
    "clipped": "1 % of its samples or more are at full scale (found with `--decode_all`)",
    "no text": "the text is blank",
    "audio without text": "no text names the recording",
    "not UTF-8": "a text or a file name is in another encoding",
    "duplicate id": "a row of the split has that id already",
    "malformed": "a line or an entry is not what the layout says",
    "bad codes": "not the codec's number of codes in each frame, or a code outside the codebook",
    "shard unreadable": "an upstream Parquet file is cut short or damaged",
    "foreign": "codes or features of another codec or encoder, without the recording that they were made of",
    "refused": "the codec or the encoder takes no recording of that length",
    "not said": "the voice cannot say the text",
}
"""Why something makes no row."""
NOTES = {
    "another rate": "the recording has not the corpus' sample rate; it is resampled when loaded",
    "several channels": "they are mixed when loaded",
    "later turn": "only the first turn of a conversation can be understood alone; the others make no row",
    "no recording": "there is nothing to make codes or features of; the row is carried over as it is",
    "another ending": "the recording has another ending than the corpus gives it, `.wav` for `.flac`; it is used",
    **reader.NOTES,
}
"""What is counted and does no harm."""

Item = dict[str, Any]
"""A row by the names of `manifest_writer.FIELDS`."""


@dataclass(frozen=True)
class Remark:
    """Something that makes no row: one of `REASONS`, or of `NOTES`."""

    reason: str
    example: str
    detail: str = ""
    """The fault of this very recording or entry in one line; "" = there is no more to say than `REASONS` does."""


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
