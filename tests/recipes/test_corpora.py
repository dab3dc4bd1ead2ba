"""Tests of the recipe of each corpus: prepare a small copy in its published layout, train for one step, evaluate.

The scripts run in this process, since importing packages takes most of the time.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from omnikit.hparams.include import read_recipe
from omnikit.hparams.yaml_tree import write_tree
from tests.recipes.trees import RECIPES, TREES, librispeech

DECODED = 1  # number of entries decoded in validation

TINY = [
    "--device", "cpu", "--size", "tiny", "--pretrained", "false", "--model.tts_blocks", "1",
    "--effective_batch_size", "4", "--steps_per_epoch", "1", "--epochs.limit", "1", "--warmup_steps", "1",
    "--max_batch_length", "4000",
]  # fmt: skip
ASR, TTS, QA = "LibriSpeech/ASR", "LibriTTS/TTS", "VoiceAssistant/QA"
CORPORA = {  # the recipe's folder and file, the manifest, the tasks
    "LibriSpeech": (ASR, "train", "dev-clean.csv", ["A1T1"]),
    "LibriTTS": (TTS, "train", "dev-clean.csv", ["T1A1"]),
    "LJSpeech": (TTS, "train", "all.csv", ["T1A1"]),
    "VCTK": (QA, "stage1", "mic1.csv", ["A1T1", "T1A1"]),
    "MLS": (QA, "stage1", "german-dev", ["A1T1"]),
    "OpenOrca": (QA, "stage2", "1M-GPT4-Augmented", ["T1T2"]),
    "MOSS": (QA, "stage2", "en_helpfulness", ["T1T2"]),
    "VoiceAssistant": (QA, "anneal", "train", ["A1T2", "A1A2"]),
}


@pytest.fixture
def run(run_here):
    """Function that runs a script of the recipes in this process and checks that it exits with status 0."""

    def call(script: str, *words: object) -> None:
        status, out, err = run_here(RECIPES / script, *words)
        assert status == 0, out + err

    return call


def only(recipe: Path, own: dict) -> dict:
    """Return YAML overrides that make one given source the only source of a recipe's training and validation."""
    tree = read_recipe(recipe)
    none = {key: dict.fromkeys(tree[key]) for key in ("sources", "valid_sources")}
    tasks = {task: float(task in own["tasks"]) for task in tree["tasks"]}
    return {
        "initial_weights": None,
        "tasks": tasks,
        "sources": {**none["sources"], "own": {**own, "limit": None}},
        "valid_sources": {**none["valid_sources"], "own": {**own, "limit": 2, "decode": DECODED}},
    }


@pytest.fixture
def grammar(tmp_path) -> Path:
    path = tmp_path / "numbers.jsgf"
    path.write_text("#JSGF V1.0;\ngrammar numbers;\npublic <sentence> = i am (number | it) (one | so | please);\n")
    return path


QUICK = ("LibriSpeech", "VoiceAssistant")
"""Corpora of the quick tests; `test_prepare.py` has the preparation of all."""


@pytest.mark.parametrize(
    "corpus", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in CORPORA]
)
def test_prepare_train_evaluate(corpus, run, grammar, tmp_path):
    folder, file, manifest, tasks = CORPORA[corpus]
    TREES[corpus](tmp_path / "upstream")
    upstream = next((tmp_path / "upstream").iterdir()) if corpus == "LJSpeech" else tmp_path / "upstream"
    run(f"{corpus}/prepare.py", "--data_folder", upstream, "--save_folder", tmp_path / "manifests" / corpus)

    overrides, out = tmp_path / "only.yaml", tmp_path / "out"
    own = {"manifest": str(tmp_path / "manifests" / corpus / manifest), "tasks": tasks}
    overrides.write_text(write_tree(only(RECIPES / folder / "hparams" / f"{file}.yaml", own)))
    words = ["--data_folder", tmp_path, "--output_folder", out, *TINY]
    words += ["--codec.size", "published"] if corpus == "VoiceAssistant" else []  # its codes are of true size
    words += ["--features", "on_the_fly", "--num_workers", "1"] if corpus == "LibriSpeech" else []
    run(f"{folder}/train.py", f"hparams/{file}.yaml", overrides, *words)
    before, log = map(json.loads, (out / "train_log.jsonl").read_text().splitlines())
    assert before["step"] == 0 and before["valid"]["loss"] > 0
    assert log["step"] == 1 and log["valid"]["loss"] > 0
    assert "effective batch: " in (out / "log.txt").read_text()
    if corpus == "LibriSpeech":  # features only of the entries that validation decodes
        (index,) = (tmp_path / "cache").glob("features-*/index.sqlite")
        with closing(sqlite3.connect(index)) as connection:
            assert connection.execute("SELECT COUNT(*) FROM arrays").fetchone() == (DECODED,)

    common = ["hparams/eval.yaml", "--checkpoint", out, "--output_folder", tmp_path / "scores"]
    # decoding with SNAC at true size is slow
    common += ["--decoding.max_steps", "12" if corpus == "VoiceAssistant" else "24"]
    judge = ["--data_folder", tmp_path / "manifests", "--grammar_file", grammar, "--speed_threads", "1"]
    if corpus == "VoiceAssistant":
        run(
            f"{QA}/evaluate.py",
            *common,
            *judge,
            "--sources.voiceassistant.only_held_out",
            "2",
            "--speed_questions",
            "1",
        )
        found = json.loads((tmp_path / "scores" / "qa.json").read_text())
        ways = found["splits"]["voiceassistant"]
        assert {way: (each["asked"], each["kinds"]) for way, each in ways.items()} == dict.fromkeys(ways, (2, {}))
        # the corpus has codes of its answers, no recordings
        assert list(found["intelligibility"])[:2] == ["resynthesis by the codec", "the codec, codes shuffled"]
        assert len(found["intelligibility"]) == 4
    elif "T1A1" in tasks:
        own = ["--manifest", tmp_path / "manifests" / corpus / manifest]
        run(f"{TTS}/evaluate.py", *common, *judge, *own, "--speed_sentences", "1")
        found = json.loads((tmp_path / "scores" / "tts.json").read_text())
        assert len(found["intelligibility"]) == 4 and not found["skipped"]
        assert len(list((tmp_path / "scores" / "wav").glob("*.wav"))) == 2
    else:
        librispeech(tmp_path / "scored")
        run(f"{ASR}/evaluate.py", *common, "--splits", "[dev-clean]", "--data_folder", tmp_path / "scored")
        assert json.loads((tmp_path / "scores" / "asr.json").read_text())["splits"]["dev-clean"]
