"""Tests of manifest columns: accepted values and their conversion, skipped entries and refused files."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
from datasets import Audio, Features, Value
from rewriting import sound
from toy import toy_model

from omnikit.data.manifest_columns import COLUMNS, Malformed, converted
from omnikit.data.manifest_reader import ManifestEntry, read_manifest
from omnikit.data.manifest_writer import ManifestWriter
from omnikit.data.parquet_manifest import malformed_rows
from omnikit.data.samples import make_dataset
from omnikit.data.skipped import Item, Remark
from omnikit.data.sources import read_sources
from omnikit.llms.tokenizers import SentencePieceTokenizer
from omnikit.offline import batch_inference
from omnikit.prepare.rewrite_manifest import read_parts
from omnikit.prepare.tokenize import Parts, tokenize
from omnikit.tasks import TASKS

DOCS = Path(__file__).parents[3] / "docs" / "data.md"
WAV = sound(0.1)
ACCEPTED = (
    ("id", "a", "a"), ("id", 7, "7"), ("duration", 2, 2.0), ("duration", "1.5", 1.5), ("duration", 0, 0.0),
    ("duration", float("nan"), None), ("frames", float("nan"), None),
    ("t1", "x", "x"), ("t2", 4, "4"), ("speaker", 19, "19"), ("accepted", "a|b| ", ["a", "b"]),
    ("accepted", ["a", 4, None, ""], ["a", "4"]), ("a1", "x.wav", "x.wav"), ("a1", b"RIFF", b"RIFF"), ("a1", " ", None),
    ("a1", {"bytes": b"RIFF", "path": "x.wav"}, b"RIFF"), ("a1", {"bytes": None, "path": "x.wav"}, "x.wav"),
    ("a1", {"path": "x.wav"}, "x.wav"), ("a1", {"bytes": None, "path": None}, None), ("frames", 3, 3),
    ("features", b"ab", b"ab"),
)  # fmt: skip
REFUSED = (
    ("id", ""), ("id", " "), ("id", 1.5), ("id", True), ("id", []), ("duration", "long"), ("duration", "1,5"),
    ("duration", "nan"), ("duration", float("inf")), ("duration", -1), ("duration", True), ("duration", 10**400),
    ("t1", 1.5), ("t1", ["x"]), ("t2", True), ("t2", {}), ("accepted", 1.5), ("accepted", [1.5]), ("a1", 5),
    ("a1", {}), ("a1", {"array": [0.0]}), ("a1", {"path": 5}), ("a1", {"path": {"path": "x"}}), ("a1", ["x.wav"]),
    ("a1", "a\0b"), ("a1", "x" * 256), ("codes", "1 2"), ("codes", []), ("codes", [[]]), ("codes", [1, 2]),
    ("codes", [[1], [2, 3]]), ("codes", [[-1]]), ("codes", [[2**15]]), ("codes", [[1.0]]), ("codes", [[True]]),
    ("codes", [[None]]), ("codes", [[[1]]]), ("frames", 0), ("frames", 1.5), ("features", "ab"), ("features", [1]),
)  # fmt: skip


@pytest.mark.parametrize(("field", "value", "expected"), ACCEPTED)
def test_accepted_forms_become_the_type_of_the_field(field: str, value: Any, expected: Any):
    found = converted(field, value, field)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_other_forms_are_malformed(field: str, value: Any):
    with pytest.raises(Malformed) as told:
        converted("column", value, field)
    assert str(told.value).startswith("column ") and COLUMNS[field].accepts in str(told.value)
    assert len(str(told.value)) < 400 and "\n" not in str(told.value)


def test_codes_become_int16():
    found = converted("codes", [[1, 2], [3, 4]], "codes")
    assert found.dtype == np.int16 and found.tolist() == [[1, 2], [3, 4]]


def test_text_that_is_not_utf8_has_its_own_reason():
    with pytest.raises(Malformed, match=r"t1 'caf\\udce9' is no text in UTF-8") as told:
        converted("t1", "caf\udce9", "t1")
    assert told.value.reason == "not UTF-8"


def test_the_documentation_names_every_column():
    words = DOCS.read_text(encoding="utf-8")
    names = [name for field, column in COLUMNS.items() for name in (field, *column.also)]
    assert [name for name in names if f"`{name}`" not in words] == []


def everywhere(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[ManifestEntry], list[Item | Remark]]:
    """Return the entries of a manifest and the items read from its parts, and check that all readers agree on the ids.
    """
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache / "hf")
    entries = read_manifest(path, cache / "tables")
    items = [item for part in read_parts(path, 100)[1] for item in part.items()]
    ids = [item["id"] for item in items if not isinstance(item, Remark)]
    assert (
        [entry.id for entry in entries]
        == ids
        == [entry.id for entry in batch_inference.read_entries(path, TASKS["T1T2"])]
    )
    assert sum(entries.skipped.reasons.values()) == sum(isinstance(item, Remark) for item in items)
    return list(entries), items


HABITS = {
    "spaces.csv": "ID, duration, wav, spk_id, wrd\n1, 1.5, wavs/a.wav, anna, what is two\n",
    "root.csv": "ID,duration,wav,spk_id,wrd\n1,1.5,$data_root/wavs/a.wav,anna,what is two\n",
    "braces.json": '{"1": {"duration": 1.5, "wav": "{data_root}/wavs/a.wav", "spk_id": "anna", "wrd": "what is two"}}',
    "semicolons.csv": "id;duration;a1;speaker;t1;\r\n1;1.5;wavs/a.wav;anna;what is two;\r\n;;;;;\r\n",
    "tabs.csv": "\ufeffID\tduration\ta1\tspeaker\tt1\n\n1\t1.5\twavs/a.wav\tanna\twhat is two\n",
    "wenet.jsonl": '{"key": "1", "wav": "wavs/a.wav", "txt": "what is two", "speaker": "anna", "duration": 1.5}\n\n',
    "slam.jsonl": '\ufeff{"key": 1, "source": "wavs/a.wav", "target": "what is two", "prompt": "Transcribe.", '
    '"spk_id": "anna", "duration": "1.5"}',
}


@pytest.mark.parametrize("name", HABITS)
def test_habits_of_other_toolkits_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / name).write_bytes(HABITS[name].encode())
    ((entry,), (item,)) = everywhere(tmp_path / name, tmp_path, monkeypatch)
    assert (entry.id, entry.t1, entry.speaker, entry.duration) == ("1", "what is two", "anna", 1.5)
    assert entry.a1.path == item["a1"] == str(tmp_path / "wavs" / "a.wav")


PARQUET = {
    "path": ("wavs/a.wav", pa.string()),
    "large_text": ("wavs/a.wav", pa.large_string()),
    "dictionary": ("wavs/a.wav", pa.dictionary(pa.int32(), pa.string())),
    "bytes": (WAV, pa.binary()),
    "large_bytes": (WAV, pa.large_binary()),
    "struct": ({"bytes": WAV, "path": "wavs/none.wav"}, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
    "struct_path": ({"bytes": None, "path": "wavs/a.wav"}, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
    "only_path": ({"path": "$data_root/wavs/a.wav"}, pa.struct({"path": pa.string()})),
    "Audio": ({"bytes": WAV, "path": None}, Audio().pa_type),
}


@pytest.mark.parametrize("form", PARQUET)
def test_recordings_in_parquet(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Parquet columns with SpeechBrain's names, integer ids, relative paths and any type of recording are read."""
    (tmp_path / "m" / "wavs").mkdir(parents=True)
    (tmp_path / "m" / "wavs" / "a.wav").write_bytes(WAV)
    value, kind = PARQUET[form]
    table = pa.table({"ID": [1, 2], "wrd": ["x", None], "wav": pa.array([value, None], kind), "extra": [[1], [2]]})
    if form == "Audio":  # metadata that `datasets` writes for a column of recordings
        kinds = Features({"ID": Value("int64"), "wrd": Value("string"), "wav": Audio(), "extra": [Value("int64")]})
        metadata = {"huggingface": json.dumps({"info": {"features": kinds.to_dict()}})}
        table = table.replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "m" / "0.parquet")
    (first, second), items = everywhere(tmp_path / "m", tmp_path, monkeypatch)
    assert (first.id, first.t1, second.id, second.t1, second.a1) == ("1", "x", "2", "", None)
    assert first.a1.check().problem is None and len(first.a1.load(16000)) == 1600
    assert items[0]["a1"] == (WAV if "bytes" in form or form in ("struct", "Audio") else str(tmp_path / "m/wavs/a.wav"))


def test_shards_hold_bytes_where_a_column_has_both(tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(WAV)
    sounds = [{"bytes": WAV, "path": None}, {"bytes": None, "path": "a.wav"}, {"bytes": None, "path": "none.wav"}]
    columns = {"id": ["a", "b", "c"], "t1": ["x"] * 3, "a1": sounds, "codes1": [[[1]]] * 3, "codec": ["toy"] * 3}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    summary = tokenize(tmp_path / "m.parquet", tmp_path / "out", Parts(toy_model().codec, "toy"), fields=("a1",))
    assert summary.skipped.reasons == {"missing": 1}
    entries = read_manifest(tmp_path / "out", tmp_path / "cache")
    assert [len(entry.a1.load(16000)) for entry in entries] == [1600, 1600] and entries[0].a1.path is None


def unchecked(texts: list[bytes]) -> pa.Array:
    """Return an Arrow array of strings whose bytes have not been validated as UTF-8."""
    return pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts).buffers())


BAD_ROWS: dict[str, tuple[pa.Array, str]] = {
    "id": (pa.array(["a", None, "c"]), "m.parquet: entry number 2: id None is no text (not blank) or whole number"),
    "duration": (pa.array([float("nan"), -1.0, 0.0]), "entry number 2: entry 'b': duration -1.0 is no number"),
    "t2": (unchecked([b"x", b"\xff", b"y"]), r"entry number 2: entry 'b': t2 '\udcff' is no text in UTF-8"),
    "a1": (pa.array(["a.wav", "b" * 300, None]), "entry number 2: entry 'b': a1 'bbb"),
    "codes": (
        pa.array([[[1, 2]], [[1], [2, 3]], None]),
        "entry number 2: entry 'b': codes [[1], [2, 3]] is no lists of",
    ),
    "codes1": (pa.array([[[1, 2]], [[-5]], None]), "entry number 2: entry 'b': codes1 [[-5]] is no lists of the same"),
    "features": (pa.array([b"1234", b"123", None]), "entry number 2: entry 'b': frames"),
    "accepted": (pa.ListArray.from_arrays([0, 1, 2, 2], unchecked([b"x", b"\xff"])), "is no text in UTF-8"),
}


@pytest.mark.parametrize("field", BAD_ROWS)
def test_a_bad_entry_of_a_table_is_skipped_and_counted(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    column, message = BAD_ROWS[field]
    columns = {"id": ["a", "b", "c"], "t1": ["x"] * 3} | ({"frames": [1, 1, None]} if field == "features" else {})
    pq.write_table(pa.table(columns | {field: column}), tmp_path / "m.parquet")
    entries, items = everywhere(tmp_path / "m.parquet", tmp_path, monkeypatch)
    assert [entry.id for entry in entries] == ["a", "c"] and "entries skipped: 1 " in caplog.text
    assert message in caplog.text and isinstance(items[1], Remark) and "entry number 2" in items[1].example


LINES = {
    "m.csv": ("ID,t1,duration\na,x,1\nb,y,1;5\nc,z\nd,w,2\n", ("m.csv: line 3: entry 'b': duration '1;5' is no number",
                                                              "m.csv: line 4 has not the header's number of columns")),
    "m.json": ('{"a": {"t1": "x"}, "b": {"t1": []}, "c": 5, "d": {"t1": "w"}}',
               ("m.json: entry 'b': t1 [] is no text", "m.json: entry 'c': 5 is no object of fields")),
    "m.jsonl": ('{"id": "a", "t1": "x"}\n{"id": "b", "t1": "x", "t1": "y"}\n{"id": "c"\n{"id": "d", "t1": "w"}',
                ("m.jsonl: line 2 cannot be read (the key 't1' is given twice)", "m.jsonl: line 3 cannot be read (")),
    "quotes.csv": ('ID,t1\na,"x, ""y"""\nb,"Yes" he said\nc,"No" they said\nd,"z\nz"',
                   ("quotes.csv: line 3 cannot be read (", "quotes.csv: line 4 cannot be read (")),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_a_bad_entry_of_a_file_is_skipped_and_counted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    content, messages = LINES[name]
    (tmp_path / name).write_text(content)
    entries, items = everywhere(tmp_path / name, tmp_path, monkeypatch)
    assert [entry.id for entry in entries] == ["a", "d"] and "entries skipped: 2 malformed" in caplog.text
    for item, message in zip(items[1:3], messages, strict=True):
        assert message in item.example
    with pytest.raises(ValueError, match="malformed"):
        tokenize(tmp_path / name, tmp_path / "out", Parts(toy_model().codec, "toy"), strict=True)


WHOLE_FILES = {
    "clash.csv": ("ID,t1,wrd\na,x,y\n", "column 't1' and 'wrd' both hold t1"),
    "twice.csv": ("ID,t1,t1\na,x,y\n", "column 't1' is given twice"),
    "quote.csv": ('ID,t1\na,"x\nb,y\n', "line 3: not CSV (unexpected end of data)"),
    "last_quote.csv": ('ID,t1\nb,y\na,"x', "line 3: not CSV (unexpected end of data)"),
    "other_quote.csv": ('ID,t1\na,"x\nb,"y"\n', "line 3: not CSV ("),
    "utf16.csv": ("ID,t1\na,x\n".encode("utf-16"), "not a CSV file in UTF-8"),
    "id_twice.json": ('{"a": {"t1": "x"}, "a": {"t1": "y"}}', "the key 'a' is given twice"),
    "field_twice.json": ('{"a": {"t1": "x", "t1": "y"}}', "the key 't1' is given twice"),
    "named_twice.json": ('{"a": {"t1": "x", "key": "b"}}', "'id' and 'key' both hold id"),
    "id_differs.json": ('{"a": {"t1": "x", "id": "b"}}', "entry 'a': its field 'id' is 'b'; keep one of the two"),
    "lines.json": ('{"id": "a"}\n{"id": "b"}', "a file with an object in each line is called .jsonl"),
    "deep.json": ("[" * 100000, "nested too deeply"),
    "latin.jsonl": ('{"id": "a", "t1": "é"}'.encode("latin-1"), "line 1: not UTF-8"),
    "id_twice.jsonl": ('{"id": "a", "t1": "x"}\n{"key": "a", "t1": "y"}', "two entries have the id 'a'"),
    "clash.jsonl": ('{"id": "a", "t1": "x", "txt": "y"}', "column 't1' and 'txt' both hold t1"),
    "unnamed.jsonl": ('{"wav": "x.wav", "txt": "x"}', "line 1: column 'id' is missing; it has wav, txt"),
    "float.parquet": ({"id": ["a"], "t1": [1.5]}, "column 't1' holds double, which is no text or whole number"),
    "struct.parquet": ({"id": ["a"], "t1": ["x"], "a1": [{"x": 1}]}, "column 'a1' holds struct<x: int64>"),
    "clash.parquet": ({"id": ["a"], "t1": ["x"], "wrd": ["y"]}, "column 't1' and 'wrd' both hold t1"),
    "number.parquet": ({"id": [7, 7], "t1": ["x", "y"]}, "two entries have the id '7'"),
    "null.parquet": ({"id": [None, None], "t1": ["x", "y"]}, "entry number 1: id None is no text"),
    "none.parquet": ({"id": [None, " "], "t1": ["x", "y"]}, "entry number 1: id None is no text"),
}


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_a_file_that_cannot_be_read_as_a_whole_is_refused(name: str, tmp_path: Path):
    content, message = WHOLE_FILES[name]
    if isinstance(content, dict):
        pq.write_table(pa.table(content), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as told:
        read_manifest(tmp_path / name, tmp_path / "cache")
    assert message in str(told.value) and name in str(told.value) and "\n" not in str(told.value)
    if name not in ("none.parquet", "null.parquet"):  # there each shard is counted separately
        with pytest.raises(ValueError, match=r"manifest .*" + name):
            read_parts(tmp_path / name, 10)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"id": ["b"], "t1": ["x"], "a1": [WAV]}, "1.parquet: its recordings are bytes where others are paths"),
        ({"id": ["b"], "t1": [5], "a1": ["x"]}, "1.parquet: column 't1' holds int64, but string in 0.parquet"),
        ({"id": ["b"], "t1": ["x"], "t2": ["y"]}, "1.parquet: column 't2' is not in 0.parquet"),
    ],
)
def test_shards_that_are_no_one_table_are_refused(second: dict, message: str, tmp_path: Path):
    pq.write_table(pa.table({"id": ["a"], "t1": ["x"], "a1": ["x.wav"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table(second), tmp_path / "1.parquet")
    for read in (lambda: read_manifest(tmp_path, tmp_path / "cache"), lambda: read_parts(tmp_path, 10)):
        with pytest.raises(ValueError, match=message):
            read()


ALIKE = {
    "null": ({"t2": pa.nulls(1)}, {"t2": ["y"]}, [None, "y"]),
    "later null": ({"t2": ["y"]}, {"t2": pa.nulls(1)}, ["y", None]),
    "ignored": ({"t2": ["x"]}, {"t2": ["y"], "__index_level_0__": [4]}, ["x", "y"]),
    "ignored before": ({"t2": ["x"], "a": [4]}, {"t2": ["y"], "a": ["z"]}, ["x", "y"]),
    "missing later": ({"t2": ["x"], "other": [1]}, {"other": [2]}, ["x", None]),
    "large": ({"t2": ["x"]}, {"t2": pa.array(["y"], pa.large_string())}, ["x", "y"]),
    "dictionary": ({"t2": ["x"]}, {"t2": pa.array(["y"]).dictionary_encode()}, ["x", "y"]),
    "view": ({"t2": pa.array(["x"], pa.string_view())}, {"t2": ["y"]}, ["x", "y"]),
    "whole": ({"duration": [1]}, {"duration": [1.5]}, [1.0, 1.5]),
    "short": ({"id": pa.array([1], pa.int32())}, {"id": pa.array([2], pa.int64())}, ["1", "2"]),
    "lists": (
        {"accepted": pa.array([["x"]], pa.large_list(pa.large_string()))}, {"accepted": [["y"]]}, [("x",), ("y",)],
    ),
    "bytes": ({"a1": pa.array([WAV], pa.binary_view())}, {"a1": pa.array([WAV], pa.large_binary())}, [WAV, WAV]),
    "sounds": ({"a1": [{"bytes": WAV, "path": None}]}, {"a1": [{"path": "x.wav", "bytes": WAV}]}, [WAV, WAV]),
    "first sound null": ({"a1": pa.nulls(1)}, {"a1": [{"bytes": WAV, "path": "x.wav"}]}, [None, WAV]),
}  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_shards_of_one_table_may_be_stored_differently(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    *shards, expected = ALIKE[name]
    for number, columns in enumerate(shards):
        table = pa.table({"id": [str(number)], "t1": ["x"], **columns})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    entries, items = everywhere(tmp_path, tmp_path, monkeypatch)
    field = next(iter(shards[0]))
    found = [getattr(entry, field) for entry in entries]
    assert [each.source if field == "a1" and each else each for each in found] == expected
    assert len(items) == 2


def test_tables_without_rows_are_empty_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    empty = pa.table({"id": pa.array([], pa.string()), "t1": pa.array([], pa.string())})
    pq.write_table(empty, tmp_path / "0.parquet")
    assert len(read_manifest(tmp_path, tmp_path / "cache")) == 0
    pq.write_table(pa.table({"id": ["a"], "t1": ["x"]}), tmp_path / "1.parquet")
    entries, _ = everywhere(tmp_path, tmp_path, monkeypatch)
    assert [entry.id for entry in entries] == ["a"]


def test_spoken_answers_may_be_files(tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(WAV)
    pq.write_table(pa.table({"id": ["1"], "t1": ["x"], "t2": ["one"]}), tmp_path / "q.parquet")
    pq.write_table(pa.table({"t2": ["one", None], "a2": ["a.wav", "b.wav"]}), tmp_path / "answers.parquet")
    (entry,) = read_manifest(tmp_path / "q.parquet", tmp_path / "cache", tmp_path / "answers.parquet")
    assert len(entry.a2.load(16000)) == 1600


def test_what_is_written_with_relative_paths_is_read_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for ending in ("csv", "json", "parquet"):
        with ManifestWriter(f"m/m.{ending}", ["id", "t1", "a1"]) as writer:
            writer.write([{"id": "1", "t1": "x", "a1": "wavs/a.wav"}])
        (entry,) = read_manifest(f"m/m.{ending}", tmp_path / "cache")
        assert entry.a1.path == str(tmp_path / "m" / "wavs" / "a.wav")


def test_a_text_that_the_tokenizer_lacks_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A manifest entry with a character that the tokenizer lacks is skipped only in tasks that use the text."""
    text = tmp_path / "text.txt"
    text.write_text("one two three\nfour five six\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "t"), vocab_size=24, model_type="char", minloglevel=2
    )
    model = toy_model()
    model.llm.tokenizer = SentencePieceTokenizer(str(tmp_path / "t.model"))
    with (tmp_path / "m.csv").open("w", newline="") as file:
        entries = [(f"r{i}", "ohne Ü" if i in (3, 17) else "one two", "four", "a.wav") for i in range(20)]
        csv.writer(file).writerows([("ID", "t1", "t2", "a1"), *entries])
    (tmp_path / "a.wav").write_bytes(WAV)
    tasks = {"T1T2": 1.0, "A1T2": 1.0}
    options = {"talks": {"manifest": tmp_path / "m.csv", "tasks": list(tasks)}}
    with caplog.at_level(logging.WARNING):
        sources = read_sources(options, model, tasks=tasks, cache_folder=tmp_path / "c")
        dataset = make_dataset(model, sources, tasks)
    names = dataset.tasks
    assert names.tolist().count("T1T2") == 18 and names.tolist().count("A1T2") == 20
    assert len([dataset[i] for i in range(len(dataset))]) == 38
    (line,) = [record.getMessage() for record in caplog.records if "tokenizer" in record.getMessage()]
    assert line.startswith("sources.talks: 2 entries refused by the tokenizer (such as entry r3: text 'ohne Ü'")


def test_a_batch_job_counts_malformed_entries(run, saved, tmp_path: Path):
    lines = ('{"key": "1", "txt": "one", "wav": "x.wav"}', '{"key": "2", "txt": [], "wav": "x.wav"}')
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    status, _, err = run("transcribe", tmp_path / "m.jsonl", "-o", tmp_path / "out", "--checkpoint", saved)
    assert status == 0 and "0 of 1 done, skipped: 1 malformed (such as m.jsonl: line 2: entry '2': txt []" in err
    (line,) = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "1" and json.loads(line)["skipped"].startswith("missing")


def test_objects_may_repeat_their_key_as_id(tmp_path: Path):
    entries = {"a": {"id": "a", "t1": "x"}, "7": {"ID": 7, "t1": "y"}, "c": {"t1": "z", "duration": float("nan")}}
    (tmp_path / "m.json").write_text(json.dumps(entries))
    entries = read_manifest(tmp_path / "m.json")
    assert [(entry.id, entry.t1) for entry in entries] == [("a", "x"), ("7", "y"), ("c", "z")]
    assert not entries.skipped and entries[2].duration is None


def test_ids_of_any_script_are_tested_at_once(monkeypatch: pytest.MonkeyPatch):
    """Manifest ids in any writing system are validated as a whole column; only blank ids are converted one by one."""
    looked_at = []

    def counted(name: str, value: Any, field: str) -> Any:
        looked_at.append(value)
        return converted(name, value, field)

    monkeypatch.setattr("omnikit.data.parquet_manifest.converted", counted)
    blank = ["\u2003\u3000", "\x1c", "\x85", "", None]
    table = pa.table({"id": ["北京", "é", "Ω7", "🎧", "\u2003ж", *blank]})
    assert sorted(malformed_rows(table, {"id": "id"})) == [5, 6, 7, 8, 9] and looked_at == blank


def test_codes_are_those_of_the_list(tmp_path: Path):
    codes = [[1, 2, 3], [4, 5, 6]]
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "a", "t1": "x", "codes": codes, "codec": "toy"}))
    (entry,) = read_manifest(tmp_path / "m.jsonl")
    assert entry.codes.load().tolist() == codes and entry.codes.frames == 3
