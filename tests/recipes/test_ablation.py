"""Tests of the ablation recipe: its result tables, the scheduling of its scripts, and a tiny ablation that trains."""

from __future__ import annotations

import csv
import dataclasses
import fcntl
import functools
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import BinaryIO

import pytest
import ruamel.yaml

from omnikit.hparams.yaml_tree import write_tree
from tests.recipes.conftest import MINI_SYSTEM, ROOT, flac

ABLATION = ROOT / "recipes" / "Ablation"
sys.path.append(str(ABLATION))

import metrics  # noqa: E402
import run as ablation  # noqa: E402
import schedule as schedule_of_steps  # noqa: E402
from grid import Figure, Grid, Reading, read_grid, slug, some_rows  # noqa: E402
from metrics import Outcome, figure_at  # noqa: E402
from plan import Run, ScriptCall, as_text, plan_run  # noqa: E402
from schedule import RunRecord, Scheduler, last_lines, locked  # noqa: E402
from table import cells, markdown, write_csv, write_runs_csv  # noqa: E402

SHIPPED = "hparams/ablation.yaml"
SMALL = {
    "encoder.width": 16, "encoder.heads": 2, "encoder.layers": 1, "adapter.hidden": 16, "model.tts_blocks": 1,
    "llm.config.hidden_size": 16, "llm.config.intermediate_size": 16, "llm.config.num_hidden_layers": 1,
    "llm.config.num_attention_heads": 2, "llm.config.num_key_value_heads": 1, "max_batch_length": 300,
    "steps_per_epoch": 2, "epochs.limit": 1, "warmup_steps": 1, "initial_weights": None, "device": "cpu",
}  # fmt: skip


@pytest.fixture
def here(monkeypatch):
    """Change to the folder of the ablation recipe, in which users start its `run.py`."""
    monkeypatch.chdir(ABLATION)


def grid(**changes) -> Grid:
    made = Grid(
        title="A title", note="What was fixed.", output_folder="out", seeds=[1], jobs=1, baseline="base", base={},
        rows={"base": {}, "other": {"a": 1}}, readings={}, prepare={}, train={}, evaluate={},
        figures={"wer": Figure("asr", ["wer"]), "rtf": Figure("qa", ["rtf"], decimals=2)}, plots=[["rtf", "wer"]],
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


ONE_SEED = [Outcome("base", 1, {"wer": 10.0, "rtf": 0.5}), Outcome("other", 1, {"wer": 12.5, "rtf": None})]
TWO_SEEDS = [
    Outcome("base", 1, {"wer": 10.0, "rtf": 0.5}), Outcome("base", 2, {"wer": 14.0, "rtf": 0.5}),
    Outcome("other", 1, {"wer": 9.0, "rtf": 0.25}), Outcome("other", 2, {"wer": 9.0, "rtf": 0.75}),
]  # fmt: skip


def test_one_seed_is_said_and_differences_are_to_the_baseline():
    text = markdown(grid(), ONE_SEED)
    assert "| **base** (baseline) | 1 | 10.0 | 0.50 |" in text
    assert "| other | 1 | 12.5 (+2.5) | - |" in text
    assert "One seed (1)" in text and "What was fixed." in text


def test_of_several_seeds_mean_and_deviation_are_shown():
    text = markdown(grid(), TWO_SEEDS)
    assert "| **base** (baseline) | 2 | 12.0 ± 2.8 | 0.50 ± 0.00 |" in text  # sqrt(8) = 2.83
    assert "| other | 2 | 9.0 ± 0.0 (-3.0) | 0.50 ± 0.35 (+0.00) |" in text
    assert "Seeds 1, 2" in text


def test_a_line_without_a_baseline_has_no_difference():
    text = markdown(grid(), ONE_SEED[1:])
    assert "| other | 1 | 12.5 | - |" in text


def test_failures_and_missing_figures_stand_below_the_table():
    found = [ONE_SEED[0], Outcome("other", 1, failure="train ended with status 2: bad"), *TWO_SEEDS[3:]]
    text = markdown(grid(), found)
    assert "- other, seed 1: failed: train ended with status 2: bad" in text
    assert "| other | 1 | 9.0 (-1.0) |" in text
    assert "- base, seed 1: wer, there is none" in markdown(
        grid(), [dataclasses.replace(ONE_SEED[0], notes=("wer, there is none",))]
    )


def test_a_reading_stands_after_its_row():
    read = grid(readings={"base, read again": Reading("base", {"rtf": ["rtf2"]})})
    found = [*ONE_SEED, Outcome("base, read again", 1, {"wer": 10.0, "rtf": 0.6})]
    assert list(cells(read, found)) == ["base", "base, read again", "other"]
    assert "| base, read again | 1 | 10.0 (+0.0) | 0.60 (+0.10) |" in markdown(read, found)


def test_csv_files_hold_the_same(tmp_path):
    write_csv(tmp_path / "table.csv", grid(), TWO_SEEDS)
    write_runs_csv(tmp_path / "runs.csv", grid(), [*TWO_SEEDS[:1], Outcome("other", 3, failure="no, broken")])
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [row["row"] for row in rows] == ["base", "other"]
    assert float(rows[1]["wer difference"]) == -3.0 and rows[0]["wer difference"] == ""
    assert float(rows[0]["wer sd"]) == pytest.approx(8**0.5, rel=1e-5) and rows[0]["wer seeds"] == "2"
    runs = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert runs[0] == {"row": "base", "seed": "1", "wer": "10", "rtf": "0.5", "failure": ""}
    assert runs[1] == {"row": "other", "seed": "3", "wer": "", "rtf": "", "failure": "no, broken"}


def test_pictures_show_what_is_there_even_where_figures_are_missing(tmp_path):
    for name, found in (("one", ONE_SEED), ("two", TWO_SEEDS), ("other", ONE_SEED[1:])):
        made = cells(grid(), found)
        ablation.draw_figures(tmp_path / f"{name}.png", grid(), made)
        ablation.draw_against(tmp_path / f"{name}2.png", grid(), made)
        assert min(path.stat().st_size for path in tmp_path.glob("*.png")) > 3000


def test_a_figure_is_found_by_its_keys():
    result = {"splits": {"test": {"wer": 3}}, "speed": {"way": None}, "name": "x"}
    assert figure_at(result, ["splits", "test", "wer"]) == 3
    assert figure_at(result, ["speed", "way", "real_time_factor"]) is None
    with pytest.raises(ValueError, match="no 'tset' at splits; did you mean test"):
        figure_at(result, ["splits", "tset", "wer"])
    with pytest.raises(ValueError, match="name is no number"):
        figure_at(result, ["name"])


def test_flags_are_read_as_they_were_meant():
    from omnikit.hparams.command_line import parse_value

    texts = ("a b", "1e-3", "null", "a: b", "", "--x", "x=y", "#a")
    for value in (None, True, 3, 1e-5, [1, "two"], {"text": 3.0}, *texts):
        assert parse_value("flag", as_text("flag", value)) == value, value
    assert as_text("codec", "mel_rvq") == "mel_rvq"


# the schedule

SCRIPT = """
import pathlib, sys, time
events, name = pathlib.Path(sys.argv[1]) / "events", sys.argv[2]

def tell(what):
    with open(events, "a") as file:
        print(what, name, file=file)

tell("begin")
deadline = time.monotonic() + 100
while "partner" in name and events.read_text().count("begin") < 2 and time.monotonic() < deadline:
    time.sleep(0.05)
tell("end")
print("working\\rlast words")
sys.exit(3 if "broken" in name else 0)
"""


@pytest.fixture
def made_run(tmp_path):
    """Function that returns an ablation run of stub scripts with given names, which only log when they begin and end.
    """
    (tmp_path / "script.py").write_text(SCRIPT)

    def make(row: str, *names: str, recipe: str = "{lr: 1}") -> Run:
        folder = tmp_path / row
        steps = [
            ScriptCall(
                name, tmp_path, [str(tmp_path / "script.py"), str(tmp_path), f"{row}-{name}"],
                {"recipe": recipe, "run_options": {}}, trains=name == "train", alone=name == "speed",
            )
            for name in names
        ]  # fmt: skip
        return Run(row, 1, folder, steps)

    return make


def schedule(jobs: int, runs: list[Run]) -> list[tuple[str, str, int, int]]:
    seen = []
    Scheduler(jobs, lambda run, step, status, given_up: seen.append((run.row, step.name, status, given_up))).work(runs)
    return seen


def events(tmp_path) -> list[list[str]]:
    return [line.split() for line in (tmp_path / "events").read_text().splitlines()]


def test_a_failing_run_is_given_up_and_the_others_go_on(made_run, tmp_path):
    runs = [made_run("a", "broken", "qa"), made_run("b", "train", "qa")]
    assert schedule(1, runs) == [("a", "broken", 3, 1), ("b", "train", 0, 0), ("b", "qa", 0, 0)]
    assert "status 3: last words" in RunRecord(runs[0]).failure() and RunRecord(runs[1]).failure() is None
    assert [step.name for step in RunRecord(runs[0]).left()] == ["broken", "qa"]
    assert [event[1] for event in events(tmp_path)] == 2 * ["a-broken"] + 2 * ["b-train"] + 2 * ["b-qa"]


def test_what_is_done_is_not_done_again(made_run, tmp_path):
    run = made_run("a", "train", "qa")
    schedule(1, [run])
    assert schedule(1, [run]) == []
    changed = dataclasses.replace(run.steps[1], settings={"recipe": "{lr: 2}", "run_options": {}})
    assert [step.name for step in RunRecord(dataclasses.replace(run, steps=[run.steps[0], changed])).left()] == ["qa"]


def test_a_training_anew_makes_its_evaluations_anew(made_run):
    run = made_run("a", "train", "qa")
    schedule(1, [run])
    RunRecord(run).begin(run.steps[0], 1)  # never ended, as after a kill
    assert [step.name for step in RunRecord(run).left()] == ["train", "qa"]


def test_runs_go_side_by_side_but_time_is_measured_alone(made_run, tmp_path):
    """Runs of an ablation are concurrent, except for scripts that measure time, which run alone.

    Each of two partner scripts waits for the other, so that they end only if they run at the same time.
    """
    schedule(2, [made_run("a", "partner", "speed", "qa"), made_run("b", "partner", "qa"), made_run("c", "train")])
    running, most = set(), 0
    for what, name in events(tmp_path):
        (running.add if what == "begin" else running.remove)(name)
        most = max(most, len(running))
        assert len(running) <= (1 if "a-speed" in running else 2)
    assert most == 2
    assert len(events(tmp_path)) == 2 * 6


def test_a_training_with_other_settings_is_not_gone_on_with(made_run, tmp_path):
    run = made_run("a", "train")
    schedule(1, [run])
    other = made_run("a", "train", recipe="{lr: 2, warmup: 3}")
    RunRecord(other).check()  # there is no checkpoint, so it starts from the beginning
    (tmp_path / "save" / "CKPT+1").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"trained with other settings \(lr, warmup\)"):
        RunRecord(other).check()
    RunRecord(run).check()


def test_seconds_of_a_resumed_training_are_not_told(made_run, tmp_path):
    run = made_run("a", "train")
    log = {"epoch": 1, "step": 4, "train": {"seconds": 2.5}, "valid": {"wer": 50.0}}
    (tmp_path / metrics.LOG).write_text(json.dumps(log) + "\n" + json.dumps(log | {"epoch": 2, "step": 8}) + "\n")
    schedule(1, [run])
    assert metrics._training(run, RunRecord(run)) == {"seconds": 5.0, "steps": 8, "valid": {"wer": 50.0}}
    (tmp_path / "save" / "CKPT+1").mkdir(parents=True)
    RunRecord(run).begin(run.steps[0], 1)
    assert metrics._training(run, RunRecord(run))["seconds"] is None


def test_two_do_not_work_in_one_folder(tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="another run"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_the_last_lines_of_a_progress_bar(tmp_path):
    (tmp_path / "log").write_bytes(b"one\ntwo\n 1%\r 2%\r100%\nValueError: \xff\n\n")
    assert last_lines(tmp_path / "log")[-2:] == ["100%", "ValueError: \ufffd"]


# the YAML file


def test_the_shipped_grid_is_sound(here):
    shipped = read_grid(SHIPPED, {})
    runs = {row: plan_run(shipped, row, 7, {}) for row in shipped.rows}
    base = runs[shipped.baseline]
    assert runs["flattened"].model["steps_per_second"] == 7 * base.model["steps_per_second"]
    assert runs["4 codebooks"].model["streams"] == base.model["streams"] - 3
    assert runs["no TTS adapter"].model["parameters_in_millions"] < base.model["parameters_in_millions"]
    assert base.model["trainable_in_millions"] < base.model["parameters_in_millions"]
    assert "--seed=7" in base.steps[0].words and base.steps[0].trains
    longest = {row: word for row, run in runs.items() for word in run.steps[2].words if "max_steps" in word}
    assert longest["delayed"] == "--decoding.max_steps=107" and longest["flattened"] == "--decoding.max_steps=701"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seedz": [1]}, "--seedz: no such option; did you mean seeds"),
        ({"jobs": 0}, "--jobs 0"),
        ({"seeds": []}, "--seeds \\[\\]: must hold a number at least"),
        ({"seeds": ["x"]}, "--seeds x: must be a finite number"),
        ({"baseline": "delayd"}, "baseline delayd.*did you mean delayed"),
        ({"evaluate.qa.flags.limt": 3}, "did you mean limit"),
        ({"figures.right %.of": "qaa"}, "did you mean qa"),
        ({"plots": [["steps/s", "wer"]]}, "plots wer: there is none of that name"),
    ],
)
def test_bad_settings_are_refused(here, settings, message):
    with pytest.raises(ValueError, match=message):
        read_grid(SHIPPED, settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y["evaluate"]["qa"].update(flag={}), r"evaluate.qa.flag: no such option; did you mean flags"),
        (lambda y: y["train"]["train"].pop("script"), r"train.train.script: is missing"),
        (lambda y: y.pop("seeds"), r"seeds is missing"),
        (lambda y: y["rows"].update({"Parallel": {}}), r"rows: Parallel would have the folder 'parallel'"),
        (lambda y: y["train"]["train"].update(after="stage2"), r"train.train.after stage2"),
    ],
)
def test_bad_files_are_refused(here, tmp_path, change, message):
    tree = ruamel.yaml.YAML().load(Path(SHIPPED).read_text())
    change(tree)
    (tmp_path / "bad.yaml").write_text(write_tree(tree))
    with pytest.raises(ValueError, match=message):
        read_grid(str(tmp_path / "bad.yaml"), {})


def test_bad_rows_are_refused(here):
    shipped = read_grid(SHIPPED, {})
    with pytest.raises(ValueError, match=r"--rows paralel.*did you mean parallel"):
        some_rows(shipped, ["delayed", "paralel"])
    bad = dataclasses.replace(shipped, rows={**shipped.rows, "bad": {"pattern.text_leed": 4}})
    with pytest.raises(ValueError, match=r"row bad: train: --pattern.text_leed.*did you mean text_lead"):
        plan_run(bad, "bad", 1, {})
    assert some_rows(shipped, "parallel") == ["parallel"] and len(some_rows(shipped, None)) == len(shipped.rows)


def test_names_become_folders():
    assert slug("text lead 4") == "text_lead_4" and slug("../x, y!") == "x_y"


# the whole


@pytest.fixture
def tiny(tmp_path, data) -> Path:
    """Path of the YAML file of a tiny ablation, which runs the scripts of the recipes with tiny systems."""
    chapter = tmp_path / "corpus" / "test-clean" / "7" / "1"
    chapter.mkdir(parents=True)
    (chapter / "7-1-0000.flac").write_bytes(flac(1, 0.6))
    (chapter / "7-1.trans.txt").write_text("7-1-0000 THE SKY IS BLUE\n")
    recipes = ROOT / "recipes"
    tree = {
        "title": "Tiny", "note": "Nothing was learnt.", "output_folder": str(tmp_path / "out"), "seeds": [3],
        "jobs": 1, "baseline": "delayed", "base": {"data_folder": str(data), **SMALL},
        "rows": {"delayed": {}, "parallel": {"pattern": "parallel"}, "broken": {"max_batch_length": 5}},
        "readings": {}, "plots": [["steps/s", "WER"]],
        "prepare": {"word": {
            "makes": str(tmp_path / "made"),
            "command": ["python", "-c", f"open({str(tmp_path / 'made')!r}, 'w').close()"],
        }},
        "train": {"stage": {
            "script": str(recipes / "VoiceAssistant/QA/train.py"),
            "files": [str(recipes / "VoiceAssistant/QA/hparams/stage3.yaml"), str(MINI_SYSTEM)],
        }},
        "evaluate": {"asr": {
            "script": str(recipes / "LibriSpeech/ASR/evaluate.py"),
            "files": [str(recipes / "LibriSpeech/ASR/hparams/eval.yaml")],
            "flags": {
                "data_folder": str(tmp_path / "corpus"), "splits": ["test-clean"], "normalizer": "plain",
                "device": "cpu",
            },
            "answer_seconds": 0.5, "result": "asr.json",
        }},
        "figures": {
            "WER": {"of": "asr", "at": ["splits", "test-clean", "groups", "all", "wer"]},
            "steps/s": {"of": "model", "at": ["steps_per_second"]},
            "seconds": {"of": "train", "at": ["seconds"]},
            "steps": {"of": "train", "at": ["steps"], "decimals": 0},
        },
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(write_tree(tree))
    return path


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.json")}


@pytest.fixture
def in_this_process(monkeypatch, run_here):
    """Run each script of an ablation in this process, to its end when it is started, so that imports are not repeated.
    """

    class Ended:
        def __init__(self, words: list[str], stdout: BinaryIO, **_: object):
            self.returncode, out, err = run_here(*words[1:])
            stdout.write((out + err).encode())

        def poll(self) -> int:
            return self.returncode

    stand_in = types.SimpleNamespace(**{**vars(subprocess), "Popen": Ended})
    monkeypatch.setattr(schedule_of_steps, "subprocess", stand_in)
    # a progress bar of this process would be drawn between the lines of a step
    monkeypatch.setattr(ablation, "tqdm", functools.partial(ablation.tqdm, disable=True))


@pytest.fixture
def in_processes(monkeypatch):
    """Run each script of an ablation as a process of its own, as users do."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("way", ["in_this_process", pytest.param("in_processes", marks=pytest.mark.long)])
def test_a_tiny_grid(here, tiny, tmp_path, capsys, request, way):
    request.getfixturevalue(way)
    out = tmp_path / "out"
    assert ablation.main([str(tiny), "--rows", "[delayed, broken]"]) == ablation.FAILED
    assert (tmp_path / "made").exists()
    assert "error: broken, seed 3: stage ended with status 2: error: max_batch_length: 5" in capsys.readouterr().err
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [row["row"] for row in rows] == ["delayed"]
    result = json.loads((out / "delayed" / "seed3" / "asr" / "asr.json").read_text())
    assert float(rows[0]["WER"]) == pytest.approx(result["splits"]["test-clean"]["groups"]["all"]["wer"], rel=1e-4)
    assert float(rows[0]["steps"]) == 2 and float(rows[0]["seconds"]) > 0
    table = (out / "table.md").read_text()
    assert "**delayed** (baseline)" in table and "- broken, seed 3: failed" in table
    assert (out / "figures.png").exists() and (out / "against.png").exists()
    before = times(out)
    assert ablation.main([str(tiny), "--rows", "delayed"]) == 0
    assert times(out) == before


@pytest.mark.long
def test_a_killed_grid_goes_on(here, tiny, tmp_path):
    """An ablation that is killed while it trains two systems at once completes when it is started again."""
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "run.py", str(tiny), "--jobs", "2", "--seeds", "[1, 2]", "--rows", "[delayed, parallel]",
        "--base.steps_per_epoch", "3",
    ]  # fmt: skip
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 250
    while not list(out.glob("*/seed*/stage.log")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    with (out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no process that it started is left
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["row"]: row for row in csv.DictReader((out / "table.csv").open())}
    assert {row["WER seeds"] for row in rows.values()} == {"2"} and set(rows) == {"delayed", "parallel"}
    assert float(rows["delayed"]["steps"]) == 3
    assert "trained 2 at a time" in (out / "table.md").read_text()
