"""Test the audio codec `MelRVQ`: fitting of codebooks, resynthesis, the phase search, and exact streaming."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from omnikit.codecs.mel_rvq import MelRVQ, kmeans, nearest
from omnikit.codecs.rtisi import PhaseSearch
from omnikit.weights import save_weights


def tones(count: int, seed: int = 0, samples: int = 6400) -> list[torch.Tensor]:
    """Return waveforms of gliding tones with two overtones."""
    rng = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16000
    starts = 150 + 600 * torch.rand(count, generator=rng)
    wavs = []
    for start in starts:
        phase = 2 * torch.pi * (start * time + 200 * time.square())
        wavs.append(0.2 * sum(torch.sin(n * phase) / n for n in (1, 2, 3)))
    return wavs


@pytest.fixture(scope="module")
def codec() -> MelRVQ:
    torch.manual_seed(0)
    codec = MelRVQ(16000, n_mels=40, n_fft=512, patch=10, num_codebooks=3, codebook_size=16, iterations=4)
    codec.fit(tones(30), rounds=5)
    return codec


def loudness_error(codec: MelRVQ, wav: torch.Tensor, other: torch.Tensor) -> float:
    """Return the distance of the magnitude spectra of two waveforms, divided by the norm of the first spectrum."""
    ours, theirs = codec.magnitudes(wav), codec.magnitudes(other)
    return ((ours - theirs).norm() / ours.norm()).item()


def test_each_codebook_leaves_less():
    codec = MelRVQ(16000, n_mels=40, n_fft=512, patch=10, num_codebooks=3, codebook_size=16)
    left = codec.fit(tones(30), rounds=5)
    assert left == sorted(left, reverse=True) and left[0] < 0.5 and left[-1] < 0.15


def test_fit_wants_enough_audio():
    codec = MelRVQ(16000, n_mels=40, n_fft=512, patch=10, num_codebooks=1, codebook_size=16)
    with pytest.raises(ValueError, match="5 patches are too few for 16 codes"):
        codec.fit(tones(1))


def test_fit_is_repeatable(codec):
    again = MelRVQ(16000, n_mels=40, n_fft=512, patch=10, num_codebooks=3, codebook_size=16)
    again.fit(tones(30), rounds=5)
    assert torch.equal(again.codebooks, codec.codebooks)


def test_nearest_against_slow_twin():
    points, codebook = torch.randn(2, 9, 5), torch.randn(7, 5)
    slowly = [[min(range(7), key=lambda c: (p - codebook[c]).square().sum().item()) for p in row] for row in points]
    assert nearest(points, codebook).tolist() == slowly


@pytest.mark.parametrize("seed", range(10))
def test_kmeans_moves_empty_centres_until_every_point_has_its_own(seed: int):
    """K-means finds all of 8 distinct points with 20 copies each, although most random starts draw some of them twice.
    """
    # integers: with rounding, equal points may be assigned to different ones of two equal centres
    distinct = torch.randint(-9, 10, (8, 5), generator=torch.Generator().manual_seed(seed)).float()
    points = distinct.repeat_interleave(20, 0)
    found = kmeans(points, 8, 100, torch.Generator().manual_seed(0))
    assert torch.allclose(found[nearest(points, found)], points, atol=1e-5)


def test_resynthesis_is_near_the_original(codec):
    wav = tones(1)[0][None]
    back = codec.decode(codec.encode(wav))
    other = codec.decode(codec.encode(tones(2, seed=5)[1][None]))
    assert loudness_error(codec, wav, back) < 0.7 < loudness_error(codec, wav, other)


def test_phase_search_alone_is_nearly_exact(codec):
    """The phase search converts the magnitude spectra of a waveform to a waveform with nearly the same magnitudes."""
    wav = tones(1, seed=3)[0][None]
    wanted = codec.magnitudes(wav)
    search = codec.phase_search()
    columns = torch.cat([wanted * (codec.window.sum() / 2), torch.zeros(1, 8, wanted.shape[-1])], dim=1)
    sound, _ = search.push(search.begin(), columns)
    assert loudness_error(codec, wav, sound[:, codec.lookahead :][:, : wav.shape[-1]]) < 0.15


def in_pairs(search: PhaseSearch, magnitudes: torch.Tensor) -> torch.Tensor:
    """Convert magnitude spectra [T, F] to a waveform by a slow, simple implementation of the phase search.

    It works frame by frame, with complex signs and loops over the overlapping frames.
    """
    window, hop, n = search.window.double(), search.hop, len(search.window)
    active, scale = n // hop, search.scale.double()
    frames, past, out = torch.zeros(active, n).double(), torch.zeros(2 * n).double(), []

    def laid_out() -> torch.Tensor:
        signal = past.clone()
        for number, frame in enumerate(frames):
            signal[number * hop : number * hop + n] += frame
        return signal

    def analysed() -> torch.Tensor:
        signal = laid_out()
        pieces = [signal[number * hop : number * hop + n] for number in range(active)]
        return torch.fft.rfft(torch.stack(pieces) * window * scale)

    wanted = torch.zeros(active, n // 2 + 1).double()
    for column in magnitudes.double():
        frames, wanted = torch.cat([frames[1:], 0 * frames[:1]]), torch.cat([wanted[1:], column[None]])
        before = analysed()
        spectrum = (before + search.start).sgn() * wanted
        for round_ in range(search.iterations):
            frames = torch.fft.irfft(spectrum, n=n) * window
            now = analysed()
            spectrum = (now + (search.momentum if round_ else 0) * (now - before)).sgn() * wanted
            before = now
        frames = torch.fft.irfft(spectrum, n=n) * window
        past[:n] += frames[0]
        out.append(past[:hop] * scale)
        past = torch.cat([past[hop:], 0 * past[:hop]])
    return torch.cat(out)


@pytest.mark.parametrize("n_fft, hop", [(64, 16), (40, 20), (48, 8)])
def test_phase_search_against_slow_twin(n_fft, hop):
    """The phase search gives the same waveform as its simple implementation, in double precision.

    Rounding errors are amplified by the search.
    """
    search = PhaseSearch(torch.hann_window(n_fft).double(), hop=hop, iterations=3)
    magnitudes = torch.rand(3, 12, n_fft // 2 + 1, generator=torch.Generator().manual_seed(0)).double()
    first, state = search.push(search.begin(3), magnitudes[:, :5])
    sound = torch.cat([first, search.push(state, magnitudes[:, 5:])[0]], dim=-1)
    for row, own in zip(sound, magnitudes, strict=True):
        assert own.std() > 0 and torch.allclose(row, in_pairs(search, own), atol=1e-7)


def test_silence_is_silent():
    search = PhaseSearch(torch.hann_window(64), hop=16, iterations=3)
    sound, state = search.push(search.begin(2), torch.zeros(2, 9, 33))
    assert not sound.any() and all(tensor.isfinite().all() for tensor in state)


SIZES = [(512, 40, 10), (40, 7, 1), (88, 20, 3), (104, 13, 2)]
IN_BATCHES = """
import torch
from omnikit.codecs.mel_rvq import MelRVQ
torch.manual_seed(0)
codec = MelRVQ(16000, n_mels=13, n_fft=640, patch=1, num_codebooks=3, codebook_size=16, iterations=2)
codes = torch.randint(16, (17, 3, 2))
whole = codec.decode(codes)
for threads in (1, 2):
    torch.set_num_threads(threads)
    for rows in (slice(0, 1), slice(16, 17), slice(5, 7), slice(0, 16), slice(0, 17)):
        assert torch.equal(codec.decode(codes[rows]), whole[rows]), (threads, rows)
"""


@pytest.mark.parametrize("n_fft, n_mels, patch", SIZES)
def test_rows_have_the_bits_that_they_have_alone(n_fft, n_mels, patch):
    """Decoding codes gives each waveform of a batch the same bits as alone, at any batch size and place in the batch.

    Torch computes the end of a tensor, which does not fill a vector register, by other code than its middle.
    """
    torch.manual_seed(n_fft)
    codec = MelRVQ(16000, n_mels=n_mels, n_fft=n_fft, patch=patch, num_codebooks=3, codebook_size=16, iterations=3)
    codes = torch.randint(16, (33, 3, 3))
    whole = codec.decode(codes)
    assert torch.equal(whole, torch.cat([codec.decode(row[None]) for row in codes]))
    for rows in (2, 3, 5, 8, 13, 16, 17, 24, 31, 32):
        order = torch.randperm(33)[:rows]
        assert torch.equal(codec.decode(codes[order]), whole[order]), rows


@pytest.mark.parametrize("kind", [pytest.param("default", marks=pytest.mark.long), "avx2", None])
def test_rows_have_the_same_bits_with_any_threads_and_instructions(kind):
    """Decoding codes gives the same bits with any number of threads and any CPU instruction set.

    Each case runs in its own process, because torch chooses its instructions once.
    """
    chosen = {} if kind is None else {"ATEN_CPU_CAPABILITY": kind}
    subprocess.run([sys.executable, "-c", IN_BATCHES], env={**os.environ, **chosen}, check=True)


def test_numbers():
    codec = MelRVQ(16000, n_mels=80, n_fft=1024, patch=5, num_codebooks=7, codebook_size=256)
    assert (codec.frame_samples, codec.frame_rate, codec.hop) == (1280, 12.5, 256)
    assert sorted(codec.state_dict()) == ["codebooks"]


def test_more_codebooks_than_the_weights_have(tmp_path):
    sizes = {"n_mels": 40, "n_fft": 512, "patch": 10, "codebook_size": 16}
    save_weights(MelRVQ(16000, num_codebooks=3, **sizes), tmp_path)
    codec = MelRVQ(16000, num_codebooks=4, **sizes, weights=str(tmp_path))
    with pytest.raises(ValueError, match=rf"codec.num_codebooks 4: {tmp_path} has 3 codebooks"):
        codec.load_weights()


def test_hop_must_divide_the_window():
    with pytest.raises(ValueError, match="hop 100"):
        PhaseSearch(torch.hann_window(512), hop=100, iterations=1)
