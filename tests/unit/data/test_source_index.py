"""Tests of the on-disk index of a source: what it depends on, resuming, several builders, and what it replaces."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rewriting import sound
from toy import ToyEncoder, toy_model

from omnikit.data import source_index
from omnikit.data.manifest_reader import ListedEntries, ManifestEntry
from omnikit.data.manifest_writer import ManifestWriter
from omnikit.data.samples import Samples, collate_items, make_dataset
from omnikit.data.source_index import PartMaker, build_index
from omnikit.data.sources import read_sources
from omnikit.llms.tokenizers import ByteTokenizer, SentencePieceTokenizer
from omnikit.model import OmniLM
from omnikit.tasks import TASKS, make_sample

MIX = dict.fromkeys(TASKS, 1.0)
TEXTS = ["what is red", "the cat sees a dog", "yes", "a cat", "no dog hears the cat"]


class Silent(SentencePieceTokenizer):
    """A tokenizer of the same name and vocabulary that must not be called any more."""

    __qualname__ = SentencePieceTokenizer.__qualname__

    def encode(self, text: str) -> list[int]:
        raise AssertionError(f"tokenized again: {text}")

    encode_many = encode


@pytest.fixture
def model() -> OmniLM:
    return toy_model()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(source_index, "PART", 3)


def manifest(folder: Path, texts: list[str] = TEXTS, ending: str = "csv") -> Path:
    """Write a manifest of spoken questions and answers; return its path."""
    folder.mkdir(exist_ok=True)
    entries = []
    for i, text in enumerate(texts):
        entry = {"id": f"e{i}", "t1": text, "t2": "no" if i != 2 else None, "duration": 0.1 + 0.03 * i}
        for name in ("a1", "a2"):
            (folder / f"{i}-{name}.wav").write_bytes(sound(entry["duration"], seed=i))
            entry[name] = f"{i}-{name}.wav"
        entries.append(entry)
    with ManifestWriter(folder / f"m.{ending}", ["id", "duration", "t1", "t2", "a1", "a2"]) as writer:
        writer.write(entries)
    return folder / f"m.{ending}"


def samples(model: OmniLM, path: Path, cache: Path, features: str = "cached", **options) -> Samples:
    sources = {"qa": {"manifest": path, "tasks": list(TASKS), **options}}
    return make_dataset(model, read_sources(sources, model, tasks=MIX, cache_folder=cache, features=features), MIX)


def folders(cache: Path) -> set[str]:
    return {each.name for each in (cache / source_index.INDEX).iterdir()}


def columns(dataset: Samples) -> list[list[int]]:
    return [column.tolist() for column in vars(dataset.table).values()]


def items(dataset: Samples) -> list[tuple]:
    return [(i["id"], i["sample"].steps.tolist(), i["sample"].labels.tolist()) for i in dataset]


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_samples_are_those_of_the_texts(model: OmniLM, tmp_path: Path, ending: str):
    dataset = samples(model, manifest(tmp_path / "data", ending=ending), tmp_path / "cache")
    encode, source = model.llm.tokenizer.encode, dataset.makers[0].source
    assert len(dataset) == 5 * 2 + 4 * 4  # one entry has no answer
    for i, item in enumerate(dataset):
        entry, task = source.entries[dataset.table.entries[i]], TASKS[dataset.tasks[i]]
        expected = make_sample(
            task, model.layout, model.pattern, question=encode(entry.t1) if task.given == "text" else None,
            audio_frames=None if item["features"] is None else model.num_speech_positions(len(item["features"])),
            answer=encode(entry.target_text(task)),
            codes=model.codec.encode(entry.target_recording(task).load(16000)[None])[0] if task.speaks else None,
        )  # fmt: skip
        assert item["id"] == entry.id and torch.equal(item["sample"].steps, expected.steps)
        assert torch.equal(item["sample"].labels, expected.labels)
        assert item["sample"].steps.shape[1] == dataset.lengths[i]


@pytest.mark.parametrize("features", ["cached", "on_the_fly"])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_second_start_reads_no_texts_and_looks_up_no_recording(
    model: OmniLM, tmp_path: Path, ending: str, features: str, monkeypatch
):
    path, cache = manifest(tmp_path / "data", ending=ending), tmp_path / "cache"
    first = samples(model, path, cache, features)
    model.llm.tokenizer = Silent(model.llm.tokenizer.path)
    for name in ("omnikit.data.sources.encode", "omnikit.data.encoded_entries.expected_frames"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("recordings were looked up again"))
    second = samples(model, path, cache, features)
    assert columns(second) == columns(first) and items(second) == items(first)
    assert all(isinstance(part.values, np.memmap) for part in second.makers[0].source.index.parts)


def test_a_changed_tokenizer_manifest_or_choice_has_another_index(model: OmniLM, tmp_path: Path):
    path, cache = manifest(tmp_path / "data"), tmp_path / "cache"
    before = samples(model, path, cache)
    names = folders(cache)
    model.llm.tokenizer = ByteTokenizer()
    other = samples(model, path, cache)
    assert len(folders(cache)) == 2 and columns(other) != columns(before)
    samples(toy_model(), path, cache, limit=2)
    assert len(folders(cache)) == 3
    manifest(tmp_path / "data", [*TEXTS[:-1], "what"])
    changed = samples(toy_model(), path, cache)
    assert len(folders(cache)) == 4 and names < folders(cache) and columns(changed) != columns(before)


def test_a_changed_pattern_or_stride_changes_lengths(tmp_path: Path):
    path, cache = manifest(tmp_path / "data"), tmp_path / "cache"
    found = {}
    for pattern in ("delayed", "parallel", "flattened"):
        dataset = samples(toy_model(pattern), path, cache)
        assert [item["sample"].steps.shape[1] for item in dataset] == dataset.lengths.tolist()
        found[pattern] = tuple(dataset.lengths)
    assert len(set(found.values())) == 3 and len(folders(cache)) == 1
    model = toy_model()
    model.adapter.stride = 3
    assert samples(model, path, cache).lengths.tolist() != list(found["delayed"])


def test_changed_recordings_and_encoders_are_encoded_again(model: OmniLM, tmp_path: Path):
    path, cache = manifest(tmp_path / "data"), tmp_path / "cache"
    before = samples(model, path, cache)
    (tmp_path / "data" / "4-a1.wav").write_bytes(sound(0.4))
    after = samples(model, path, cache)
    assert columns(after) != columns(before) and len(folders(cache)) == 1
    assert [item["sample"].steps.shape[1] for item in after] == after.lengths.tolist()
    model.encoder = ToyEncoder()
    other = samples(model, path, cache)
    assert columns(other) == columns(after) and not torch.equal(other[0]["features"], after[0]["features"])
    for file in cache.glob("features-*/*.bin"):
        file.unlink()
    assert torch.equal(samples(model, path, cache)[0]["features"], other[0]["features"])


@pytest.mark.parametrize("features", ["cached", "on_the_fly"])
def test_skipped_entries_are_counted_at_every_start(model: OmniLM, tmp_path: Path, features: str, caplog):
    path = manifest(tmp_path / "data", [*TEXTS, "Ωmega", "Ωmega"])
    (tmp_path / "data" / "1-a2.wav").write_bytes(b"no sound")
    (tmp_path / "data" / "3-a1.wav").unlink()
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            dataset = samples(model, path, tmp_path / "cache", features)
        assert "sources.qa: 2 entries refused by the tokenizer (such as entry e5: text 'Ωmega'" in caplog.text
        assert "qa-codes: 1 of 7 recordings skipped: 1 unreadable" in caplog.text
        if features == "cached":
            assert "qa-features: 1 of 7 recordings skipped: 1 missing" in caplog.text
            assert {(1, "A1A2"), (3, "A1T1")}.isdisjoint(zip(dataset.table.entries, dataset.tasks, strict=True))


def test_a_recording_that_appears_is_used(model: OmniLM, tmp_path: Path):
    path, cache = manifest(tmp_path / "data"), tmp_path / "cache"
    hidden = (tmp_path / "data" / "1-a1.wav").rename(tmp_path / "hidden.wav")
    before = samples(model, path, cache)
    hidden.rename(tmp_path / "data" / "1-a1.wav")
    assert len(samples(model, path, cache)) == len(before) + 4


def test_parts_are_the_same_in_memory_in_one_process_and_in_a_pool(model: OmniLM, tmp_path: Path, monkeypatch):
    entries = ListedEntries(ManifestEntry(f"e{i}", TEXTS[i % 5], "no" * (i % 3), duration=i / 7) for i in range(50))
    make = PartMaker(model.llm.tokenizer)
    memory = build_index(entries, make)
    alone = build_index(entries, make, tmp_path / "alone")
    monkeypatch.setattr(source_index, "PARTS_PER_PROCESS", 2)
    monkeypatch.setattr(source_index, "cores", lambda: 2)
    pooled = build_index(entries, make, tmp_path / "pool")
    assert len(memory.parts) == 17 and len(memory) == 50
    for index in (alone, pooled, pickle.loads(pickle.dumps(alone))):
        for ours, theirs in zip(index.parts, memory.parts, strict=True):
            assert ours.values.tolist() == theirs.values.tolist()
        expected = [model.llm.tokenizer.encode("no" * (i % 3)) for i in range(50)]
        assert [index.tokens("t2", i) for i in range(50)] == expected


def build(folder: Path, slow: float) -> None:
    """Build the index of 30 entries in a process that takes `slow` seconds for a part."""
    source_index.PART = 3
    made = PartMaker.__call__

    def slowly(*given):
        time.sleep(slow)
        return made(*given)

    PartMaker.__call__ = slowly
    entries = ListedEntries(ManifestEntry(f"e{i}", "a" * i) for i in range(30))
    build_index(entries, PartMaker(ByteTokenizer()), folder)


def test_a_killed_build_goes_on_after_its_last_part(tmp_path: Path):
    process = multiprocessing.get_context("fork").Process(target=build, args=(tmp_path / "index", 0.05))
    process.start()
    while len(list((tmp_path / "index").glob("*.npy"))) < 3:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").glob("*.npy")}
    assert 3 <= len(kept) < 10
    entries = ListedEntries(ManifestEntry(f"e{i}", "a" * i) for i in range(30))
    index = build_index(entries, PartMaker(ByteTokenizer()), tmp_path / "index")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert index.counts("t1").tolist() == list(range(30))


def test_two_processes_build_the_same_index(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=build, args=(tmp_path / "index", 0.01)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    entries = ListedEntries(ManifestEntry(f"e{i}", "a" * i) for i in range(30))
    index = build_index(entries, PartMaker(ByteTokenizer()), tmp_path / "index")
    assert index.counts("t1").tolist() == list(range(30)) and len(list((tmp_path / "index").iterdir())) == 10


@pytest.mark.parametrize("features", ["cached", "on_the_fly"])
def test_a_spawned_worker_gives_the_same_batches_and_no_weights(model: OmniLM, tmp_path: Path, features: str):
    dataset = samples(model, manifest(tmp_path / "data"), tmp_path / "cache", features)
    sent = pickle.dumps(dataset)
    assert len(sent) < 40_000
    again = pickle.loads(sent)
    assert items(again) == items(dataset)
    one, other = (collate_items(model)([each[i] for i in range(len(each))]) for each in (dataset, again))
    assert torch.equal(one.features, other.features) and torch.equal(one.wav, other.wav)


def test_more_hours_than_allowed_are_refused_with_the_command(model: OmniLM, tmp_path: Path):
    path = manifest(tmp_path / "data")
    sources = {"qa": {"manifest": path, "tasks": ["A1T1"]}}
    model.recipe = "part_names: {codec: toy, encoder: tiny}\n"
    options = {"tasks": MIX, "cache_folder": tmp_path / "cache", "features": "cached"}
    with pytest.raises(ValueError, match=r"sources.qa: about 0.0 hours .*--max_encode_hours 0.0001.*") as error:
        read_sources(sources, model, **options, max_encode_hours=0.0001)
    assert f"omnikit tokenize {path} --save_folder DIR --codec toy --encoder tiny" in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.bin"))
    read_sources(sources, model, **options, max_encode_hours=0.001)
    read_sources(sources, model, **options, max_encode_hours=0)  # nothing is left to encode


def test_features_of_large_corpora_are_computed_in_the_step_on_a_gpu(model, tmp_path: Path, monkeypatch, caplog):
    path = tmp_path / "m.json"
    path.write_text(json.dumps({f"e{i}": {"t1": "the cat", "a1": "x.wav", "duration": 3600} for i in range(501)}))
    sources = {"qa": {"manifest": path, "tasks": ["A1T1"]}}

    def live() -> bool:
        (source,) = read_sources(sources, model, tasks=MIX, cache_folder=tmp_path / "cache", max_encode_hours=0.5)
        return source.live is not None

    (tmp_path / "x.wav").write_bytes(sound(0.1))
    with pytest.raises(ValueError, match=r"about 1\.0 hours of recordings are to be encoded"):  # one file, 501 times
        live()
    monkeypatch.setattr(OmniLM, "device", torch.device("cuda"))
    with caplog.at_level(logging.INFO):
        assert live()
    assert "501 hours of recordings have no stored features: they are computed in each step" in caplog.text


TORCHRUN = """
import sys, time
from pathlib import Path
import torch
from omnikit.train.first_process import first_process
torch.distributed.init_process_group("gloo")
folder = Path(sys.argv[1])
rank = torch.distributed.get_rank()
with first_process(folder) as first:
    if sys.argv[2] == "fail":
        raise ValueError("no disk")
    if first:
        time.sleep(1)
        (folder / "built").write_text("x")
    assert (folder / "built").exists() and first == (rank == 0)
(folder / f"rank{rank}").write_text("done")
"""


@pytest.mark.parametrize("outcome", ["build", "fail"])
def test_processes_wait_for_a_file(tmp_path: Path, outcome: str):
    (tmp_path / "run.py").write_text(TORCHRUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "run.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path), outcome], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode == 0) == (outcome == "build"), done.stderr
    assert len(list(tmp_path.glob("rank*"))) == (2 if outcome == "build" else 0)
