"""The k-means codec: it finds its codebooks, gives back what it was given, and streams exactly."""

from __future__ import annotations

import pytest
import torch

from omnikit.codecs.mel_rvq import MelRVQ, kmeans, nearest
from omnikit.codecs.rtisi import PhaseSearch
from omnikit.weights import save_weights


def tones(count: int, seed: int = 0, samples: int = 6400) -> list[torch.Tensor]:
    """Gliding tones with two overtones."""
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
    """Distance of two waveforms' magnitudes, relative to the first's."""
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
    """Most random starts of 8 centres among 8 x 20 equal points take some point twice and leave others out."""
    # whole numbers: with rounding, equal points may fall to different ones of two equal centres
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
    """From the true magnitudes the search must get back a signal that has them."""
    wav = tones(1, seed=3)[0][None]
    wanted = codec.magnitudes(wav)
    search = codec.phase_search(1)
    columns = torch.cat([wanted * (codec.window.sum() / 2), torch.zeros(1, 8, wanted.shape[-1])], dim=1)
    sound = torch.cat([search.push(column) for column in columns.unbind(1)], dim=-1)
    assert loudness_error(codec, wav, sound[:, codec.lookahead :][:, : wav.shape[-1]]) < 0.15


def test_batch_rows_sound_like_single_ones(codec):
    """Not the same samples: the phase search is chaotic, and a batch rounds differently."""
    codes = codec.encode(torch.stack(tones(3)))
    together = codec.decode(codes)
    for row, wav in zip(codes, together, strict=True):
        assert loudness_error(codec, codec.decode(row[None]), wav[None]) < 0.2
    assert loudness_error(codec, together[:1], together[1:2]) > 0.5


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
