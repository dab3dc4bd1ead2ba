"""Ten questions in the layout of Big Bench Audio; the recordings are what the shipped system understands."""

from __future__ import annotations

import json
from pathlib import Path

from tests.suites.spoken import spoken

QUESTIONS = (
    ("object_counting", "4", "what is two plus two"),
    ("object_counting", "5", "what is two plus three"),
    ("object_counting", "9", "what is four plus five"),
    ("formal_fallacies", "valid", "what color is the sky"),
    ("formal_fallacies", "invalid", "what is the opposite of hot"),
    ("navigate", "Yes", "what is the capital of france"),
    ("navigate", "No", "what day comes after monday"),
    ("web_of_lies", "Yes", "what is one plus one"),
    ("web_of_lies", "No", "what color is snow"),
    ("web_of_lies", "No", "what is the capital of italy"),
)
"""Category, official answer and transcript of each question."""


def write(folder: Path, *, transcripts: bool = True) -> Path:
    """Write the miniature to a folder and return it."""
    (folder / "data").mkdir(parents=True)
    rows = []
    for number, (category, answer, text) in enumerate(QUESTIONS):
        row = {"category": category, "official_answer": answer, "file_name": f"data/question_{number}.mp3"}
        rows.append({**row, "id": number, **({"transcript": text} if transcripts else {})})
        (folder / row["file_name"]).write_bytes(spoken(text, number, "MP3"))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
