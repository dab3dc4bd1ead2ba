"""Reads manifests of all formats (docs/data.md) as sequences of manifest entries.

An entry has up to two texts (`t1` the question or transcript, `t2` the answer) and two recordings (`a1`, `a2`). In
place of a recording it may have the codes or the encoder features computed from it. It serves every task whose fields
it has.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from omnikit.audio.io import load_source
from omnikit.audio.reader import Source
from omnikit.data import field_values
from omnikit.data.arrow_cache import LaidOut, lay_out
from omnikit.data.arrow_column import ArrowColumn
from omnikit.data.batched import in_batches
from omnikit.data.content_digest import Content
from omnikit.data.copy_names import MARK
from omnikit.data.field_values import is_bytes, is_text
from omnikit.data.manifest_columns import AUDIO, CODES_OF, COLUMNS, NEEDED, typed
from omnikit.data.parquet_features import FEATURES, ParquetFeatures, find_features
from omnikit.data.parquet_manifest import (
    DAMAGED,
    Shard,
    check_alike,
    check_ids,
    code_frames,
    malformed_rows,
    read_shard,
    shard_files,
)
from omnikit.data.recording_check import RecordingCheck, check_recording
from omnikit.data.skipped import Remark, Skipped
from omnikit.data.text_manifest import about, read_fields
from omnikit.data.units import Units, units_of
from omnikit.errors import one_line
from omnikit.interfaces import Codec
from omnikit.tasks import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recording:
    """A recording of a manifest entry: a sound file, or the bytes of one embedded in a table."""

    key: str  # name in caches
    path: str | None = None
    table: ArrowColumn | Sequence[bytes] = ()  # bytes of sound files
    index: int = 0  # row of the table
    column: str = ""
    version: str = ""  # digest of the table's content; "" = unknown, then the bytes are read to notice changes

    @property
    def name(self) -> str:
        """Name of the recording in messages: its path, or its key if it is embedded in a table."""
        return self.key if self.path is None else self.path

    @property
    def source(self) -> Source:
        """Path of the sound file, or its bytes if it is embedded in a table."""
        return self.table[self.index] if self.path is None else self.path

    def load(self, sample_rate: int) -> Tensor:
        """Return the waveform [N] of the recording at a sample rate in Hz, and log notes about its quality.

        Raises:
            Unusable: the recording cannot be read, see `omnikit.audio.reader.read`.
        """
        return load_source(self.source, self.name, sample_rate)

    def check(self, max_seconds: float | None = None) -> RecordingCheck:
        """Return whether the recording can be used, and its length and format; see `omnikit.audio.reader.measure`."""
        return check_recording(self.source, self.name, max_seconds=max_seconds)

    def content(self) -> Content:
        """Return the file or the embedded bytes whose digest identifies the recording in caches."""
        if self.path is not None:
            return Content.of_file(self.path)
        fixed = bool(self.version)
        return Content(f"{self.version} {self.column} {self.key}", read=lambda: self.source, fixed=fixed)


@dataclass(frozen=True)
class Codes:
    """The codes [K, T] of a recording in a manifest: lists from a JSON file, or in a table, read on demand."""

    codec: str  # name of the codec
    frames: int  # T
    table: ArrowColumn | None = None
    index: int = 0  # row of the table
    values: Sequence[Sequence[int]] = ()

    def load(self) -> Tensor:
        """Return the codes [K, T] as an int16 tensor."""
        values = np.array(self.values, np.int16) if self.table is None else self.table.matrix(self.index)
        return torch.from_numpy(values)


@dataclass(frozen=True)
class Features:
    """The encoder features [T, D] of a recording, in Parquet files from which they are read on demand."""

    encoder: str  # fingerprint of the encoder
    frames: int  # T
    table: ParquetFeatures
    index: int  # row of the table

    def load(self) -> Tensor:
        """Return the encoder features [T, D] as a float16 tensor."""
        return self.table.read(self.index, self.frames)


def answer_field(task: Task) -> str:
    """Return the manifest field with the text of the answer for a task."""
    return "t1" if task.repeats else "t2"


def recording_field(task: Task) -> str:
    """Return the manifest field with the recording of the answer for a task that speaks."""
    return "a1" if task.repeats else "a2"


def codes_field(task: Task) -> str:
    """Return the manifest field with the codes of the answer for a task that speaks."""
    return CODES_OF[recording_field(task)]


@dataclass(frozen=True)
class ManifestEntry:
    """One manifest entry: the texts, recordings, codes and features of an example."""

    id: str
    t1: str  # transcript or question
    t2: str | None = None  # answer
    accepted: tuple[str, ...] = ()  # answers that are counted as correct; used in evaluation only
    a1: Recording | None = None  # recording of t1
    a2: Recording | None = None  # recording of t2
    kind: str = ""
    codes1: Codes | None = None  # of a1
    codes: Codes | None = None  # of a2
    features: Features | None = None  # of a1
    duration: float | None = None  # of the (first) recording, in seconds
    speaker: str = ""
    language: str = ""
    dialog: str = ""  # name of the conversation that it is a turn of; "" = none
    turn: int | None = None  # place in that conversation; turns are in the order of these numbers

    def target_recording(self, task: Task) -> Recording | None:
        """Return the recording of the answer for a task; None where the task or the entry has none."""
        if not task.speaks:
            return None
        return getattr(self, recording_field(task))

    def target_codes(self, task: Task) -> Codes | None:
        """Return the codes of the answer for a task; None where the task or the entry has none."""
        if not task.speaks:
            return None
        return getattr(self, codes_field(task))

    def target_text(self, task: Task) -> str | None:
        """Return the text of the answer for a task; None where the entry has none."""
        return getattr(self, answer_field(task))

    def reference_answers(self) -> tuple[str, ...]:
        """Return the texts that count as a correct answer: the accepted ones, or else the entry's answer, if any."""
        return self.accepted or (() if self.t2 is None else (self.t2,))

    def serves(self, task: Task) -> bool:
        """Return whether the manifest entry has all fields that a task needs."""
        speech = task.given != "speech" or self.a1 is not None or self.features is not None
        voice = not task.speaks or self.target_recording(task) is not None or self.target_codes(task) is not None
        return speech and voice and self.target_text(task) is not None

    def answer_wav(self, codec: Codec, codec_name: str) -> Tensor:
        """Return the waveform [N] of the answer at the codec's sample rate, from its recording or else from its codes.

        Raises:
            ValueError: the entry has neither, or codes of another codec.
        """
        if self.a2 is not None:
            return self.a2.load(codec.sample_rate)
        if self.codes is None:
            raise ValueError(f"entry {self.id}: has no spoken answer (neither a2 nor codes)")
        check_codec(self.codes, codec, codec_name, f"entry {self.id}")
        with torch.inference_mode():
            return codec.decode(self.codes.load()[None].long())[0]


def check_codec(codes: Codes, codec: Codec, codec_name: str | None, where: str) -> None:
    """Raise an error if codes were not computed by the given codec.

    Args:
        codec_name: name of the codec; None if it is unknown.
        where: prefix of the error message.

    Raises:
        ValueError: the codec's name or its number of codebooks differs; the message names both.
    """
    if codes.codec != codec_name:
        raise ValueError(
            f"{where}: holds codes of the codec {codes.codec!r}, but the system's is {codec_name or 'unnamed'!r}; "
            f"choose --codec {codes.codec}, or give the recordings that they were computed from"
        )
    found = len(codes.load())
    if found != codec.num_codebooks:
        raise ValueError(f"{where}: {found} codes a frame, but codec {codec_name} has {codec.num_codebooks}")


class EntryFields:
    """Access to single fields of the manifest entries of a sequence, by the index of the entry."""

    @property
    def have_features(self) -> bool:
        """Whether an entry has stored encoder features."""
        return any(entry.features is not None for entry in self)

    def units(self) -> Units | None:
        """Return the units of the entries, such as dialogs; None if each entry is one of its own."""
        ids = [entry.id for entry in self]
        return units_of([entry.dialog for entry in self], ids if any(MARK in name for name in ids) else None, len(ids))

    def id_of(self, index: int) -> str:
        """Return the id of an entry."""
        return self[index].id

    def codes_of(self, index: int, field: str) -> Tensor:
        """Return the stored codes [K, T] (int16) of an entry in the field `codes1` or `codes`."""
        return getattr(self[index], field).load()

    def features_of(self, index: int) -> Tensor:
        """Return the stored encoder features [T, D] (float16) of an entry."""
        return self[index].features.load()


class ListedEntries(EntryFields, list[ManifestEntry]):
    """The usable entries of a CSV, JSON or JSONL manifest as a list; `skipped` counts the malformed ones by reason."""

    def __init__(self, entries: Iterable[ManifestEntry] = (), skipped: Skipped | None = None):
        super().__init__(entries)
        self.skipped = skipped or Skipped()


def read_manifest(
    path: str | Path, cache_folder: str | Path | None = None, answers: str | Path | None = None
) -> ListedEntries | TableEntries:
    """Return the entries of a manifest: a `.csv`, `.json`, `.jsonl` or `.parquet` file, or a folder of Parquet shards.

    The entries of a Parquet manifest are created on access; texts and recordings stay in a memory-mapped table.
    Malformed entries are skipped: they are counted in the result's `skipped` and reported by one warning.

    Args:
        cache_folder: folder for memory-mapped copies of Parquet manifests; None = the cache folder of `datasets`.
        answers: a Parquet manifest with `t2` and `a2` that holds recordings of answers; an entry without a recording of
            its answer gets the one with the same text.

    Raises:
        ValueError: no such file or folder, another format, a column that is missing, given twice or of a wrong type,
            two entries with one id, or no usable entry.
    """
    path = Path(path)
    if in_parquet(path):
        spoken = dict(_answer_recordings(Path(answers), cache_folder)) if answers is not None else {}
        table = _read_table(path, cache_folder, NEEDED)
        entries = ListedEntries() if table is None else TableEntries(table, spoken)
    else:
        found, skipped = list(read_fields(path)), Skipped()
        for each in found:
            if isinstance(each, Remark):
                skipped.add(each.reason, each.example)
        entries = ListedEntries((_entry_of_files(each) for each in found if not isinstance(each, Remark)), skipped)
    _warn_of_skipped(path, entries.skipped)
    return entries


def _warn_of_skipped(path: Path, skipped: Skipped) -> None:
    if skipped:
        logger.warning("manifest %s: entries skipped: %s", path, skipped)


def in_parquet(path: Path) -> bool:
    """Return whether the path of a manifest is that of a Parquet file or of a folder of Parquet files."""
    return path.is_dir() or path.suffix == ".parquet"


@dataclass(frozen=True)
class _ParquetTable:
    """A Parquet manifest as a table with columns named by fields; a `{bytes, path}` recording takes two columns."""

    dataset: Any  # a `datasets.Dataset`
    folder: Path  # relative paths refer to it
    places: np.ndarray  # indices of the rows that are not malformed
    skipped: Skipped
    version: str  # digest of the content of its files, see `Recording`
    features: ParquetFeatures | None = None

    def type(self, column: str) -> pa.DataType:
        return self.dataset.data.column(column).type


class _Recordings:
    """Access to the recordings of a Parquet manifest: paths of sound files, or bytes that stay in the table."""

    def __init__(self, table: _ParquetTable):
        self.paths: dict[str, str] = {}
        """Mapping from the field of a recording to the name of the column with its path."""
        self.version = table.version
        self.inside: dict[str, tuple[ArrowColumn, np.ndarray]] = {}
        """Mapping from the field of a recording to the column with its bytes, and a mask of the rows that have some."""
        for name in AUDIO:
            for column in {name, f"{name}.bytes", f"{name}.path"}.intersection(table.dataset.column_names):
                if is_bytes(table.type(column)):
                    self.inside[name] = _column(table.dataset, column), _present(table.dataset, column)
                elif is_text(table.type(column)):
                    self.paths[name] = column

    @property
    def columns(self) -> set[str]:
        """Names of the table's columns that hold bytes of sound files."""
        return {column.name for column, _ in self.inside.values()}

    def paths_named(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Rename the path columns of a Parquet row, in place, to the fields of their recordings, and return the row."""
        for name, column in self.paths.items():
            fields[name] = fields.pop(column)
        return fields

    def recording(self, name: str, key: str, index: int, path: str | None) -> Recording | None:
        """Return a recording of the Parquet row at `index`; None if it has none. Bytes take precedence over a path."""
        if name in self.inside:
            column, present = self.inside[name]
            if present[index]:
                return Recording(key, table=column, index=index, column=column.name, version=self.version)
        return None if path is None else Recording(key, path=path)


class TableEntries(EntryFields, Sequence[ManifestEntry]):
    """The entries of a Parquet manifest as a sequence; each entry is created from a memory-mapped table on access.

    Args:
        table: the table, with columns named by `manifest_columns.COLUMNS`; its malformed rows are skipped.
        spoken: mapping from the text of an answer to its recording, for entries without a recording of their answer.
    """

    def __init__(self, table: _ParquetTable, spoken: dict[str, Recording]):
        self.spoken, self.places, self.folder, self.skipped = spoken, table.places, table.folder, table.skipped
        dataset, self.recordings = table.dataset, _Recordings(table)
        self.codes = {name: _column(dataset, name) for name in CODES_OF.values() if name in dataset.column_names}
        large = {*self.recordings.columns, *self.codes}
        self.small = dataset.select_columns([name for name in dataset.column_names if name not in large])
        self.columns = {name: _column(dataset, name) for name in self.small.column_names}
        self.names = {n: n for n in COLUMNS if n in self.columns or n in self.recordings.paths}
        self.frames = {name: _frames(dataset, name) for name in self.codes}
        self.features = table.features

    @property
    def have_features(self) -> bool:
        return self.features is not None

    def units(self) -> Units | None:
        dialogs = self._values("dialog") if "dialog" in self.columns else None
        copies = _contains(self.columns["id"].data, MARK)
        return units_of(dialogs, self._values("id") if copies else None, len(self))

    def _values(self, name: str) -> list[Any]:
        """Return the values of a column for all entries."""
        return np.array(self.columns[name].data.to_pylist(), object)[self.places].tolist()

    def id_of(self, index: int) -> str:
        return field_values.name(self.columns["id"][int(self.places[index])])

    def codes_of(self, index: int, field: str) -> Tensor:
        return torch.from_numpy(self.codes[field].matrix(int(self.places[index])))

    def features_of(self, index: int) -> Tensor:
        place = int(self.places[index])
        return self.features.read(place, self.columns["frames"][place])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int | slice) -> ManifestEntry | list[ManifestEntry]:
        if isinstance(index, slice):
            return list(self._entries(self.places[index]))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = int(self.places[index])
        return self._entry(place, {name: column[place] for name, column in self.columns.items()})

    def __iter__(self) -> Iterator[ManifestEntry]:
        return self._entries(self.places)

    def _entries(self, places: np.ndarray) -> Iterator[ManifestEntry]:
        for some in in_batches(places.tolist()):
            columns = self.small[some]
            for number, place in enumerate(some):
                yield self._entry(place, {name: values[number] for name, values in columns.items()})

    def _entry(self, index: int, stored: dict[str, Any]) -> ManifestEntry:
        stored = self.recordings.paths_named(stored)
        fields = {"t1": "", **typed(stored, self.names, self.folder)}
        codec, encoder, frames = (fields.pop(name, None) for name in ("codec", "encoder", "frames"))
        fields["accepted"] = tuple(fields.get("accepted", ()))
        recordings = {
            name: self.recordings.recording(name, recording_key(fields["id"], name), index, fields.get(name))
            for name in AUDIO
        }
        recordings["a2"] = recordings["a2"] or self.spoken.get(fields.get("t2"))
        codes = {
            name: Codes(codec or "", int(counts[index]), self.codes[name], index)
            for name, counts in self.frames.items()
            if counts[index] >= 0
        }
        features = None
        if self.features is not None and self.features.sizes[index] >= 0:
            features = Features(encoder or "", frames, self.features, index)
        return ManifestEntry(**fields | recordings | codes, features=features)


class EntrySubset(EntryFields, Sequence[ManifestEntry]):
    """A view of some entries of a manifest, selected by their indices."""

    def __init__(self, entries: Sequence[ManifestEntry], places: Sequence[int]):
        self.entries, self.places = entries, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int | slice) -> ManifestEntry | EntrySubset:
        places = self.places[index]
        return EntrySubset(self.entries, places) if isinstance(index, slice) else self.entries[places]

    @property
    def have_features(self) -> bool:
        return self.entries.have_features

    def id_of(self, index: int) -> str:
        return self.entries.id_of(self.places[index])

    def codes_of(self, index: int, field: str) -> Tensor:
        return self.entries.codes_of(self.places[index], field)

    def features_of(self, index: int) -> Tensor:
        return self.entries.features_of(self.places[index])


def recording_key(entry: str, name: str) -> str:
    """Return the key of a recording in caches, from the id of its entry and the field (`a1` or `a2`)."""
    return entry if name == "a1" else f"{entry} {name}"


def _column(dataset: Any, name: str) -> ArrowColumn:
    return ArrowColumn(dataset.select_columns([name]), name)


def _contains(column: pa.ChunkedArray, part: str) -> bool:
    """Return whether a text in a column contains another; no number does."""
    if not is_text(column.type):
        return False
    plain = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return bool(pc.any(pc.match_substring(column if plain else column.cast(pa.string()), part)).as_py())


def _frames(table: Any, column: str) -> np.ndarray:
    """Return the number of frames [rows] of the codes in each row of a Parquet column; -1 where a row has none."""
    return np.concatenate([code_frames(chunk)[0] for chunk in table.data.column(column).chunks] or [np.zeros(0, int)])


def _present(table: Any, column: str) -> np.ndarray:
    """Return a mask [rows] of the table rows that have a value in a column."""
    return table.data.column(column).is_valid().to_numpy()


def _entry_of_files(fields: dict[str, Any]) -> ManifestEntry:
    """Create a manifest entry from fields read from a CSV, JSON or JSONL file; its recordings are paths."""
    recordings = {
        name: Recording(recording_key(fields["id"], name), path=fields[name]) for name in AUDIO if name in fields
    }
    codes = {
        name: Codes(fields.get("codec", ""), len(fields[name][0]), values=fields[name])
        for name in CODES_OF.values()
        if name in fields
    }
    plain = ("id", "t2", "kind", "duration", "speaker", "language", "dialog", "turn")
    rest = {name: fields[name] for name in plain if name in fields}
    return ManifestEntry(
        **rest, t1=fields.get("t1", ""), accepted=tuple(fields.get("accepted", ())), **codes, **recordings
    )


def _answer_recordings(path: Path, cache_folder: str | Path | None) -> Iterator[tuple[str, Recording]]:
    table = _read_table(path, cache_folder, ("t2", "a2"))
    if table is None:
        return
    _warn_of_skipped(path, table.skipped)
    recordings = _Recordings(table)
    texts = {name: _column(table.dataset, name) for name in ("t2", *recordings.paths.values())}
    for place in table.places.tolist():
        fields = recordings.paths_named({name: column[place] for name, column in texts.items()})
        fields = typed(fields, {name: name for name in fields}, table.folder)
        recording = recordings.recording("a2", f"answer {fields.get('t2')}", place, fields.get("a2"))
        if recording is not None and "t2" in fields:
            yield fields["t2"], recording


def _read_table(path: Path, cache_folder: str | Path | None, needed: Sequence[str]) -> _ParquetTable | None:
    """Return a Parquet file, or the files of a folder in the order of their names, as one table; None without rows.

    Raises:
        ValueError: see `read_manifest`.
    """
    shards = [read_shard(file, needed) for file in shard_files(path)]
    schema = check_alike(shards)
    held = [shard for shard in shards if shard.rows]
    if not held:
        return None
    with about(path):
        laid_out = _as_table(held, cache_folder, schema)
        dataset = laid_out.data
        features = find_features(held, laid_out.folder) if _holds_features(schema) else None
        fields = {name: field for name, field in shards[0].fields.items() if name in dataset.column_names}
        if "id" in needed:
            check_ids([dataset.data.column(name) for name, field in fields.items() if field == "id"])
        bad = malformed_rows(dataset.data, fields, None if features is None else features.sizes)
        if len(bad) == len(dataset):
            raise ValueError(f"{bad[0]}; no entry is usable")
    skipped = Skipped()
    for each in bad.values():
        skipped.add(each.reason, f"{path.name}: {each}")
    places = np.setdiff1d(np.arange(len(dataset)), list(bad))
    folder = path if path.is_dir() else path.parent
    return _ParquetTable(_named_by_fields(dataset, fields), folder, places, skipped, laid_out.version, features)


def _holds_features(schema: pa.Schema) -> bool:
    return FEATURES in schema.names and not pa.types.is_null(schema.field(FEATURES).type)


def _as_table(shards: Sequence[Shard], cache_folder: str | Path | None, schema: pa.Schema) -> LaidOut:
    """Return the rows of shards as one memory-mapped table with the columns of `schema` but encoder features.

    Raises:
        ValueError: the shards cannot be read as one table.
    """
    from datasets.exceptions import DatasetsError

    with_features = _holds_features(schema)
    schema = pa.schema([field for field in schema if field.name != FEATURES], schema.metadata)
    complete = all(set(schema.names) <= shard.fields.keys() for shard in shards)
    if with_features and not complete:
        raise ValueError("a shard lacks columns of the first one; shards with features need the same columns")
    if not complete:  # `datasets` fills columns that a file lacks only if it reads all columns
        known = {field.name: field for field in schema}
        schema = pa.schema([known.get(field.name, field) for field in shards[0].schema], schema.metadata)
    try:
        return lay_out([shard.file for shard in shards], cache_folder, schema, only=complete)
    except (DatasetsError, NotImplementedError, TypeError, KeyError, *DAMAGED) as error:
        raise ValueError(f"cannot be read as one table ({one_line(error.__cause__ or error)})") from None


def _named_by_fields(dataset: Any, fields: dict[str, str]) -> Any:
    """Return the known columns of a dataset, renamed to their fields, without all-null columns, structs flattened."""
    from datasets import Audio

    kept = {name: field for name, field in fields.items() if not pa.types.is_null(dataset.data.column(name).type)}
    dataset = dataset.select_columns(list(kept))
    for name, feature in dataset.features.items():
        if isinstance(feature, Audio):
            dataset = dataset.cast_column(name, Audio(decode=False))
    dataset = dataset.rename_columns({name: field for name, field in kept.items() if name != field})
    dataset = dataset.flatten()
    known = [name for name in dataset.column_names if name in COLUMNS or name.endswith((".bytes", ".path"))]
    return dataset.select_columns(known)
