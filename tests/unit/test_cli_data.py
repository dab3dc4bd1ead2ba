"""Test `omnikit tokenize` and `omnikit synthesize` through the command line."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from rewriting import sound

from omnikit.data import manifest_writer as manifests
from omnikit.data.manifest_reader import read_manifest
from omnikit.data.manifest_writer import ManifestWriter
from omnikit.tasks import TASKS

MEL_RVQ = Path(__file__).parents[2] / "egs" / "mini" / "pretrained" / "mel_rvq"


@pytest.fixture
def manifest(tmp_path) -> Path:
    (tmp_path / "a.wav").write_bytes(sound(0.5))
    with ManifestWriter(tmp_path / "m.csv", ["id", "t1", "t2", "a1"]) as writer:
        writer.write(
            [{"id": "a", "t1": "one two", "t2": "three", "a1": "a.wav"}, {"id": "b", "t1": "four", "t2": "one"}]
        )
    return tmp_path / "m.csv"


def test_a_voice_then_codes(run, manifest, tmp_path):
    status, out, err = run("synthesize", manifest, "--save_folder", tmp_path / "said")
    assert status == 0, err
    assert out == "synthesize: 2 entries, 0.00 h, 0 speakers; skipped: none\n"
    here = ["tokenize", tmp_path / "said", "--codec", "mel_rvq", "--codec.weights", MEL_RVQ, "--drop", "a2"]
    status, out, err = run(*here, "--save_folder", tmp_path / "tokens")
    assert status == 0, err
    assert out.startswith("tokenize: 2 entries")
    rows = read_manifest(tmp_path / "tokens", tmp_path / "cache")
    assert [row.codes.codec for row in rows] == ["mel_rvq"] * 2 and all(row.serves(TASKS["A1A2"]) for row in rows)
    assert rows[0].codes.load().shape[0] == 7 and rows[0].a2 is None


def test_codec_encoder_and_voice_of_a_checkpoint(run, manifest, saved, tmp_path):
    status, _, err = run("synthesize", manifest, "--save_folder", tmp_path / "said", "--voice", "checkpoint",
                         "--checkpoint", saved, "--fields", "a1", "--audio", "files")  # fmt: skip
    assert status == 0, err
    words = ["--save_folder", tmp_path / "tokens", "--checkpoint", saved, "--features", "--fields", "a1"]
    status, _, err = run("tokenize", tmp_path / "said", *words)
    assert status == 0, err
    rows = read_manifest(tmp_path / "tokens", tmp_path / "cache")
    assert len(rows) == 2 and rows[1].a1 is not None and rows[1].codes1.codec == "mel_rvq"
    assert rows[0].features.load().shape == (rows[0].features.frames, 16)


def test_a_full_disk_is_one_line_that_names_the_folder_and_nothing_is_lost(run, manifest, tmp_path, monkeypatch):
    (tmp_path / "b.wav").write_bytes(sound(0.3))
    manifest.write_text("ID,t1,t2,a1\na,one two,three,a.wav\nb,four,one,b.wav\n")
    words = ["--codec", "mel_rvq", "--codec.weights", MEL_RVQ, "--fields", "a1", "--shard_size", "1"]
    here = ["tokenize", manifest, *words, "--save_folder"]
    assert run(*here, tmp_path / "whole")[0] == 0
    write = manifests._Parquet.write

    def full(self, rows) -> None:
        if rows[0]["id"] == "b":
            raise OSError(errno.ENOSPC, "full")
        write(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(manifests._Parquet, "write", full)
        status, out, err = run(*here, tmp_path / "out")
    assert status == 2 and not out and err.count("\n") == 1
    assert f"{tmp_path / 'out'}" in err and "cannot be written (No space left on device); start again to go on" in err
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert sorted(kept) == ["m-0000.parquet", "m-0000.summary.json"]
    assert run(*here, tmp_path / "out")[0] == 0
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept} == kept
    shards = [path.read_bytes() for path in sorted((tmp_path / "out").glob("*.parquet"))]
    assert shards == [path.read_bytes() for path in sorted((tmp_path / "whole").glob("*.parquet"))]


def test_wrong_words_are_told_in_one_line(run, manifest, saved, tmp_path):
    out = ["--save_folder", tmp_path / "out"]
    for words, message in (
        (["tokenize", manifest, *out], "nothing to do: give --codec NAME, --encoder NAME or --checkpoint DIR"),
        (["tokenize", manifest, *out, "--codec", "mel_rvq"], "--codec mel_rvq: has no weights of its own"),
        (["tokenize", manifest, *out, "--codec", "none"], "--codec none: makes no codes"),
        (["tokenize", manifest, *out, "--codec", "mel_rvk"], "did you mean mel_rvq"),
        (["tokenize", manifest, *out, "--codec.weights", "x"], "--codec.weights: an option of which codec?"),
        (["tokenize", manifest, *out, "--llm", "mini"], "--llm: no such option"),
        (["tokenize", manifest, *out, "--codec", "mimi", "--checkpoint", saved], "are fixed (its codec is mel_rvq)"),
        (["tokenize", manifest, *out, "--features"], "--features: of which encoder?"),
        (["tokenize", manifest, *out, "--checkpoint", saved, "--device", "toaster"], "--device toaster"),
        (["tokenize", tmp_path / "none.csv", *out, "--checkpoint", saved], "manifest: no such file"),
        (["tokenize", manifest, "--checkpoint", saved], "--save_folder"),
        (["synthesize", manifest, *out, "--voice", "siri"], "--voice siri: no such voice"),
        (["synthesize", manifest, *out, "--audio", "wav"], "--audio wav"),
    ):
        status, _, err = run(*words)
        assert status == 2 and message in err and err.count("\n") == 1, err
