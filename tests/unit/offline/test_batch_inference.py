"""Test offline batch inference: results equal those of single answers, also after kills and with several processes.

Damaged recordings are among its inputs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy import toy_model

import omnikit
from omnikit.api import Omni
from omnikit.audio.io import load_audio, save_audio
from omnikit.generate import Decoder, Decoding
from omnikit.offline.batch_inference import Job, wav_name
from omnikit.offline.single_or_many import holds_many
from omnikit.strategies import BATCH_PARALLEL
from omnikit.torchrun import Share

ROOT = Path(__file__).parents[3]
NAMES = ["a", "b", "deep/c", "deep/d", "e"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a folder of five valid recordings, two unreadable ones and a text file."""
    place = tmp_path / "questions"
    (place / "deep").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for i, name in enumerate(NAMES):
        save_audio(place / f"{name}.flac", torch.rand(3000 + 1700 * (i * 3 % 5), generator=generator) - 0.5, 16000)
    save_audio(place / "cut.wav", torch.rand(4000) - 0.5, 16000)
    (place / "cut.wav").write_bytes((place / "cut.wav").read_bytes()[:3000])
    (place / "broken.mp3").write_bytes(b"no sound at all")
    (place / "notes.md").write_text("no recording")
    return place


def omni(**options) -> Omni:
    return Omni(toy_model(), decoding=Decoding(max_steps=20), **options)


def job(task, source, out, about=None, share=None, batch_size=2) -> Job:
    return Job(task, str(source), str(out), batch_size=batch_size, about=about or {}, share=share or Share())


def lines(*files: Path) -> dict[str, dict]:
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len({line["id"] for line in found}) == len(found)
    return {line["id"]: line for line in found}


@pytest.mark.parametrize("strategy", [None, BATCH_PARALLEL])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_answers_are_those_of_one_by_one(folder, tmp_path, batch_size, strategy):
    system = omni(strategy=strategy)
    counts = job("A1A2", folder, tmp_path / "out", batch_size=batch_size).run(system)
    assert (counts.entries, counts.done, dict(counts.skipped.reasons)) == (7, 5, {"unreadable": 2})
    found = lines(tmp_path / "out" / "results.jsonl")
    assert set(found) == {*NAMES, "cut", "broken"}
    for name in NAMES:
        alone = system.ask(folder / f"{name}.flac")
        assert found[name]["text"] == alone.text
        save_audio(tmp_path / "alone.wav", alone.wav, alone.sample_rate)
        assert (tmp_path / "out" / found[name]["wav"]).read_bytes() == (tmp_path / "alone.wav").read_bytes()
        assert found[name]["seconds"] == pytest.approx(len(alone.wav) / alone.sample_rate, abs=1e-4)
        assert found[name]["truncated"] is True and found[name]["skipped"] is None
    for name in ("cut", "broken"):
        assert found[name]["skipped"].startswith("unreadable: ") and f"/{name}." in found[name]["skipped"]
    assert found["deep/c"]["wav"] == "deep%2Fc.wav"


def test_trained_answers_of_many_lengths_are_those_of_one_by_one(tmp_path):
    system, questions = omnikit.load(), ROOT / "egs" / "mini" / "questions"
    counts = job("A1A2", questions, tmp_path / "out", batch_size=6).run(system)
    found = lines(tmp_path / "out" / "results.jsonl")
    assert counts.done == len(found) == len(list(questions.glob("*.wav"))) and not counts.truncated
    assert len({line["seconds"] for line in found.values()}) > 3
    for name, line in found.items():
        alone = system.ask(questions / f"{name}.wav")
        assert line["text"] == alone.text
        save_audio(tmp_path / "alone.wav", alone.wav, alone.sample_rate)
        both = [
            load_audio(path, alone.sample_rate) for path in (tmp_path / "alone.wav", tmp_path / "out" / line["wav"])
        ]
        assert both[0].shape == both[1].shape and (both[0] - both[1]).abs().max() < 1e-3  # other codes differ by more


def test_transcripts_and_speech_of_manifest_and_lines(folder, tmp_path):
    system = omni()
    manifest = tmp_path / "m.csv"
    manifest.write_text("ID,t1,a1\nx,the cat,questions/a.flac\ny,a dog,questions/none.flac\nz,yes,\nw,3 §,\nv, ,\n")
    job("A1T1", manifest, tmp_path / "asr").run(system)
    found = lines(tmp_path / "asr" / "results.jsonl")
    assert found["x"]["text"] == system.transcribe(folder / "a.flac") and found["x"]["wav"] is None
    assert found["y"]["skipped"] == f"missing: {folder / 'none.flac'}: no such file"
    assert found["z"]["skipped"] == "no recording"
    counts = job("T1A1", manifest, tmp_path / "tts").run(system)
    found = lines(tmp_path / "tts" / "results.jsonl")
    assert counts.done == 3 and found["v"]["skipped"] == "no text"
    assert found["w"]["skipped"].startswith("refused: ") and "lacks" in found["w"]["skipped"]

    (tmp_path / "texts.txt").write_text("the cat\n\n  yes  \n")
    counts = job("T1A1", tmp_path / "texts.txt", tmp_path / "said").run(system)
    found = lines(tmp_path / "said" / "results.jsonl")
    assert {name: line["text"] for name, line in found.items()} == {"00001": "the cat", "00003": "yes"}
    assert str(counts).startswith("2 of 2 done, 2 truncated")


def test_one_recording_that_the_encoder_refuses_does_not_stop_its_batch(folder, tmp_path, tiny):
    save_audio(folder / "short.wav", torch.rand(100) - 0.5, 16000)
    system = Omni(tiny(), decoding=Decoding(max_steps=6))
    counts = job("A1T1", folder, tmp_path / "out", batch_size=8).run(system)
    assert counts.done == 5 and dict(counts.skipped.reasons) == {"unreadable": 2, "refused": 1}
    found = lines(tmp_path / "out" / "results.jsonl")
    assert "100 samples" in found["short"]["skipped"]
    assert found["e"]["text"] == system.transcribe(folder / "e.flac")


def test_folders_as_people_have_them(folder, tmp_path):
    """Batch inference over a folder handles hidden files and recordings that are too long or lack an extension."""
    save_audio(folder / "long.flac", torch.zeros(30 * 16000 + 64), 16000)
    (folder / "e.flac").rename(folder / "e")
    (folder / "film.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    for hidden in ("._a.flac", ".DS_Store"):
        (folder / hidden).write_bytes(b"Mac OS X")
    counts = job("A1T1", folder, tmp_path / "out").run(omni())
    found = lines(tmp_path / "out" / "results.jsonl")
    assert found["long"]["skipped"] == f"too long: {folder / 'long.flac'}: 30.004 s long, the limit is 30 s"
    assert found["film"]["skipped"].startswith(f"unreadable: {folder / 'film.m4a'}: not an audio file")
    assert set(found) == {*NAMES, "cut", "broken", "long", "film"} and found["e"]["text"] is not None
    assert str(counts).endswith("1 too long (such as long), ignored: 1 other file (such as notes.md)")


def test_a_killed_run_goes_on(folder, tmp_path, monkeypatch):
    """A killed batch inference resumes: finished entries are kept, others are answered, a truncated line is dropped.

    Entries that were skipped or whose wav file is missing are tried again.
    """
    out = tmp_path / "out"
    asked = []
    real = Decoder.run
    monkeypatch.setattr(Decoder, "run", lambda decoder, requests, batch: (
        asked.append(len(requests)), real(decoder, requests, batch))[1])  # fmt: skip
    job("A1A2", folder, out).run(omni())
    whole = (out / "results.jsonl").read_text()
    found = lines(out / "results.jsonl")
    (out / found["a"]["wav"]).unlink()
    kept = [line for line in whole.splitlines(keepends=True) if json.loads(line)["id"] in ("a", "b", "e", "cut")]
    half = next(line for line in whole.splitlines() if '"deep/c"' in line)[:-9]
    (out / "results.jsonl").write_text("".join(kept) + half)
    save_audio(folder / "cut.wav", torch.rand(4000) - 0.5, 16000)
    asked.clear()
    counts = job("A1A2", folder, out).run(omni())
    assert (counts.kept, counts.done, sum(asked)) == (2, 4, 4)
    again = lines(out / "results.jsonl")
    assert {name: line for name, line in again.items() if name != "cut"} == {
        n: x for n, x in found.items() if n != "cut"
    }
    assert again["cut"]["skipped"] is None
    asked.clear()
    job("A1A2", folder, out).run(omni())
    assert not asked


def test_processes_share_the_rows_and_their_number_may_change(folder, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    job("A1A2", folder, whole).run(omni())
    job("A1A2", folder, out, share=Share(0, 3)).run(omni())
    job("A1A2", folder, out, share=Share(2, 3)).run(omni())
    files = [out / "results.jsonl", out / "results.2.jsonl"]
    assert len(lines(*files)) < 7 and not (out / "results.1.jsonl").exists()
    files[1].write_text(files[1].read_text()[:-5])  # killed; there is no process of rank 2 in the next run
    kept = sum(job("A1A2", folder, out, share=Share(rank, 2)).run(omni()).kept for rank in range(2))
    files.append(out / "results.1.jsonl")
    assert lines(*files) == lines(whole / "results.jsonl") and kept > 0


def test_torchrun_says_which_share(monkeypatch):
    assert Share.of_torchrun() == Share(0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Share.of_torchrun() == Share(1, 4)


def test_results_of_another_run_are_not_mixed_in(folder, tmp_path):
    out = tmp_path / "out"
    job("A1T1", folder, out, {"checkpoint": "one"}).run(omni())
    job("A1T1", folder, out, {"checkpoint": "one"})
    with pytest.raises(ValueError, match=r"another run.*checkpoint was one, is two"):
        job("A1T1", folder, out, {"checkpoint": "two"})
    with pytest.raises(ValueError, match=r"another run.*task was A1T1, is A1A2"):
        job("A1A2", folder, out, {"checkpoint": "one"})
    (out / "run.json").rename(out / "kept.json")
    (out / "run.json").write_text("mine")
    with pytest.raises(ValueError, match=r"run\.json: was not written by this command"):
        job("A1T1", folder, out, {"checkpoint": "one"})
    (out / "kept.json").rename(out / "run.json")
    (out / "results.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match=r"results\.jsonl: line 1 is not a result"):
        job("A1T1", folder, out, {"checkpoint": "one"}).run(omni())


def test_what_cannot_be_a_job(folder, tmp_path):
    with pytest.raises(ValueError, match="lies in"):
        job("A1A2", folder, folder / "answers")
    with pytest.raises(ValueError, match="--batch_size 0"):
        job("A1A2", folder, tmp_path / "out", batch_size=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: holds no recording \(\.wav, "):
        job("A1A2", tmp_path / "empty", tmp_path / "out")
    (tmp_path / "two.json").write_text("no object")
    with pytest.raises(ValueError, match=r"two\.json: not a JSON"):
        job("A1A2", tmp_path / "two.json", tmp_path / "out")
    with pytest.raises(ValueError, match=r"none\.txt: no such file"):
        job("T1A1", tmp_path / "none.txt", tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        job("A1A2", folder, tmp_path / "file").run(omni())


def test_one_or_many(folder, tmp_path):
    assert holds_many(str(folder), "A1A2") and holds_many("rows.parquet", "A1T1") and not holds_many("a.wav", "A1A2")
    assert holds_many("texts.txt", "T1A1") and not holds_many("the cat", "T1A1")
    assert not holds_many(str(folder), "T1A1") and not holds_many("word " * 9999, "T1A1")


def test_ids_become_files(folder, tmp_path):
    assert wav_name("1-a b") == "1-a b.wav" and wav_name("../x%") == "..%2Fx%25.wav"
    assert len(wav_name("ü" * 300)) < 100 and wav_name("ü" * 300) != wav_name("ü" * 301)
    (folder / "a.flac").rename(folder / "b.wav")  # two paths that differ in the extension only
    (folder / os.fsdecode(b"\xff.flac")).write_bytes((folder / "b.flac").read_bytes())
    for _ in range(2):
        counts = job("A1A2", folder, tmp_path / "out").run(omni())
    assert counts.kept == 5 and counts.done == 0
    found = lines(tmp_path / "out" / "results.jsonl")
    assert {"b.wav", "b.flac"} <= set(found) and found["\udcff"]["skipped"].startswith("unreadable: ")
    assert (tmp_path / "out" / found["b.wav"]["wav"]).is_file()


@pytest.mark.long
def test_the_command_under_torchrun(folder, tmp_path, saved):
    words = ["transcribe", folder, "-o", tmp_path / "out", "--checkpoint", saved]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "-m",
        "omnikit.cli",
        *map(str, words),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(lines(tmp_path / "out" / "results.jsonl", tmp_path / "out" / "results.1.jsonl")) == 7
