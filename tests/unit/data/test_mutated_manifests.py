"""Tests of manifests with seeded random damage: all readers return the same entries or refuse the file in one line."""

from __future__ import annotations

import io
import json
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from omnikit.data.manifest_reader import read_manifest
from omnikit.data.skipped import Remark
from omnikit.offline import batch_inference
from omnikit.prepare.rewrite_manifest import read_parts
from omnikit.tasks import TASKS

SEED = 14
ENDINGS = ("csv", "json", "jsonl", "parquet")
GIGABYTE = 2**30
Fields = dict[str, Any]
ODD = (
    None, "", " ", "x", "0", "-1", "1,5", "nan", "inf", "1e999", 0, 7, -1, 2**70, 1.5, float("nan"), float("inf"), True,
    [], [[]], [[1]], [[1, 2], [3, 4]], [[1], [2, 3]], [[-1]], [[70000]], [["a"]], ["a", None, 3], {}, {"x": 1},
    {"path": "wavs/a.wav"}, {"bytes": None, "path": None}, {"bytes": "x"}, "\ud800", "a\0b", "word " * 2000, "a\nb",
    "$data_root/a.wav", "{data_root}", "a|b||", '"', "ü", "=1+1",
)  # fmt: skip
OTHER_NAMES = ("ID", "key", "wav", "wrd", "txt", "source", "target", "spk_id", "id", "a1", "t1", "", "extra", "codes")


def sound() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(800), 16000, format="WAV")
    return buffer.getvalue()


SOUND = sound()


def plain_rows(chance: random.Random, ending: str) -> list[Fields]:
    entries = [
        {"id": f"r{i}", "duration": 0.5 + i, "speaker": "anna", "t1": "what is it", "t2": "four", "a1": f"wavs/{i}.wav"}
        for i in range(chance.randint(1, 6))
    ]
    for entry in entries if ending != "csv" and chance.random() < 0.5 else ():
        entry |= {"codes": [[1, 2], [3, 4]], "codec": "toy", "accepted": ["four", "4"]}
    for entry in entries if ending == "parquet" and chance.random() < 0.5 else ():
        entry |= {"a1": SOUND, "features": bytes(12), "frames": 2, "encoder": "e"}
    return entries


def odd_value(entries: list[Fields], chance: random.Random) -> list[Fields]:
    entry = chance.choice(entries)
    entry[chance.choice([*entry])] = chance.choice(ODD)
    return entries


def odd_column(entries: list[Fields], chance: random.Random) -> list[Fields]:
    name, value = chance.choice([*entries[0]]), chance.choice(ODD)
    return [{**entry, name: value} for entry in entries]


def renamed(entries: list[Fields], chance: random.Random) -> list[Fields]:
    old, new = chance.choice([*entries[0]]), chance.choice(OTHER_NAMES)
    return [{new if name == old else name: value for name, value in entry.items()} for entry in entries]


def added(entries: list[Fields], chance: random.Random) -> list[Fields]:
    return [{**entry, chance.choice(OTHER_NAMES): "x"} for entry in entries]


def dropped(entries: list[Fields], chance: random.Random) -> list[Fields]:
    some = entries if chance.random() < 0.5 else entries[:1]
    name = chance.choice([*entries[0]])
    return [{k: v for k, v in entry.items() if k != name} if entry in some else entry for entry in entries]


def repeated(entries: list[Fields], chance: random.Random) -> list[Fields]:
    return [*entries, dict(chance.choice(entries))]


def bytes_and_path(entries: list[Fields], chance: random.Random) -> list[Fields]:
    forms = ({"bytes": SOUND, "path": None}, {"bytes": None, "path": "wavs/0.wav"}, None)
    return [{**entry, "a1": chance.choice(forms)} for entry in entries]


def numbers(entries: list[Fields], chance: random.Random) -> list[Fields]:
    name = chance.choice(["id", "t2", "speaker", "duration"])
    return [{**entry, name: i} for i, entry in enumerate(entries)]


def fitting(entries: list[Fields], chance: random.Random) -> list[Fields]:
    """Replace one value of the manifest entries by an unusual value of the same type, which a Parquet column can hold.
    """
    entry = chance.choice(entries)
    name = chance.choice([name for name in FITTING if name in entry] or ["id"])
    entry[name] = chance.choice(FITTING[name])
    return entries


FITTING = {
    "id": (None, "", " ", "\u2003", "\ud800"), "duration": (float("nan"), -0.5, float("inf")), "frames": (0, 5, None),
    "codes": ([], [[]], [[1], [2, 3]], [[1, 2], None], [[-1, 0], [3, 4]], [[2**16, 0], [3, 4]], [[1, None], [3, 4]]),
    "a1": ("a\0b", "x" * 300, b"", "\ud800"), "features": (b"", b"123"), "accepted": ([], [None], ["\ud800"]),
    "t1": ("\ud800", None, ""), "t2": ("\ud800",),
}  # fmt: skip
COMMON = (odd_value, odd_value, fitting, fitting, fitting)
STRUCTURAL = (*COMMON, odd_column, renamed, added, dropped, repeated, bytes_and_path, numbers)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return the bytes of a file with random damage: truncated, or with bytes flipped, removed, repeated or inserted.
    """
    at, length = chance.randrange(len(data)), chance.randint(1, 40)
    return chance.choice([
        lambda: data[:at],
        lambda: data[:at] + data[at + length :],
        lambda: data[: at + length] + data[at:],
        lambda: data[:at] + chance.randbytes(length) + data[at + length :],
        lambda: data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :],
        lambda: chance.choice([b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"[" * 5000]) + data,
    ])()  # fmt: skip


def stored(entries: list[Fields], ending: str, chance: random.Random) -> bytes:
    if ending == "parquet":
        return as_parquet(entries)
    if ending == "json":
        fields = {str(entry.get("id")): {name: entry[name] for name in entry if name != "id"} for entry in entries}
        return json.dumps(fields, **JSON).encode()
    if ending == "jsonl":
        return "".join(json.dumps(entry, **JSON) + chance.choice(["\n", "\r\n", "\n\n"]) for entry in entries).encode()
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    between = chance.choice(",,;\t")
    cells = [names, *([entry.get(name, "") for name in names] for entry in entries)]
    quoted = ([f'"{cell}"' if between in str(cell) else str(cell) for cell in line] for line in cells)
    return "\n".join(between.join(line) for line in quoted).encode("utf-8", "surrogatepass")


JSON = {"default": lambda value: len(value), "skipkeys": True}


def as_parquet(entries: list[Fields]) -> bytes:
    """Return manifest entries as the bytes of a Parquet file, with column types inferred by pyarrow.

    A column with values of several types becomes a column of texts.
    """
    columns = {}
    for name in dict.fromkeys(name for entry in entries for name in entry):
        values = [entry.get(name) for entry in entries]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, OverflowError, TypeError, UnicodeEncodeError):
            texts = [None if value is None else str(value).encode("utf-8", "surrogatepass") for value in values]
            columns[name] = pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts, pa.binary()).buffers())
    buffer = io.BytesIO()
    try:
        pq.write_table(pa.table(columns), buffer, row_group_size=2)
    except pa.ArrowNotImplementedError:  # Parquet cannot hold a struct without fields
        return as_parquet([{name: str(value) for name, value in entry.items()} for entry in entries])
    return buffer.getvalue()


def mutated(number: int, folder: Path) -> Path:
    chance = random.Random(f"{SEED} {number}")
    ending = ENDINGS[number % len(ENDINGS)]
    entries = plain_rows(chance, ending)
    for _ in range(chance.randint(1, 2) if chance.random() < 0.7 else 0):
        entries = chance.choice(STRUCTURAL)(entries, chance)
    data = stored(entries, ending, chance)
    for _ in range(chance.randint(1, 3) if chance.random() < 0.5 else 0):
        data = damaged(data, chance) or b"\0"
    path = folder / f"m{number}.{ending}"
    path.write_bytes(data)
    return path


def ids_or_refusal(read: Callable[[], list[str]]) -> list[str] | str:
    try:
        return read()
    except ValueError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 1000, error
        return str(error)


def used(path: Path, folder: Path) -> list[str]:
    """Return the ids of a manifest's entries, after loading all texts, recordings, codes and features of each entry."""
    ids = []
    for entry in read_manifest(path, folder):
        assert (
            isinstance(entry.id, str) and isinstance(entry.t1, str) and (entry.duration is None or entry.duration >= 0)
        )
        for each in (entry.codes, entry.codes1, entry.features):
            assert each is None or len(each.load().shape) == 2
        for recording in (entry.a1, entry.a2):
            assert recording is None or recording.check() is not None
        ids.append(entry.id)
    return ids


def check_readers_agree(numbers: range, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "hf")
    print(f"seed {SEED}")
    counts = {"read": 0, "skipped": 0, "refused": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        path = mutated(number, folder)
        print(path.name)
        items: list = []
        entries = ids_or_refusal(lambda path=path: used(path, folder / "tables"))
        again = ids_or_refusal(
            lambda path=path: [entry.id for entry in batch_inference.read_entries(path, TASKS["T1T2"])]
        )
        parts = ids_or_refusal(lambda path=path, items=items: identified(path, items))
        remarks = [item for item in items if isinstance(item, Remark)]
        if isinstance(entries, str):
            assert isinstance(again, str) and (isinstance(parts, str) or remarks), (entries, parts)
            counts["refused"] += 1
        else:
            assert parts == entries and (again == entries or (not entries and "holds no text" in again)), (
                entries,
                parts,
                again,
            )
            counts["skipped" if remarks else "read"] += 1
        assert all(remark.reason in ("malformed", "not UTF-8", "shard unreadable") for remark in remarks)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GIGABYTE
    return counts


def identified(path: Path, items: list) -> list[str]:
    """Return the ids of the items read from a manifest's parts, and append these items and all remarks to `items`."""
    items += [item for part in read_parts(path, 2)[1] for item in part.items()]
    return [item["id"] for item in items if not isinstance(item, Remark)]


def test_readers_agree_about_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    counts = check_readers_agree(range(80), tmp_path, monkeypatch)
    assert min(counts.values()) >= 5, counts  # the damage is neither harmless nor total


@pytest.mark.long
def test_readers_agree_about_much_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    counts = check_readers_agree(range(80, 380), tmp_path, monkeypatch)
    assert min(counts.values()) >= 20, counts
