"""Tests of Full-Duplex-Bench: its layout and figures, and the evaluation of the shipped system."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omnikit.data.skipped import Remark
from omnikit.evaluate.suites import fullduplex, fullduplex_run
from omnikit.evaluate.suites.answering import StoredAnswer
from omnikit.evaluate.suites.fullduplex import FullDuplexBench, SuiteCode, backchannels, divergence
from omnikit.evaluate.suites.items import read_items, write_items
from tests.repository import ROOT
from tests.suites.fullduplex_miniature import write
from tests.suites.scripted_judge import ScriptedJudge

EVAL = str(ROOT / "recipes" / "FullDuplexBench" / "hparams" / "eval.yaml")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def prepared(published, tmp_path_factory) -> Path:
    suite, folder = FullDuplexBench(), tmp_path_factory.mktemp("prepared")
    write_items(folder, suite.name, suite.layout, suite.read(published))
    return folder


@pytest.fixture(scope="module")
def evaluated(prepared, tmp_path_factory) -> Path:
    """Output folder of the shipped system, which answers in few steps."""
    folder = tmp_path_factory.mktemp("evaluated") / "out"
    command = [EVAL, "--data_folder", str(prepared), "--output_folder", str(folder), "--decoding.max_steps", "24"]
    fullduplex_run.evaluate(command)
    return folder


def figures(folder: Path) -> dict[str, dict[str, float | None]]:
    sets = json.loads((folder / "fullduplexbench.json").read_text())["sets"]
    return {name: {m: each["value"] for m, each in by_task["A1A2"].items()} for name, by_task in sets.items()}


def words(folder: Path, *times: tuple[float, float | None], seconds: float = 6.0) -> StoredAnswer:
    """Write an output with words at these times, and return it as a stored answer."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [{"text": f"w{number}", "timestamp": list(time)} for number, time in enumerate(times)]
    (folder / "output.json").write_text(json.dumps({"text": "words", "chunks": chunks}))
    soundfile.write(folder / "output.wav", np.zeros(round(seconds * 16000)), 16000)
    return StoredAnswer("", folder / "output.wav")


@pytest.mark.parametrize(
    ("times", "turn"),
    [
        ([], False),
        ([(1.0, 1.9)], False),
        ([(1.0, 2.0)], True),
        ([(1.0, 1.2), (1.2, 1.4), (1.4, 1.9)], False),
        ([(1.0, 1.2), (1.2, 1.4), (1.4, 1.6), (1.6, 1.7)], True),
        ([(1.0, 1.2), (1.9, None)], False),
        ([(1.0, 1.2), (2.0, None)], True),
    ],
)
def test_a_turn_lasts_a_second_or_has_more_than_three_words(tmp_path, times, turn):
    assert fullduplex.Output(words(tmp_path, *times).wav.parent).takes_turn is turn


def test_figures_of_turns_are_those_computed_by_hand(prepared, tmp_path):
    suite = FullDuplexBench()
    data = read_items(prepared, suite.name, suite.layout)
    turns = data.of("candor_turn_taking")
    end = turns[0].fields["turn_taking"][0]["timestamp"][0]
    late = words(tmp_path / "1", (end + 0.7, end + 2))  # 0.7 s after the turn's end
    early = words(tmp_path / "2", (0.1, 4.0))  # before it, which counts as 0 s
    given = {turns[0].id: late, turns[1].id: early}
    found = {metric.name: (metric.value, metric.count) for metric in suite.score(turns, given, None)}
    assert found == {"take-over rate": (1.0, 2), "latency, s": (pytest.approx(0.35), 2)}
    silent = dict.fromkeys(given, words(tmp_path / "3"))
    assert [(metric.value, metric.note) for metric in suite.score(turns, silent, None)] == [
        (0.0, None),
        (None, "open: the system took no turn"),
    ]
    pauses = data.of("candor_pause_handling")
    given = {pauses[0].id: early, pauses[1].id: words(tmp_path / "4", (1.0, 1.2))}
    assert [(metric.value, metric.better) for metric in suite.score(pauses, given, None)] == [(0.5, "lower")]


def test_backchannels_are_short_stretches_of_which_the_last_decides():
    few = [(1.0, 1.2), (5.0, 5.1), (5.1, 5.2), (5.2, 5.3)]
    assert backchannels([], few) == (False, [])
    assert backchannels([(1.0, 1.5)], few) == (False, [(1.0, 1.5)])
    assert backchannels([(1.0, 2.0)], few) == (True, [(1.0, 2.0)])  # a second long
    assert backchannels([(1.0, 1.5), (4.9, 5.4)], few) == (True, [(1.0, 1.5), (4.9, 5.4)])  # three words
    assert backchannels([(4.9, 5.4), (6.0, 6.5)], few) == (False, [(4.9, 5.4), (6.0, 6.5)])  # the last one decides
    assert backchannels([(1.0, 1.5), (2.0, 5.1), (6.0, 6.5)], few) == (True, [(1.0, 1.5)])


def test_the_distance_to_peoples_backchannels():
    assert divergence([], 4.0, [1.0]) == 1.0
    bins = np.full(21, 1e-12)
    bins[5:8] = 1 / 3
    assert divergence([(1.0, 1.5)], 4.0, bins) == pytest.approx(0.0, abs=1e-3)
    bins = np.full(21, 1e-12)
    bins[15] = 1.0  # nowhere in common: the square root of ln 2
    assert divergence([(1.0, 1.5)], 4.0, bins) == pytest.approx(np.sqrt(np.log(2)), abs=1e-3)


@pytest.fixture
def code(tmp_path) -> Path:
    """Folder that has what is read of the suite's code, with other texts."""
    script = 'def f():\n    system_msg = "Rate it."\n    for a in b:\n        user_msg = f"""\n'
    script += "        {in_before_interrupt_text} | {in_interrupt_text} | {out_after_interrupt_text}\n"
    (tmp_path / "eval_user_interruption.py").write_text(f'{script}        """\n')
    (tmp_path / "icc_gt_distribution.json").write_text(json.dumps({"1": [0.5, 0.5]}))
    return tmp_path


def test_ratings_are_asked_for_with_the_prompt_of_the_suites_code(code, prepared, tmp_path):
    suite = FullDuplexBench(code)
    judge = ScriptedJudge("Analysis: good.\nI would rate the AI's response as 4", "no")
    items = read_items(prepared, suite.name, suite.layout).of("synthetic_user_interruption")
    given = {item.id: words(tmp_path / item.id, (4.0, 6.0)) for item in items}
    rating = next(metric for metric in suite.score(items, given, judge) if metric.name == fullduplex.RATING)
    assert (rating.value, rating.count) == (4.0, 1)
    assert rating.note == "1 judgements have no rating, and are left out"
    assert judge.requests[0].system == "Rate it."
    assert judge.requests[0].prompt.strip() == "what is the capital of france | what color is the sky | words"
    (code / "eval_user_interruption.py").write_text("system_msg = 'x'\nuser_msg = f'{open(1)}'\n")
    with pytest.raises(ValueError, match="another version"):
        SuiteCode(code).rating_request(items[0].fields["interrupt"][0], "")
    with pytest.raises(ValueError, match=r"has no icc_gt_distribution\.json"):
        SuiteCode(tmp_path / "official")


def test_recordings_that_cannot_be_used_are_counted(published, tmp_path):
    folder = tmp_path / "v1" / "candor_turn_taking" / "candor_turn_taking"  # as some archives have it
    source = published / "candor_turn_taking" / "1"
    for name, annotation in (("2", "[{}]"), ("10", None), ("11", (source / "turn_taking.json").read_text())):
        (folder / name).mkdir(parents=True)
        (folder / name / "input.wav").write_bytes((source / "input.wav").read_bytes() if name != "11" else b"RIFF")
        if annotation is not None:
            (folder / name / "turn_taking.json").write_text(annotation)
    found = list(FullDuplexBench().read(tmp_path / "v1"))
    assert [each.reason for each in found if isinstance(each, Remark)] == ["malformed", "missing", "unreadable"]


def test_another_version_of_the_suite_is_refused(tmp_path):
    (tmp_path / "user_backchannel").mkdir()
    with pytest.raises(ValueError, match=r"has none of candor_pause_.* user_backchannel, a set of version 1\.5"):
        list(FullDuplexBench().read(tmp_path))


def test_the_shipped_system_is_evaluated(evaluated, prepared):
    found = figures(evaluated)
    assert list(found) == sorted(fullduplex.TASKS)
    assert found["candor_pause_handling"] == {"take-over rate": 0.0}
    turns = found["candor_turn_taking"]
    assert turns["take-over rate"] == 1.0
    assert 0.5 < turns["latency, s"] < 0.75  # the pause that ends a turn, and what the detector needs to notice it
    interrupted = found["synthetic_user_interruption"]
    assert interrupted["take-over rate"] == 1.0
    assert interrupted["rating, 0 to 5"] is None
    assert 0.3 < interrupted["stop latency, s"] < 0.8
    suite = FullDuplexBench()
    for item in read_items(prepared, suite.name, suite.layout).items:
        folder = evaluated / "official" / item.id
        given, output = soundfile.info(item.audio.path), soundfile.info(folder / "output.wav")
        assert (output.frames, output.samplerate) == (given.frames, 16000)
        assert sum(path.name.endswith("output.json") for path in folder.iterdir()) == 1  # the suite's scripts read all
    said = json.loads((evaluated / "official" / "candor_turn_taking" / "2" / "output.json").read_text())
    assert said["text"] == "the sky is blue"


def test_stored_outputs_are_scored_again(evaluated, prepared, monkeypatch, code):
    def no_system(*_, **__):
        raise AssertionError("a system was loaded")

    before = figures(evaluated)
    monkeypatch.setattr(fullduplex_run, "load", no_system)
    command = [EVAL, "--data_folder", str(prepared), "--output_folder", str(evaluated), "--rescore", "true"]
    fullduplex_run.evaluate(command)
    assert figures(evaluated) == before
    path = evaluated / "official" / "candor_turn_taking" / "2" / "output.json"
    kept = path.read_text()
    path.write_text(json.dumps({"text": "", "chunks": []}))  # as another recogniser would have it
    try:
        fullduplex_run.evaluate([*command, "--word_times", "stored", "--suite_code", str(code)])
        after = figures(evaluated)
    finally:
        path.write_text(kept)
    assert after["candor_turn_taking"]["take-over rate"] == 0.5
    assert after["icc_backchannel"][fullduplex.DIVERGENCE] is not None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--generation_seconds", "soon"], "--generation_seconds soon: must be"),
        (["--generation_seconds", "1"], "generation_seconds was 0, is 1"),
        (["--word_times", "nemo"], "--word_times nemo: no such word times (choices: text, stored, whisper_tiny"),
        (["--sets", "[candor]"], "--sets candor: no such set"),
        (["--suite_code", "nowhere"], "--suite_code nowhere: has no icc_gt_distribution.json"),
        (["--turn_detection", "never"], "--turn_detection never: must be a mapping"),
    ],
)
def test_bad_options_are_one_line(evaluated, prepared, flags, message):
    command = [EVAL, "--data_folder", str(prepared), "--output_folder", str(evaluated), "--decoding.max_steps", "24"]
    with pytest.raises(ValueError) as error:
        fullduplex_run.evaluate([*command, *flags])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
