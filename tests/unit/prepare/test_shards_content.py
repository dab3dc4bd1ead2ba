"""Tests that shards and manifests follow the content of their recordings, and that unchanged results are reused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from rewriting import Beeps, contents, sound
from toy import ToyCodec, ToyEncoder

from omnikit.data.manifest_reader import read_manifest
from omnikit.data.manifest_writer import FIELDS, ManifestWriter
from omnikit.prepare import reuse
from omnikit.prepare.corpus import Corpus, ManifestPart, prepare
from omnikit.prepare.shards import fingerprint_of
from omnikit.prepare.synthesize import synthesize
from omnikit.prepare.tokenize import Parts, tokenize

COUNT = 6


class Counting(ToyCodec):
    def __init__(self):
        super().__init__()
        self.encoded: list[int] = []

    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        self.encoded += [wav.shape[1]] * len(wav)
        return super().encode(wav)


class Manifest:
    """A test manifest with embedded recordings or paths of files, and the shards of two entries each written from it.
    """

    def __init__(self, folder: Path, ending: str):
        self.folder, self.out, self.embedded = folder / "data", folder / "out", ending == "embedded.parquet"
        self.folder.mkdir()
        self.path = self.folder / f"m.{ending}"
        self.sounds = {f"r{i}": sound(0.1 + 0.01 * i, seed=i) for i in range(COUNT)}
        torch.manual_seed(0)
        self.parts = Parts(Counting(), "toy", ToyEncoder())
        self.write()

    def change(self, name: str, data: bytes) -> None:
        self.sounds[name] = data
        if self.embedded:
            self.write()
        else:
            (self.folder / f"{name}.wav").write_bytes(data)

    def write(self) -> None:
        """Write the test manifest, with recordings as bytes or as absolute paths of files that are written once."""
        with ManifestWriter(self.path, ["id", "t1", "a1"], self.embedded) as writer:
            for begin in range(0, len(self.sounds), 2):
                writer.write([self.row(name) for name in list(self.sounds)[begin : begin + 2]])

    def row(self, name: str) -> dict:
        file = self.folder / f"{name}.wav"
        if not self.embedded and not file.exists():
            file.write_bytes(self.sounds[name])
        return {"id": name, "t1": "text", "a1": self.sounds[name] if self.embedded else str(file)}

    def encoded(self) -> int:
        """Write the shards of a manifest, check them, and return the number of recordings that had to be encoded."""
        self.parts.codec.encoded.clear()
        tokenize(self.path, self.out, self.parts, fields=("a1",), shard_size=2)
        count = len(self.parts.codec.encoded)
        for row in read_manifest(self.out, self.out.parent / "tables"):
            wav = row.a1.load(16000)
            assert torch.equal(row.codes1.load().long(), self.parts.codec.encode(wav[None])[0]), row.id
            right = self.parts.encoder(wav[None], torch.tensor([len(wav)]))[0][0]
            assert torch.allclose(row.features.load().float(), right, atol=2e-3), row.id
            assert row.duration == pytest.approx(len(wav) / 16000, abs=1e-4)
        return count


@pytest.fixture(params=["csv", "json", "parquet", "embedded.parquet"])
def manifest(request: pytest.FixtureRequest, tmp_path: Path) -> Manifest:
    found = Manifest(tmp_path, request.param)
    assert found.encoded() == COUNT and found.encoded() == 0
    return found


def test_one_recording_is_replaced(manifest: Manifest):
    manifest.change("r3", sound(0.3, seed=9))
    assert manifest.encoded() == 1 and manifest.encoded() == 0


def test_a_broken_recording_gets_its_row_when_it_is_repaired(manifest: Manifest):
    manifest.change("r3", b"not audio")
    assert manifest.encoded() == 0
    assert [row.id for row in read_manifest(manifest.out, manifest.out / "t")] == ["r0", "r1", "r2", "r4", "r5"]
    manifest.change("r3", sound(0.3, seed=9))
    assert manifest.encoded() == 1
    assert len(read_manifest(manifest.out, manifest.out / "t")) == COUNT


def test_other_times_and_another_manifest_encode_nothing(manifest: Manifest):
    before = contents(manifest.out)
    for path in manifest.folder.iterdir():
        os.utime(path, (1, 1))
    assert manifest.encoded() == 0
    shards = {name: data for name, data in contents(manifest.out).items() if name.endswith(".parquet")}
    assert shards == {name: data for name, data in before.items() if name in shards}


def test_data_that_was_moved_is_not_encoded_again(manifest: Manifest):
    moved = manifest.folder.parent / "other disk"
    shutil.copytree(manifest.folder, moved, copy_function=shutil.copyfile)
    shutil.rmtree(manifest.folder)
    manifest.folder, manifest.path = moved, moved / manifest.path.name
    manifest.write()
    assert manifest.encoded() == 0


def test_other_parts_keep_nothing(manifest: Manifest):
    manifest.parts.encoder.net.bias.data += 1
    assert manifest.encoded() == COUNT


@pytest.mark.parametrize("manifest", ["csv", "embedded.parquet"], indirect=True)
def test_shards_of_an_earlier_version(manifest: Manifest, caplog: pytest.LogCaptureFixture):
    """Shards of an earlier version are reused if the manifest embeds its recordings, and otherwise written again.

    Changes of embedded recordings show in the manifest itself.
    """
    reuse._report_old.cache_clear()
    for number, path in enumerate(sorted(manifest.out.glob("*.summary.json"))):
        note = json.loads(path.read_text())
        named = ManifestPart(f"{manifest.path.stem}-{number:04d}", [manifest.path], tuple, 2)
        old = note["fingerprint"] if manifest.embedded else fingerprint_of(named)  # recordings were not covered
        path.write_text(json.dumps({"fingerprint": old, "summary": note["summary"]}))
    assert manifest.encoded() == (0 if manifest.embedded else COUNT)
    warnings = caplog.text.count(f"{manifest.out}: shards of an earlier version, without digests of their recordings")
    assert warnings == (0 if manifest.embedded else 1)


def test_fingerprints_without_recordings_are_those_of_earlier_versions(tmp_path: Path):
    source = tmp_path / "source"
    source.write_text("a")
    os.utime(source, ns=(1, 1))
    stamps = [(str(source.resolve()), 1, 1)]
    text = repr(("name", 2, ("x", 1), stamps))
    assert fingerprint_of(ManifestPart("name", [source], tuple, 2), "x", 1) == hashlib.sha256(text.encode()).hexdigest()


def test_synthesis_does_not_read_recordings(tmp_path: Path):
    """Speech synthesis for a manifest keeps its shards when a recording that an entry names by path has changed."""
    (tmp_path / "a.wav").write_bytes(sound(0.1))
    fields = [name for name in FIELDS if name in ("id", "t1", "t2", "a1")]
    with ManifestWriter(tmp_path / "m.csv", fields) as writer:
        writer.write([{"id": "a", "t1": "one", "t2": "two", "a1": "a.wav"}])
    synthesize(tmp_path / "m.csv", tmp_path / "out", Beeps(), voice_name="beeps")
    before = contents(tmp_path / "out")
    os.utime(tmp_path / "a.wav", (1, 1))
    synthesize(tmp_path / "m.csv", tmp_path / "out", Beeps(), voice_name="beeps")
    assert contents(tmp_path / "out") == before


class Upstream:
    """A test corpus with one transcript that names sound files, whose headers are read to prepare it."""

    def __init__(self, folder: Path, shards: bool):
        self.folder, self.read = folder, 0
        for i in range(3):
            (folder / f"{i}.wav").write_bytes(sound(0.1 + 0.1 * i, seed=i))
        (folder / "transcript").write_text("0 1 2")
        part = ManifestPart("p", [folder / "transcript"], self.items)
        fields = ("id", "duration", "t1", "a1")
        self.corpus = Corpus("upstream", fields, lambda folder: {"all": folder}, lambda *_: [part], shards=shards)

    def items(self):
        self.read += 1
        for name in (self.folder / "transcript").read_text().split():
            yield {"id": name, "t1": "text", "a1": str(self.folder / f"{name}.wav")}

    def durations(self) -> dict[str, float]:
        (_,) = prepare(self.corpus, self.folder, self.folder / "out")
        path = self.corpus.manifest(self.folder / "out", "all")
        self.made = next(p for p in (path, path / "p.parquet") if p.is_file()).stat().st_mtime_ns
        return {row.id: row.duration for row in read_manifest(path, self.folder / "cache")}


@pytest.fixture(params=[False, True], ids=["csv", "parquet"])
def upstream(request: pytest.FixtureRequest, tmp_path: Path) -> Upstream:
    found = Upstream(tmp_path, request.param)
    assert found.durations() == {"0": 0.1, "1": 0.2, "2": 0.3}
    return found


def test_durations_follow_a_recording_that_is_overwritten(upstream: Upstream):
    made = upstream.made
    assert upstream.durations() == {"0": 0.1, "1": 0.2, "2": 0.3} and upstream.made == made
    with open(upstream.folder / "1.wav", "r+b") as file:  # in place, so that the folder's time does not change
        file.write(sound(0.5))
    assert upstream.durations() == {"0": 0.1, "1": 0.5, "2": 0.3} and upstream.made > made


def test_a_broken_recording_that_is_repaired_gets_its_row(upstream: Upstream):
    (upstream.folder / "1.wav").write_bytes(b"not audio")
    assert upstream.durations() == {"0": 0.1, "2": 0.3}
    (upstream.folder / "1.wav").write_bytes(sound(0.4))
    assert upstream.durations() == {"0": 0.1, "1": 0.4, "2": 0.3}
    (upstream.folder / "2.wav").unlink()
    assert upstream.durations() == {"0": 0.1, "1": 0.4}
    soundfile.write(upstream.folder / "2.wav", torch.zeros(1600).numpy(), 16000)
    assert upstream.durations() == {"0": 0.1, "1": 0.4, "2": 0.1}


def test_a_recording_in_another_format_is_followed(upstream: Upstream):
    """Where a transcript names a missing WAV file, a FLAC file of the same name is used, and its changes are noticed.
    """
    (upstream.folder / "1.wav").unlink()
    assert upstream.durations() == {"0": 0.1, "2": 0.3}
    for seconds in (0.4, 0.6):
        soundfile.write(upstream.folder / "1.flac", torch.zeros(int(16000 * seconds)).numpy(), 16000)
        assert upstream.durations() == {"0": 0.1, "1": seconds, "2": 0.3}


def test_paths_in_structs_are_followed(tmp_path: Path):
    """A changed recording is encoded again where a Parquet struct {bytes, path} holds only its path."""
    rows = [{"id": "r", "t1": "text", "a1": {"bytes": None, "path": str(tmp_path / "r.wav")}}]
    kinds = pa.schema([("id", pa.string()), ("t1", pa.string()),
                       ("a1", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=kinds), tmp_path / "m.parquet")
    codec = Counting()
    for seconds in (0.1, 0.3):
        (tmp_path / "r.wav").write_bytes(sound(seconds))
        tokenize(tmp_path / "m.parquet", tmp_path / "out", Parts(codec, "toy"), fields=("a1",))
    assert codec.encoded == [1600, 4800]
