"""Tests that cached features follow the content of recordings: only recordings that have changed are encoded again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from rewriting import sound
from toy import ToyCodec, ToyEncoder, toy_model

from omnikit.audio.reader import Unusable
from omnikit.data.encode_recordings import cached_codes, cached_features
from omnikit.data.manifest_reader import Recording, read_manifest
from omnikit.data.manifest_writer import ManifestWriter
from omnikit.data.sources import read_sources, verify_cache


class CountingEncoder(ToyEncoder):
    """A toy audio encoder that records the lengths of the recordings that it encodes, and refuses short ones."""

    def __init__(self):
        super().__init__()
        self.encoded, self._least = [], 320

    def forward(self, wav: torch.Tensor, lengths: torch.Tensor):
        if (lengths < self._least).any():
            raise ValueError("too short")
        self.encoded.extend(lengths.tolist())
        return super().forward(wav, lengths)


class Recordings:
    """Test recordings of 1600 samples or more, as files or in a Parquet manifest, with the cache of their features."""

    def __init__(self, folder: Path, count: int = 4):
        self.folder, self.cache, self.encoder = folder / "data", folder / "cache", CountingEncoder()
        self.folder.mkdir()
        self.names = [f"r{i}" for i in range(count)]
        for i, name in enumerate(self.names):
            self.path(name).write_bytes(sound(0.1 + 0.01 * i, seed=i))

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.wav"

    def clips(self) -> list[Recording]:
        return [Recording(name, path=str(self.path(name))) for name in self.names]

    def encoded(self, clips: list[Recording] | None = None) -> list[str]:
        """Request the features of all recordings, check them, and return the names of those that had to be encoded."""
        self.encoder.encoded.clear()
        clips = self.clips() if clips is None else clips
        store = cached_features(self.encoder, clips, self.cache, "toy")
        encoded = list(self.encoder.encoded)
        lengths = {}
        for clip in clips:
            if clip.key in store:
                wav = clip.load(16000)
                lengths[len(wav)] = clip.key
                right = ToyEncoder.forward(self.encoder, wav[None], torch.tensor([len(wav)]))[0][0]
                assert torch.allclose(store[clip.key].float(), right, atol=2e-3), f"{clip.key}: stale features"
        self.held = sorted(store.index)
        return sorted(lengths[n] for n in encoded)


def keep_times(path: Path, data: bytes) -> None:
    """Overwrite a file without changing its modification time."""
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def recordings(tmp_path: Path) -> Recordings:
    found = Recordings(tmp_path)
    assert found.encoded() == found.names and found.encoded() == []
    return found


def test_a_file_that_was_replaced(recordings: Recordings):
    recordings.path("r1").write_bytes(sound(0.2, seed=9))
    assert recordings.encoded() == ["r1"] and recordings.encoded() == []


def test_the_same_size_with_another_time_and_content(recordings: Recordings):
    recordings.path("r1").write_bytes(sound(0.11, seed=9))
    os.utime(recordings.path("r1"), (1, 1))
    assert recordings.encoded() == ["r1"] and recordings.encoded() == []


def test_the_same_time_with_another_size(recordings: Recordings):
    keep_times(recordings.path("r1"), sound(0.2, seed=9))
    assert recordings.encoded() == ["r1"]


def test_the_same_content_with_other_times_is_verified_once(recordings: Recordings, monkeypatch: pytest.MonkeyPatch):
    for name in recordings.names:
        os.utime(recordings.path(name), (1, 1))
    read = digests_counted(monkeypatch)
    assert recordings.encoded() == [] and len(read) == 4
    assert recordings.encoded() == [] and len(read) == 4


def test_the_same_content_in_another_place_is_verified_once(recordings: Recordings, monkeypatch: pytest.MonkeyPatch):
    moved = recordings.folder.parent / "other disk"
    shutil.copytree(recordings.folder, moved, copy_function=shutil.copyfile)
    recordings.folder = moved
    read = digests_counted(monkeypatch)
    assert recordings.encoded() == [] and len(read) == 4
    assert recordings.encoded() == [] and len(read) == 4


def digests_counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from omnikit.data import digest_ledger

    digest, read = digest_ledger._digest, []
    monkeypatch.setattr(digest_ledger, "_digest", lambda content: (read.append(content.address), digest(content))[1])
    return read


def test_the_same_size_and_time_is_found_by_checking(recordings: Recordings, caplog: pytest.LogCaptureFixture):
    keep_times(recordings.path("r1"), sound(0.11, seed=9))
    with pytest.raises(AssertionError, match="r1: stale features"):  # the change cannot be noticed
        recordings.encoded()
    verify_cache(recordings.cache)
    assert recordings.encoded() == ["r1"] and recordings.encoded() == []
    assert f"1 have changed since they were read, such as {recordings.path('r1')}" in caplog.text


def test_a_recording_that_was_added(recordings: Recordings):
    recordings.names.append("new")
    recordings.path("new").write_bytes(sound(0.3, seed=7))
    assert recordings.encoded() == ["new"]
    recordings.names.remove("r0")
    assert recordings.encoded() == [] and "r0" not in recordings.held


def test_a_recording_that_changes_back(recordings: Recordings):
    old = recordings.path("r1").read_bytes()
    recordings.path("r1").write_bytes(sound(0.2, seed=9))
    assert recordings.encoded() == ["r1"]
    recordings.path("r1").write_bytes(old)
    assert recordings.encoded() == []


@pytest.mark.parametrize("broken", [b"not audio", sound(0.01)], ids=["unreadable", "refused"])
def test_a_failure_is_remembered_until_the_file_is_repaired(broken, recordings, caplog, monkeypatch):
    recordings.path("r1").write_bytes(broken)
    reason = "unreadable" if broken == b"not audio" else "refused"
    tried = []
    load = Recording.load
    monkeypatch.setattr(Recording, "load", lambda clip, rate: (tried.append(clip.key), load(clip, rate))[1])
    for attempt in (1, 0):
        tried.clear()
        caplog.clear()
        store = cached_features(recordings.encoder, recordings.clips(), recordings.cache, "toy")
        assert "r1" not in store and tried == ["r1"] * attempt
        assert f"toy-features: 1 of 4 recordings skipped: 1 {reason} (such as {recordings.path('r1')})" in caplog.text
    recordings.path("r1").write_bytes(sound(0.2, seed=9))
    assert recordings.encoded() == ["r1"] and recordings.held == recordings.names


def test_a_file_that_is_missing_is_tried_again(recordings: Recordings, caplog: pytest.LogCaptureFixture):
    recordings.path("r1").rename(recordings.folder / "away")
    assert recordings.encoded() == [] and "r1" not in recordings.held
    assert "1 of 4 recordings skipped: 1 missing (such as" in caplog.text
    (recordings.folder / "away").rename(recordings.path("r1"))
    assert recordings.encoded() == [] and "r1" in recordings.held


def test_a_file_that_changes_while_it_is_read_is_not_stored(recordings: Recordings, monkeypatch, caplog):
    recordings.path("r1").write_bytes(sound(0.2, seed=9))
    load = Recording.load

    def meanwhile(clip: Recording, rate: int) -> torch.Tensor:
        if clip.key == "r1":
            Path(clip.path).write_bytes(sound(0.25, seed=8))
        return load(clip, rate)

    with monkeypatch.context() as patch:
        patch.setattr(Recording, "load", meanwhile)
        assert "r1" not in cached_features(recordings.encoder, recordings.clips(), recordings.cache, "toy")
    assert "1 of 4 recordings skipped: 1 not readable now" in caplog.text
    assert recordings.encoded() == ["r1"]


def test_two_sources_and_two_parts_share_what_they_can(recordings: Recordings, monkeypatch: pytest.MonkeyPatch):
    again = [Recording(f"other {clip.key}", path=clip.path) for clip in recordings.clips()]
    read = digests_counted(monkeypatch)
    assert recordings.encoded(again) == []
    codec = ToyCodec()
    codes = cached_codes(codec, again, recordings.cache, "toy")
    assert torch.equal(codes["other r1"].long(), codec.encode(again[1].load(16000)[None])[0]) and not read


def embedded(path: Path, sounds: dict[str, bytes]) -> Path:
    with ManifestWriter(path, ["id", "t1", "a1"], True) as writer:
        writer.write([{"id": name, "t1": "text", "a1": data} for name, data in sounds.items()])
    return path


def in_table(recordings: Recordings, path: Path) -> list[Recording]:
    return [entry.a1 for entry in read_manifest(path, recordings.cache / "tables")]


def test_recordings_in_a_manifest_that_is_written_again(recordings: Recordings, tmp_path: Path, monkeypatch):
    sounds = {name: sound(0.3 + 0.01 * i, seed=i + 20) for i, name in enumerate(recordings.names)}
    path = embedded(tmp_path / "m.parquet", sounds)
    assert recordings.encoded(in_table(recordings, path)) == recordings.names
    read = digests_counted(monkeypatch)
    assert recordings.encoded(in_table(recordings, path)) == [] and not read
    embedded(path, sounds | {"r2": sound(0.5, seed=99), "r9": sound(0.6, seed=98)})
    assert recordings.encoded(in_table(recordings, path)) == ["r2", "r9"]
    shutil.copyfile(path, tmp_path / "copy.parquet")
    read.clear()
    assert recordings.encoded(in_table(recordings, tmp_path / "copy.parquet")) == []
    assert read == [str(tmp_path / "copy.parquet")]


def test_a_table_under_the_same_name_size_and_time(recordings: Recordings, tmp_path: Path):
    cache = tmp_path / "cache" / "tables"

    def texts() -> list[str]:
        return [entry.t1 for entry in read_manifest(path, cache)]

    path = tmp_path / "m.parquet"
    for text in ("one", "two"):
        with ManifestWriter(tmp_path / f"{text}.parquet", ["id", "t1"]) as writer:
            writer.write([{"id": "a", "t1": text}])
    shutil.copy2(tmp_path / "one.parquet", path)
    assert texts() == ["one"]
    assert (tmp_path / "two.parquet").stat().st_size == path.stat().st_size
    keep_times(path, (tmp_path / "two.parquet").read_bytes())
    verify_cache(tmp_path / "cache")
    assert texts() == ["two"]
    path.write_bytes((tmp_path / "one.parquet").read_bytes())
    assert texts() == ["one"]


def test_training_sources_follow_their_recordings(recordings: Recordings, tmp_path: Path):
    model = toy_model()
    model.encoder = CountingEncoder()
    with ManifestWriter(recordings.folder / "m.csv", ["id", "t1", "a1"]) as writer:
        writer.write([{"id": name, "t1": "the cat", "a1": f"{name}.wav"} for name in recordings.names])
    options = {"toy": {"manifest": recordings.folder / "m.csv", "tasks": ["A1T1", "T1A1"]}}
    tasks = {"A1T1": 1.0, "T1A1": 1.0}
    read_sources(options, model, tasks=tasks, cache_folder=tmp_path / "c")
    assert len(model.encoder.encoded) == 4
    recordings.path("r3").write_bytes(sound(0.2, seed=9))
    (source,) = read_sources(options, model, tasks=tasks, cache_folder=tmp_path / "c")
    assert len(model.encoder.encoded) == 5
    wav = recordings.clips()[3].load(16000)
    assert torch.equal(source.codes["codes1"][3].long(), model.codec.encode(wav[None])[0])


def test_caches_of_an_earlier_version_are_told_and_not_used(recordings: Recordings, tmp_path: Path, caplog):
    old = recordings.cache / "old-features-0123456789abcdef.arrow"
    old.write_bytes(b"old")
    (tmp_path / "t" / "parquet").mkdir(parents=True)
    for _ in range(2):
        cached_features(recordings.encoder, recordings.clips(), recordings.cache, "old")
        read_manifest(embedded(tmp_path / "m.parquet", {"a": sound(0.1)}), tmp_path / "t")
    assert caplog.text.count(f"{old}: arrays of an earlier version") == 1
    assert caplog.text.count(f"{tmp_path / 't' / 'parquet'}: tables of an earlier version") == 1


def test_a_fault_of_the_disk_is_not_remembered(recordings: Recordings, monkeypatch: pytest.MonkeyPatch):
    """A recording that temporarily cannot be opened is not cached as unusable, even if its digest is known."""
    recordings.encoder.scale = 2.0  # another part, whose cache is empty
    load = Recording.load

    def fails(clip: Recording, rate: int):
        if clip.key == "r1":
            raise Unusable("unreadable", "r1: cannot be read (Too many open files)", transient=True)
        return load(clip, rate)

    monkeypatch.setattr(Recording, "load", fails)
    monkeypatch.setattr(recordings, "names", ["r0", "r1"])
    cached_features(recordings.encoder, recordings.clips(), recordings.cache, "toy")
    monkeypatch.setattr(Recording, "load", load)
    assert recordings.encoded() == ["r1"]


def test_the_verdict_of_another_reader_is_asked_again(recordings: Recordings, monkeypatch: pytest.MonkeyPatch):
    recordings.path("r1").write_bytes(b"not audio")
    assert recordings.encoded() == [] and recordings.held == ["r0", "r2", "r3"]
    asked = []
    monkeypatch.setattr(
        Recording, "load", lambda clip, rate, load=Recording.load: asked.append(clip.key) or load(clip, rate)
    )
    cached_features(recordings.encoder, recordings.clips(), recordings.cache, "toy")
    assert asked == []
    monkeypatch.setattr("omnikit.data.array_cache.READER", "reader 0")
    cached_features(recordings.encoder, recordings.clips(), recordings.cache, "toy")
    assert asked == ["r1"]
