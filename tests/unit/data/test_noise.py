"""Tests of the level and the spectrum of noise that is added to recordings."""

from __future__ import annotations

import numpy as np
import pytest

from omnikit.data.noise import add_noise, coloured_noise


@pytest.mark.parametrize("snr_db", [5.0, 15.0, 20.0])
def test_level(snr_db: float):
    wav = 0.1 * np.sin(np.arange(32000) * 0.1).astype(np.float32)
    noise = add_noise(wav, snr_db, np.random.default_rng(1)) - wav
    assert 10 * np.log10(np.mean(wav**2) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.05)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_colour(exponent: float):
    noise = coloured_noise(1 << 17, exponent, np.random.default_rng(2))
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [power[2**k : 2 ** (k + 1)].mean() for k in range(6, 16)]
    slope = np.polyfit(np.arange(10), np.log2(octaves), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.1)


def test_never_clips():
    loud = np.sign(np.sin(np.arange(16000) * 0.05)).astype(np.float32)
    assert np.abs(add_noise(loud, 3.0, np.random.default_rng(3))).max() <= 1.0
