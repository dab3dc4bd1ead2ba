"""Tests that effects of data augmentation do what they say, measured on signals, and depend on their seeds alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import butter, correlate, sosfilt

from omnikit.data.augment import (
    Augment,
    Clipping,
    Level,
    LossyFormat,
    Noise,
    Room,
    SeededAugment,
    Silence,
    SpeedChange,
    Telephone,
    named_augment,
)
from omnikit.data.augment.effect import speech_power
from omnikit.data.augment.lossy import FORMATS, decoded
from omnikit.data.augment.noise import add_noise, coloured_noise
from omnikit.data.augment.room import impulse_response
from omnikit.hparams import build_part, choices
from omnikit.hparams.named_parts import AUGMENT
from tests.repository import ROOT

RATE = 16000
QUESTION = ROOT / "egs" / "mini" / "questions" / "sum.wav"


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Return a spoken question [N] at 16 kHz."""
    wav, rate = soundfile.read(QUESTION, dtype="float32")
    assert rate == RATE
    return wav


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def voiced(seconds: float, seed: int = 0) -> np.ndarray:
    """Return noise [N] with the spectrum of speech, most of whose power lies between 200 and 3000 Hz."""
    stages = butter(2, [200, 3000], "bandpass", fs=RATE, output="sos")
    return (0.1 * sosfilt(stages, rng(seed).standard_normal(int(seconds * RATE)))).astype(np.float32)


def in_band(wav: np.ndarray, low: float, high: float) -> float:
    """Return the energy of a waveform between two frequencies in Hz."""
    power = np.abs(np.fft.rfft(wav)) ** 2
    hertz = np.fft.rfftfreq(len(wav), 1 / RATE)
    return float(power[(hertz >= low) & (hertz < high)].sum())


def decibel(ratio: float) -> float:
    return 10 * np.log10(ratio)


@pytest.mark.parametrize("snr_db", [5.0, 15.0, 20.0])
def test_level_of_added_noise(snr_db: float):
    wav = 0.1 * np.sin(np.arange(32000) * 0.1).astype(np.float32)
    noise = add_noise(wav, snr_db, rng(1)) - wav
    assert decibel(np.mean(wav**2) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.05)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_colour(exponent: float):
    noise = coloured_noise(1 << 17, exponent, rng(2))
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [power[2**k : 2 ** (k + 1)].mean() for k in range(6, 16)]
    slope = np.polyfit(np.arange(10), np.log2(octaves), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.1)


def test_noise_never_clips():
    loud = np.sign(np.sin(np.arange(16000) * 0.05)).astype(np.float32)
    assert np.abs(add_noise(loud, 3.0, rng(3))).max() <= 1.0


@pytest.mark.parametrize("snr_db", [5.0, 20.0])
def test_the_ratio_of_noise_is_that_to_speech_without_pauses(snr_db: float):
    wav, pause = 0.5 * voiced(1.0), np.zeros(RATE, np.float32)
    effect = Noise(probability=1, snr_db=(snr_db, snr_db))
    for around in (wav, np.concatenate([pause, wav, pause])):
        added = effect.apply(around, RATE, rng(), **effect.draw(rng(1))) - around
        assert decibel(np.mean(wav**2) / np.mean(added**2)) == pytest.approx(snr_db, abs=0.5)


def test_noise_on_silence_and_on_nothing():
    effect = Noise(probability=1, snr_db=(5, 5), exponent=(1, 1))
    assert not effect.apply(np.zeros(5000, np.float32), RATE, rng(), snr_db=5.0, exponent=1.0).any()
    assert not len(effect.apply(np.zeros(0, np.float32), RATE, rng(), snr_db=5.0, exponent=1.0))
    assert speech_power(np.zeros(0, np.float32), RATE) == 0 and speech_power(np.ones(3), RATE) == 1


def measured_rt60(response: np.ndarray) -> float:
    """Return the reverberation time from the slope of Schroeder's backward integral between -5 and -25 dB."""
    decay = np.cumsum(response[:0:-1].astype(np.float64) ** 2)[::-1]  # without the direct sound
    level = 10 * np.log10(decay / decay[0] + 1e-12)
    first, last = np.argmax(level < -5), np.argmax(level < -25)
    return -60 / np.polyfit(np.arange(first, last) / RATE, level[first:last], 1)[0]


@pytest.mark.parametrize("rt60", [0.2, 0.4, 0.8])
@pytest.mark.parametrize("drr_db", [-3.0, 10.0])
def test_a_room_has_its_reverberation_time_and_ratio(rt60: float, drr_db: float):
    found = []
    for seed in range(5):
        response = impulse_response(rt60, drr_db, RATE, rng(seed))
        found.append(measured_rt60(response))
        assert decibel(response[0] ** 2 / np.sum(response[1:] ** 2)) == pytest.approx(drr_db, abs=0.01)
        assert not response[1:32].any()  # reflections come 2 ms after the direct sound
        assert found[-1] == pytest.approx(rt60, rel=0.2)
        early = response[32:320] != 0
        assert 0.01 < early.mean() < 0.5 and (response[900:] != 0).all()
    assert np.mean(found) == pytest.approx(rt60, rel=0.1)


def test_a_room_keeps_time_length_and_loudness(speech):
    effect = Room(probability=1, rt60=(0.5, 0.5), drr_db=(3.0, 3.0))
    wet = effect.apply(speech, RATE, rng(), **effect.draw(rng(7)))
    assert wet.dtype == np.float32 and len(wet) == len(speech)
    assert np.argmax(correlate(wet, speech)) == len(speech) - 1
    assert decibel(speech_power(wet, RATE) / speech_power(speech, RATE)) == pytest.approx(0, abs=0.1)
    again = effect.apply(speech[:8000], RATE, rng(5), **effect.draw(rng(7)))
    assert np.allclose(again / again[:4000].std(), wet[:8000] / wet[:4000].std(), atol=1e-3)  # the same room


def test_gain():
    effect = Level(probability=1, gain_db=(-12, -12))
    wav = voiced(0.5)
    assert decibel(np.mean(effect.apply(wav, RATE, rng(), **effect.draw(rng())) ** 2) / np.mean(wav**2)) == (
        pytest.approx(-12, abs=0.01)
    )
    assert np.abs(Level(probability=1, gain_db=(0, 60)).apply(wav, RATE, rng(), gain_db=60.0)).max() == (
        pytest.approx(1.0)
    )


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2])
def test_share_of_clipped_samples(share: float):
    wav = voiced(1.0)
    clipped = Clipping(probability=1, share=(0, 1)).apply(wav, RATE, rng(), share=share)
    assert np.mean(np.abs(clipped) >= np.abs(clipped).max()) == pytest.approx(share, abs=2 / len(wav))
    assert np.array_equal(clipped != wav, np.abs(wav) > np.abs(clipped).max())


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_speed_changes_length_and_pitch(factor: float):
    wav = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
    effect = SpeedChange(probability=1, factor=(factor, factor))
    changed = effect.apply(wav, RATE, rng(), **effect.draw(rng()))
    assert abs(len(changed) - RATE / factor) <= 1 and len(changed) <= effect.longest(RATE, RATE)
    peak = np.argmax(np.abs(np.fft.rfft(changed))) * RATE / len(changed)
    assert peak == pytest.approx(1000 * factor, abs=2)


def test_silence_around_speech():
    wav, effect = voiced(0.5) + 1, Silence(probability=1, seconds=(0.1, 0.4))
    lengths = set()
    for seed in range(20):
        padded = effect.apply(wav, RATE, rng(seed))
        inside = np.flatnonzero(padded)
        before, after = inside[0], len(padded) - 1 - inside[-1]
        assert np.array_equal(padded[before : before + len(wav)], wav)
        assert all(0.1 * RATE - 1 <= each <= 0.4 * RATE for each in (before, after))
        assert len(padded) <= effect.longest(len(wav), RATE)
        lengths |= {before, after}
    assert len(lengths) == 40


@pytest.mark.parametrize("name", ["none", "ulaw", "alaw", "gsm", "mp3", "opus"])
@pytest.mark.parametrize("line", [False, True])
def test_a_telephone_has_no_energy_above_4_khz(name: str, line: bool):
    wav = coloured_noise(2 * RATE, 0.0, rng()) * 0.1
    narrow = Telephone(probability=1).apply(wav, RATE, rng(), line=line, name=name, strength=0.5)
    assert len(narrow) == len(wav)
    before, after = (in_band(each, 4000, 8000) for each in (wav, narrow))
    assert decibel(after / before) < -30
    # half of the white noise is left, which the voice model of GSM and low rates of opus render badly
    kept = decibel(in_band(narrow, 500, 3000) / in_band(wav, 500, 3000))
    assert kept == pytest.approx(0, abs=0.3 if name in ("none", "ulaw", "alaw") else 6)
    low = decibel(in_band(narrow, 20, 200) / in_band(wav, 20, 200))
    assert (low < -10) == line or name in ("gsm", "opus")


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("samples", [1, 700, 5001, 100000])
def test_formats_lose_something_and_keep_time(name: str, samples: int, speech):
    wav = np.resize(speech, samples)
    for strength in (0.0, 1.0):
        found = decoded(wav, RATE, name, strength)
        assert found.dtype == np.float32 and len(found) == samples and np.isfinite(found).all()
        if samples > 5000:
            assert np.argmax(np.abs(correlate(found, wav))) == samples - 1
            lost = decibel(np.mean((found - wav) ** 2) / np.mean(wav**2))
            assert -45 < lost < 3
    loud = np.full(4000, 1.5, np.float32)
    assert decoded(loud, RATE, name, 0.0)[1000:3000].min() > 0 or name in ("gsm", "opus")  # nothing wraps around


def test_probabilities_are_met_and_independent():
    counts = dict.fromkeys(("a", "b"), 0)
    noise = Noise(probability=0.3, snr_db=(0, 10))
    for seed in range(2000):
        for name in Augment(a=Level(probability=0.7, gain_db=(0, 1)), b=noise).draw(rng(seed)):
            counts[name] += 1
    assert counts["a"] == pytest.approx(1400, abs=70) and counts["b"] == pytest.approx(600, abs=70)
    for probability in (0.0, 0.5, 1.0):  # the settings of others stay as they are
        found = Augment(a=Level(probability=probability, gain_db=(0, 9)), b=Noise(probability=1, snr_db=(0, 9)))
        assert (
            found.draw(rng(4))["b"]
            == Augment(a=Level(probability=1, gain_db=(0, 9)), b=Noise(probability=1, snr_db=(0, 9))).draw(rng(4))["b"]
        )


@pytest.mark.parametrize("name", choices(AUGMENT))
def test_presets_change_speech_and_depend_on_their_keys_alone(name: str, speech):
    augment = SeededAugment(named_augment(name), 3)
    made = {(key, copy): augment(speech, RATE, key, copy) for key in ("a", "b", "c") for copy in (1, 2)}
    again = SeededAugment(named_augment(name), 3)
    for (key, copy), wav in reversed(made.items()):
        assert np.array_equal(again(speech, RATE, key, copy), wav) and wav.dtype == np.float32
        assert np.abs(wav).max() <= 1.5 and np.isfinite(wav).all()
    assert len({wav.tobytes() for wav in made.values()}) == 6
    assert not np.array_equal(SeededAugment(named_augment(name), 4)(speech, RATE, "a", 1), made["a", 1])


def test_turns_of_a_dialog_share_settings_but_not_noise(speech):
    noise = Noise(probability=0.5, snr_db=(0, 30))
    augment = SeededAugment(Augment(noise=noise, level=Level(probability=1, gain_db=(-20, 0))))
    noisy = alike = 0
    for copy in range(8):
        turns = [augment(speech, RATE, turn, copy, dialog="d") for turn in ("t0", "t1")]
        others = [augment(speech, RATE, turn, copy) for turn in ("t0", "t1")]
        together, apart = (wavs[0].std() / wavs[1].std() for wavs in (turns, others))
        assert together == pytest.approx(1, abs=0.05)
        noisy += not np.array_equal(*turns)
        alike += apart == pytest.approx(1, abs=0.05)
    assert 0 < noisy < 8 and alike < 3


def test_an_effect_that_the_encoder_would_refuse_is_left_out(speech):
    longer = Augment(silence=Silence(probability=1, seconds=(0.5, 0.5)), level=Level(probability=1, gain_db=(-6, -6)))
    limit = len(speech) + 100
    wav = longer(speech, RATE, rng(), accepts=lambda samples: samples <= limit)
    assert len(wav) == len(speech) and np.allclose(wav, speech * 10 ** (-6 / 20), atol=1e-6)
    assert longer.longest(len(speech), RATE) == len(speech) + RATE
    assert longer.longest(len(speech), RATE, lambda samples: samples <= limit) == limit
    assert len(longer(speech, RATE, rng())) == len(speech) + RATE


def test_effects_by_name_and_file(tmp_path: Path):
    assert choices(AUGMENT) == ["rooms", "telephone"]
    assert named_augment(None) is None and named_augment(named := Augment()) is named
    (tmp_path / "mine.yaml").write_text(
        "!new:omnikit.data.augment.Augment\n"
        "level: !new:omnikit.data.augment.Level {probability: 1, gain_db: [-9, -9]}\n"
    )
    mine = named_augment(str(tmp_path / "mine.yaml"))
    assert mine.draw(rng()) == {"level": {"gain_db": -9.0}}
    louder = build_part(AUGMENT, "rooms", **{"level.gain_db": [0, 1], "noise": None})
    assert louder.effects["level"].gain_db == (0, 1) and "noise" not in louder.effects
    assert louder.fingerprint != named_augment("rooms").fingerprint == named_augment("rooms").fingerprint
    with pytest.raises(ValueError, match=r"--augment room: no such augment.*rooms"):
        named_augment("room")
    with pytest.raises(ValueError, match=r"--augment \['rooms'\]: must name a file in hparams/augment"):
        named_augment(["rooms"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Level(probability=1.5, gain_db=(0, 1)), "--augment.level.probability 1.5: must be at most 1"),
        (lambda: Noise(probability=1, snr_db=(20, 5)), r"--augment.noise.snr_db \[20, 5\]: must be a range, the lower"),
        (
            lambda: Room(probability=1, rt60=0.4, drr_db=(0, 1)),
            "--augment.room.rt60 0.4: must be a range of two",
        ),
        (lambda: SpeedChange(probability=1, factor=(0, 1)), "--augment.speed.factor 0: must be 0.1 or more"),
        (lambda: Silence(probability=1, seconds=(-1, 1)), "--augment.silence.seconds -1: must be 0 or more"),
        (lambda: Clipping(probability=1, share=(0, "x")), "--augment.clipping.share x: must be a finite number"),
        (lambda: LossyFormat(probability=1, formats=["mp4"]), "--augment.format.formats mp4: no such format.*mp3"),
        (lambda: LossyFormat(probability=1, formats="mp3"), "--augment.format.formats mp3: must be a list of formats"),
        (lambda: Telephone(probability=1, band=(300, 5000)), "--augment.telephone.band 5000: must be at most 3999"),
        (lambda: Augment(level=3), "--augment.level 3: is no effect"),
    ],
)
def test_bad_options_are_told(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
