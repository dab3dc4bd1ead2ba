"""Reasons for which recordings and manifest entries are skipped, notes about those that are used, and their counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from omnikit.audio import reader

REASONS = {
    "missing": "a named recording does not exist",
    "empty": "the recording has no samples",
    "unreadable": "the recording is not audio, is damaged or truncated",
    "too long": "it is longer than `--max_seconds` or than 600 s",
    "clipped": "1 % of its samples or more are at full scale (found with `--decode_all`)",
    "no text": "the text is blank",
    "audio without text": "no transcript names the recording",
    "not UTF-8": "a text or a file name is in another encoding",
    "duplicate id": "an entry of the split has that id already",
    "duplicate turn": "the split has an entry for that turn of the dialog already",
    "malformed": "a line or an entry violates the layout",
    "bad codes": "not the codec's number of codes in each frame, or a code outside the codebook",
    "shard unreadable": "an upstream Parquet file is truncated or damaged",
    "foreign": "codes or features of another codec or encoder, without the recording that they were computed from",
    "refused": "the codec or the encoder does not support recordings of this length",
    "not synthesized": "the voice cannot synthesize the text",
}
"""Mapping from each reason for skipping a recording or an entry to its explanation for users."""
NOTES = {
    "another rate": "the sample rate is not that of the corpus; the recording is resampled when loaded",
    "several channels": "they are mixed when loaded",
    "dialogs with missing turns": "turns before the last one are absent: they were skipped or not published",
    "dialogs with duplicate turns": "the corpus has a turn twice; the first of them is used",
    "no recording": "there is no recording to compute codes or features from; the entry is copied unchanged",
    "another ending": "the file has another suffix than in the corpus, such as `.wav` for `.flac`; it is used",
    **reader.NOTES,
}
"""Mapping from each note, which is counted but is no reason for skipping, to its explanation for users."""

Item = dict[str, Any]
"""A manifest entry as a dict from field names (`manifest_writer.FIELDS`) to values."""


@dataclass(frozen=True)
class Remark:
    """A reason (key of `REASONS`) for which an item was skipped or a note (key of `NOTES`), with an example."""

    reason: str
    example: str
    detail: str = ""
    """One-line description of the fault of this recording or entry; "" = none besides the explanation in `REASONS`."""


@dataclass
class Skipped:
    """Counts of skipped recordings or manifest entries by reason, with one example of each."""

    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # reason -> the first example

    def add(self, reason: str, example: str, count: int = 1) -> None:
        self.reasons[reason] += count
        self.examples.setdefault(reason, example)

    def update(self, other: Skipped) -> None:
        """Add the counts and examples of other skipped items to these."""
        for reason, count in other.reasons.items():
            self.add(reason, other.examples[reason], count)

    def total(self) -> int:
        """Return the number of skipped items over all reasons."""
        return self.reasons.total()

    def __bool__(self) -> bool:
        return bool(self.reasons)

    def __str__(self) -> str:
        listed = (f"{n} {reason} (such as {self.examples[reason]})" for reason, n in self.reasons.items())
        return ", ".join(listed) or "none"
