"""Tests of the code that the prepare.py of all corpora share: checking recordings, counting, resuming, writing."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omnikit.data import manifest_writer
from omnikit.data.manifest_reader import read_manifest
from omnikit.data.recording_check import check_recording
from omnikit.prepare.corpus import Checks, Corpus, ManifestPart, Remark, Summary, prepare

RATE = 16000


def encoded(samples: np.ndarray, rate: int = RATE, kind: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind)
    return buffer.getvalue()


def noise(seconds: float = 0.5, gain: float = 0.3) -> np.ndarray:
    return np.random.default_rng(0).uniform(-gain, gain, int(seconds * RATE))


def clipped() -> np.ndarray:
    return np.clip(noise(gain=1.5), -1, 1)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
@pytest.mark.parametrize("decode_all", [False, True])
def test_whole_recordings_pass(kind: str, decode_all: bool, tmp_path: Path):
    data = encoded(np.stack([noise(), noise()], axis=1), 24000, kind)
    (tmp_path / "a").write_bytes(data)
    for source in (data, str(tmp_path / "a")):
        found = check_recording(source, decode_all=decode_all)
        assert found.problem is None and (found.rate, found.channels) == (24000, 2)
        assert found.seconds == pytest.approx(8000 / 24000)


@pytest.mark.parametrize(
    ("data", "options", "problem"),
    [
        (b"", {}, "empty"),
        (encoded(noise(0.0)), {}, "empty"),
        (b"not audio at all", {}, "unreadable"),
        (encoded(noise())[:-100], {}, "unreadable"),
        (encoded(noise(), kind="FLAC")[:-100], {}, "unreadable"),
        (encoded(noise()), {"max_seconds": 0.4}, "too long"),
        (encoded(noise()), {"max_seconds": 0.5}, None),
        (encoded(clipped()), {"decode_all": True}, "clipped"),
        (encoded(clipped()), {}, None),
        (encoded(noise(gain=0.99)), {"decode_all": True}, None),
    ],
)
def test_each_thing_that_is_wrong_with_a_recording(data: bytes, options: dict, problem: str | None, tmp_path: Path):
    (tmp_path / "a").write_bytes(data)
    assert check_recording(data, **options).problem == problem
    assert check_recording(tmp_path / "a", **options).problem == problem


def test_damage_in_the_middle_is_found_by_decoding(tmp_path: Path):
    data = bytearray(encoded(noise(2.0), kind="FLAC"))
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    assert check_recording(bytes(data)).problem is None
    assert check_recording(bytes(data), decode_all=True).problem == "unreadable"
    assert check_recording(tmp_path / "nothing.wav").problem == "missing"


class Upstream:
    """A test corpus in memory, divided into shards of items; each shard has a source file whose change invalidates it.
    """

    def __init__(self, folder: Path, *shards: Iterable[dict | Remark], **options):
        self.shards, self.read = list(shards), []
        self.files = [folder / f"upstream{i}" for i in range(len(shards))]
        for file in self.files:
            file.write_text("old")
        fields = ("id", "duration", "speaker", "t1", "a1")
        self.corpus = Corpus("upstream", fields, lambda folder: {"all": folder}, self.parts, **options)
        self.folder, self.out = folder, folder / "out"

    def parts(self, split: str, place: Path) -> list[ManifestPart]:
        return [ManifestPart(f"{i}", [self.files[i]], lambda i=i: self.items(i)) for i in range(len(self.shards))]

    def items(self, shard: int) -> list[dict | Remark]:
        self.read.append(shard)
        return [item if isinstance(item, Remark) else dict(item) for item in self.shards[shard]]

    def prepare(self, **checks) -> Summary:
        (summary,) = prepare(self.corpus, self.folder, self.out, checks=Checks(**checks))
        return summary


def row(name: str, text: str = "some text", **fields) -> dict:
    return {"id": name, "speaker": name[0], "t1": text, "a1": encoded(noise(0.1)), **fields}


@pytest.fixture
def shards(tmp_path: Path) -> Upstream:
    items = ([row("a0"), row("a1")], [row("b0"), row("a1"), row("b1", " ")], [Remark("shard unreadable", "x.parquet")])
    return Upstream(tmp_path, *items, shards=True, embedded=True)


def test_each_thing_that_is_wrong_is_counted_once(shards: Upstream):
    summary = shards.prepare()
    assert summary.rows == 3 and summary.speakers == {"a", "b"} and summary.hours == pytest.approx(0.3 / 3600)
    assert summary.skipped.reasons == {"duplicate id": 1, "no text": 1, "shard unreadable": 1}
    assert str(summary).endswith(
        "skipped: 1 duplicate id (such as a1), 1 no text (such as b1), 1 shard unreadable (such as x.parquet)"
    )
    assert [row.id for row in read_manifest(shards.out / "all", shards.folder / "cache")] == ["a0", "a1", "b0"]
    assert not (shards.out / "all" / "2.parquet").exists()


def test_whole_shards_are_not_made_again(shards: Upstream):
    first = shards.prepare()
    assert shards.prepare() == first and shards.read == [0, 1, 2]
    shards.files[1].write_text("new")
    assert shards.prepare() == first and shards.read == [0, 1, 2, 1]  # ids of shard 0 are still known as taken
    assert shards.prepare(decode_all=True) == first and shards.read[4:] == [0, 1, 2]


def test_shards_of_files_that_are_gone_go_too(shards: Upstream):
    shards.prepare()
    (shards.out / "all" / "other.parquet").write_text("not made here")
    shards.shards, shards.files = shards.shards[:1], shards.files[:1]
    assert shards.prepare().rows == 2
    kept = {"0.parquet", "0.summary.json", "other.parquet"}
    assert {path.name for path in (shards.out / "all").iterdir()} == kept


def test_strict_names_the_first(shards: Upstream):
    with pytest.raises(ValueError, match=r"all: a1: duplicate id \(an entry of the split has that id already\)"):
        shards.prepare(strict=True)
    assert [path.name for path in sorted((shards.out / "all").iterdir())] == ["0.parquet", "0.summary.json"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), OSError("disk quota exceeded")])
def test_a_full_disk_is_told_and_what_was_whole_is_kept(
    error: OSError, shards: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = shards.prepare()
    there = {path.name: path.read_bytes() for path in (shards.out / "all").iterdir()}
    again = Upstream(tmp_path, *shards.shards, shards=True, embedded=True)
    again.out = tmp_path / "again"
    write, calls = manifest_writer._Parquet.write, []

    def fill(self, rows) -> None:
        write(self, rows)
        calls.append(rows)
        if len(calls) == 2:
            raise error

    monkeypatch.setattr(manifest_writer._Parquet, "write", fill)
    with pytest.raises(ValueError, match=r"again/all/1.parquet: cannot be written \((No space|disk quota)"):
        again.prepare()
    assert {path.name for path in (again.out / "all").iterdir()} == {"0.parquet", "0.summary.json"}
    assert again.prepare() == whole and again.read == [0, 1, 1, 2]
    assert {name: len(data) for name, data in there.items()} == {
        path.name: path.stat().st_size for path in (again.out / "all").iterdir()
    }


def test_an_error_while_reading_leaves_the_old_manifest(tmp_path: Path):
    wav = tmp_path / "a.wav"
    wav.write_bytes(encoded(noise()))
    upstream = Upstream(tmp_path, [row("a", a1=str(wav))])
    upstream.prepare()
    old = (upstream.out / "all.csv").read_bytes()
    upstream.files[0].write_text("new, and broken")
    upstream.items = lambda shard: (_ for _ in ()).throw(ValueError("upstream0: cannot be read"))
    with pytest.raises(ValueError, match="upstream0: cannot be read"):
        upstream.prepare()
    assert (upstream.out / "all.csv").read_bytes() == old
    assert not list(upstream.out.glob("*.partial"))


def test_limits_are_part_of_what_was_made(tmp_path: Path):
    upstream = Upstream(tmp_path, [row("a"), row("b", a1=encoded(noise(2.0)))], shards=True, embedded=True)
    assert upstream.prepare().rows == 2
    summary = upstream.prepare(max_seconds=1.0)
    assert summary.rows == 1 and summary.skipped.reasons == {"too long": 1}


def test_texts_that_are_no_utf8_are_told_apart_from_blank_ones(tmp_path: Path):
    bad = b"caf\xe9".decode("utf-8", "surrogateescape")
    upstream = Upstream(tmp_path, [row("a"), row("b", bad), row("c", None), row(f"d{bad}")], shards=True, embedded=True)
    assert upstream.prepare().skipped.reasons == {"not UTF-8": 2, "no text": 1}
