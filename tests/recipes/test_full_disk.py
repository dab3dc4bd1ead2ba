"""Tests that commands on a full disk give a one-line error, leave no partial file, and work when repeated.

The full disk is simulated by a limit on the size of files, which applies to root, too.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from full_disk import full_disk

from omnikit import checkpoint
from omnikit.hparams import build_parts
from tests.recipes.test_evaluate import ASR, QA, TTS, corpus  # noqa: F401
from tests.recipes.test_train import SMALL, TRAIN, command, environment
from tests.recipes.trees import ljspeech, voiceassistant, write_sound

ROOT = Path(__file__).parents[2]
SYSTEM = ROOT / "omnikit" / "pretrained" / "mini"
Words = Callable[[Path], list[object]]
"""Function that returns the words of a command line for an output folder."""


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each file in a folder by relative path, except those of the package `datasets`."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "tables" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check(run_here, words: Words, folder: Path, sizes: tuple[int, ...]) -> None:
    """Check that a command fails cleanly at each limit on file sizes, and afterwards writes the same as without one."""
    out = folder / "out"  # the same in all runs, since some files contain the path
    out.mkdir(parents=True)
    status, _, err = run_here(*words(out))
    assert status == 0, err
    expected, failed = contents(out), 0
    assert expected
    for size in sizes:
        shutil.rmtree(out)
        out.mkdir()
        with full_disk(size):
            status, _, err = run_here(*words(out))
        if status:
            failed += 1
            line = err.rpartition("\r")[2].splitlines()[-1]
            assert status == 2 and "Traceback" not in err, err
            assert line.startswith(f"error: {out}") and "cannot be" in line
            assert sum(each.startswith("error: ") for each in err.splitlines()) == 1
            assert_whole(contents(out), expected)
            status, _, err = run_here(*words(out))
            assert status == 0, err
        assert contents(out) == expected
    assert failed


def assert_whole(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Check that every file equals the expected one; a JSONL file may lack its last lines."""
    for name, data in found.items():
        assert name in expected, f"{name} was left behind"
        lines = name.endswith(".jsonl") and expected[name].startswith(data) and (not data or data.endswith(b"\n"))
        assert lines or data == expected[name], f"{name} is half-written"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Folder with the checkpoint of a small untrained system, which loads quickly."""
    options = {name: value for name, value in SMALL.items() if name.startswith(("encoder", "adapter", "llm"))}
    torch.manual_seed(0)
    model = build_parts({"codec": "snac_mini"}, {**options, "llm.tokenizer": "bytes"})["model"]
    folder = tmp_path_factory.mktemp("small") / "checkpoint"
    checkpoint.save(model.eval(), folder)
    return folder


@pytest.fixture
def recordings(tmp_path) -> Path:
    """Folder of recordings, with a manifest of the recordings and a text file."""
    folder = tmp_path / "recordings"
    for number in range(2):
        write_sound(folder / f"{number}.wav", 0.3 + 0.1 * number)
    rows = [f"{n},what is two plus three,the sky is blue,{folder}/{n}.wav" for n in range(2)]
    (tmp_path / "m.csv").write_text("\n".join(["ID,t1,t2,a1", *rows]) + "\n")
    (tmp_path / "texts.txt").write_text("the sky is blue\ntwo plus three\n")
    return folder


def test_ask(run_here, small, recordings, tmp_path):
    options = ["--checkpoint", small, "--max_steps", "20"]
    check(run_here, lambda out: ["omnikit", "ask", recordings / "0.wav", "-o", out / "a.wav", *options],
          tmp_path / "out", (1000,))  # fmt: skip


@pytest.mark.long
def test_speak(run_here, small, tmp_path):
    options = ["--checkpoint", small, "--max_steps", "20"]
    check(run_here, lambda out: ["omnikit", "speak", "the sky", "-o", out / "a.flac", *options],
          tmp_path / "out", (0, 1000))  # fmt: skip


LONG = pytest.mark.long


@pytest.mark.parametrize("task", ["ask", pytest.param("transcribe", marks=LONG), pytest.param("speak", marks=LONG)])
def test_many(run_here, small, recordings, tmp_path, task):
    source = tmp_path / "texts.txt" if task == "speak" else recordings
    options = ["--checkpoint", small, "--max_steps", "20", "--batch_size", "1"]
    check(run_here, lambda out: ["omnikit", task, source, "-o", out, *options], tmp_path / "out", (150, 500))


@pytest.mark.parametrize("audio", ["embedded", pytest.param("files", marks=LONG)])
def test_synthesize(run_here, recordings, tmp_path, audio):
    words = ["omnikit", "synthesize", tmp_path / "m.csv", "--fields", "a2", "--shard_size", "1", "--audio", audio]
    check(run_here, lambda out: [*words, "--save_folder", out], tmp_path / "out", (300,))


def test_tokenize(run_here, recordings, tmp_path):
    codec = ["--codec", "mel_rvq", "--codec.weights", ROOT / "egs" / "mini" / "pretrained" / "mel_rvq"]
    words = ["omnikit", "tokenize", tmp_path / "m.csv", *codec, "--fields", "a1", "--shard_size", "1"]
    check(run_here, lambda out: [*words, "--save_folder", out], tmp_path / "out", (0, 300, 2000))


def test_prepare(run_here, tmp_path):
    ljspeech(tmp_path / "lj")
    voiceassistant(tmp_path / "va")
    for script, data in (("LJSpeech", "lj"), ("VoiceAssistant", "va")):
        words = [f"recipes/{script}/prepare.py", "--data_folder", tmp_path / data]
        check(run_here, lambda out, w=words: [*w, "--save_folder", out], tmp_path / data / "out", (0, 100, 600))


def test_small_scripts(run_here, tmp_path):
    check(run_here, lambda out: ["egs/mini/write_grammar.py", out / "a" / "world.jsgf"], tmp_path / "a", (0, 50))
    with full_disk(1000):
        status, _, err = run_here("egs/mini/train_tokenizer.py", "--output_folder", tmp_path / "b")
    assert status == 2 and err.startswith(f"error: {tmp_path / 'b'}") and err.count("\n") == 1
    assert not list((tmp_path / "b").glob("*"))


@pytest.mark.long
def test_report(run_here, recordings, tmp_path):
    """On a full disk, no HTML report of the mini system is written, not even a part of it."""
    question = ["--checkpoint", SYSTEM, "--questions", recordings / "0.wav"]
    for size in (0, 200, 20000):
        out = tmp_path / str(size)
        out.mkdir()
        words = ["egs/mini/report.py", "--results", out, *question]
        with full_disk(size):
            status, _, err = run_here(*words)
        assert status == 2 and err.count("\n") == 1 and err.startswith(f"error: {out}")
        assert not [path for path in out.rglob("*") if path.name == "report.html" or path.suffix == ".partial"]
        assert run_here(*words)[0] == 0
        assert (out / "report.html").read_text().rstrip().endswith("</html>")


@pytest.mark.long
def test_evaluate_recognition(run_here, small, corpus, tmp_path):  # noqa: F811
    words = [ASR, "hparams/eval.yaml", "--splits", "[test-clean]", "--data_folder", corpus, "--checkpoint", small,
             "--decoding.max_steps", "5"]  # fmt: skip
    check(run_here, lambda out: [*words, "--output_folder", out], tmp_path / "out", (0, 300, 700, 1200))


@pytest.mark.long
def test_evaluate_speech(run_here, small, recordings, tmp_path):
    words = [TTS, "hparams/eval.yaml", "--data_folder", tmp_path, "--manifest", tmp_path / "m.csv", "--checkpoint",
             small, "--decoding.max_steps", "20", "--speed_sentences", "0"]  # fmt: skip
    check(run_here, lambda out: [*words, "--output_folder", out, "--cache_folder", out / "cache"],
          tmp_path / "out", (0, 250, 1000))  # fmt: skip


@pytest.mark.long
def test_evaluate_answers(run_here, small, data, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text(f"sources: {{voiceassistant: null, own: {{manifest: {data}/qa/dev.parquet}}}}\n")
    words = [QA, "hparams/eval.yaml", more, "--data_folder", data, "--checkpoint", small, "--decoding.max_steps", "20",
             "--speed_questions", "0"]  # fmt: skip
    check(run_here, lambda out: [*words, "--output_folder", out, "--cache_folder", out / "cache"],
          tmp_path / "out", (250, 1000))  # fmt: skip


@pytest.mark.long
def test_decoded_answers(run_here, recordings, tmp_path):
    weights, rows = ROOT / "egs" / "mini" / "pretrained" / "mel_rvq", tmp_path / "m.csv"
    rows.write_text(rows.read_text().replace(",a1", ",a2"))
    codec = ["--codec", "mel_rvq", "--codec.weights", weights]
    assert run_here("omnikit", "tokenize", rows, *codec, "--save_folder", tmp_path / "codes")[0] == 0
    words = ["recipes/VoiceAssistant/decode_answers.py", "--manifest", tmp_path / "codes", "--codec", "mel_rvq",
             "--weights", weights]  # fmt: skip
    check(run_here, lambda out: [*words, "--save_folder", out], tmp_path / "out", (0, 1000))


@pytest.mark.long
def test_a_backbone(run_here, tmp_path):
    log = tmp_path / "system"
    shutil.copytree(SYSTEM, log)
    (log / "train_log.jsonl").write_text('{"step": 1, "valid": {"text": 1.0, "wrong T1T2": 2.0}}\n')
    words = ["egs/mini/export_backbone.py", "--checkpoint", log]
    check(run_here, lambda out: [*words, "--output_folder", out], tmp_path / "a", (0, 1000, 10**6))


@pytest.mark.long
@pytest.mark.parametrize("size", [2048, 65536])  # with less, imports fail
def test_train(data, tmp_path, size):
    """A training that was stopped by a full disk resumes and ends with the same weights as an uninterrupted one."""
    for name in ("whole", "full"):
        words = command("stage1", shutil.copytree(data, tmp_path / f"data-{name}"), tmp_path / name)
        if name == "full":
            limit = f'ulimit -f {size // 1024}; exec "$@"'
            ran = subprocess.run(["bash", "-c", limit, "bash", *words], cwd=TRAIN.parent, env=environment(),
                                 capture_output=True, text=True, timeout=300)  # fmt: skip
            assert ran.returncode == 2, ran.stderr[-2000:]
            assert "Traceback" not in ran.stderr and ran.stderr.splitlines()[-1].startswith("error: ")
            assert "cannot be written" in ran.stderr.splitlines()[-1]
            assert not (tmp_path / "full" / "model.safetensors").exists()
        ran = subprocess.run(words, cwd=TRAIN.parent, env=environment(), capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr[-2000:]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "full")]
    assert weights[0] == weights[1]
