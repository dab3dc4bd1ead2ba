"""Rows: what a corpus gives, whichever way it is stored.

A row has up to two texts (`t1` the question or transcript, `t2` the answer) and two recordings (`a1`, `a2`). It serves
every task whose fields it has.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
from torch import Tensor

from omnikit.audio import decode_audio, load_audio
from omnikit.tasks import Task


@dataclass(frozen=True)
class Clip:
    """A recording: a file, or an encoded one inside a table. `key` names it in caches."""

    key: str
    path: str | None = None
    table: Any = None  # a `datasets.Dataset`
    index: int = 0
    column: str = ""

    def load(self, sample_rate: int) -> Tensor:
        """The waveform [N].

        Raises:
            ValueError: it cannot be read; the message names it.
        """
        if self.path is not None:
            return load_audio(self.path, sample_rate, max_seconds=None)
        return decode_audio(self._bytes(), sample_rate, name=self.key)

    def seconds(self) -> float:
        """Its length."""
        return soundfile.info(self.path or io.BytesIO(self._bytes())).duration

    def _bytes(self) -> bytes:
        return self.table[self.index][self.column]


@dataclass(frozen=True)
class Row:
    """One example of a corpus."""

    id: str
    t1: str
    t2: str | None = None
    a1: Clip | None = None
    a2: Clip | None = None
    kind: str = ""

    def heard(self, task: Task) -> Clip | None:
        """What a task listens to."""
        return self.a1 if task.given == "speech" else None

    def spoken(self, task: Task) -> Clip | None:
        """What a task says."""
        if not task.speaks:
            return None
        return self.a1 if task.text_forced else self.a2

    def written(self, task: Task) -> str | None:
        """The text row's answer."""
        return self.t1 if task.name in ("A1T1", "T1A1") else self.t2

    def serves(self, task: Task) -> bool:
        """Whether all fields that the task needs are there."""
        speech = task.given != "speech" or self.a1 is not None
        voice = not task.speaks or self.spoken(task) is not None
        return speech and voice and self.written(task) is not None


def rows_from_csv(path: str | Path) -> list[Row]:
    """A manifest as `recipes/LibriSpeech/prepare.py` writes it: ID, duration, wav, spk_id, wrd.

    Raises:
        ValueError: no such file, or a column is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"manifest: no such file: {path}")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = {"ID", "wav", "wrd"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"manifest {path}: column {sorted(missing)[0]!r} is missing")
        return [Row(r["ID"], r["wrd"].lower(), a1=Clip(r["ID"], path=r["wav"])) for r in reader]


def rows_from_parquet(path: str | Path, answers: str | Path | None, cache_folder: str | Path) -> list[Row]:
    """Questions (id, t1, t2, kind; where they are spoken, a1 = an encoded recording) and answers (t2, a2).

    Args:
        path: the questions.
        answers: a table with each distinct answer's recording once; None = no spoken answers.
        cache_folder: where the tables are laid out for memory mapping.

    Raises:
        ValueError: no such file.
    """
    questions = _table(path, cache_folder)
    spoken = dict(_spoken(answers, cache_folder)) if answers is not None else {}
    texts = questions.select_columns(["id", "t1", "t2", "kind"])
    heard = "a1" in questions.column_names
    return [
        Row(
            r["id"],
            r["t1"],
            r["t2"],
            a1=Clip(r["id"], table=questions, index=i, column="a1") if heard else None,
            a2=spoken.get(r["t2"]),
            kind=r["kind"],
        )
        for i, r in enumerate(texts)
    ]


def _spoken(path: str | Path, cache_folder: str | Path) -> Iterator[tuple[str, Clip]]:
    table = _table(path, cache_folder)
    for i, text in enumerate(table["t2"]):
        yield text, Clip(f"answer {text}", table=table, index=i, column="a2")


def _table(path: str | Path, cache_folder: str | Path) -> Any:
    from datasets import Dataset, disable_progress_bars

    if not Path(path).is_file():
        raise ValueError(f"manifest: no such file: {path}")
    disable_progress_bars()
    return Dataset.from_parquet(str(path), cache_dir=str(cache_folder))
