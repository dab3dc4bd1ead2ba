"""Ten questions in the layout of baichuan-inc/OpenAudioBench; the shipped system understands most recordings."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.suites.spoken import spoken

ROWS: dict[str, list[dict[str, str]]] = {
    "llama_questions": [
        {"Questions": "what is the capital of france", "Answer": "Paris"},
        {"Questions": "what is two plus two", "Answer": "Four"},
        {"Questions": "what color is the sky", "Answer": "Blue"},
    ],
    "web_questions": [
        {"url": "a", "question": "what day comes after monday", "answers": "Wednesday;Tuesday"},
        {"url": "b", "question": "what color is snow", "answers": "White"},
    ],
    "reasoning_qa": [{"Prompt": "一加一等于几", "参考答案": "2"}],
    "alpaca_eval": [
        {"instruction": "what is the opposite of hot", "output": 'The opposite of hot is cold, "cool".\nOr mild.'},
        {"instruction": "what is one plus one", "output": "Two."},
    ],
    "trivia_qa": [
        {"question": "what is the capital of italy", "answer": "Rome", "answer_normalized_aliases": "roma, rome"},
        {"question": "what is two plus three", "answer": "Five", "answer_normalized_aliases": "five, 5"},
    ],
}
"""Rows by set, without the names of the recordings."""


def write(folder: Path) -> Path:
    """Write the miniature to a folder and return it."""
    for name, rows in ROWS.items():
        audios = folder / "eval_datas" / name / "audios"
        audios.mkdir(parents=True)
        with (audios.parent / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "audio_filename"])
            writer.writeheader()
            for number, row in enumerate(rows):
                text = next(row[key] for key in ("Questions", "question", "Prompt", "instruction") if key in row)
                (audios / f"{name}_{number}.mp3").write_bytes(spoken(text, number, "MP3"))
                writer.writerow({**row, "audio_filename": f"{name}_{number}.mp3"})
    return folder
