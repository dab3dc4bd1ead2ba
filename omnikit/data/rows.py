"""Rows: what a manifest gives, whichever way it is stored (docs/data.md).

A row has up to two texts (`t1` the question or transcript, `t2` the answer) and two recordings (`a1`, `a2`), of which
the second may be codes. It serves every task whose fields it has.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile
import torch
from torch import Tensor

from omnikit.audio import decode_audio, load_audio
from omnikit.data.manifest import AUDIO, CSV_ID, ENDINGS, FIELDS
from omnikit.errors import one_line
from omnikit.interfaces import Codec
from omnikit.tasks import Task

CODES = "codes"


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
class Codes:
    """The codes of an answer, [K, T] with T = `frames`: in a table, or lists from a JSON file."""

    codec: str
    frames: int
    table: Any = None  # a `datasets.Dataset`
    index: int = 0
    values: Sequence[Sequence[int]] = ()

    def load(self) -> Tensor:
        """The codes [K, T], int16."""
        values = self.values if self.table is None else self.table[self.index][CODES]
        return torch.from_numpy(np.array(values, dtype=np.int16))


@dataclass(frozen=True)
class Row:
    """One example of a corpus."""

    id: str
    t1: str
    t2: str | None = None
    a1: Clip | None = None
    a2: Clip | None = None
    kind: str = ""
    codes: Codes | None = None
    duration: float | None = None  # of the recording, seconds
    speaker: str = ""
    language: str = ""

    def heard(self, task: Task) -> Clip | None:
        """What a task listens to."""
        return self.a1 if task.given == "speech" else None

    def spoken(self, task: Task) -> Clip | None:
        """The recording of what a task says."""
        if not task.speaks:
            return None
        return self.a1 if task.text_forced else self.a2

    def spoken_codes(self, task: Task) -> Codes | None:
        """The codes of what a task says."""
        return self.codes if task.speaks and not task.text_forced else None

    def written(self, task: Task) -> str | None:
        """The text row's answer."""
        return self.t1 if task.name in ("A1T1", "T1A1") else self.t2

    def serves(self, task: Task) -> bool:
        """Whether all fields that the task needs are there."""
        speech = task.given != "speech" or self.a1 is not None
        voice = not task.speaks or self.spoken(task) is not None or self.spoken_codes(task) is not None
        return speech and voice and self.written(task) is not None

    def answer_wav(self, codec: Codec, codec_name: str) -> Tensor:
        """The spoken answer [N] at the codec's rate: the recording, or the codes decoded.

        Raises:
            ValueError: the row has neither, or codes of another codec.
        """
        if self.a2 is not None:
            return self.a2.load(codec.sample_rate)
        if self.codes is None:
            raise ValueError(f"row {self.id}: has no spoken answer (neither a2 nor codes)")
        check_codec(self.codes, codec, codec_name, f"row {self.id}")
        with torch.inference_mode():
            return codec.decode(self.codes.load()[None].long())[0]


def check_codec(codes: Codes, codec: Codec, codec_name: str | None, where: str) -> None:
    """Refuse codes of another codec.

    Raises:
        ValueError: the message names both.
    """
    if codes.codec != codec_name:
        raise ValueError(
            f"{where}: holds codes of the codec {codes.codec!r}, but the system's is {codec_name or 'unnamed'!r}; "
            f"choose --codec {codes.codec}, or give the answers' recordings (a2)"
        )
    found = len(codes.load())
    if found != codec.num_codebooks:
        raise ValueError(f"{where}: {found} codes a frame, but codec {codec_name} has {codec.num_codebooks}")


def read_manifest(
    path: str | Path, cache_folder: str | Path | None = None, answers: str | Path | None = None
) -> Sequence[Row]:
    """The rows of a manifest: a `.csv`, `.json` or `.parquet` file, or a folder of Parquet shards.

    Of Parquet, rows are made when they are asked for; texts and recordings stay in a memory-mapped table.

    Args:
        cache_folder: where Parquet tables are laid out for memory mapping; None = where `datasets` keeps such.
        answers: a Parquet manifest with `t2` and `a2`, where rows share the recordings of their answers.

    Raises:
        ValueError: no such file or folder, another format, a missing column or field, two rows of one id.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".parquet":
        spoken = dict(_spoken(Path(answers), cache_folder)) if answers is not None else {}
        return TableRows(_table(path, cache_folder, ("id", "t1")), spoken)
    if not path.is_file():
        raise ValueError(f"manifest: no such file: {path}")
    readers = {".csv": _csv_fields, ".json": _json_fields}
    if path.suffix not in readers:
        choices = f"{', '.join(ENDINGS)}, or a folder of .parquet files"
        raise ValueError(f"manifest {path}: unknown ending {path.suffix!r}; choices: {choices}")
    rows: dict[str, Row] = {}
    for fields in readers[path.suffix](path):
        row = _row_of_files(fields, path)
        if row.id in rows:
            raise ValueError(f"manifest {path}: two rows have the id {row.id!r}")
        rows[row.id] = row
    return list(rows.values())


class TableRows(Sequence[Row]):
    """Rows of a memory-mapped table, made when they are asked for.

    Args:
        table: a `datasets.Dataset` with columns of `manifest.FIELDS`.
        spoken: text of an answer -> its recording, for rows without one of their own.
    """

    def __init__(self, table: Any, spoken: dict[str, Clip]):
        self.spoken = spoken
        columns = [name for name in FIELDS if name in table.column_names]
        embedded = [name for name in AUDIO if name in columns and _is_binary(table.features[name])]
        large = [*embedded, *([CODES] if CODES in columns else [])]
        self.large = {name: table.select_columns([name]) for name in large}
        self.small = table.select_columns([name for name in columns if name not in large])
        self.frames = _frames(table) if CODES in large else None

    def __len__(self) -> int:
        return len(self.small)

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self._row(index, self.small[index])

    def __iter__(self) -> Iterator[Row]:
        return (self._row(i, fields) for i, fields in enumerate(self.small))

    def _row(self, index: int, fields: dict[str, Any]) -> Row:
        codec = fields.pop("codec", None)
        fields = {"t1": "", **{name: value for name, value in fields.items() if value is not None}}
        clips = {name: self._clip(name, index, fields) for name in AUDIO}
        clips["a2"] = clips["a2"] or self.spoken.get(fields.get("t2"))
        codes = None
        if self.frames is not None and self.frames[index] >= 0:
            codes = Codes(codec or "", int(self.frames[index]), self.large[CODES], index)
        return Row(**fields | clips, codes=codes)

    def _clip(self, name: str, index: int, fields: dict[str, Any]) -> Clip | None:
        key = clip_key(fields["id"], name)
        if name in self.large:
            return Clip(key, table=self.large[name], index=index, column=name)
        return Clip(key, path=fields[name]) if fields.get(name) else None


class SomeRows(Sequence[Row]):
    """Some rows of a manifest, by their places in it; made when they are asked for."""

    def __init__(self, rows: Sequence[Row], places: Sequence[int]):
        self.rows, self.places = rows, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int | slice) -> Row | SomeRows:
        places = self.places[index]
        return SomeRows(self.rows, places) if isinstance(index, slice) else self.rows[places]


def _is_binary(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def clip_key(row: str, name: str) -> str:
    """What a row's recording is called in caches."""
    return row if name == "a1" else f"{row} {name}"


def _frames(table: Any) -> np.ndarray:
    """Frames of each row's codes [rows]; -1 where it has none."""
    chunks = table.data.column(CODES).chunks
    try:
        counts = [pc.fill_null(pc.list_value_length(pc.list_element(chunk, 0)), -1) for chunk in chunks]
    except pa.ArrowInvalid:
        raise ValueError("manifest: a row's codes are an empty list; rows without codes hold null") from None
    return np.concatenate([count.to_numpy(zero_copy_only=False) for count in counts] or [np.zeros(0, int)])


def _csv_fields(path: Path) -> Iterator[dict[str, Any]]:
    """The fields of each line that are not empty."""
    csv.field_size_limit(2**31 - 1)  # answers can be longer than the module's 128 KiB
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            _check_columns(path, reader.fieldnames or (), (CSV_ID, "t1"))
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"manifest {path}: line {reader.line_num} has not the header's number of columns")
                yield {"id": row.pop(CSV_ID)} | {name: value for name, value in row.items() if value}
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"manifest {path}: not a CSV file in UTF-8 ({one_line(error)})") from None


def _json_fields(path: Path) -> Iterator[dict[str, Any]]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"manifest {path}: not a JSON file in UTF-8 ({one_line(error)})") from None
    if not isinstance(stored, dict) or not all(isinstance(fields, dict) for fields in stored.values()):
        raise ValueError(f"manifest {path}: must be one object, id -> fields")
    for name, fields in stored.items():
        _check_columns(path, fields, ("t1",))
        yield {"id": name, **fields}


def _row_of_files(fields: dict[str, Any], path: Path) -> Row:
    """A row whose recordings are files; relative paths begin at the manifest."""
    clips = {
        name: Clip(clip_key(fields["id"], name), path=str(path.parent / fields[name]))
        for name in AUDIO
        if fields.get(name)
    }
    values = fields.get("codes")
    codes = Codes(fields.get("codec", ""), len(values[0]), values=values) if values else None
    texts = {name: fields[name] for name in ("t2", "kind", "speaker", "language") if fields.get(name) is not None}
    try:
        duration = float(fields["duration"]) if fields.get("duration") else None
    except (TypeError, ValueError):
        where = f"manifest {path}: row {fields['id']!r}"
        raise ValueError(f"{where}: duration {fields['duration']!r} is no number") from None
    return Row(fields["id"], fields.get("t1", ""), codes=codes, duration=duration, **clips, **texts)


def _check_columns(path: Path, found: Sequence[str] | dict[str, Any], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(f"manifest {path}: column {missing[0]!r} is missing; it has {', '.join(found) or 'none'}")


def _spoken(path: Path, cache_folder: str | Path | None) -> Iterator[tuple[str, Clip]]:
    table = _table(path, cache_folder, ("t2", "a2"))
    for i, text in enumerate(table["t2"]):
        yield text, Clip(f"answer {text}", table=table, index=i, column="a2")


def _table(path: Path, cache_folder: str | Path | None, needed: Sequence[str]) -> Any:
    """A Parquet file, or a folder of them in the order of their names, as a `datasets.Dataset`."""
    from datasets import Dataset, disable_progress_bars

    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"manifest: no such file: {path / '*.parquet' if path.is_dir() else path}")
    for file in files:
        try:
            columns = pq.read_schema(file).names
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"manifest {file}: not a Parquet file that can be read ({one_line(error)})") from None
        _check_columns(file, columns, needed)
    disable_progress_bars()
    cache = None if cache_folder is None else str(cache_folder)
    table = Dataset.from_parquet([str(file) for file in files], cache_dir=cache)
    if "id" in needed:
        _check_ids(path, table.data.column("id"))
    return table


def _check_ids(path: Path, ids: pa.ChunkedArray) -> None:
    if pc.count_distinct(ids).as_py() < len(ids):
        found = pc.value_counts(ids)
        twice = found.filter(pc.greater(found.field("counts"), 1))[0]["values"].as_py()
        raise ValueError(f"manifest {path}: two rows have the id {twice!r}")
