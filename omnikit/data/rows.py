"""Rows: what a manifest gives, whichever way it is stored (docs/data.md).

A row has up to two texts (`t1` the question or transcript, `t2` the answer) and two recordings (`a1`, `a2`), in whose
place may stand what was made of them: codes where they are said, features where they are heard. It serves every task
whose fields it has.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from omnikit.audio import load_source
from omnikit.data.folders import visible
from omnikit.data.manifest import AUDIO, CODES_OF, CSV_ID, ENDINGS, FIELDS, accepted_answers
from omnikit.data.recordings import Recording, check_recording
from omnikit.errors import one_line
from omnikit.interfaces import Codec
from omnikit.reader import Source
from omnikit.tasks import Task


@dataclass(frozen=True)
class Clip:
    """A recording: a file, or an encoded one inside a table. `key` names it in caches."""

    key: str
    path: str | None = None
    table: Any = None  # a `datasets.Dataset`
    index: int = 0
    column: str = ""

    @property
    def name(self) -> str:
        """The path, or the key of a recording inside a table; messages begin with it."""
        return self.key if self.path is None else self.path

    @property
    def source(self) -> Source:
        """The path, or the bytes from the table."""
        return self.table[self.index][self.column] if self.path is None else self.path

    def load(self, sample_rate: int) -> Tensor:
        """Return the waveform [N]; its notes are logged.

        Raises:
            Unusable: see `omnikit.reader.read`.
        """
        return load_source(self.source, self.name, sample_rate)

    def check(self, max_seconds: float | None = None) -> Recording:
        """Check whether it can be used, and give its length; see `omnikit.reader.measure`."""
        return check_recording(self.source, self.name, max_seconds=max_seconds)


@dataclass(frozen=True)
class Codes:
    """The codes of a recording, [K, T] with T = `frames`: in a table, or lists from a JSON file."""

    codec: str
    frames: int
    table: Any = None  # a `datasets.Dataset`
    index: int = 0
    column: str = ""
    values: Sequence[Sequence[int]] = ()

    def load(self) -> Tensor:
        """The codes [K, T], int16."""
        values = self.values if self.table is None else self.table[self.index][self.column]
        return torch.from_numpy(np.array(values, dtype=np.int16))


@dataclass(frozen=True)
class Features:
    """What an encoder made of a recording, [T, D] with T = `frames`; `encoder` is its fingerprint."""

    encoder: str
    frames: int
    table: Any  # a `datasets.Dataset`
    index: int

    def load(self) -> Tensor:
        """The features [T, D], float16."""
        values = np.frombuffer(self.table[self.index]["features"], dtype="<f2")
        return torch.from_numpy(values.reshape(self.frames, -1).copy())


@dataclass(frozen=True)
class Row:
    """One example of a corpus."""

    id: str
    t1: str
    t2: str | None = None
    accepted: tuple[str, ...] = ()  # answers, any of which is right; evaluation alone asks for them
    a1: Clip | None = None
    a2: Clip | None = None
    kind: str = ""
    codes1: Codes | None = None
    codes: Codes | None = None
    features: Features | None = None
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
        if not task.speaks:
            return None
        return self.codes1 if task.text_forced else self.codes

    def written(self, task: Task) -> str | None:
        """The text row's answer."""
        return self.t1 if task.name in ("A1T1", "T1A1") else self.t2

    def right_answers(self) -> tuple[str, ...]:
        """Those accepted, else the answer; none where it has neither."""
        return self.accepted or (() if self.t2 is None else (self.t2,))

    def serves(self, task: Task) -> bool:
        """Whether all fields that the task needs are there."""
        speech = task.given != "speech" or self.a1 is not None or self.features is not None
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
            f"choose --codec {codes.codec}, or give the recordings that they were made of"
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
    if in_parquet(path):
        spoken = dict(_spoken(Path(answers), cache_folder)) if answers is not None else {}
        return TableRows(_table(path, cache_folder, ("id", "t1")), spoken)
    return [_row_of_files(fields) for fields in read_fields(path)]


def in_parquet(path: Path) -> bool:
    """Whether a manifest is a Parquet file or a folder of them."""
    return path.is_dir() or path.suffix == ".parquet"


def read_fields(path: Path) -> Iterator[dict[str, Any]]:
    """What is not empty of each row of a `.csv` or `.json` manifest, by the names of `manifest.FIELDS`; recordings are
    paths that begin at the manifest.

    Raises:
        ValueError: see `read_manifest`.
    """
    if not path.is_file():
        raise ValueError(f"manifest: no such file: {path}")
    readers = {".csv": _csv_fields, ".json": _json_fields}
    if path.suffix not in readers:
        choices = f"{', '.join(ENDINGS)}, or a folder of .parquet files"
        raise ValueError(f"manifest {path}: unknown ending {path.suffix!r}; choices: {choices}")
    ids = set()
    for row in readers[path.suffix](path):
        if row["id"] in ids:
            raise ValueError(f"manifest {path}: two rows have the id {row['id']!r}")
        ids.add(row["id"])
        found = {name: row[name] for name in FIELDS if row.get(name)}
        found |= {name: str(path.parent / found[name]) for name in AUDIO if name in found}
        found |= {"accepted": accepted_answers(found["accepted"])} if "accepted" in found else {}
        try:
            found |= {"duration": float(found["duration"])} if "duration" in found else {}
        except (TypeError, ValueError):
            where = f"manifest {path}: row {row['id']!r}"
            raise ValueError(f"{where}: duration {found['duration']!r} is no number") from None
        yield found


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
        coded = [name for name in CODES_OF.values() if name in columns]
        large = [*embedded, *coded, *(name for name in ("features",) if name in columns)]
        self.large = {name: table.select_columns([name]) for name in large}
        self.small = table.select_columns([name for name in columns if name not in large])
        self.frames = {name: _frames(table, name) for name in coded}
        self.embedded = {name: _present(table, name) for name in embedded}

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
        codec, encoder, frames = (fields.pop(name, None) for name in ("codec", "encoder", "frames"))
        fields = {"t1": "", **{name: value for name, value in fields.items() if value is not None}}
        fields["accepted"] = tuple(accepted_answers(fields.get("accepted", ())))
        clips = {name: self._clip(name, index, fields) for name in AUDIO}
        clips["a2"] = clips["a2"] or self.spoken.get(fields.get("t2"))
        codes = {
            name: Codes(codec or "", int(counts[index]), self.large[name], index, name)
            for name, counts in self.frames.items()
            if counts[index] >= 0
        }
        features = None
        if frames is not None and "features" in self.large:
            features = Features(encoder or "", frames, self.large["features"], index)
        return Row(**fields | clips | codes, features=features)

    def _clip(self, name: str, index: int, fields: dict[str, Any]) -> Clip | None:
        key = clip_key(fields["id"], name)
        if name in self.embedded:
            return Clip(key, table=self.large[name], index=index, column=name) if self.embedded[name][index] else None
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


def _frames(table: Any, column: str) -> np.ndarray:
    """Frames of each row's codes [rows]; -1 where it has none."""
    chunks = table.data.column(column).chunks
    try:
        counts = [pc.fill_null(pc.list_value_length(pc.list_element(chunk, 0)), -1) for chunk in chunks]
    except pa.ArrowInvalid:
        raise ValueError("manifest: a row's codes are an empty list; rows without codes hold null") from None
    return np.concatenate([count.to_numpy(zero_copy_only=False) for count in counts] or [np.zeros(0, int)])


def _present(table: Any, column: str) -> np.ndarray:
    """Which rows have a value [rows], bool."""
    return table.data.column(column).is_valid().to_numpy()


def _csv_fields(path: Path) -> Iterator[dict[str, Any]]:
    """The fields of each line that are not empty."""
    csv.field_size_limit(2**31 - 1)  # answers can be longer than the module's 128 KiB
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            check_columns(path, reader.fieldnames or (), (CSV_ID, "t1"))
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
        check_columns(path, fields, ("t1",))
        yield {"id": name, **fields}


def _row_of_files(fields: dict[str, Any]) -> Row:
    """A row whose recordings are files."""
    clips = {name: Clip(clip_key(fields["id"], name), path=fields[name]) for name in AUDIO if name in fields}
    codes = {
        name: Codes(fields.get("codec", ""), len(fields[name][0]), values=fields[name])
        for name in CODES_OF.values()
        if name in fields
    }
    plain = ("id", "t2", "kind", "duration", "speaker", "language")
    rest = {name: fields[name] for name in plain if name in fields}
    return Row(**rest, t1=fields.get("t1", ""), accepted=tuple(fields.get("accepted", ())), **codes, **clips)


def check_columns(path: Path, found: Sequence[str] | dict[str, Any], needed: Sequence[str]) -> None:
    """Raises `ValueError` where one that is needed is missing."""
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(f"manifest {path}: column {missing[0]!r} is missing; it has {', '.join(found) or 'none'}")


def _spoken(path: Path, cache_folder: str | Path | None) -> Iterator[tuple[str, Clip]]:
    table = _table(path, cache_folder, ("t2", "a2"))
    for i, text in enumerate(table["t2"]):
        yield text, Clip(f"answer {text}", table=table, index=i, column="a2")


def _table(path: Path, cache_folder: str | Path | None, needed: Sequence[str]) -> Any:
    """A Parquet file, or a folder of them in the order of their names, as a `datasets.Dataset`."""
    from datasets import disable_progress_bars

    files = sorted(visible(path, "*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"manifest: no such file: {path / '*.parquet' if path.is_dir() else path}")
    for file in files:
        try:
            columns = pq.read_schema(file).names
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"manifest {file}: not a Parquet file that can be read ({one_line(error)})") from None
        check_columns(file, columns, needed)
    disable_progress_bars()
    table = _laid_out(files, cache_folder)
    if "id" in needed:
        _check_ids(path, table.data.column("id"))
    return table


def _laid_out(files: Sequence[Path], cache_folder: str | Path | None) -> Any:
    """As in `_table`.

    Raises:
        ValueError: the cache folder's disk is full, or a file is damaged; the message names both.
    """
    from datasets import Dataset, config
    from datasets.exceptions import DatasetGenerationError

    folder = config.HF_DATASETS_CACHE if cache_folder is None else cache_folder
    try:
        return Dataset.from_parquet([str(file) for file in files], cache_dir=str(folder))
    except (OSError, DatasetGenerationError) as error:
        cause = error.__cause__ or error
        if not isinstance(cause, OSError):
            raise
        which = f"{files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''}"
        raise ValueError(f"{folder}: {which} cannot be laid out there ({one_line(cause)})") from None


def _check_ids(path: Path, ids: pa.ChunkedArray) -> None:
    if pc.count_distinct(ids).as_py() < len(ids):
        found = pc.value_counts(ids)
        twice = found.filter(pc.greater(found.field("counts"), 1))[0]["values"].as_py()
        raise ValueError(f"manifest {path}: two rows have the id {twice!r}")
