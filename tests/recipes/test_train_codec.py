"""Tests of the training of the mini system's audio codecs, as a short run on tones in LibriSpeech's layout."""

import pytest
import soundfile
import torch
from safetensors.torch import load_file

SCRIPT = "egs/mini/train_codec.py"
SMALL_SNAC = """
codec.encoder_dim: 4
codec.decoder_dim: 32
codec.codebook_size: 16
codec.codebook_dim: 4
epoch_steps: 2
batch_size: 2
crop_frames: 2
start_crops: 4
joint_epochs: 1
"""


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Folder of a corpus of gliding tones, eight seconds for training and two for validation."""
    data, time = tmp_path_factory.mktemp("data"), torch.arange(16000) / 16000
    for split, count in (("train-voice", 8), ("dev-voice", 2)):
        folder = data / "corpus" / split / "1" / "1"
        folder.mkdir(parents=True)
        for i in range(count):
            wav = 0.3 * torch.sin(2 * torch.pi * (150 + 40 * i + 100 * time) * time)
            soundfile.write(folder / f"1-1-{i:04d}.flac", wav.numpy(), 16000)
    return data


@pytest.fixture
def train(run_here, tones, tmp_path):
    """Function that trains the named audio codec, and returns exit status, stdout and stderr of the script."""

    def call(name: str, *arguments):
        folders = ("--data_folder", tones, "--output_folder", tmp_path / "run", "--export_folder", tmp_path / "weights")
        return run_here(SCRIPT, f"hparams/codec_{name}.yaml", *arguments, *folders)

    return call


def test_mel_rvq_is_fitted(train, tmp_path):
    sizes = ("--codec.codebook_size", "16", "--codec.num_codebooks", "2", "--rounds", "3")
    status, out, err = train("mel_rvq", *sizes)
    assert status == 0, err
    assert "codebook 2:" in out
    assert load_file(tmp_path / "weights" / "model.safetensors")["codebooks"].shape == (2, 16, 640)


def test_snac_mini_learns_in_two_phases_and_resumes(train, tmp_path):
    """A codec training that is resumed after its first phase trains only the decoder, like an uninterrupted one."""
    small = tmp_path / "small.yaml"
    small.write_text(SMALL_SNAC, encoding="utf-8")
    states = []
    for epochs in (1, 2):
        status, _, err = train("snac_mini", small, "--epochs", str(epochs))
        assert status == 0, err
        states.append(load_file(tmp_path / "weights" / "model.safetensors"))
    log = (tmp_path / "run" / "train_log.txt").read_text(encoding="utf-8")
    assert [line.split(",")[0] for line in log.splitlines()] == ["epoch: 1", "epoch: 2"]
    first, second = states
    changed = {name.split(".")[1] for name in first if not torch.equal(first[name], second[name])}
    assert changed == {"decoder"}
    status, _, err = train("snac_mini", small, "--codec.codebook_size", "32")
    assert status == 2 and err.splitlines()[-1].endswith("delete it to begin anew")
    assert "another run (codec is codebook_size 16 there and codebook_size 32 here)" in err


def test_no_recordings(run_here, tmp_path):
    folders = ("--data_folder", tmp_path, "--output_folder", tmp_path / "run")
    status, _, err = run_here(SCRIPT, "hparams/codec_mel_rvq.yaml", *folders)
    assert status == 2
    assert "no flac files below" in err and "Traceback" not in err
