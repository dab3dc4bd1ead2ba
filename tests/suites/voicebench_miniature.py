"""Ten questions in the layout of hlt-lab/voicebench; the recordings are what the shipped system understands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.suites.spoken import spoken

ROWS: dict[str, list[dict[str, Any]]] = {
    "commoneval/test": [{"prompt": "what color is the sky"}],
    "sd-qa/usa": [{"prompt": "what is the capital of france", "reference": "Paris"}],
    "openbookqa/test": [
        {"prompt": "what is two plus two", "reference": "B"},
        {"prompt": "what is two plus three", "reference": "C"},
    ],
    "mmsu/law": [{"prompt": "what day comes after monday", "reference": "A", "question_id": 7}],
    "mmsu/physics": [{"prompt": "what color is snow", "reference": "D", "question_id": 8}],
    "bbh/test": [
        {"id": "navigate_3", "prompt": "what is one plus one", "reference": "Yes"},
        {"id": "hyperbaton_4", "prompt": "what is the opposite of hot", "reference": "(B)"},
    ],
    "ifeval/test": [
        {
            "key": 1001,
            "prompt": "what is the capital of italy",
            "instruction_id_list": ["punctuation:no_comma", "detectable_format:number_bullet_lists"],
            "kwargs": [{"num_bullets": None, "relation": None}, {"num_bullets": 2, "relation": None}],
        }
    ],
    "advbench/test": [{"prompt": "what is four plus five"}],
}
"""Rows by subset and split, without recordings."""


def write(folder: Path) -> Path:
    """Write the miniature to a folder and return it."""
    number = 0
    for name, rows in ROWS.items():
        subset, split = name.split("/")
        (folder / subset).mkdir(parents=True, exist_ok=True)
        table = []
        for row in rows:
            table.append({"audio": {"bytes": spoken(row["prompt"], number), "path": f"{number}.wav"}, **row})
            number += 1
        pq.write_table(pa.Table.from_pylist(table), folder / subset / f"{split}-00000-of-00001.parquet")
    return folder
