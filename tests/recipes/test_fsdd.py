"""Tests of the recipe for the Free Spoken Digit Dataset, with tones in place of recordings.

They cover the strings of digits that the recipe joins, the training and the evaluation.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import whisper

from omnikit import checkpoint
from omnikit.checkpoint import SHIPPED
from omnikit.data.manifest_reader import read_manifest
from omnikit.prepare.corpus import Checks, prepare
from tests.recipes.conftest import changed, logging_kept
from tests.recipes.trees import RECIPES, cut, load_corpus, load_script, write_sound, write_text

PITCH = {"anna": 440.0, "ben": 1200.0}  # Hz
INDICES = (0, 1, 5, 6, 7)
WORDS = {"3": "three", "7": "seven"}


def tree(root: Path, damaged: bool = False) -> Path:
    """Write a corpus of spoken digits in its published layout; each speaker's recordings are a tone of fixed frequency.
    """
    folder = root / "upstream" / "recordings"
    folder.mkdir(parents=True)
    for speaker, pitch in PITCH.items():
        for digit in WORDS:
            for index in INDICES:
                seconds = np.arange(800 + 100 * index) / 8000
                wav = 0.3 * np.sin(2 * np.pi * pitch * seconds)
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav", wav, 8000, subtype="PCM_16")
    if damaged:
        write_text(folder / "3_ben_8.wav", b"")
        write_text(folder / "3_ben_9.wav", b"not audio at all")
        cut(write_sound(folder / "7_ben_10.wav", rate=8000))
        write_sound(folder / "7_ben_11.wav", 0.0, rate=8000)
        write_sound(folder / "seven.wav", rate=8000)
        write_sound(folder / "7_ben_12.wav", rate=44100, channels=2)  # usable
    return folder.parent


@pytest.fixture
def alone(monkeypatch):
    """Remove other recipes' folders from the module search path, since each of them has a module `prepare`."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not path.startswith(str(RECIPES))])
    monkeypatch.delitem(sys.modules, "prepare", raising=False)
    yield
    sys.modules.pop("prepare", None)


@pytest.fixture
def run(monkeypatch, alone):
    """Function that runs a script of the spoken-digits recipe in this process, in the script's folder."""

    def call(script: str, *words: object) -> None:
        path = RECIPES / "FSDD" / script
        monkeypatch.chdir(path.parent)
        monkeypatch.setattr(sys, "argv", [path.name, *map(str, words)])
        with logging_kept():
            runpy.run_path(str(path), run_name="__main__")

    return call


def rows_of(folder: Path, split: str) -> list:
    return list(read_manifest(load_corpus("FSDD").manifest(folder, split), folder / "cache"))


def pitch_of(wav: np.ndarray) -> float:
    """Return the frequency in Hz with the largest magnitude in the spectrum of a waveform [N] at 16 kHz."""
    return float(np.abs(np.fft.rfft(wav)).argmax() * 16000 / len(wav))


def test_each_recording_stands_in_one_string_of_a_pass():
    script = load_script(RECIPES / "FSDD" / "prepare.py")
    made = list(script.strings(100, 3, np.random.default_rng(0)))
    assert {len(string) for string in made} == set(range(1, 8))
    order = [i for string in made for i in string]
    assert [sorted(order[i : i + 100]) for i in (0, 100, 200)] == [list(range(100))] * 3
    assert order[:100] != order[100:200]


def test_a_held_out_speaker_is_in_no_training_string(tmp_path: Path):
    upstream = tree(tmp_path)
    summaries = {s.split: s for s in prepare(load_corpus("FSDD"), upstream, tmp_path / "out")}
    assert len(summaries) == 6 and not any(s.skipped for s in summaries.values())
    uses = {"train-without-ben": ("anna", 3 * 4), "valid-without-ben": ("anna", 2 * 2), "test-ben": ("ben", 5 * 2)}
    for split, (speaker, count) in uses.items():
        entries = rows_of(tmp_path / "out", split)
        assert summaries[split].rows == len({entry.id for entry in entries}) == len(entries)
        assert Counter(word for entry in entries for word in entry.t1.split()) == {"three": count, "seven": count}
        for entry in entries:
            digits = entry.id.rsplit("-", 1)[1]
            assert entry.speaker == speaker and entry.t1 == " ".join(WORDS[digit] for digit in digits)
            wav = entry.a1.load(16000).numpy()
            assert len(wav) == pytest.approx(16000 * entry.duration, abs=2)
            assert pitch_of(wav) == pytest.approx(PITCH[speaker], rel=0.15 if split.startswith("train") else 0.02)
            if split == "test-ben":
                least, most = 0.2 + 0.1 * len(digits), 0.6 + 0.2 * len(digits) + 0.4 * (len(digits) - 1)
                assert least <= entry.duration <= most


def test_the_page_on_data_tells_of_the_layout():
    assert load_corpus("FSDD").layout in (RECIPES.parent / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_same_bytes_each_time(tmp_path: Path):
    upstream, corpus = tree(tmp_path), load_corpus("FSDD")
    for name in ("a", "b"):
        list(prepare(corpus, upstream, tmp_path / name, ["train-without-ben", "test-ben"]))
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.parquet")]
    assert len(files) == 2
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_damage_is_skipped_and_counted(tmp_path: Path):
    upstream, corpus = tree(tmp_path, damaged=True), load_corpus("FSDD")
    (summary,) = prepare(corpus, upstream / "recordings", tmp_path / "out", ["test-ben"])
    assert summary.skipped.reasons == {"empty": 2, "unreadable": 2, "malformed": 1}
    said = Counter(word for entry in rows_of(tmp_path / "out", "test-ben") for word in entry.t1.split())
    assert said == {"three": 10, "seven": 12}
    with pytest.raises(ValueError, match=r"3_ben_8\.wav: empty"):
        list(prepare(corpus, upstream, tmp_path / "strict", ["test-ben"], Checks(strict=True)))


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("prepare.py", ["--save_folder", "out", "--held_out", "bob"], "--held_out bob: not in "),
        ("prepare.py", ["--save_folder", "out", "--speakers", "ben", "bob"], "--speakers bob: not in "),
        ("ASR/evaluate.py", ["hparams/eval.yaml", "--speakers", "bob"], "--speakers bob: not in "),
        ("ASR/run.py", ["--from_nothing", "bob"], "--from_nothing bob: not in "),
    ],
)
def test_an_unknown_speaker_is_told_the_choices(script, words, message, run, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(script, *words, "--data_folder", tree(tmp_path))
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.count("\n") == 1
    assert message in told and told.endswith("choices: anna, ben\n")


def test_prepare_train_evaluate(run, tmp_path: Path):
    """Spoken digits are prepared, the encoder is trained from both initialisations, the system trained and evaluated.

    The parts have their true sizes.
    """
    upstream, made, encoder, asr = tree(tmp_path), tmp_path / "made", tmp_path / "encoder", tmp_path / "asr"
    run("prepare.py", "--data_folder", upstream, "--save_folder", made, "--held_out", "ben")
    own = ["--data_folder", made, "--held_out", "ben", "--device", "cpu"]
    quick = ["--batch_seconds", "3", "--num_buckets", "2", "--log_every", "1", "--warmup_steps", "1"]

    def train_encoder(folder: Path, steps: int, *words: str) -> str:
        words = [*words, *own, *quick, "--output_folder", folder, "--steps", steps]
        run("ASR/train_encoder.py", "hparams/encoder.yaml", *words)
        return (folder / "weights" / "README.md").read_text()

    train_encoder(encoder, 2, "--head_only_steps", "2")
    assert not changed(Path(SHIPPED), encoder / "system")
    card = train_encoder(encoder, 4, "--head_only_steps", "2")
    assert changed(Path(SHIPPED), encoder / "system") == {"encoder"}
    assert "egs/mini/pretrained/encoder: 4 steps" in card and "any recording of ben" in card and "| valid |" in card
    assert "nothing: 1 steps" in train_encoder(tmp_path / "new", 1, "hparams/from_nothing.yaml")

    steps = ["--steps_per_epoch", "2", "--epochs.limit", "1", "--max_batch_length", "200"]
    start = ["--initial_weights", encoder / "system"]
    run("ASR/train.py", "hparams/train.yaml", *own, *start, "--output_folder", asr, *steps)
    assert changed(encoder / "system", asr) == {"adapter", "llm", "new_text_embeddings"}
    log = json.loads((asr / "train_log.jsonl").read_text().splitlines()[-1])
    assert log["step"] == 2 and {"text", "wer"} <= set(log["valid"])

    scored = ["--checkpoint", asr, "--data_folder", upstream, "--output_folder", tmp_path / "scores"]
    run("ASR/evaluate.py", "hparams/eval.yaml", *scored, "--speakers", "ben", "--decoding.max_steps", "4")
    splits = json.loads((tmp_path / "scores" / "asr.json").read_text())["splits"]
    assert list(splits) == ["test-ben"] and splits["test-ben"]["groups"]["all"]["words"] == 20
    run("ASR/evaluate.py", "hparams/eval.yaml", *scored, "--decoding.max_steps", "4")
    scores = json.loads((tmp_path / "scores" / "asr.json").read_text())
    assert list(scores["splits"]) == ["test-anna", "test-ben"] and scores["means"]["all"]["splits"] == 2
    assert "| mean of 2 speakers, single digits |" in (tmp_path / "scores" / "asr.md").read_text()


@pytest.fixture
def scripts(monkeypatch, tmp_path: Path) -> tuple[list[tuple], list[str]]:
    """Stand-in for the scripts that run.py calls: the list of calls as pairs of name and command line, and a list of
    the scripts that shall fail. A script that does not fail writes only the file that it writes last."""
    called, failing = [], []

    def told(words: list[str], cwd: Path) -> subprocess.CompletedProcess:
        name, flags = Path(words[1]).stem, dict(word[2:].split("=", 1) for word in words if "=" in word)
        called.append((name, words))
        if f"{name}.py" in failing:
            return subprocess.CompletedProcess(words, 1)
        speaker = speaker_of(words)
        out = Path(flags.get("output_folder", tmp_path / "out" / "strings"))
        rates = {"utterances": 2, "words": 8, "wer": 12.34 if speaker == "ben" else 20.0, "cer": 5.0, "exact": 50.0}
        scores = json.dumps({"splits": {f"test-{speaker}": {"groups": {"all": rates}}}})
        product = {
            "prepare": f"test-{speaker}/{speaker}.parquet", "train_encoder": "system/model.safetensors",
            "start_system": "model.safetensors", "train": "model.safetensors", "evaluate": "asr.json",
        }[name]  # fmt: skip
        write_text(out / product, scores)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(subprocess, "run", told)
    return called, failing


def speaker_of(words: list[str]) -> str:
    flags = dict(word[2:].split("=", 1) for word in words if "=" in word)
    return flags.get("speakers") or flags.get("held_out") or words[-1]


def test_leave_one_out_goes_on_where_it_was(run, scripts, tmp_path: Path, capsys):
    calls, failing = scripts
    failing.append("train.py")
    words = ["--data_folder", tree(tmp_path), "--output_folder", tmp_path / "out", "--from_nothing", "ben"]
    with pytest.raises(SystemExit):
        run("ASR/run.py", *words)
    assert "error: anna: train.py failed with status 1, " in capsys.readouterr().err
    assert [name for name, _ in calls] == ["prepare", "train_encoder", "train"]
    calls.clear(), failing.clear()
    run("ASR/run.py", *words)
    called = [(name, speaker_of(line), "hparams/from_nothing.yaml" in line) for name, line in calls]
    done = [(name, speaker) for name, speaker, nothing in called if not nothing]
    each = ["prepare", "train_encoder", "train", "evaluate"]
    assert done[:6] == [("train", "anna"), ("evaluate", "anna"), *((name, "ben") for name in each)]
    assert [(name, speaker) for name, speaker, nothing in called if nothing] == [("train_encoder", "ben")]
    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert table[3:] == [
        "| ben | synthetic speech | 2 | 8 | 12.3 | 5.0 | 50.0 |",
        "| ben | nothing | 2 | 8 | 12.3 | 5.0 | 50.0 |",
        "| mean of 2 | synthetic speech |  |  | 16.2 | 5.0 | 50.0 |",
    ]
    calls.clear()
    run("ASR/run.py", *words)
    assert not calls and "| anna |" in capsys.readouterr().out


def test_whisper_is_not_trained(run, scripts, tmp_path: Path):
    """With Whisper base, all folds start from one system, and the encoder is not trained."""
    calls, _ = scripts
    own = ["--data_folder", tree(tmp_path), "--output_folder", tmp_path / "out", "--ears", "whisper_base"]
    given = tmp_path / "mini_whisper"
    run("ASR/run.py", *own, "--initial_weights", given)
    assert [name for name, _ in calls] == 2 * ["prepare", "train", "evaluate"]
    for line in (line for name, line in calls if name == "train"):
        assert f"--initial_weights={given}" in line and "hparams/whisper_base.yaml" in line
    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert table[2:] == [
        "| anna | Whisper base, frozen | 2 | 8 | 20.0 | 5.0 | 50.0 |",
        "| ben | Whisper base, frozen | 2 | 8 | 12.3 | 5.0 | 50.0 |",
        "| mean of 2 | Whisper base, frozen |  |  | 16.2 | 5.0 | 50.0 |",
    ]


def test_whisper_without_a_system_starts_from_the_mini_backbone(run, scripts, monkeypatch, tmp_path: Path):
    calls, _ = scripts
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path / "pretrained")  # mini_whisper is not there
    own = ["--data_folder", tree(tmp_path), "--output_folder", tmp_path / "out", "--ears", "whisper_base"]
    run("ASR/run.py", *own, "--encoder_flags=--weights=base.pt")
    fold = ["prepare", "train", "evaluate"]
    assert [name for name, _ in calls] == ["prepare", "start_system", "train", "evaluate", *fold]
    (start,) = (line for name, line in calls if name == "start_system")
    assert start[2:] == [f"--output_folder={tmp_path / 'out' / 'start'}", "--weights=base.pt"]
    assert all(f"--initial_weights={tmp_path / 'out' / 'start'}" in line for name, line in calls if name == "train")


@pytest.mark.parametrize("given", [[], ["--initial_weights", "mini_whisper"]])
def test_the_shipped_system_with_whisper_is_the_start(given, run, scripts, monkeypatch, tmp_path: Path):
    calls, _ = scripts
    write_text(tmp_path / "pretrained" / "mini_whisper" / "hparams.yaml", "")
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path / "pretrained")
    own = ["--data_folder", tree(tmp_path), "--output_folder", tmp_path / "out", "--ears", "whisper_base"]
    run("ASR/run.py", *own, *given)
    start = f"--initial_weights={tmp_path / 'pretrained' / 'mini_whisper'}"
    assert [name for name, _ in calls] == 2 * ["prepare", "train", "evaluate"]
    assert all(start in line for name, line in calls if name == "train")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from_nothing", "ben", "--ears", "whisper_base"], "--from_nothing ben: needs --ears mini, since Whisper"),
        (["--initial_weights", "here"], "--initial_weights here: needs --ears whisper_base"),
    ],
)
def test_flags_of_other_ears_are_refused(words, message, run, scripts, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run("ASR/run.py", "--data_folder", tree(tmp_path), *words)
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.count("\n") == 1 and message in told and not scripts[0]


def test_the_system_to_start_from_is_the_mini_system_with_whisper(run, tmp_path: Path):
    """All but encoder and adapter are the mini system's; the encoder has the weights of the file."""
    sizes = {"n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 512, "n_audio_head": 8, "n_audio_layer": 6}
    sizes |= {"n_vocab": 10, "n_text_ctx": 4, "n_text_state": 512, "n_text_head": 8, "n_text_layer": 0}
    published = whisper.model.Whisper(whisper.model.ModelDimensions(**sizes))
    torch.save({"dims": sizes, "model_state_dict": published.state_dict()}, tmp_path / "base.pt")
    run("ASR/start_system.py", "--output_folder", tmp_path / "start", "--weights", tmp_path / "base.pt")
    old, new = checkpoint.load(), checkpoint.load(tmp_path / "start")
    for name, value in old.state_dict().items():
        if not name.startswith(("encoder.", "adapter.")):
            assert torch.equal(new.state_dict()[name], value), name
    assert not new.encoder.pad_to_30s and new.encoder.dim == 512
    for name, value in published.encoder.state_dict().items():
        assert torch.equal(new.encoder.encoder.state_dict()[name], value.bfloat16().float()), name
