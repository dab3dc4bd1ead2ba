"""Tests of the three training stages as short runs on a tiny corpus, and of resuming after a kill."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnikit import checkpoint
from omnikit.data.digest_ledger import LEDGER
from omnikit.hparams.yaml_tree import read_tree, write_tree
from omnikit.public_weights import FOLDER
from omnikit.train.loggers import flat
from tests.recipes.conftest import MINI_SYSTEM, ROOT, TEXTS, changed, flac
from tests.unit.test_public_weights import published
from tests.unit.train.tiny_training import DAMAGES, checkpoints

TRAIN = ROOT / "recipes" / "VoiceAssistant" / "QA" / "train.py"
SMALL = {
    "encoder.width": 16, "encoder.heads": 2, "encoder.layers": 1, "adapter.hidden": 16, "model.tts_blocks": 1,
    "llm.config.hidden_size": 16, "llm.config.intermediate_size": 16, "llm.config.num_hidden_layers": 1,
    "llm.config.num_attention_heads": 2, "llm.config.num_key_value_heads": 1, "max_batch_length": 300,
    "steps_per_epoch": 3, "epochs.limit": 2, "warmup_steps": 1, "peak_lr": 0.01, "seed": 5,
}  # fmt: skip


def command(stage: str, data, out, *more: str) -> list[str]:
    small = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]
    return [
        sys.executable, TRAIN.name, f"hparams/{stage}.yaml", str(MINI_SYSTEM), "--data_folder", str(data),
        "--output_folder", str(out), "--device", "cpu", *small, *more,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(*arguments) -> subprocess.CompletedProcess:
    ran = subprocess.run(
        command(*arguments), cwd=TRAIN.parent, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    return ran


@pytest.fixture
def train_here(run_here):
    """Function that runs one training stage in this process, and returns its exit status and its output."""

    def call(*arguments) -> tuple[int, str]:
        status, out, err = run_here(TRAIN, *command(*arguments)[2:])
        return status, out + err

    return call


def test_three_stages(train_here, data, tmp_path):
    stages = [tmp_path / f"stage{n}" for n in (1, 2, 3)]
    status, written = train_here("stage1", data, stages[0])
    assert status == 0, written
    assert "trainable" in written
    assert "train-clean-2.flac" in written
    status, written = train_here("stage2", data, stages[1], "--initial_weights", str(stages[0]))
    assert status == 0, written
    with sqlite3.connect(data / "cache" / LEDGER) as ledger:
        ledger.execute("UPDATE contents SET digest = x'00'")  # as if all recordings had changed without their stamps
    status, written = train_here("stage3", data, stages[2], "--initial_weights", str(stages[1]), "--verify_cache")
    assert status == 0, written
    assert "have changed since they were read" in written
    assert changed(stages[0], stages[1]) == {"llm", "new_text_embeddings"}
    assert changed(stages[1], stages[2]) == {
        "adapter",
        "llm",
        "tts_adapter",
        "new_text_embeddings",
        "new_audio_embeddings",
    }
    log = [json.loads(line) for line in (stages[2] / "train_log.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"], line["step"]) for line in log] == [("stage3", i, 3 * i) for i in range(3)]
    assert {"loss", "text", "audio1", "audio7", "wer", "wrong A1T2"} <= set(log[-1]["valid"])
    assert sum(task["labels"] for task in log[-1]["train"]["tasks"].values()) == pytest.approx(1, abs=1e-4)
    assert all(task["loss"] > 0 for part in ("train", "valid") for task in log[-1][part]["tasks"].values())
    assert (stages[2] / "curves.png").stat().st_size > 5000
    assert checkpoint.load(stages[2]).tts_adapter is not None
    log = [json.loads(line) for line in (stages[0] / "train_log.jsonl").read_text().splitlines()]
    for line in log:  # written questions, which stage 1 does not train
        assert {"A1T1", "T1A1", "T1T2"} == set(line["valid"]["tasks"]) and "wrong T1T2" in line["valid"]
    assert {"A1T1", "T1A1"} == set(log[-1]["train"]["tasks"]) and log[0]["train"] == {}


@pytest.mark.long
def test_public_weights_go_through_the_stages_by_name(train_here, data, tmp_path, monkeypatch):
    """An encoder with public weights is in no checkpoint; runs are resumed and later stages start with it."""
    published(1, tmp_path)
    published(2, tmp_path / "others")
    monkeypatch.setenv(FOLDER, str(tmp_path / "openai"))
    parts = ["--encoder", "whisper_base", "--encoder.pad_to_30s", "false", "--encoder.n_ctx", "200"]
    first, second = tmp_path / "stage1", tmp_path / "stage2"
    for epochs in ("1", "2"):
        status, written = train_here("stage1", data, first, *parts, "--epochs.limit", epochs)
        assert status == 0, written
    assert len((first / "train_log.jsonl").read_text().splitlines()) == 3  # before training, and after each epoch
    monkeypatch.setenv(FOLDER, str(tmp_path / "transformers"))
    status, written = train_here("stage2", data, second, *parts, "--initial_weights", str(first))
    assert status == 0, written
    for folder in (first, second):
        assert not [name for name in load_file(folder / "model.safetensors") if name.startswith("encoder.")]
        assert 'encoder: {name: "base", ' in (folder / "hparams.yaml").read_text()
    monkeypatch.setenv(FOLDER, str(tmp_path / "others" / "ours"))
    status, written = train_here("stage3", data, tmp_path / "stage3", *parts, "--initial_weights", str(second))
    assert status == 2 and "have the fingerprint" in written.splitlines()[-1]


@pytest.mark.long
def test_packed_rows_are_trained(train_here, data, tmp_path, monkeypatch):
    padding, losses = {}, {}
    monkeypatch.setitem(SMALL, "max_batch_length", 2000)  # so that micro-batches hold samples of unlike lengths
    monkeypatch.setitem(SMALL, "epochs.limit", 1)
    for pack in ("false", "true"):
        out = tmp_path / pack
        status, written = train_here("single_stage", data, out, "--pack", pack)
        assert status == 0, written
        (*_, line) = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
        padding[pack], losses[pack] = line["speed"]["padding"], line["valid"]["loss"]
    assert padding["true"] < padding["false"]
    assert losses["true"] == pytest.approx(losses["false"], abs=0.5)


@pytest.mark.long
def test_recordings_are_augmented_in_training_alone(train_here, data, tmp_path):
    losses = []
    for more in ((), ("--augment", "rooms"), ("--augment", "rooms")):
        out = tmp_path / str(len(losses))
        options = ("--tasks.T1A1", "0", "--features", "on_the_fly", "--epochs.limit", "1", "--stage", "one", *more)
        status, written = train_here("stage1", data, out, *options)
        assert status == 0, written
        first, last = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
        losses.append((first["valid"]["loss"], last["train"]["loss"]))
    assert len({valid for valid, _ in losses}) == 1
    assert losses[1][1] == losses[2][1] != losses[0][1]
    status, written = train_here("stage1", data, tmp_path / "out", "--features", "cached", "--augment", "rooms")
    assert status == 2 and "augment: needs --features on_the_fly" in written.splitlines()[-1]


def test_another_codec_is_refused_by_name(train_here, data, untrained, tmp_path):
    more = ("--initial_weights", str(untrained), "--codec", "mel_rvq")
    status, written = train_here("stage2", data, tmp_path / "out", *more)
    assert status == 2
    assert "codec" in written.splitlines()[-1] and "Traceback" not in written


@pytest.mark.parametrize(
    "chosen",
    [
        {"encoder": "mini", "llm": "mini", "codec": "snac_mini", "pattern": "flattened"},
        pytest.param(
            {"encoder": "hubert_base", "llm": "llama", "codec": "mimi", "pattern": "flattened"}, marks=pytest.mark.long
        ),
    ],
    ids=lambda chosen: chosen["codec"],
)
def test_parts_are_swapped_by_flags(run_here, data, tmp_path, chosen):
    """Training with other parts, chosen by flags, works; output folder, log and checkpoint name the chosen parts."""
    recipe = shutil.copytree(TRAIN.parent, tmp_path / "recipe", ignore=shutil.ignore_patterns("results"))
    flags = [word for kind, name in chosen.items() for word in (f"--{kind}", name)]
    quick = ["--steps_per_epoch", "2", "--epochs.limit", "1", "--max_batch_length", "400", "--model.tts_blocks", "1"]
    system = read_tree(MINI_SYSTEM)
    sources = tmp_path / "sources.yaml"
    sources.write_text(write_tree({key: system[key] for key in ("effective_batch_size", "sources", "valid_sources")}))
    tiny = ["--device", "cpu", "--size", "tiny", "--pretrained", "false"]
    words = ["hparams/stage1.yaml", sources, "--data_folder", data, *tiny]
    status, out, err = run_here(recipe / "train.py", *words, *quick, *flags)
    assert status == 0, out + err
    own = {"encoder": "whisper_small", "llm": "qwen2_0.5b", "codec": "snac_24khz", "pattern": "delayed"}
    other = "".join(f"-{kind}={chosen[kind]}" for kind in own if chosen[kind] != own[kind])
    folder = recipe / "results" / f"stage1{other}-size=tiny"
    log = json.loads((folder / "train_log.jsonl").read_text().splitlines()[-1])
    for kind, name in chosen.items():
        assert log["parts"][kind].split()[0] == name
        assert f"{kind} {name}" in out
        assert f"{kind} {name}" in (folder / "log.txt").read_text()
        assert f"{kind}: {name}" in (folder / "hparams.yaml").read_text()
    assert f"choice: {other}-size=tiny" in (folder / "hyperparams.yaml").read_text()
    assert len(checkpoint.load(folder).pattern.carries) == 1


TOLD = """
import json, pathlib, sys
from speechbrain.utils.distributed import get_rank
from omnikit.data.step_sampler import StepSampler
from tests.recipes.trees import load_script

folder, recipe = pathlib.Path(sys.argv.pop()), load_script(pathlib.Path("train.py").absolute())
train, share = recipe.train, StepSampler.__iter__

def told_share(self):
    batches = list(share(self))
    assert all(batch.step_labels.sum() for batch in batches)
    with (folder / f"batches{get_rank()}.jsonl").open("a") as file:
        file.write(json.dumps(batches) + "\\n")
    return iter(batches)

def told_train(hparams, run_opts):
    train(hparams, run_opts)
    weights = [float(p.double().sum()) for p in hparams["model"].parameters()]
    (folder / f"weights{get_rank()}.json").write_text(json.dumps(weights))

StepSampler.__iter__, recipe.train = told_share, told_train
recipe.main()
"""
"""Python code that runs the training script and records the batches that its process gets and its final weights."""


@pytest.mark.long
@pytest.mark.parametrize("features", ["cached", "on_the_fly"])
def test_two_processes_share_the_work(features, tmp_path):
    """In a training by two processes, each sample of an epoch goes to one process, and both end with the same weights.
    """
    (tmp_path / "a.flac").write_bytes(flac(0, 0.3))
    lines = [f"{i},0.3,7,{TEXTS[i % len(TEXTS)]},a.flac" for i in range(120)]
    (tmp_path / "m.csv").write_text("\n".join(["ID,duration,speaker,t1,a1", *lines]) + "\n")
    (tmp_path / "train.py").write_text(TOLD)
    system = read_tree(MINI_SYSTEM)
    both = {"manifest": str(tmp_path / "m.csv"), "tasks": ["A1T1", "T1A1"], "limit": None}
    own = {"sources": both, "valid_sources": {**both, "limit": 2, "decode": 1}}
    without = {key: {name: None for name, options in system[key].items() if options is None} for key in own}
    overrides = {key: {**without[key], "both": own[key]} for key in own}
    (tmp_path / "both.yaml").write_text(write_tree({**system, **overrides}))
    words = command("stage1", tmp_path, tmp_path / "out", "--max_batch_length", "100", "--effective_batch_size", "16")
    words += ["--features", features]
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", tmp_path / "train.py",
         words[2], tmp_path / "both.yaml", *words[4:], tmp_path],
        cwd=TRAIN.parent, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    text = (tmp_path / "out" / "log.txt").read_text()
    said = re.search(r"effective batch: 16 sequences in (\d+) batches on 2 processes", text)
    log = [json.loads(line) for line in (tmp_path / "out/train_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [0, 3, 6]  # 0: what is scored before training
    shares = [
        [json.loads(line) for line in (tmp_path / f"batches{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)
    ]
    for epoch, (first, second) in enumerate(zip(*shares, strict=True)):
        assert len(first) == len(second) == 3 * int(said[1]) // 2, epoch
        seen = [{i for batch in share for i in batch} for share in (first, second)]
        assert not seen[0] & seen[1]
    weights = [json.loads((tmp_path / f"weights{rank}.json").read_text()) for rank in (0, 1)]
    assert weights[0] == weights[1]


def without_times(folder: Path) -> list[dict]:
    """Return the lines of a training's log without times and speed."""
    lines = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    for line in lines:
        line["train"].pop("seconds", None)  # absent before training
        del line["speed"]
    return lines


@pytest.mark.parametrize(
    ("kills", "epochs", "processes"),
    [(2, 3, 1), pytest.param(20, 25, 1, marks=pytest.mark.long), pytest.param(20, 25, 2, marks=pytest.mark.long)],
)
def test_kills_at_any_moment_change_nothing(data, tmp_path, kills, epochs, processes):
    """A training that is killed many times, while it writes checkpoints, too, ends like one that is not disturbed."""
    given = command("stage1", data, "", "--steps_per_epoch", "4", "--epochs.limit", str(epochs))[2:]
    words = [*given[: given.index("--output_folder")], *given[given.index("--output_folder") + 2 :]]
    words += ["--ckpt_interval_steps", "1", "--tensorboard", "null"]
    words += [word for name in ("asr", "qa", "written") for word in (f"--valid_sources.{name}.decode", "0")]
    script = [sys.executable, "-m", "tests.recipes.kills", str(tmp_path), str(kills), "1", str(processes), *words]
    ran = subprocess.run(script, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=1500)
    assert ran.returncode == 0, ran.stderr[-3000:]
    lines = ran.stdout.splitlines()
    assert len(lines) == kills
    assert sum("unfinished" in line for line in lines) >= kills // 4  # a checkpoint was being written
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    logs = without_times(whole), without_times(killed)
    if processes == 1:
        assert changed(whole, killed) == set() and logs[0] == logs[1]
        return
    weights = [load_file(folder / "model.safetensors") for folder in (whole, killed)]
    assert all(torch.allclose(value, weights[1][name], atol=1e-5) for name, value in weights[0].items())
    assert all(flat(one) == pytest.approx(flat(two), rel=1e-3) for one, two in zip(*(
        [{key: line[key] for key in ("train", "valid")} for line in log] for log in logs
    ), strict=True))


@pytest.mark.long
def test_a_killed_run_ends_with_the_same_weights(data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run("stage1", data, whole, "--epochs.limit", "4")
    process = subprocess.Popen(
        command("stage1", data, killed, "--epochs.limit", "4"), cwd=TRAIN.parent, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.time() + 250
    while not list(killed.glob("save/CKPT*/CKPT.yaml")) and time.time() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "model.safetensors").exists()
    run("stage1", data, killed, "--epochs.limit", "4")
    assert changed(whole, killed) == set()


def last_weights(folder) -> dict:
    (found,) = sorted(folder.glob("save/CKPT*/model.ckpt"), key=lambda path: path.stat().st_mtime_ns)[-1:]
    return torch.load(found, weights_only=True)


@pytest.mark.long
def test_an_absurd_rate_stops_the_run_and_leaves_the_last_good_checkpoint(data, tmp_path):
    run("stage1", data, tmp_path / "out", "--epochs.limit", "1")
    good = last_weights(tmp_path / "out")
    more = ("--epochs.limit", "9", "--steps_per_epoch", "30", "--peak_lr", "1e6", "--min_lr", "1e6")
    ran = subprocess.run(
        command("stage1", data, tmp_path / "out", *more), cwd=TRAIN.parent, env=environment(),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith("error: training stopped")
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "skipped (1 in a row)" in log and "entries: train-" in log
    assert "resuming: peak_lr was 0.01, is 1000000.0 from here on" in log
    left = last_weights(tmp_path / "out")
    assert left.keys() == good.keys() and all(torch.equal(left[name], good[name]) for name in good)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_in_one_line_and_the_run_goes_on_later(data, tmp_path, number):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run("stage1", data, whole, "--epochs.limit", "4")
    process = subprocess.Popen(
        command("stage1", data, stopped, "--epochs.limit", "4"), cwd=TRAIN.parent, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.time() + 250
    while not list(stopped.glob("save/CKPT*/CKPT.yaml")) and time.time() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    words = process.communicate(timeout=250)[1]
    assert process.returncode == 128 + number and "Traceback" not in words
    last = words.splitlines()[-1]
    assert last.startswith(f"error: training stopped by {number.name}") and "start again with the same command" in last
    run("stage1", data, stopped, "--epochs.limit", "4")
    assert changed(whole, stopped) == set()
    assert without_times(whole) == without_times(stopped)


@pytest.fixture(scope="module")
def whole_and_stopped(data, tmp_path_factory):
    """Output folders of a training of four epochs and of one that was stopped after the second epoch."""
    folder = tmp_path_factory.mktemp("runs")
    run("stage1", data, folder / "whole", "--epochs.limit", "4")
    run("stage1", data, folder / "stopped", "--epochs.limit", "4", "--optimizer_step_limit", "6")
    return folder / "whole", folder / "stopped"


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.ckpt", "truncated"), ("model.ckpt", "emptied"), ("model.ckpt", "removed"), ("model.ckpt", "inverted"),
        ("optimizer.ckpt", "inverted"), ("epochs.ckpt", "emptied"), ("brain.ckpt", "removed"),
        ("dataloader-TRAIN.ckpt", "inverted"), ("CKPT.yaml", "truncated"), ("SUMS.json", "emptied"),
    ],
)  # fmt: skip
def test_a_damaged_newest_checkpoint_changes_no_weight(name, damage, whole_and_stopped, data, tmp_path):
    whole, stopped = whole_and_stopped
    out = shutil.copytree(stopped, tmp_path / "out")
    before, newest = checkpoints(out / "save")
    DAMAGES[damage](newest / name)
    ran = run("stage1", data, out, "--epochs.limit", "4")
    said = (ran.stdout + ran.stderr).replace("\n", "")
    assert f"{newest}: damaged, so it is not used: {name}" in said
    assert f"Loading a checkpoint from {before}" in (out / "log.txt").read_text()
    assert changed(whole, out) == set()


@pytest.mark.long
def test_without_a_whole_checkpoint_a_run_stops(whole_and_stopped, data, tmp_path):
    out = shutil.copytree(whole_and_stopped[1], tmp_path / "out")
    for path in checkpoints(out / "save"):
        DAMAGES["inverted"](path / "model.ckpt")
    ran = subprocess.run(
        command("stage1", data, out), cwd=TRAIN.parent, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    error = ran.stderr.splitlines()[-1]
    assert error.startswith(f"error: {out / 'save'}: no whole checkpoint is left") and "delete the folder" in error
