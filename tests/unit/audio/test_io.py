"""Test reading and writing audio files, and which audio files are refused."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from omnikit.audio.io import load_audio, save_audio

RATE = 16000


def tone(rate: int, seconds: float = 1.0, hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_every_rate_gives_the_same_tone(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate), rate)
    wav = load_audio(tmp_path / "a.wav", RATE)
    assert wav.dtype == torch.float32
    assert abs(len(wav) - RATE) <= 2
    middle = slice(2000, 14000)
    assert np.allclose(wav[middle], tone(RATE)[middle], atol=2e-3)


def test_channels_are_mixed(tmp_path):
    left = tone(RATE)
    soundfile.write(tmp_path / "a.flac", np.stack([left, -left], axis=1), RATE)
    assert load_audio(tmp_path / "a.flac", RATE).abs().max() < 1e-4
    soundfile.write(tmp_path / "b.flac", np.stack([left, 0 * left], axis=1), RATE)
    assert np.allclose(load_audio(tmp_path / "b.flac", RATE), left / 2, atol=1e-4)


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_what_is_written_is_read_back_and_too_loud_is_clipped(tmp_path, ending):
    wav = torch.from_numpy(tone(RATE)).float()
    wav[100] = 1.7
    save_audio(tmp_path / f"a.{ending}", wav[None], RATE)
    back = load_audio(tmp_path / f"a.{ending}", RATE)
    assert torch.allclose(back, wav.clamp(-1, 1), atol=1e-4)


def refused(path, **options) -> str:
    with pytest.raises(ValueError) as error:
        load_audio(path, RATE, **options)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_bad_files_are_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "none.wav")
    assert "folder" in refused(tmp_path)
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan, 0.2]), 16000, subtype="FLOAT")
    assert "nan.wav: holds samples that are no numbers" in refused(tmp_path / "nan.wav")
    (tmp_path / "empty.wav").touch()
    assert "empty" in refused(tmp_path / "empty.wav")
    (tmp_path / "text.wav").write_text("these are words, not sound")
    assert "not an audio file" in refused(tmp_path / "text.wav")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE)
    assert "0 samples" in refused(tmp_path / "none.wav")


def test_the_limit_is_named_and_can_be_lifted(tmp_path):
    soundfile.write(tmp_path / "long.wav", tone(8000, 31), 8000)
    message = refused(tmp_path / "long.wav")
    assert "31.0 s" in message
    assert "30 s" in message
    assert len(load_audio(tmp_path / "long.wav", RATE, max_seconds=None)) == 31 * RATE


def test_bad_targets_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.wav, \.flac"):
        save_audio(tmp_path / "a.docx", torch.zeros(3), RATE)
    with pytest.raises(ValueError, match="no such folder"):
        save_audio(tmp_path / "b" / "a.wav", torch.zeros(3), RATE)
