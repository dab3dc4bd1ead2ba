"""Test the HTML report of the mini system with made-up results."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from omnikit.api import Reply
from omnikit.audio.io import load_audio, save_audio
from omnikit.data.recording_check import encode_flac
from omnikit.evaluate.text_normalisation import plain
from omnikit.evaluate.wer import Pair, score

sys.path.append(str(Path(__file__).parents[2] / "egs" / "mini"))
import report
import report_conversation

RATES = score([Pair("a", "one two three four", "one two three five")], plain).as_dict()
SPEED = {
    "questions": 2, "threads": 2, "real_time_factor": 0.375, "median_real_time_factor": 0.4,
    "p95_real_time_factor": 0.45, "median_first_audio": 0.2, "p95_first_audio": 0.29, "median_first_text": 0.1,
    "p95_first_text": 0.13, "audio_seconds": 3.0,
}  # fmt: skip
SUMS = {"right": 7, "asked": 8, "percent": 87.5}
WAY = {"percent": 87.5, "truncated_percent": 12.5, "asked": 8, "kinds": {"sum": SUMS}}
RESULTS = {
    "asr/asr.json": {"splits": {"test-clean": {"groups": {"all": RATES, "template sentences": RATES}}}},
    "qa/qa.json": {
        "splits": {"test_seen": {"text": WAY}},
        "intelligibility": {"original recordings": RATES},
        "speed": {"speech_parallel": SPEED},
    },
    "tts/tts.json": {
        "intelligibility": {"the system, from text": RATES},
        "truncated_percent": 3.1,
        "speed": {"the system, from text": {**SPEED, "p95_first_audio": 0.77}},
    },
}
SHARE = {"right": 9, "asked": 12, "percent": 75.0}
NEVER = {"right": 0, "asked": 0, "percent": None}
SHARES = {"history": SHARE, "alone": NEVER, "frequent_of_text": SHARE, "frequent_of_kind": SHARE}
SHARES |= {"cropped": {"right": 1, "asked": 3, "percent": 33.3}, "uncropped": NEVER}
RESULTS["dialogs/dialogs.json"] = {
    "splits": {
        split: {"speech": {"follow_ups": SHARES, "kinds": {"follow-name": SHARES}}}
        for split in ("dialogs_test_seen", "dialogs_test_crop")
    }
}
PARTS = [*RESULTS, "stage1", "stage2", "stage3", "answers", "conversation"]


class AskedOmni:
    """A stand-in for `Omni` that answers every question with a fixed text and half a second of a tone."""

    def ask(self, path) -> Reply:
        return Reply("paris & <rome>", torch.sin(torch.arange(8000) / 5) / 2, 16000)

    def conversation(self) -> AskedOmni:
        return self

    def say(self, text: str) -> Reply:
        return Reply(f"you typed {text}", torch.zeros(800), 16000)

    @property
    def model(self) -> SimpleNamespace:
        return SimpleNamespace(encoder=SimpleNamespace(sample_rate=16000))


def make(results: Path, parts: list[str]) -> None:
    for name in parts:
        if name in RESULTS:
            (results / name).parent.mkdir(parents=True)
            (results / name).write_text(json.dumps(RESULTS[name]))
        elif name == "conversation":
            turns = report_conversation.choose_dialog(_dialogs(results), results / "cache")
            report_conversation.converse(AskedOmni(), turns, results / "conversation")
        elif name == "answers":
            report.ask(AskedOmni(), [_question(results, "first"), _question(results, "second")], results / "answers")
        else:
            lines = [
                {"stage": name, "epoch": e, "step": 5 * e, "train": {"loss": 1 / e, "text": 1 / e, "audio1": 2 / e},
                 "valid": {"loss": 1 / e, "text": 1 / e, "audio1": 2 / e, "wer": 90 / e, "wrong A1T2": 50 / e,
                           "tasks": {"A1T1": {"labels": 1.0, "loss": 1 / e}}}}
                for e in (1, 2)
            ]  # fmt: skip
            (results / name).mkdir(parents=True)
            (results / name / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _question(results: Path, name: str) -> Path:
    results.mkdir(parents=True, exist_ok=True)
    save_audio(results / f"{name}.wav", torch.rand(4000) - 0.5, 16000)
    return results / f"{name}.wav"


def _dialogs(results: Path) -> Path:
    """Write a manifest of two dialogs, the second one in another order and with two follow-up questions."""
    results.mkdir(parents=True, exist_ok=True)
    turns = [("a", 0, "hello", "first"), ("a", 1, "who am i", "follow-name"), ("b", 2, "and in spain", "follow-and")]
    turns += [("b", 0, "my name is <anna>", "first"), ("b", 1, "who am i", "follow-name")]
    rows = [
        {"id": f"{dialog}{turn}", "dialog": dialog, "turn": turn, "t1": text, "t2": "anna", "kind": kind,
         "a1": None if text == "who am i" and dialog == "a" else _flac()}
        for dialog, turn, text, kind in turns
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), results / "dialogs.parquet")
    return results / "dialogs.parquet"


def _flac() -> bytes:
    return encode_flac(np.sin(np.arange(4000) / 7).astype(np.float32) / 2, 16000)


class Balanced(HTMLParser):
    """An HTML parser that fails if a tag is closed that is not open, or stays open."""

    VOID = ("meta", "img", "br")

    def __init__(self, page: str):
        super().__init__()
        self.open, self.counts = [], {}
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_whole_page(tmp_path):
    make(tmp_path, PARTS)
    page = report.build_page(tmp_path)
    assert "Not run" not in page
    counts = Balanced(page).counts
    assert (counts["audio"], counts["img"]) == (9, 4)  # 2 answers, 3 turns, the last typed; 2 spectrograms, 2 sheets
    assert "paris &amp; &lt;rome&gt;" in page
    truncated = ("12.5", "3.1 % of the texts were truncated")
    slowest = ("0.45", "0.13", "0.29", "0.77")
    assert "my name is &lt;anna&gt;" in page and "you typed and in spain" in page
    for figure in ("75.0", "33.3", "25.0", "87.5", "0.38", "peak 0.50", "0.50 s of sound", *truncated, *slowest):
        assert figure in page, figure
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing outside the file is needed


@pytest.mark.parametrize("part", PARTS)
def test_any_part_may_be_missing_or_alone(tmp_path, part):
    make(tmp_path / "without", [p for p in PARTS if p != part])
    make(tmp_path / "alone", [part])
    for page in (report.build_page(tmp_path / "without"), report.build_page(tmp_path / "alone")):
        Balanced(page)
        assert "Not run" in page


def test_nothing_at_all_says_so_everywhere(tmp_path):
    page = report.build_page(tmp_path)
    Balanced(page)
    assert page.count("Not run") == 10 and "stage 1, stage 2, stage 3" in page


def test_asking_keeps_the_first_answer_by_itself_and_forgets_older_ones(tmp_path):
    make(tmp_path, ["answers"])
    assert (tmp_path / "answer.txt").read_text() == "paris & <rome>\n"
    assert len(load_audio(tmp_path / "answer.wav", 16000)) == 8000
    assert [s.name for s in report.read_answers(tmp_path / "answers")] == ["first", "second"]
    report.ask(AskedOmni(), [_question(tmp_path, "third")], tmp_path / "answers")
    assert [s.name for s in report.read_answers(tmp_path / "answers")] == ["third"]


def test_a_missing_results_folder_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", "nowhere"])
    with pytest.raises(ValueError, match="--results nowhere: no such folder"):
        report.main()


def test_a_conversation_is_the_dialog_with_the_most_follow_ups_and_ends_typed(tmp_path):
    make(tmp_path, ["conversation"])
    held = [json.loads(path.read_text()) for path in sorted((tmp_path / "conversation").glob("*.json"))]
    assert [(turn["question"], turn["typed"]) for turn in held] == [
        ("my name is <anna>", False), ("who am i", False), ("and in spain", True),
    ]  # fmt: skip
    assert len(load_audio(tmp_path / "conversation" / "00-question.wav", 16000)) == 4000
    assert not (tmp_path / "conversation" / "02-question.wav").exists()


def test_a_question_without_a_recording_is_typed(tmp_path):
    turns = report_conversation.read_manifest(_dialogs(tmp_path), tmp_path / "cache")
    turns = [turn for turn in turns if turn.dialog == "a"]
    report_conversation.converse(AskedOmni(), [turns[1], turns[0], turns[0]], tmp_path / "held")
    held = [json.loads(path.read_text()) for path in sorted((tmp_path / "held").glob("*.json"))]
    assert [turn["typed"] for turn in held] == [True, False, True]


def test_a_manifest_without_dialogs_is_named(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "t1": ["hello"]}), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"--dialogs .*none.parquet: has no dialog"):
        report_conversation.choose_dialog(tmp_path / "none.parquet", tmp_path / "cache")
