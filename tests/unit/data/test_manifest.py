"""Tests of manifests in all formats: entries are read as they were written, and bad files are refused in one line."""

from __future__ import annotations

import csv
import errno
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from speechbrain.dataio.dataset import DynamicItemDataset
from toy import toy_model

from omnikit.data import manifest_writer
from omnikit.data.manifest_reader import ManifestEntry, read_manifest
from omnikit.data.manifest_writer import FIELDS, ManifestWriter
from omnikit.data.samples import make_dataset
from omnikit.data.sources import read_entries, read_sources
from omnikit.tasks import TASKS, make_sample
from omnikit.tokens import IGNORE

CODES = np.arange(12, dtype=np.int16).reshape(3, 4) % 11
NAMED = "part_names: {codec: toy}\n"


def sound(seconds: float = 0.1) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.linspace(-0.5, 0.5, int(16000 * seconds)), 16000, format="WAV")
    return buffer.getvalue()


def entries(audio: str | bytes) -> list[dict]:
    full = {"duration": 0.1, "speaker": "7", "language": "de", "kind": "x", "t1": 'was, "ist"\ndas', "t2": "rot"}
    return [{"id": "a", **full, "a1": audio}, {"id": "b", "t1": "nur text"}, {"id": "c", **full, "a2": audio}]


def write(path: Path, written: Sequence[dict], **options) -> Path:
    fields = [name for name in FIELDS if any(name in entry for entry in written)]
    with ManifestWriter(path, fields, **options) as writer:
        writer.write(written[:1])
        writer.write(written[1:])
    return path


def tasks(entry: ManifestEntry) -> set[str]:
    return {task.name for task in TASKS.values() if entry.serves(task)}


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_what_is_written_is_read(ending: str, tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(sound())
    found = read_manifest(write(tmp_path / f"m.{ending}", entries(str(tmp_path / "a.wav"))), tmp_path / "cache")
    a, b, c = found
    assert (a.id, a.duration, a.speaker, a.language, a.kind, a.t1, a.t2) == (
        "a", 0.1, "7", "de", "x", 'was, "ist"\ndas', "rot",
    )  # fmt: skip
    assert (b.t2, b.a1, b.a2, b.codes, b.duration, b.speaker, b.kind) == (None, None, None, None, None, "", "")
    assert len(a.a1.load(16000)) == len(c.a2.load(16000)) == 1600
    assert a.a1.key == "a" and c.a2.key == "c a2"
    assert tasks(a) == {"A1T1", "T1A1", "A1T2", "T1T2"} and tasks(b) == set() and tasks(c) == {"T1T2", "T1A2"}
    assert [entry.id for entry in found[:2]] == ["a", "b"] and found[-1].id == "c" and len(found) == 3


def test_embedded_recordings_and_codes_stay_in_the_table(tmp_path: Path):
    written = [
        {**entry, "codes": CODES, "codec": "toy"} if i != 1 else entry for i, entry in enumerate(entries(sound()))
    ]
    write(tmp_path / "shards" / "0.parquet", written, embedded=True)
    write(tmp_path / "shards" / "1.parquet", [{**written[0], "id": "d"}, {"id": "e", "t1": "x"}], embedded=True)
    found = read_manifest(tmp_path / "shards", tmp_path / "cache")
    assert [entry.id for entry in found] == ["a", "b", "c", "d", "e"]
    assert found[3].codes.frames == 4 and found[3].codes.codec == "toy" and found[1].codes is None
    assert torch.equal(found[3].codes.load(), torch.from_numpy(CODES)) and found[3].codes.load().dtype == torch.int16
    assert len(found[3].a1.load(16000)) == 1600 and found[3].a1.path is None
    assert tasks(found[0]) == set(TASKS)
    assert pq.read_schema(tmp_path / "shards" / "0.parquet").field("codes").type == pa.list_(pa.list_(pa.int16()))


def test_codes_in_json(tmp_path: Path):
    (entry,) = read_manifest(write(tmp_path / "m.json", [{"id": "a", "t1": "x", "codes": CODES, "codec": "toy"}]))
    assert torch.equal(entry.codes.load(), torch.from_numpy(CODES)) and entry.codes.frames == 4


def test_relative_paths_begin_at_the_manifest(tmp_path: Path):
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs" / "a.wav").write_bytes(sound())
    (entry,) = read_manifest(write(tmp_path / "m.csv", [{"id": "a", "t1": "x", "a1": "wavs/a.wav"}]))
    assert len(entry.a1.load(16000)) == 1600


def test_speechbrain_reads_csv_and_json(tmp_path: Path):
    written = [
        entry for entry in entries("a.wav") if "duration" in entry
    ]  # SpeechBrain's CSV reader needs a value in every column
    from_csv = DynamicItemDataset.from_csv(str(write(tmp_path / "m.csv", written)))
    from_json = DynamicItemDataset.from_json(str(write(tmp_path / "m.json", written)))
    for dataset in (from_csv, from_json):
        dataset.set_output_keys(["id", "duration", "speaker", "t1"])
        assert dataset[0] == {"id": "a", "duration": 0.1, "speaker": "7", "t1": 'was, "ist"\ndas'}


def test_the_same_rows_are_the_same_bytes(tmp_path: Path):
    first = write(tmp_path / "0.parquet", entries(sound()), embedded=True)
    assert first.read_bytes() == write(tmp_path / "1.parquet", entries(sound()), embedded=True).read_bytes()


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path):
    path = write(tmp_path / "m.csv", entries("a.wav"))
    before = path.read_bytes()
    with pytest.raises(KeyError), ManifestWriter(path, ["id", "t1"]) as writer:
        writer.write([{"id": "a", "t1": "x"}])
        raise KeyError
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m.csv"]


BAD = {
    "none.csv": (None, "manifest: no such file: "),
    "m.tsv": ("id\tt1\n", "unknown ending '.tsv'; choices: .csv, .json, .jsonl, .parquet, or a folder of"),
    "old.csv": ("ID,duration,wav,spk_id,words\n", "column 't1' is missing; it has ID, duration, wav, spk_id, words"),
    "twice.csv": ("ID,t1\na,x\na,y\n", "two entries have the id 'a'"),
    "short.csv": ("ID,t1,a1\na,x\n", "line 2 has not the header's number of columns"),
    "long.csv": ("ID,t1\na,x,y\n", "line 2 has not the header's number of columns"),
    "latin.csv": (b"ID,t1\na,caf\xe9\n", "not a CSV file in UTF-8"),
    "time.csv": ("ID,t1,duration\na,x,long\n", "entry 'a': duration 'long' is no number"),
    "list.json": ("[]", "must be one object, id -> fields"),
    "cut.json": ('{"a": {"t1"', "not a JSON file in UTF-8"),
    "bare.json": ('{"a": {"words": "x"}}', "column 't1' is missing; it has id, words"),
    "cut.parquet": (b"PAR1 and then nothing", "not a Parquet file that can be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_told_in_one_line(name: str, tmp_path: Path):
    content, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as told:
        read_manifest(tmp_path / name, tmp_path / "cache")
    assert message in str(told.value) and name in str(told.value) and "\n" not in str(told.value)


def test_a_shard_cut_short_is_named(tmp_path: Path):
    for i in range(2):
        shard = write(tmp_path / "shards" / f"{i}.parquet", entries("a.wav"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"1.parquet: not a Parquet file that can be read"):
        read_manifest(tmp_path / "shards", tmp_path / "cache")
    with pytest.raises(ValueError, match=r"no such file: .*empty/\*.parquet"):
        (tmp_path / "empty").mkdir()
        read_manifest(tmp_path / "empty", tmp_path / "cache")


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_a_disk_that_is_full_at_the_end_is_told(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / f"m.{ending}", entries("a.wav"))
    before = path.read_bytes()

    def full(self) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(manifest_writer._FORMATS[f".{ending}"], "close", full)
    with pytest.raises(ValueError, match=rf"m.{ending}: cannot be written \(No space left on device\)"):
        write(path, entries("b.wav"))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_under_the_cache_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "m.parquet", entries("a.wav"))
    for error in (OSError(errno.ENOSPC, "No space left"), OSError("Not enough disk space. Needed: 9 GB")):

        def full(files, *, error=error, **options):
            raise DatasetGenerationError("An error occurred") from error

        with monkeypatch.context() as patch:
            patch.setattr(Dataset, "from_parquet", full)
            words = r"cache: cannot be written \(.*m.parquet is laid out there: (No|Not enough|.*28)"
            with pytest.raises(ValueError, match=words):
                read_manifest(path, tmp_path / "cache")
    assert len(read_manifest(path, tmp_path / "cache")) == 3


def test_formats_refuse_what_they_cannot_hold(tmp_path: Path):
    for path, fields, embedded in (("m.csv", ["id", "codes"], False), ("m.json", ["id", "a1"], True)):
        with pytest.raises(ValueError, match=rf"cannot hold {fields[1]}; choices: .parquet"):
            ManifestWriter(tmp_path / path, fields, embedded)
    with pytest.raises(ValueError, match=r"unknown ending '.txt'"):
        ManifestWriter(tmp_path / "m.txt", ["id"])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    """Return a manifest with a spoken question whose answer has codes but no recording."""
    entry = {"id": "q", "t1": "what is red", "t2": "the cat", "a1": sound(0.2), "codes": CODES, "codec": "toy"}
    return write(tmp_path / "coded.parquet", [entry], embedded=True)


def read(model, tmp_path: Path, path: Path, name: str):
    options = {"qa": {"manifest": path, "tasks": [name]}}
    return make_dataset(
        model, read_sources(options, model, tasks={name: 1.0}, cache_folder=tmp_path / "c"), {name: 1.0}
    )


@pytest.mark.parametrize("name", ["A1A2", "T1A2"])
def test_codes_serve_speaking_tasks_without_audio(name: str, coded: Path, tmp_path: Path):
    model = toy_model()
    model.recipe = NAMED
    dataset = read(model, tmp_path, coded, name)
    sample, features = dataset[0]["sample"], dataset[0]["features"]
    encode = model.llm.tokenizer.encode
    expected = make_sample(
        TASKS[name],
        model.layout,
        model.pattern,
        question=encode("what is red"),
        audio_frames=None if features is None else model.num_speech_positions(len(features)),
        answer=encode("the cat"),
        codes=torch.from_numpy(CODES).long(),
    )
    assert torch.equal(sample.steps, expected.steps) and torch.equal(sample.labels, expected.labels)
    assert dataset.tasks.tolist() == [name] and dataset.lengths.tolist() == [sample.steps.shape[1]]
    labels = (sample.labels != IGNORE).sum(dim=1)
    assert dataset.table.text_labels.tolist() == [labels[0]] and set(labels[1:].tolist()) == {
        int(dataset.table.audio_labels[0])
    }


def test_codes_of_another_codec_are_refused_by_name(coded: Path, tmp_path: Path):
    model = toy_model()
    model.recipe = "part_names: {codec: other}\n"
    with pytest.raises(ValueError, match=r"sources.qa: holds codes of the codec 'toy', but the system's is 'other'"):
        read(model, tmp_path, coded, "A1A2")
    assert read(model, tmp_path, coded, "A1T2").tasks == ["A1T2"]  # text answers need no codes
    model = toy_model(num_codebooks=2)
    model.recipe = NAMED
    with pytest.raises(ValueError, match="3 codes a frame, but codec toy has 2"):
        read(model, tmp_path, coded, "A1A2")


def test_recordings_stand_in_for_codes_of_another_codec(tmp_path: Path):
    entry = {"id": "q", "t1": "what is red", "t2": "the cat", "a2": sound(0.2), "codes": CODES, "codec": "foreign"}
    path = write(tmp_path / "m.parquet", [entry, {**entry, "id": "broken", "a2": b"no audio"}], embedded=True)
    model = toy_model()
    model.recipe = NAMED
    dataset = read(model, tmp_path, path, "T1A2")
    assert dataset.tasks.tolist() == ["T1A2"]  # the broken one's codes are of another codec
    assert dataset.lengths[0] > 3200 / 3


def test_an_answer_is_decoded_on_demand(coded: Path, tmp_path: Path):
    entry, codec = read_manifest(coded, tmp_path / "cache")[0], toy_model().codec
    assert torch.equal(entry.answer_wav(codec, "toy"), codec.decode(torch.from_numpy(CODES)[None].long())[0])
    with pytest.raises(ValueError, match="entry q: holds codes of the codec 'toy', but the system's is 'mimi'"):
        entry.answer_wav(codec, "mimi")
    with pytest.raises(ValueError, match="entry b: has no spoken answer"):
        ManifestEntry("b", "text").answer_wav(codec, "toy")


def test_a_source_without_a_manifest_is_told(tmp_path: Path):
    with pytest.raises(ValueError, match=r"sources\.qa: no manifest; it has csv, tasks"):
        options = {"qa": {"csv": "x", "tasks": ["T1T2"]}}
        read_sources(options, toy_model(), tasks={"T1T2": 1.0}, cache_folder=tmp_path)


def test_rows_are_held_out_of_training(tmp_path: Path):
    path = write(tmp_path / "m.parquet", [{"id": str(i), "t1": "what", "t2": "no"} for i in range(20)])

    def ids(**options) -> list[str]:
        return [entry.id for entry in read_entries("qa", {"manifest": path, **options}, tmp_path / "c")]

    trained, held = ids(without_held_out=5), ids(only_held_out=5)
    assert len(held) == 5 and sorted(trained + held) == sorted(ids())
    assert ids(without_held_out=5) == trained
    limited = ids(without_held_out=5, limit=7)
    assert len(limited) == 7 and set(limited) < set(trained)
    with pytest.raises(ValueError, match=r"sources\.qa\.without_held_out: 20; the manifest has 20 entries"):
        ids(without_held_out=20)


@pytest.mark.parametrize("name", ["m.parquet", "m.json"])
def test_turns_of_a_dialog_are_held_out_together(tmp_path: Path, name: str):
    """12 dialogs of 3 turns, each turn in another third of the manifest, and 4 entries that are no turns."""
    texts = {"t1": "what", "t2": "no"}
    rows = [{"id": f"{d}-{t}", **texts, "dialog": f"{d}", "turn": t} for t in range(3) for d in range(12)]
    rows += [{"id": f"alone-{i}", **texts} for i in range(4)]
    path = write(tmp_path / name, rows)

    def ids(**options) -> list[str]:
        return [entry.id for entry in read_entries("qa", {"manifest": path, **options}, tmp_path / "c")]

    def units(found: list[str]) -> set[str]:
        return {each if each.startswith("alone") else each.partition("-")[0] for each in found}

    trained, held = ids(without_held_out=5), ids(only_held_out=5)
    assert sorted(trained + held) == sorted(ids())
    assert len(units(held)) == 5 and not units(held) & units(trained)
    limited = ids(without_held_out=5, limit=4)
    assert len(units(limited)) == 4 and {each for each in trained if units([each]) <= units(limited)} == set(limited)
    with pytest.raises(ValueError, match=r"sources\.qa\.only_held_out: 16; the manifest has 16 dialogs"):
        ids(only_held_out=16)


def test_a_source_may_be_left_out(tmp_path: Path):
    assert read_sources({"qa": None}, toy_model(), tasks={"T1T2": 1.0}, cache_folder=tmp_path) == []


def test_long_samples_are_left_out_and_none_is_an_error(tmp_path: Path):
    model = toy_model()
    path = write(tmp_path / "m.parquet", [{"id": str(i), "t1": "no" * (i + 1), "t2": "no"} for i in range(4)])
    sources = read_sources(
        {"qa": {"manifest": path, "tasks": ["T1T2"]}}, model, tasks={"T1T2": 1.0}, cache_folder=tmp_path / "c"
    )
    lengths = sorted(make_dataset(model, sources, {"T1T2": 1.0}).lengths)
    dataset = make_dataset(model, sources, {"T1T2": 1.0}, longest=lengths[1])
    assert sorted(dataset.lengths) == lengths[:2] and len(dataset) == 2
    assert [
        len(model.llm.tokenizer.encode(dataset.makers[0].source.entries[entry].t1)) for entry in dataset.table.entries
    ] == [1, 2]
    with pytest.raises(ValueError, match="no entry of the sources serves a task of T1T2; 4 samples are too long"):
        make_dataset(model, sources, {"T1T2": 1.0}, longest=1)


def test_two_rows_of_one_id_are_told(tmp_path: Path):
    path = write(tmp_path / "m.parquet", [{"id": "a", "t1": "what", "t2": "no"}] * 2)
    with pytest.raises(ValueError, match="two entries have the id 'a'"):
        read(toy_model(), tmp_path, path, "T1T2")


def test_answers_are_shared(tmp_path: Path):
    questions = [{"id": f"q{i}", "t1": "what", "t2": text, "kind": "x"} for i, text in enumerate(["one", "two", "one"])]
    path = write(tmp_path / "q.json", questions)
    with ManifestWriter(tmp_path / "q.parquet", ["id", "t1", "t2", "kind"]) as writer:
        writer.write([{"id": name, **fields} for name, fields in json.loads(path.read_text()).items()])
    with ManifestWriter(tmp_path / "answers.parquet", ["t2", "a2"], embedded=True) as writer:
        writer.write([{"t2": "one", "a2": sound(0.1)}])
    found = read_manifest(tmp_path / "q.parquet", tmp_path / "cache", tmp_path / "answers.parquet")
    assert [entry.a2 and entry.a2.key for entry in found] == ["answer one", None, "answer one"]
    assert len(found[0].a2.load(16000)) == 1600


def test_a_csv_manifest_has_speechbrains_header(tmp_path: Path):
    path = write(tmp_path / "m.csv", entries("a.wav"))
    with path.open(newline="") as file:
        assert next(csv.reader(file)) == ["ID", "duration", "speaker", "language", "kind", "t1", "t2", "a1", "a2"]
