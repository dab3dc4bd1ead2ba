"""Ten questions in the layout of URO-Bench: seven sets of both levels and both languages, one of conversations.

The recordings of the first two English sets are what the shipped system understands.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.suites.spoken import spoken

CHINESE_VOICES = ("cmn",)
ROWS: dict[str, list[dict[str, Any]]] = {
    "basic/Repeat": [{"source_text": "what color is snow"}, {"source_text": "what is one plus one"}],
    "basic/MLC": [
        {"source_text": "what is two plus three", "target_text": ["five", "5"]},
        {"source_text": "what is the capital of france", "target_text": "paris"},
    ],
    "basic/Repeat-zh": [{"source_text": "今天有3个人。"}],
    "pro/UnderEmotion-en": [
        {"source_text": "what day comes after monday", "target_text": "cheer up", "emotion": "sad"}
    ],
    "pro/Multilingual": [{"source_text": "what color is the sky", "target_text": "bleu", "requirement": "French"}],
    "pro/GenEmotion-en": [{"source_text": "say hello", "target_text": "hello", "emotion": "happy"}],
}
DIALOG = ["what is two plus two", "what is four plus five"]
"""Questions of the only conversation, in pro/MtBenchEval-en."""


def write(folder: Path) -> Path:
    """Write the miniature to a folder and return it."""
    for place, rows in ROWS.items():
        voices = {"voices": CHINESE_VOICES} if place.endswith("-zh") else {}
        found = []
        for number, row in enumerate(rows):
            wav = f"source_wav/{number:04d}.wav"
            _put(folder / place / wav, spoken(row["source_text"], number, **voices))
            found.append({"id": number, "source_wav": wav, **row})
        _write_rows(folder / place / "test.jsonl", found)
    place, turns = folder / "pro" / "MtBenchEval-en", []
    for number, text in enumerate(DIALOG):
        wav = f"source_wav/7/chat_{number}.wav"
        _put(place / wav, spoken(text, number))
        turns.append({"round": number, "source_wav": wav, "source_text": text, "target_text": f"answer to {text}"})
    _write_rows(place / "test.jsonl", [{"id": 7, "num_round": len(turns), "dialogue": turns}])
    return folder


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
