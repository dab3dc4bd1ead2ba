"""Tests of `omnikit synthesize`: speakers, which entries get a recording, and equal output after interruptions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from rewriting import Beeps, contents, killed_at_random, run_synthesize, sound

from omnikit.data.manifest_reader import ManifestEntry, read_manifest
from omnikit.data.manifest_writer import FIELDS, ManifestWriter
from omnikit.prepare.synthesize import synthesize
from omnikit.prepare.voices import EspeakVoice, SynthesisRequest, Voice, open_voice, synthesize_all

TEXTS = [{"id": f"q/{i}", "t1": f"question {i % 2}", "t2": "the answer"} for i in range(4)]


def write(path: Path, rows: list[dict], group: int = 100, **options) -> Path:
    with ManifestWriter(path, [name for name in FIELDS if any(name in row for row in rows)], **options) as writer:
        for begin in range(0, len(rows), group):
            writer.write(rows[begin : begin + group])
    return path


def made(path: Path, folder: Path, voice: Voice | None = None, **options) -> tuple[list[ManifestEntry], object]:
    summary = synthesize(path, folder, voice or Beeps(), voice_name="beeps", **options)
    return list(read_manifest(folder, folder / "tables")), summary


@pytest.mark.parametrize("audio", ["embedded", "files"])
def test_texts_get_recordings(audio: str, tmp_path: Path):
    rows, summary = made(write(tmp_path / "m.csv", TEXTS), tmp_path / "out", audio=audio, shard_size=3)
    assert [row.id for row in rows] == [text["id"] for text in TEXTS] and summary.rows == 4
    questions, answers = ([getattr(row, name).load(8000).numpy() for row in rows] for name in ("a1", "a2"))
    assert all(np.array_equal(wav, answers[0]) for wav in answers)  # one voice
    assert not np.array_equal(questions[0], questions[2])  # the same text in another entry
    assert np.allclose(answers[0], Beeps().synthesize("the answer"), atol=1e-4)
    assert rows[0].duration == 400 * len("question 0") / 8000
    files = sorted(path.name for path in (tmp_path / "out").rglob("*.flac"))
    assert files == ([] if audio == "embedded" else [f"q%2F{i}-a{n}.flac" for i in range(4) for n in (1, 2)])
    if files:
        assert soundfile.info(rows[0].a1.path).samplerate == 8000


def test_what_is_there_is_kept(tmp_path: Path):
    recorded = {"id": "recorded", "t1": "hello", "t2": "you", "a1": sound(0.3), "codes": np.ones((3, 2), np.int16)}
    rows = [{**recorded, "codec": "toy"}, {"id": "text", "t1": "hello", "t2": "you"}, {"id": "one", "t1": "hello"}]
    path = write(tmp_path / "m.parquet", rows, embedded=True)
    (first, second, third), _ = made(path, tmp_path / "out", audio="files")
    assert len(first.a1.load(16000)) == 4800 and first.a2 is None and first.codes.frames == 2
    assert second.a1.path is None and second.a2.path is not None  # recordings of an embedded column remain embedded
    assert third.a1 is not None and third.a2 is None
    (first, second, _), _ = made(path, tmp_path / "answers", fields=("a2",))
    assert second.a1 is None and second.a2 is not None


def test_what_cannot_be_said_is_counted(tmp_path: Path):
    path = write(tmp_path / "m.csv", [*TEXTS, {"id": "odd", "t1": "§ 1", "t2": "so"}])
    rows, summary = made(path, tmp_path / "out")
    assert len(rows) == 4
    assert summary.skipped.reasons == {"not synthesized": 1}
    assert summary.skipped.examples == {"not synthesized": "odd"}
    with pytest.raises(ValueError, match=r"odd: not synthesized \(the voice cannot synthesize the text\)"):
        made(path, tmp_path / "strict", strict=True)


@pytest.mark.long  # test_tokenize.py has a quick one of the same shards
def test_killed_at_ten_moments_it_ends_with_the_same_shards(tmp_path: Path):
    rows = [{"id": f"q{i}", "t1": "a" * (i % 7 + 1), "t2": "b"} for i in range(60)]
    path = write(tmp_path / "m.parquet", rows, group=2)
    assert killed_at_random(run_synthesize, path, tmp_path / "whole", tmp_path / "killed") > 5
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_espeak_says_the_same_whatever_it_said_before(tmp_path: Path):
    path = write(tmp_path / "m.parquet", TEXTS, group=2)
    rows, _ = made(path, tmp_path / "whole", EspeakVoice(), shard_size=2)
    assert all(0.3 < len(row.a1.load(16000)) / 16000 < 3 for row in rows)
    assert rows[0].duration == pytest.approx(len(rows[0].a1.load(16000)) / 16000, abs=1e-4)
    first = tmp_path / "whole" / "m-0000.parquet"
    before = first.read_bytes()
    first.unlink()
    synthesize(path, tmp_path / "whole", EspeakVoice(), voice_name="beeps", shard_size=2)
    assert first.read_bytes() == before


def test_espeak_has_many_voices_for_questions_and_one_for_answers():
    requests = [SynthesisRequest("good morning", seed) for seed in (1, 2, 3, None, None)]
    requests += [
        SynthesisRequest("guten morgen", 1, "de"),
        SynthesisRequest("good morning", 1, "xx"),
        SynthesisRequest("", None),
    ]
    said = synthesize_all(EspeakVoice(), requests)
    assert len({each.data for each in said[:3]}) == 3 and len({round(each.seconds, 1) for each in said[3:5]}) == 1
    assert said[5].data and said[6].data is None and said[7].data is None


def test_voices_are_found_by_name():
    assert isinstance(open_voice("espeak"), EspeakVoice) and isinstance(open_voice("rewriting.Beeps"), Beeps)
    for name in ("espeek", "rewriting.sound", "no.where"):
        with pytest.raises(ValueError, match=rf"--voice {name}: no such voice \(choices: espeak, checkpoint, or"):
            open_voice(name)
    with pytest.raises(ValueError, match="--checkpoint x: the voice espeak does not take it"):
        open_voice("espeak", checkpoint="x")


def test_bad_options_are_told(tmp_path: Path):
    path = write(tmp_path / "m.csv", TEXTS)
    for options, message in (
        ({"audio": "wav"}, r"--audio wav: no such choice \(choices: embedded, files\)"),
        ({"fields": ("t1",)}, "--fields t1: no such recording"),
    ):
        with pytest.raises(ValueError, match=message):
            made(path, tmp_path / "out", **options)
