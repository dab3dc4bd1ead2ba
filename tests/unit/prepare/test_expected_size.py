"""Tests of the size that `omnikit tokenize` announces, and of its refusal of a disk that is too small."""

from __future__ import annotations

import re
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from rewriting import sound
from toy import ToyCodec, ToyEncoder

from omnikit.data.manifest_reader import read_manifest
from omnikit.data.manifest_writer import FIELDS, ManifestWriter
from omnikit.prepare.expected_size import in_words
from omnikit.prepare.tokenize import Parts, tokenize

COUNT = 12
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def parts() -> Parts:
    torch.manual_seed(0)
    return Parts(ToyCodec(), "toy", ToyEncoder())


def seconds(number: int) -> float:
    return 0.5 + 0.1 * number


def manifest(folder: Path, ending: str, durations: bool, answers: bool = False) -> Path:
    """Write a manifest of recordings, embedded in Parquet and as files otherwise; return its path."""
    folder.mkdir(exist_ok=True)
    rows = [{"id": f"r{i}", "t1": "what is red"} for i in range(COUNT)]
    for number, row in enumerate(rows):
        for name in ("a1", "a2") if answers else ("a1",):
            row[name] = data = sound(seconds(number), number)
            if ending != "parquet":
                row[name] = f"{row['id']}-{name}.wav"
                (folder / row[name]).write_bytes(data)
        row |= {"duration": seconds(number)} if durations else {}
        row |= {"t2": "the cat"} if answers else {}
    fields = [name for name in FIELDS if name in rows[0]]
    with ManifestWriter(folder / f"m.{ending}", fields, ending == "parquet") as writer:
        for begin in range(0, COUNT, 4):
            writer.write(rows[begin : begin + 4])
    return folder / f"m.{ending}"


def announced(text: str) -> float:
    number, unit = re.search(r"about (\S+) (MB|GB|TB) will be written", text).groups()
    return float(number) * {"MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]


def written(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.parquet"))


def stored(folder: Path, cache: Path, names: tuple[str, ...]) -> int:
    arrays = [getattr(entry, name).load() for entry in read_manifest(folder, cache) for name in names]
    return sum(array.numel() * array.element_size() for array in arrays)


@pytest.mark.parametrize("durations", [True, False])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_announced_size_is_written(ending: str, durations: bool, parts: Parts, tmp_path: Path, capsys):
    path = manifest(tmp_path / "data", ending, durations)
    tokenize(path, tmp_path / "out", parts, fields=("a1",), shard_size=4)
    error = capsys.readouterr().err
    size = stored(tmp_path / "out", tmp_path / "c", ("features", "codes1"))
    assert announced(error) == pytest.approx(size + path.stat().st_size, rel=0.05)
    assert ("lengths of 24 recordings are estimated" in error) == (not durations)
    if ending == "parquet":
        assert 0.6 < written(tmp_path / "out") / announced(error) < 1.05  # the codes of the toy codec compress well
        tokenize(path, tmp_path / "less", parts, fields=("a1",), drop=("a1",))
        assert announced(capsys.readouterr().err) == pytest.approx(size, rel=0.05)


def test_lengths_of_answers_are_estimated_from_some(parts: Parts, tmp_path: Path, capsys):
    path = manifest(tmp_path / "data", "parquet", durations=True, answers=True)
    tokenize(path, tmp_path / "out", parts, drop=("a1", "a2"))
    error = capsys.readouterr().err
    size = stored(tmp_path / "out", tmp_path / "c", ("features", "codes"))
    assert announced(error) == pytest.approx(size, rel=0.05) and "of 12 recordings are estimated" in error


def test_recordings_of_unknown_length_are_reported(parts: Parts, tmp_path: Path, capsys):
    path = manifest(tmp_path / "data", "csv", durations=False)
    for number in range(COUNT):
        (path.parent / f"r{number}-a1.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match="no usable entry"):
        tokenize(path, tmp_path / "out", Parts(encoder=parts.encoder))
    assert "without 12 recordings of unknown length" in capsys.readouterr().err


def test_a_small_disk_is_refused_before_anything_is_computed(parts: Parts, tmp_path: Path, monkeypatch):
    path = manifest(tmp_path / "data", "parquet", durations=True)
    asked = []

    def usage(folder: Path) -> Usage:
        asked.append(folder)
        return Usage(10**9, 10**9 - 1000, 1000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(ToyEncoder, "forward", lambda *_: pytest.fail("a recording was encoded"))
    with pytest.raises(ValueError, match=r"--save_folder .*/deep/out: about .* MB are to be written, but 0.001 M") as e:
        tokenize(path, tmp_path / "deep" / "out", parts)
    assert "\n" not in str(e.value) and asked == [tmp_path] and not (tmp_path / "deep").exists()


def test_only_missing_shards_count(parts: Parts, tmp_path: Path, capsys, monkeypatch):
    path, out = manifest(tmp_path / "data", "parquet", durations=True), tmp_path / "out"
    tokenize(path, out, parts, fields=("a1",), shard_size=4)
    whole = announced(capsys.readouterr().err)
    shards = sorted(out.glob("*.parquet"))
    last = shards[-1].stat().st_size
    shards[-1].unlink()
    tokenize(path, out, parts, fields=("a1",), shard_size=4)
    assert 0.6 < last / announced(capsys.readouterr().err) < 1.05 and last < 0.6 * whole
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: pytest.fail("nothing is missing"))
    tokenize(path, out, parts, fields=("a1",), shard_size=4)
    assert "will be written" not in capsys.readouterr().err


def test_several_processes_share_a_disk(parts: Parts, tmp_path: Path, capsys, monkeypatch):
    path = manifest(tmp_path / "data", "parquet", durations=True)
    tokenize(path, tmp_path / "one", parts, shard_size=4)
    alone = announced(capsys.readouterr().err)
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        tokenize(path, tmp_path / "three", parts, shard_size=4)
        error = capsys.readouterr().err
        assert ("will be written" in error) == (rank == 0)
        assert rank > 0 or announced(error) == pytest.approx(alone, rel=0.4)


def test_kept_features_are_copied_and_others_are_not_counted_twice(parts: Parts, tmp_path: Path, capsys):
    path = manifest(tmp_path / "data", "parquet", durations=True)
    tokenize(path, tmp_path / "one", Parts(encoder=parts.encoder))
    first = announced(capsys.readouterr().err)
    tokenize(tmp_path / "one", tmp_path / "same", Parts(encoder=parts.encoder))
    assert announced(capsys.readouterr().err) == pytest.approx(first, rel=0.05)
    torch.manual_seed(1)
    tokenize(tmp_path / "one", tmp_path / "other", Parts(encoder=ToyEncoder()))
    assert announced(capsys.readouterr().err) == pytest.approx(first, rel=0.05)


def test_sizes_in_words():
    assert [in_words(size) for size in (0, 1234, 2.21e12, 28e9)] == ["0 MB", "0.00123 MB", "2.21 TB", "28 GB"]
    assert np.isclose(float(in_words(5.55e6).split()[0]), 5.55)
