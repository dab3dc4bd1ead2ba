"""Test the `omnikit` command line: its answers, and one line for each error of the user."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import typer

from omnikit import checkpoint, cli
from omnikit.audio.io import load_audio
from omnikit.data.encode_recordings import BATCH_SECONDS
from omnikit.generate import Decoding
from omnikit.llms.tokenizers import SentencePieceTokenizer
from omnikit.prepare.rewrite_manifest import SHARD_SIZE
from omnikit.torchrun import own_device

RATE = 16000


@pytest.fixture
def sounds(tmp_path):
    """Return a folder of valid and damaged sound files that a user might pass to `omnikit`."""
    noise = np.random.default_rng(0).normal(0, 0.1, RATE)
    soundfile.write(tmp_path / "good.wav", noise, RATE)
    soundfile.write(tmp_path / "stereo44.flac", np.stack([noise, noise], axis=1), 44100)
    soundfile.write(tmp_path / "long.wav", np.zeros(31 * 8000), 8000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(0), RATE)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "words.wav").write_text("no sound")
    return tmp_path


@pytest.fixture
def refused(run):
    """Return a function that runs an `omnikit` command, checks that it is refused in one line, and returns the line."""

    def call(*words) -> str:
        status, _, err = run(*words)
        assert status == 2
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        return err

    return call


@pytest.mark.parametrize("name", ["good.wav", "stereo44.flac"])
def test_commands_answer(run, sounds, saved, name):
    here = ["--checkpoint", saved]
    status, out, err = run("ask", sounds / name, "-o", sounds / "a.wav", *here)
    assert status == 0, err
    wav = load_audio(sounds / "a.wav", RATE, max_seconds=None)
    assert f"{len(wav) / RATE:.2f} s of speech" in err
    assert run("transcribe", sounds / name, *here)[0] == 0
    assert out.endswith("\n")


def test_text_commands_answer(run, tmp_path, saved):
    here = ["--checkpoint", saved]
    assert run("chat", "one two", *here)[0] == 0
    assert run("speak", "three", "-o", tmp_path / "b.flac", *here)[0] == 0
    assert soundfile.info(tmp_path / "b.flac").samplerate == RATE


def test_answers_can_be_cut(run, refused, sounds, saved):
    good, here = sounds / "good.wav", ["--checkpoint", saved]
    status, _, err = run("ask", good, "-o", sounds / "a.wav", "--max_steps", "12", *here)
    assert status == 0 and "the answer was truncated: step limit" in err
    for words in (["ask", good, "-o", sounds / "a.wav"], ["speak", "one", "-o", sounds / "b.wav"], ["chat", "one"],
                  ["transcribe", good]):  # fmt: skip
        status, _, err = run(*words, "--time_limit", "1e-9", *here)
        assert status == 0 and "the answer was truncated: time limit" in err
        assert "time_limit: -1.0; it must be above 0" in refused(*words, "--time_limit", "-1")
        assert "max_steps: 0; it must be 1 or more" in refused(*words, "--max_steps", "0")


def test_bench_of_parts_and_bad_flags(run, refused, saved):
    parts = ["--llm", "qwen2_0.5b", "--codec", "snac_mini", "--size", "tiny", "--seconds", "0.5", "--quick"]
    status, out, err = run("bench", *parts)
    assert status == 0, err
    assert "| peak memory, GiB |" in out
    assert "choices: float32, bfloat16, float16" in refused("bench", *parts, "--dtype", "int8")
    assert "--engine openvino: needs a --checkpoint" in refused("bench", *parts, "--engine", "openvino")
    assert "--threads 0" in refused("bench", "--threads", "0")
    assert "--streams 0: must be 1 or more" in refused("bench", "--streams", "0")
    assert "--seconds 0: must be above 0" in refused("bench", "--seconds", "0")
    assert "longer than the encoder's 4 s" in refused("bench", "--seconds", "9", "--quick", "--checkpoint", saved)


def test_folders_and_files_of_texts(run, refused, sounds, saved, tmp_path):
    here = ["--checkpoint", saved, "--batch_size", "2"]
    for command in ("transcribe", "ask"):
        status, _, err = run(command, sounds, "-o", tmp_path.parent / f"{tmp_path.name}-{command}", *here)
        assert status == 0, err
        assert "2 of 6 done" in err and "2 empty" in err
    (tmp_path / "texts.txt").write_text("one two\nthree\n")
    assert run("speak", tmp_path / "texts.txt", "-o", tmp_path / "said", *here)[0] == 0
    assert soundfile.info(tmp_path / "said" / "00002.wav").samplerate == RATE
    assert "--output is missing" in refused("transcribe", sounds, *here)
    assert "is printed" in refused("transcribe", sounds / "good.wav", "-o", tmp_path, *here)
    assert "--batch_size 0" in refused("speak", tmp_path / "texts.txt", "-o", tmp_path / "x", "--batch_size", "0")
    line = refused("speak", tmp_path / "texts.txt", "-o", tmp_path / "said")
    assert f"checkpoint was {saved}, is None" in line
    line = refused("speak", tmp_path / "texts.txt", "-o", tmp_path / "said", *here, "--time_limit", "9")
    assert "time_limit was None, is 9.0" in line
    assert "no such folder" in refused("speak", tmp_path / "texts.txt", "-o", tmp_path / "y", "--checkpoint", "no")
    assert not (tmp_path / "y").exists()


def test_each_process_of_torchrun_has_its_gpu(monkeypatch):
    assert own_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [own_device(name) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]


def test_info_names_parts_and_sizes(run, saved, tokenizer):
    assert run("info", "--checkpoint", "mini") == run("info", "--checkpoint", checkpoint.SHIPPED) == run("info")
    out = run("info", "--checkpoint", saved)[1]
    assert re.search(r"^codec +mel_rvq +codecs.mel_rvq.MelRVQ", out, re.M)
    assert f"{SentencePieceTokenizer(tokenizer).vocab_size} of the backbone, 64 special" in out
    swapped = run("info", "--codec", "snac_mini", "--pattern", "parallel", "--llm.config.hidden_size", "64")
    assert swapped[0] == 0, swapped[2]
    assert re.search(r"^codec +snac_mini +codecs.snac.SnacCodec", swapped[1], re.M)
    assert "64 wide" in swapped[1]


def test_parts_by_name_answer_untrained(run, sounds):
    parts = ["--llm", "mini", "--llm.config.num_hidden_layers", "1", "--codec", "snac_mini", "--pretrained", "false"]
    status, _, err = run("ask", sounds / "good.wav", "-o", sounds / "a.wav", "--max_steps", "20", *parts)
    assert status == 0, err
    assert "s of speech" in err
    described = run("info", *parts)[1]
    assert "ByteTokenizer, no file" in described
    assert "256 of the backbone" in described


@pytest.mark.parametrize("command", ["ask", "transcribe"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.wav", "no such file"),
        ("words.wav", "not an audio file"),
        ("empty.wav", "empty file"),
        ("silent.wav", "0 samples"),
        ("long.wav", "31.0 s long, the limit is 30 s"),
    ],
)
def test_bad_sound_is_refused(refused, sounds, saved, command, name, words):
    line = refused(command, sounds / name, "--checkpoint", saved)
    assert str(sounds / name) in line
    assert words in line


def test_bad_text_is_refused(refused, saved):
    assert "lacks" in refused("chat", "ONE", "--checkpoint", saved)
    assert "lacks" in refused("speak", "3 §", "--checkpoint", saved)
    assert "empty" in refused("chat", " ", "--checkpoint", saved)


@pytest.mark.parametrize("name", ["hparams.yaml", "model.safetensors", "tokenizer.model"])
def test_a_checkpoint_with_a_piece_missing_is_refused(refused, sounds, saved, tmp_path, name):
    folder = shutil.copytree(saved, tmp_path / "stage")
    (folder / name).unlink()
    assert f"{name} is missing" in refused("ask", sounds / "good.wav", "--checkpoint", folder)


def test_bad_flags_are_refused(refused, sounds, saved, tmp_path):
    good = sounds / "good.wav"
    assert "no such folder" in refused("ask", good, "--checkpoint", tmp_path / "none")
    assert "--device nonsense" in refused("ask", good, "--checkpoint", saved, "--device", "nonsense")
    assert "batch_parallel" in refused("ask", good, "--checkpoint", saved, "--strategy", "batch")
    assert ".wav, .flac" in refused("ask", good, "-o", tmp_path / "a.txt", "--checkpoint", saved)
    assert "did you mean snac_mini" in refused("info", "--codec", "snac_min")
    assert "did you mean codec" in refused("info", "--codek", "snac_mini")
    for command in (["info"], ["ask", good]):
        line = refused(*command, "--codec", "snac_mini", "--checkpoint", saved)
        assert f"--codec snac_mini: the parts of checkpoint {saved} are fixed (its codec is mel_rvq)" in line
    assert "--size tiny: the parts of" in refused("info", "--size", "tiny", "--checkpoint", saved)
    assert "choices: published, tiny" in refused("info", "--size", "small")
    assert "--pretrained 3: must be true or false" in refused("ask", good, "--codec", "snac_mini", "--pretrained", "3")
    assert "stray" in refused("info", "stray")
    assert "AUDIO" in refused("ask")
    assert "aks" in refused("aks")
    assert "--colour" in refused("ask", good, "--colour", "red")


def test_help_states_the_defaults_of_other_modules():
    commands = typer.main.get_command(cli.app).commands
    for command, flag, default in (
        ("ask", "max_steps", Decoding().max_steps),
        ("tokenize", "batch_seconds", BATCH_SECONDS),
        ("tokenize", "shard_size", SHARD_SIZE),
    ):
        [option] = [option for option in commands[command].params if option.name == flag]
        assert option.help.endswith(f"(default: {default:g})")


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, omnikit.cli; sys.argv = ['omnikit', '--help']\n"
        "try: omnikit.cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'transformers', 'speechbrain'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "transcribe" in done.stdout
