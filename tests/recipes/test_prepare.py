"""Tests of the prepare.py of each corpus: manifest entries, skipped items by reason, and resuming after a kill."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from omnikit.data.manifest_reader import read_manifest
from omnikit.data.manifest_writer import ManifestWriter, _Parquet
from omnikit.data.skipped import NOTES, REASONS
from omnikit.prepare.corpus import Checks, command, prepare
from omnikit.tasks import TASKS
from tests.pages import page
from tests.recipes.trees import (
    RECIPES,
    TREES,
    cut,
    load_corpus,
    load_script,
    pq_file,
    snac_text,
    sound_bytes,
    voiceassistant,
    write_sound,
    write_text,
)

SOUND = sound_bytes()
LISTEN, WRITE = {"A1T1", "T1A1"}, {"T1T2"}
SPEAK = {"A1T1", "T1A1", "T1T2", "A1T2", "T1A2", "A1A2"}
WHOLE = {
    # splits with numbers of entries; id, speaker, language and texts of the first split's first entry; its tasks
    "LibriSpeech": (
        {"dev-clean": 2, "dev-other": 1}, ("19-198-0000", "19", "en", "northanger abbey", None), LISTEN,
    ),
    "LibriTTS": (
        {"dev-clean": 2}, ("84_121123_000007_000000", "84", "en", "Mister Smith has two dollars.", None), LISTEN,
    ),
    "VCTK": ({"mic1": 2}, ("p225_001_mic1", "p225", "en", "Please call Stella.", None), LISTEN),
    "MLS": (
        {"german-dev": 2, "polish_opus-dev": 2}, ("4800_10003_000000", "4800", "de", "ein test für alle", None), LISTEN,
    ),
    "LJSpeech": ({"all": 2}, ("LJ001-0001", "LJ", "en", 'He said "fourteen fifty-five', None), LISTEN),
    "OpenOrca": ({"1M-GPT4-Augmented": 5}, ("flan.0", "", "en", "Question 0?", "Answer 0."), WRITE),
    "MOSS": (
        {"en_helpfulness": 3, "zh_honesty": 1}, ("en_helpfulness-0000000-0", "", "en", "How\nmany?", "Four."), WRITE,
    ),
    "VoiceAssistant": ({"train": 6}, ("identity-00-1", "", "en", "who are you 0", "i am number 0"), SPEAK),
}  # fmt: skip
DAMAGED = {
    # numbers of skipped items by reason over all splits of the damaged corpus
    "LibriSpeech": {
        "unreadable": 2, "empty": 1, "missing": 1, "no text": 1, "audio without text": 1, "not UTF-8": 1,
        "duplicate id": 1,
    },
    "LibriTTS": {"unreadable": 1, "missing": 1, "audio without text": 1, "no text": 1},
    "VCTK": {"not UTF-8": 1, "audio without text": 1},
    "MLS": {"malformed": 2, "missing": 2, "duplicate id": 2, "audio without text": 2},
    "LJSpeech": {"malformed": 1, "no text": 1, "audio without text": 1},
    "OpenOrca": {"duplicate id": 1, "no text": 2},
    "MOSS": {"malformed": 2, "no text": 2},
    "VoiceAssistant": {"bad codes": 5, "missing": 1, "unreadable": 1, "shard unreadable": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_rows_of_the_published_layout(name: str, tmp_path: Path):
    TREES[name](tmp_path / "upstream")
    expected, first, tasks = WHOLE[name]
    summaries = list(prepare(load_corpus(name), tmp_path / "upstream", tmp_path / "out"))
    assert {summary.split: summary.rows for summary in summaries} == expected
    upstream_lacks = {"audio without text": 1} if name == "VCTK" else {}
    assert all(summary.skipped.reasons == upstream_lacks for summary in summaries)
    rows = read_manifest(load_corpus(name).manifest(tmp_path / "out", summaries[0].split), tmp_path / "cache")
    assert len({row.id for row in rows}) == len(rows) == summaries[0].rows
    row = rows[0]
    assert (row.id, row.speaker, row.language, row.t1, row.t2) == first
    assert {task.name for task in TASKS.values() if row.serves(task)} == tasks
    if row.a1 is not None:
        assert len(row.a1.load(16000)) == pytest.approx(16000 * row.duration, abs=2)
        assert summaries[0].hours == pytest.approx(sum(row.duration for row in rows) / 3600)
        assert len(summaries[0].speakers) == len({row.speaker for row in rows if row.speaker})


@pytest.mark.parametrize("name", TREES)
def test_damage_is_skipped_and_counted(name: str, tmp_path: Path):
    TREES[name](tmp_path / "upstream", damaged=True)
    splits = {"OpenOrca": ["1M-GPT4-Augmented"]}.get(name)
    summaries = list(prepare(load_corpus(name), tmp_path / "upstream", tmp_path / "out", splits))
    counted = {}
    for summary in summaries:
        for reason, count in summary.skipped.reasons.items():
            counted[reason] = counted.get(reason, 0) + count
            assert f"{count} {reason} (such as " in str(summary)
    assert counted == DAMAGED[name]
    with pytest.raises(ValueError, match="|".join(map(str, DAMAGED[name]))):
        list(prepare(load_corpus(name), tmp_path / "upstream", tmp_path / "strict", splits, Checks(strict=True)))
    with pytest.raises(ValueError, match="skipped"):  # existing manifests do not hide it
        list(prepare(load_corpus(name), tmp_path / "upstream", tmp_path / "out", splits, Checks(strict=True)))


def test_a_split_with_nothing_usable_is_refused(tmp_path: Path):
    TREES["OpenOrca"](tmp_path / "upstream", damaged=True)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"3_5M-GPT3_5-Augmented.parquet: no usable entry; .*1 shard unreadable"):
            list(prepare(load_corpus("OpenOrca"), tmp_path / "upstream", tmp_path / "out", ["3_5M-GPT3_5-Augmented"]))
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_the_second_microphone_is_another_split(tmp_path: Path):
    TREES["VCTK"](tmp_path)
    (summary,) = prepare(load_corpus("VCTK"), tmp_path, tmp_path / "out", ["mic2"])
    assert summary.rows == 1 and summary.skipped.reasons == {"missing": 1, "audio without text": 1}
    assert summary.skipped.examples["missing"] == "p280_001_mic2"


def test_other_rates_and_stereo_are_used_and_noted(tmp_path: Path):
    TREES["VCTK"](tmp_path, damaged=True)
    (summary,) = prepare(load_corpus("VCTK"), tmp_path, tmp_path / "out")
    assert summary.notes.reasons == {"another rate": 1, "several channels": 1}
    row = next(row for row in read_manifest(tmp_path / "out" / "mic1.csv") if row.id == "p225_003_mic1")
    assert row.a1.load(24000).shape == (4800,)


@pytest.mark.parametrize("name", TREES)
def test_what_macos_leaves_beside_files_is_passed_over(name: str, tmp_path: Path):
    """Preparing a corpus ignores the small hidden files `._name`, which macOS writes beside other files."""
    TREES[name](tmp_path / "plain")
    TREES[name](tmp_path / "mac")
    for path in sorted((tmp_path / "mac").rglob("*")):
        write_text(path.with_name(f"._{path.name}"), b"\0\x05\x16\x07\0\x02\0\0Mac OS X        " + b"\xff\xb0" * 60)
    plain, mac = (
        [str(summary) for summary in prepare(load_corpus(name), tmp_path / kind, tmp_path / f"{kind}-out")]
        for kind in ("plain", "mac")
    )
    assert mac == plain


def test_recordings_that_were_converted_are_used(tmp_path: Path):
    """Preparing LibriSpeech uses WAV files where transcripts name FLAC; a damaged one is unreadable, not missing."""
    TREES["LibriSpeech"](tmp_path)
    chapter = tmp_path / "LibriSpeech" / "dev-clean" / "19" / "198"
    for path in sorted(chapter.glob("*.flac")):
        samples, rate = soundfile.read(path)
        soundfile.write(path.with_suffix(".wav"), samples, rate)
        path.unlink()
    (summary,) = prepare(load_corpus("LibriSpeech"), tmp_path, tmp_path / "out", ["dev-clean"])
    assert (summary.rows, summary.notes.reasons, bool(summary.skipped)) == (2, {"another ending": 2}, False)
    rows = read_manifest(tmp_path / "out" / "dev-clean.csv")
    assert [Path(row.a1.path).name for row in rows] == ["19-198-0000.wav", "19-198-0001.wav"]
    (chapter / "19-198-0001.wav").rename(chapter / "19-198-0001.m4a")
    (chapter / "19-198-0001.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    (summary,) = prepare(load_corpus("LibriSpeech"), tmp_path, tmp_path / "out", ["dev-clean"])
    assert (summary.rows, summary.skipped.reasons) == (1, {"unreadable": 1})


@pytest.mark.parametrize("seconds", [0.0, -1.0, 601.0, float("nan")])
def test_limits_beyond_what_is_read_are_refused(seconds: float, tmp_path: Path):
    TREES["LibriSpeech"](tmp_path)
    with pytest.raises(ValueError, match=r"--max_seconds .*: must be above 0 and at most 600"):
        list(prepare(load_corpus("LibriSpeech"), tmp_path, tmp_path / "out", checks=Checks(max_seconds=seconds)))


def test_codes_arrive_in_the_published_order(tmp_path: Path):
    voiceassistant(tmp_path)
    list(prepare(load_corpus("VoiceAssistant"), tmp_path, tmp_path / "out"))
    row = read_manifest(tmp_path / "out" / "train", tmp_path / "cache")[2]
    frames = [list(map(int, frame.split())) for frame in snac_text(4, seed=2).split("#")[1:]]
    assert row.codes.codec == "snac_24khz" and row.codes.frames == 4
    assert row.codes.load().dtype == torch.int16
    assert row.codes.load().T.tolist() == frames


FRAMES = [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14]]
VARIANTS = {
    "list": {"answer_snac": [*FRAMES[0], *FRAMES[1]]},
    "lists": {"answer_snac": FRAMES},
    "commas": {"answer_snac": "#1,2,3,4,5,6,7#8, 9, 10, 11, 12, 13, 14"},
    "numbers": {"index": 0, "round": 1, "answer": 4},
    "bytes": {"question_audio": SOUND},
    "path": {"question_audio": "../a.wav"},
    "struct of a path": {"question_audio": {"bytes": None, "path": "../a.wav"}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_tables_as_people_write_them_again(name: str, tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(SOUND)
    row = {
        "split_name": "a", "index": "0", "round": "1", "question": "who",
        "question_audio": {"bytes": SOUND, "path": None}, "answer": "4",
        "answer_snac": "# 1 2 3 4 5 6 7 # 8 9 10 11 12 13 14",
    }  # fmt: skip
    pq_file(tmp_path / "data" / "train-00000-of-00001.parquet", [{**row, **VARIANTS[name]}])
    list(prepare(load_corpus("VoiceAssistant"), tmp_path, tmp_path / "out"))
    (read,) = read_manifest(tmp_path / "out" / "train", tmp_path / "cache")
    assert (read.id, read.t2, read.codes.load().T.tolist()) == ("a-0-1", "4", FRAMES)
    assert read.a1.path is None and read.a1.check().problem is None


def test_entries_of_other_types_are_counted(tmp_path: Path):
    rows = [{"id": i, "question": "q", "response": response} for i, response in enumerate([4, None])]
    pq_file(tmp_path / "orca" / "1M-GPT4-Augmented.parquet", rows)
    (summary,) = prepare(load_corpus("OpenOrca"), tmp_path / "orca", tmp_path / "out")
    assert summary.rows == 1 and summary.skipped.reasons == {"no text": 1}
    turns = ({"Human": "hi", "MOSS": "hello"}, {"Human": 1.5, "MOSS": "hello"}, 5)
    (tmp_path / "moss").mkdir()
    (tmp_path / "moss" / "en_a.json").write_text(json.dumps([{"chat": {"turn_1": turn}} for turn in turns]))
    (summary,) = prepare(load_corpus("MOSS"), tmp_path / "moss", tmp_path / "out")
    assert summary.rows == 1 and summary.skipped.reasons == {"malformed": 2}


def test_a_table_damaged_inside_gives_the_rows_before(tmp_path: Path):
    rows = [
        {"id": str(i), "system_prompt": "", "question": f"q {i}" * 50, "response": f"r {i}" * 50} for i in range(600)
    ]
    path = pq_file(tmp_path / "1M-GPT4-Augmented.parquet", rows, row_group_size=300)
    data = bytearray(path.read_bytes())
    end = len(data) // 2 + 2000
    data[end - 1500 : end] = bytes(1500)
    path.write_bytes(data)
    (summary,) = prepare(load_corpus("OpenOrca"), tmp_path, tmp_path / "out")
    assert 300 <= summary.rows < 600  # the first row group is intact
    assert summary.skipped.reasons == {"shard unreadable": 1}


def test_a_table_with_another_encoding_or_column_is_told(tmp_path: Path):
    texts = pa.array([b"caf\xc3\xa9", b"caf\xe9"], pa.binary()).view(pa.string())
    table = {"id": ["a", "b"], "question": texts, "response": ["x", "y"]}
    pq.write_table(pa.table(table), tmp_path / "1M-GPT4-Augmented.parquet")
    (summary,) = prepare(load_corpus("OpenOrca"), tmp_path, tmp_path / "out")
    assert summary.rows == 1 and summary.skipped.reasons == {"not UTF-8": 1}
    pq.write_table(pa.table({"id": ["a"], "question": ["x"]}), tmp_path / "1M-GPT4-Augmented.parquet")
    with pytest.raises(ValueError, match="column 'response' is missing; it has id, question"):
        list(prepare(load_corpus("OpenOrca"), tmp_path, tmp_path / "out"))


def test_answers_are_decoded_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    codes = np.random.default_rng(0).integers(0, 256, (7, 3)).astype(np.int16)
    row = {"t1": "who", "t2": "me", "codes": codes, "codec": "snac_mini"}
    with ManifestWriter(tmp_path / "m.json", ["id", "t1", "t2", "codes", "codec"]) as writer:
        writer.write([{**row, "id": name} for name in ("a-1", "a-2", "b-1")])
    script = load_script(RECIPES / "VoiceAssistant" / "decode_answers.py")
    weights = RECIPES.parent / "egs" / "mini" / "pretrained" / "snac_mini"
    options = [
        "--codec",
        "snac_mini",
        "--weights",
        str(weights),
        "--ids",
        "^a",
        "--save_folder",
        str(tmp_path / "wavs"),
    ]
    monkeypatch.setattr(sys, "argv", ["decode_answers.py", "--manifest", str(tmp_path / "m.json"), *options])
    script.main()
    wavs = sorted((tmp_path / "wavs").iterdir())
    assert [wav.name for wav in wavs] == ["a-1.wav", "a-2.wav"]
    assert soundfile.info(wavs[0]).duration == pytest.approx(3 / 12.5)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--ids", "^c"])
    with pytest.raises(ValueError, match=r"--ids \^c: no entry of .*m.json with such an id has a spoken answer"):
        script.main()


def test_turns_of_moss_are_entries_of_one_dialog(tmp_path: Path):
    TREES["MOSS"](tmp_path)
    list(prepare(load_corpus("MOSS"), tmp_path, tmp_path / "out"))
    rows = read_manifest(tmp_path / "out" / "en_helpfulness", tmp_path / "cache")
    first, second = "en_helpfulness-0000000", "en_helpfulness-0000001"
    assert [(row.id, row.dialog, row.turn) for row in rows] == [
        (f"{first}-0", first, 0),
        (f"{first}-1", first, 1),
        (f"{second}-0", second, 0),
    ]
    assert read_manifest(tmp_path / "out" / "zh_honesty", tmp_path / "cache")[0].t1 == "你好"


def rounds(*found: tuple[str, str], **other: object) -> list[dict]:
    """Return rows of VoiceAssistant for pairs of index and round."""
    common = {"split_name": "talk", "question": "who", "question_audio": {"bytes": SOUND, "path": None}, "answer": "me"}
    return [{**common, "answer_snac": snac_text(2), **other, "index": i, "round": r} for i, r in found]


def test_rounds_of_a_conversation_are_grouped_over_shards(tmp_path: Path):
    """Round 3 comes first and in another shard than rounds 1 and 2; conversations with gaps and duplicates count once.
    """
    shards = [tmp_path / "data" / f"train-{number:05d}-of-00002.parquet" for number in range(2)]
    # a is whole, b lacks round 2 and c round 1, d has rounds 1 and 2 twice, e lost round 2 by its codes
    there = [("a", "3"), ("b", "1"), ("c", "2"), ("d", "1"), ("d", "1"), ("d", "2"), ("e", "1"), ("f", "1")]
    pq_file(shards[0], rounds(*there))
    bad = rounds(("e", "2"), answer_snac="# 1 2")
    pq_file(shards[1], rounds(("a", "1"), ("a", "2"), ("b", "3"), ("d", "01"), ("d", "2"), ("e", "3")) + bad)
    corpus, out = load_corpus("VoiceAssistant"), tmp_path / "out"

    def made(strict: bool = False):
        (summary,) = prepare(corpus, tmp_path, out, checks=Checks(strict=strict))
        return summary

    first = made()
    assert first.skipped.reasons == {"duplicate turn": 3, "bad codes": 1}
    assert first.notes.reasons == {"dialogs with missing turns": 3, "dialogs with duplicate turns": 1}
    assert first.notes.examples["dialogs with duplicate turns"] == "talk-d"
    rows = read_manifest(out / "train", tmp_path / "cache")
    turns = sorted((row.turn, row.id) for row in rows if row.dialog == "talk-a")
    assert turns == [(1, "talk-a-1"), (2, "talk-a-2"), (3, "talk-a-3")]
    assert vars(made().notes) == vars(first.notes)  # nothing is written, and the counts are the same
    pq_file(shards[1], rounds(("b", "2"), ("d", "1"), ("c", "1")))  # the first shard is used as it is
    again = made()
    assert again.skipped.reasons == {"duplicate turn": 2}
    assert again.notes.reasons == {"dialogs with missing turns": 1, "dialogs with duplicate turns": 1}  # a now lacks 1
    pq_file(shards[1], rounds(("g", "0"), ("g", "1")))  # one that begins earlier; most begin with 1
    assert made().notes.reasons["dialogs with missing turns"] == 2  # a and c


def test_a_range_of_upstream_is_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    corpus = load_corpus("OpenOrca")
    monkeypatch.setitem(corpus.parts.__globals__, "ROWS", 3)
    TREES["OpenOrca"](tmp_path)  # row groups of 2, 2 and 1
    list(prepare(corpus, tmp_path, tmp_path / "out"))
    shards = sorted((tmp_path / "out" / "1M-GPT4-Augmented").glob("*.parquet"))
    assert [[row.id for row in read_manifest(shard, tmp_path / "cache")] for shard in shards] == [
        ["flan.0", "flan.1", "flan.2", "flan.3"],
        ["flan.4"],
    ]


def test_lines_of_transcripts_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    corpus = load_corpus("MLS")
    monkeypatch.setitem(corpus.parts.__globals__, "LINES", 1)
    TREES["MLS"](tmp_path, damaged=True)
    summary = next(prepare(corpus, tmp_path / "mls_german", tmp_path / "out"))
    assert summary.rows == 2 and summary.skipped.reasons["duplicate id"] == 1  # of another shard
    assert [path.name for path in sorted((tmp_path / "out" / "german-dev").glob("*.parquet"))] == [
        "0000.parquet",
        "0001.parquet",
    ]


def test_texts_without_any_recordings_are_refused(tmp_path: Path):
    TREES["MLS"](tmp_path)
    shutil.rmtree(tmp_path / "mls_german" / "dev" / "audio")
    with pytest.raises(ValueError, match=r"mls_german/dev: no usable entry; .*skipped: 2 missing"):
        list(prepare(load_corpus("MLS"), tmp_path, tmp_path / "out", ["german-dev"]))


def test_made_again_only_when_something_changed(tmp_path: Path):
    TREES["LibriSpeech"](tmp_path)
    corpus, made_file = load_corpus("LibriSpeech"), tmp_path / "out" / "dev-clean.csv"

    def made() -> int:
        list(prepare(corpus, tmp_path, tmp_path / "out", ["dev-clean"]))
        return made_file.stat().st_mtime_ns

    first = made()
    assert made() == first
    chapter = tmp_path / "LibriSpeech" / "dev-clean" / "19" / "198"
    write_sound(chapter / "19-198-0002.flac")
    with (chapter / "19-198.trans.txt").open("a") as file:
        file.write("19-198-0002 ONE MORE\n")
    second = made()
    assert second > first and len(read_manifest(made_file)) == 3
    os.replace(write_sound(tmp_path / "longer.flac", 5.0), chapter / "19-198-0002.flac")
    assert made() > second
    assert max(row.duration for row in read_manifest(made_file)) == 5.0


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(RECIPES.parent)}
    command = [sys.executable, str(RECIPES / name / "prepare.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_the_script_says_what_it_made_and_what_is_wrong(tmp_path: Path):
    TREES["LibriSpeech"](tmp_path)
    folders = ["--data_folder", tmp_path, "--save_folder", tmp_path / "out"]
    done = run("LibriSpeech", *folders, "--splits", "dev-clean", "--decode_all")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "dev-clean: 2 entries, 0.00 h, 1 speakers; skipped: none\n"
    wrong = run("LibriSpeech", *folders, "--splits", "dev-cleen")
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1
    assert f"--splits dev-cleen: not in {tmp_path}; choices: dev-clean, dev-other" in wrong.stderr


def test_a_full_disk_is_one_line_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    voiceassistant(tmp_path, files=3)
    corpus, out = load_corpus("VoiceAssistant"), tmp_path / "out"
    list(prepare(corpus, tmp_path, tmp_path / "whole"))
    words, write, calls = ["--data_folder", str(tmp_path), "--save_folder", str(out)], _Parquet.write, []

    def full(self, rows) -> None:
        calls.append(rows)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "full")
        write(self, rows)

    monkeypatch.setattr(_Parquet, "write", full)
    with pytest.raises(SystemExit) as end:
        command(corpus, "", words)
    line = capsys.readouterr().err.rpartition("\r")[2]
    assert end.value.code == 2 and line.count("\n") == 1 and str(out / "train") in line
    assert "cannot be written (No space left on device); start again to go on" in line
    there = contents(out)
    assert len(there) == 2  # the first shard and its summary
    command(corpus, "", words)
    assert contents(out) == contents(tmp_path / "whole") and there.items() <= contents(out).items()


@pytest.mark.parametrize("name", TREES)
def test_another_folder_is_refused_with_the_layout(name: str, tmp_path: Path):
    write_text(tmp_path / "notes.txt", "nothing")
    with pytest.raises(ValueError, match=r"--data_folder .*: holds no "):
        list(prepare(load_corpus(name), tmp_path, tmp_path / "out"))
    with pytest.raises(ValueError, match="--data_folder /nowhere: no such folder"):
        list(prepare(load_corpus(name), "/nowhere", tmp_path / "out"))


def test_the_pages_on_data_tell_of_all_layouts_and_reasons():
    corpora, rules = (" ".join(page(name).split()) for name in ("data.md", "data_rules.md"))
    assert [name for name in TREES if load_corpus(name).layout not in corpora] == []
    assert [text for text in (*REASONS.values(), *NOTES.values()) if text not in rules] == []


def test_a_killed_run_ends_with_the_same_shards(tmp_path: Path):
    voiceassistant(tmp_path, files=8, rows=60)
    corpus = load_corpus("VoiceAssistant")
    began = time.monotonic()
    list(prepare(corpus, tmp_path, tmp_path / "whole"))
    took = time.monotonic() - began
    script = str(RECIPES / "VoiceAssistant" / "prepare.py")
    run_it = f"runpy.run_path({script!r}, run_name='__main__')"
    code = f"import runpy, omnikit.prepare.corpus_readers; print(flush=True); {run_it}"
    command = [sys.executable, "-c", code, "--data_folder", str(tmp_path), "--save_folder", str(tmp_path / "killed")]
    environment = {**os.environ, "PYTHONPATH": str(RECIPES.parent)}
    moments, killed = np.random.default_rng(0).uniform(0, took / 6, 10), 0
    for moment in moments:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        process.stdout.readline()  # imports are done
        time.sleep(moment)
        killed += process.poll() is None
        process.kill()
        process.communicate()
    assert killed > 5  # the last calls may have had nothing to do
    list(prepare(corpus, tmp_path, tmp_path / "killed"))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_a_kill_leaves_between_two_files_is_made_good(tmp_path: Path):
    """After a kill, preparing a corpus replaces partially written files and shards that lack their summary file."""
    voiceassistant(tmp_path, files=3)
    corpus = load_corpus("VoiceAssistant")
    list(prepare(corpus, tmp_path, tmp_path / "whole"))
    list(prepare(corpus, tmp_path, tmp_path / "killed"))
    first, _, last = sorted((tmp_path / "killed" / "train").glob("*.parquet"))
    first.with_name(f"{first.stem}.summary.json").unlink()
    last.with_name(f"{last.stem}.summary.json").unlink()
    last.rename(last.with_name(f"{last.name}.partial"))
    cut(last.with_name(f"{last.name}.partial"))
    list(prepare(corpus, tmp_path, tmp_path / "killed"))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
