"""Tests of `omnikit tokenize`: shards, skipped entries, and equal output after kills and with several processes."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from rewriting import contents, killed_at_random, run_tokenize, sound, start, toy_parts
from toy import ToyEncoder, toy_model

from omnikit.data import manifest_writer as manifests
from omnikit.data.array_cache import fingerprint
from omnikit.data.encode_recordings import BatchEncoder, feature_encoder
from omnikit.data.manifest_reader import read_manifest
from omnikit.data.manifest_writer import FIELDS, ManifestWriter
from omnikit.data.samples import make_dataset
from omnikit.data.sources import read_sources
from omnikit.prepare.tokenize import Parts, tokenize
from omnikit.tasks import TASKS

NAMED = "part_names: {codec: toy}\n"
QUESTION, ANSWER = "what is red", "the cat"


def write(path: Path, rows: list[dict], group: int = 100, embedded: bool = True) -> Path:
    fields = [name for name in FIELDS if any(name in row for row in rows)]
    with ManifestWriter(path, fields, embedded and path.suffix == ".parquet") as writer:
        for begin in range(0, len(rows), group):
            writer.write(rows[begin : begin + group])
    return path


def spoken(count: int = 3, *, answers: bool = True) -> list[dict]:
    """Return test entries of a manifest with embedded recordings."""
    rows = [{"id": f"r{i}", "speaker": "7", "t1": QUESTION, "a1": sound(0.1 + 0.07 * (i % 5), i)} for i in range(count)]
    return (
        [{**row, "t2": ANSWER, "a2": sound(0.2 + 0.03 * i, -i + 99)} for i, row in enumerate(rows)] if answers else rows
    )


def as_files(rows: list[dict], folder: Path) -> list[dict]:
    for row in rows:
        for name in {"a1", "a2"} & set(row):
            (folder / f"{row['id']}-{name}.wav").write_bytes(row[name])
            row[name] = f"{row['id']}-{name}.wav"
    return rows


def parts_of(model) -> Parts:
    return Parts(model.codec, "toy", model.encoder)


@pytest.fixture
def model():
    model = toy_model()
    model.recipe = NAMED
    return model


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_shards_hold_what_the_parts_make_of_the_recordings(ending: str, tmp_path: Path):
    rows = spoken() if ending == "parquet" else as_files(spoken(), tmp_path)
    path, parts = write(tmp_path / f"m.{ending}", rows), toy_parts()
    summary = tokenize(path, tmp_path / "out", parts, fields=("a1", "a2"), shard_size=2)
    assert (summary.rows, bool(summary.skipped), bool(summary.notes)) == (3, False, False)
    before, after = read_manifest(path, tmp_path / "c"), read_manifest(tmp_path / "out", tmp_path / "c")
    for old, new in zip(before, after, strict=True):
        assert (new.id, new.t1, new.t2, new.speaker) == (old.id, old.t1, old.t2, old.speaker)
        for codes, clip in ((new.codes1, old.a1), (new.codes, old.a2)):
            wav = clip.load(16000)
            assert codes.codec == "toy" and torch.equal(codes.load().long(), parts.codec.encode(wav[None])[0])
            assert codes.frames == codes.load().shape[1]
        wav = old.a1.load(16000)
        assert new.duration == pytest.approx(len(wav) / 16000, abs=1e-4)
        alone, _ = parts.encoder(wav[None], torch.tensor([len(wav)]))
        found = new.features.load()
        assert found.dtype == torch.float16 and len(found) == new.features.frames
        assert torch.allclose(found.float(), alone[0], atol=1e-3)
        assert new.features.encoder == fingerprint(parts.encoder)
        assert torch.equal(new.a1.load(16000), wav)


def test_samples_are_those_of_the_recordings(model, tmp_path: Path):
    """Training samples of all tasks from stored codes and features equal those computed from the recordings."""
    path = write(tmp_path / "m.parquet", spoken(5))
    tokenize(path, tmp_path / "out", parts_of(model), fields=("a1", "a2"), drop=("a1", "a2"))
    weights = dict.fromkeys(TASKS, 1.0)

    def samples(manifest: Path):
        options = {"qa": {"manifest": manifest, "tasks": list(TASKS)}}
        sources = read_sources(options, model, tasks=weights, cache_folder=tmp_path / "cache" / manifest.name)
        return make_dataset(model, sources, weights)

    expected = samples(path)
    made = set((tmp_path / "cache" / "out").rglob("*.bin"))
    found = samples(tmp_path / "out")
    assert set((tmp_path / "cache" / "out").rglob("*.bin")) == made  # no recording was encoded again
    for ours, theirs in zip(vars(found.table).values(), vars(expected.table).values(), strict=True):
        assert ours.tolist() == theirs.tolist()
    assert len(expected) == 5 * len(TASKS)
    for old, new in zip(expected, found, strict=True):
        assert torch.equal(old["sample"].steps, new["sample"].steps)
        assert torch.equal(old["sample"].labels, new["sample"].labels)
        assert (old["features"] is None) == (new["features"] is None)
        if old["features"] is not None:
            assert torch.allclose(old["features"].float(), new["features"].float(), atol=2e-3)


def test_the_answers_become_codes_unless_there_are_none(tmp_path: Path):
    codec_only = Parts(toy_parts().codec, "toy")
    tokenize(write(tmp_path / "qa.parquet", spoken(1)), tmp_path / "qa", codec_only)
    tokenize(write(tmp_path / "tts.parquet", spoken(1, answers=False)), tmp_path / "tts", codec_only, drop=("a1",))
    qa, tts = ({*pq.read_schema(next((tmp_path / name).glob("*.parquet"))).names} for name in ("qa", "tts"))
    assert qa == {"id", "duration", "speaker", "t1", "t2", "a1", "a2", "codes", "codec"}
    assert tts == {"id", "duration", "speaker", "t1", "codes1", "codec"}
    (row,) = read_manifest(tmp_path / "tts", tmp_path / "c")
    assert row.a1 is None and row.serves(TASKS["T1A1"]) and not row.serves(TASKS["A1T1"])
    with pytest.raises(ValueError, match="--fields a2: the manifest has none; it has id, speaker, t1, a1"):
        tokenize(tmp_path / "tts.parquet", tmp_path / "out", codec_only, fields=("a2",))


def test_features_of_another_encoder(model, tmp_path: Path):
    """Stored features of another encoder are computed again if the entry has a recording, and refused otherwise."""
    path = write(tmp_path / "m.parquet", spoken(2))
    other = Parts(encoder=ToyEncoder())

    def features(folder: Path) -> list[torch.Tensor]:
        options = {"asr": {"manifest": folder, "tasks": ["A1T1"]}}
        sources = read_sources(options, model, tasks={"A1T1": 1.0}, cache_folder=tmp_path / "cache")
        return [item["features"] for item in make_dataset(model, sources, {"A1T1": 1.0})]

    tokenize(path, tmp_path / "kept", other)
    assert torch.equal(torch.cat(features(tmp_path / "kept")), torch.cat(features(path)))
    tokenize(path, tmp_path / "dropped", other, drop=("a1",))
    with pytest.raises(
        ValueError, match=rf"sources.asr: entry r0: holds features of the encoder {fingerprint(other.encoder)}"
    ):
        features(tmp_path / "dropped")
    summary = tokenize(tmp_path / "kept", tmp_path / "again", Parts(encoder=model.encoder), drop=("a1",))
    assert summary.rows == 2 and torch.equal(torch.cat(features(tmp_path / "again")), torch.cat(features(path)))
    with pytest.raises(ValueError, match=r"no usable entry; .*skipped: 2 foreign \(such as r0\)"):
        tokenize(tmp_path / "dropped", tmp_path / "out", Parts(encoder=model.encoder))


def test_codes_that_are_there_already(tmp_path: Path):
    parts, (row,) = Parts(toy_parts().codec, "toy"), spoken(1)
    codes = parts.codec.encode(torch.zeros(1, 300))[0].short().numpy()
    own = {**row, "codes": codes, "codec": "toy"}
    foreign = {**own, "id": "f", "codec": "other"}
    lost = {name: value for name, value in {**foreign, "id": "lost"}.items() if name != "a2"}
    unspoken = {"id": "text", "t1": QUESTION, "t2": ANSWER}
    path = write(tmp_path / "m.parquet", [own, foreign, lost, unspoken])
    summary = tokenize(path, tmp_path / "out", parts)
    assert summary.skipped.reasons == {"foreign": 1} and summary.skipped.examples == {"foreign": "lost"}
    assert summary.notes.reasons == {"no recording": 1}
    kept, made, text = read_manifest(tmp_path / "out", tmp_path / "c")
    assert torch.equal(kept.codes.load(), torch.from_numpy(codes))
    assert made.codes.codec == "toy" and made.codes.frames == -(-3200 // 3)
    assert text.codes is None and text.a1 is None and text.serves(TASKS["T1T2"])


def damaged(folder: Path) -> Path:
    """Write two Parquet shards with unusable recordings and texts, the second of them truncated; return the folder."""
    rows = spoken(2, answers=False)
    broken = {"empty": sound(0.0), "cut": sound(0.3)[:-500], "words": b"no sound", "short": sound(0.005)}
    rows += [{"id": name, "t1": QUESTION, "a1": data} for name, data in broken.items()]
    rows += [{"id": "blank", "t1": " ", "a1": sound(0.2)}]
    write(folder / "a.parquet", rows)
    cut = write(folder / "b.parquet", rows)
    cut.write_bytes(cut.read_bytes()[:-20])
    return folder


def test_damage_is_skipped_and_counted(tmp_path: Path):
    path = damaged(tmp_path / "m")
    for _ in range(2):  # written, then reused
        summary = tokenize(path, tmp_path / "out", toy_parts())
        assert summary.rows == 2
        assert summary.skipped.reasons == {
            "empty": 1, "unreadable": 2, "refused": 1, "no text": 1, "shard unreadable": 1,
        }  # fmt: skip
    for folder in ("strict", "out"):
        with pytest.raises(ValueError, match=r"empty|unreadable|refused|no text"):
            tokenize(path, tmp_path / folder, toy_parts(), strict=True)
    assert {row.id for row in read_manifest(tmp_path / "out", tmp_path / "c")} == {"r0", "r1"}


def test_few_long_recordings_are_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The stored codes of recordings do not depend on how many recordings are in memory at once."""
    rows = {f"r{i}": {"t1": "x", "a1": f"{i}.wav"} for i in range(20)}
    for i in range(20):
        (tmp_path / f"{i}.wav").write_bytes(sound(0.1 + 0.01 * i, i))
    (tmp_path / "m.json").write_text(json.dumps(rows))
    monkeypatch.setattr("omnikit.prepare.tokenize.THREADS", 1)
    together: list[int] = []
    batch = BatchEncoder.__call__
    monkeypatch.setattr(BatchEncoder, "__call__", lambda self, wavs: together.append(len(wavs)) or batch(self, wavs))
    made = []
    for name, held in (("much", 2**27), ("little", 3000)):
        monkeypatch.setattr("omnikit.prepare.tokenize.HELD", held)
        tokenize(tmp_path / "m.json", tmp_path / name, toy_parts(), fields=("a1",))
        made.append([(row.id, row.codes1.load().tolist()) for row in read_manifest(tmp_path / name, tmp_path / "c")])
    assert made[0] == made[1] and len(made[0]) == 20
    assert max(together[:2]) == 20 and max(together[2:]) <= 4


def test_one_that_is_refused_spoils_no_batch():
    class Choosy(ToyEncoder):
        def forward(self, wav, lengths):
            if int(lengths.min()) < 1000:
                raise ValueError("too short")
            return super().forward(wav, lengths)

    making = feature_encoder(Choosy())
    found = dict(making([("a", torch.rand(2000)), ("b", torch.rand(900)), ("c", torch.rand(1500))]))
    assert found["b"] is None and found["a"].shape == (12, 12) and found["c"].shape == (9, 12)


def test_features_in_bfloat16(tmp_path: Path):
    """They are close to those in float32 but not equal, and the folder of one precision is not continued in another."""
    path, stored = write(tmp_path / "m.parquet", spoken(2, answers=False)), {}
    torch.manual_seed(0)
    encoder = ToyEncoder()
    for precision in ("fp32", "bf16"):
        tokenize(path, tmp_path / "out", Parts(encoder=encoder), precision=precision)
        stored[precision] = [row.features.load().float() for row in read_manifest(tmp_path / "out", tmp_path / "c")]
    for exact, rounded in zip(*stored.values(), strict=True):
        assert not torch.equal(exact, rounded) and torch.allclose(exact, rounded, rtol=0.02, atol=0.02)
    with pytest.raises(ValueError, match="--precision bfloat: choices are fp32, bf16"):
        tokenize(path, tmp_path / "other", Parts(encoder=encoder), precision="bfloat")


def test_made_again_only_when_something_changed(tmp_path: Path):
    path = write(tmp_path / "m.parquet", spoken(6, answers=False), group=1)

    def made(parts: Parts | None = None, **options) -> dict[str, int]:
        tokenize(path, tmp_path / "out", parts or toy_parts(), **{"shard_size": 2, **options})
        return {shard.name: shard.stat().st_mtime_ns for shard in (tmp_path / "out").glob("*.parquet")}

    first = made()
    assert sorted(first) == ["m-0000.parquet", "m-0001.parquet", "m-0002.parquet"] and made() == first
    assert not set(made(Parts(toy_parts().codec, "toy", ToyEncoder())).items()) & set(first.items())
    (tmp_path / "out" / "m-0001.parquet").unlink()
    assert set(made()) == set(first)
    assert sorted(made(shard_size=4)) == ["m-0000.parquet", "m-0001.parquet"]
    assert len(read_manifest(tmp_path / "out", tmp_path / "c")) == 6


def test_a_full_disk_is_told_and_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "m.parquet", spoken(6, answers=False), group=2)
    tokenize(path, tmp_path / "whole", toy_parts(), shard_size=2)
    close, calls = manifests._FORMATS[".parquet"].close, []

    def full(self) -> None:
        calls.append(self)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "full")
        close(self)

    with monkeypatch.context() as patch:
        patch.setattr(manifests._FORMATS[".parquet"], "close", full)
        with pytest.raises(ValueError, match=r"m-0001.parquet: cannot be written \(No space left on device\)"):
            tokenize(path, tmp_path / "out", toy_parts(), shard_size=2)
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == ["m-0000.parquet", "m-0000.summary.json"]
    tokenize(path, tmp_path / "out", toy_parts(), shard_size=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_killed_at_ten_moments_it_ends_with_the_same_shards(tmp_path: Path):
    path = write(tmp_path / "m.parquet", spoken(60, answers=False), group=2)
    assert killed_at_random(run_tokenize, path, tmp_path / "whole", tmp_path / "killed") > 5
    assert len(contents(tmp_path / "whole")) == 30
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_two_processes_make_what_one_makes(tmp_path: Path):
    path = write(tmp_path / "m.parquet", spoken(30, answers=False), group=2)
    start(run_tokenize, path, tmp_path / "one").join()
    second = start(run_tokenize, path, tmp_path / "two", RANK="1", WORLD_SIZE="2")
    second.join()
    assert len(list((tmp_path / "two").glob("*.parquet"))) == 4  # its share of 8
    start(run_tokenize, path, tmp_path / "two", RANK="0", WORLD_SIZE="2").join()
    assert contents(tmp_path / "two") == contents(tmp_path / "one") and len(contents(tmp_path / "one")) == 16


def test_bad_options_are_told(tmp_path: Path):
    path, parts = write(tmp_path / "m" / "m.parquet", spoken(1)), toy_parts()
    for options, message in (
        ({"fields": ("a3",)}, r"--fields a3: no such recording: 'a3' \(choices: a1, a2\)"),
        ({"drop": ("t1",)}, "--drop t1: no such recording"),
        ({"shard_size": 0}, "--shard_size 0"),
        ({"batch_seconds": 0.0}, "--batch_seconds 0"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenize(path, tmp_path / "out", parts, **options)
    with pytest.raises(ValueError, match="--fields a1: codes of which codec"):
        tokenize(path, tmp_path / "out", Parts(encoder=parts.encoder), fields=("a1",))
    for manifest in (path, path.parent):
        with pytest.raises(ValueError, match=r"--save_folder .*: holds the manifest that is read"):
            tokenize(manifest, path.parent, parts)
    write(tmp_path / "m" / "n.parquet", [{"id": "x", "t1": QUESTION, "a1": "x.wav"}], embedded=False)
    with pytest.raises(ValueError, match=r"n.parquet: its recordings are bytes where others are paths"):
        tokenize(path.parent, tmp_path / "out", parts)
