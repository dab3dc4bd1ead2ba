"""Test the contract of every audio encoder that has a part file in `hparams/encoder`; a new one is covered by its file.
"""

from __future__ import annotations

import functools
import re

import pytest
import torch

from omnikit.hparams import build_part, choices, pick
from omnikit.interfaces import AudioEncoder, count_parameters

NAMES = [name for name in choices("encoder") if name != "none"]


@functools.lru_cache(maxsize=2)
def encoder(name: str) -> AudioEncoder:
    torch.manual_seed(0)
    size = {"size": "tiny"} if "size" in pick("encoder", name) else {}
    return build_part("encoder", name, **size).eval()


def shortest(net: AudioEncoder) -> int:
    """Return the length in samples of the shortest recording that an encoder takes, as its error message says."""
    with pytest.raises(ValueError, match=r"^a recording of 1 samples is shorter than one frame \(\d+ samples\)$") as no:
        cached_features(net, torch.zeros(2, 4000), [4000, 1])
    return int(re.findall(r"\d+", str(no.value))[-1])


def cached_features(net: AudioEncoder, wav: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        return net(wav, torch.tensor(lengths))


def sounds(lengths: list[int]) -> list[torch.Tensor]:
    """Return waveforms of noise with an offset and very different loudness."""
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, generator=generator) + 0.3) * 0.5 ** (i % 4) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_as_many_as_it_says(name):
    net = encoder(name)
    least, counts = shortest(net), []
    for samples in (least, least + 321, 16001):
        features, (frames,) = cached_features(net, sounds([samples])[0][None], [samples])
        assert features.shape == (1, frames, net.dim)
        assert abs(int(frames) - samples / net.sample_rate * net.frame_rate) < 2
        counts.append(int(frames))
    assert counts[0] >= 1
    assert counts == sorted(counts)
    with pytest.raises(ValueError, match=f"^a recording of {least - 1} samples is shorter than one frame"):
        cached_features(net, torch.zeros(2, 4000), [4000, least - 1])


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    net = encoder(name)
    lengths = [5000, shortest(net), 9999, 5000]
    wavs = sounds(lengths)
    batch = torch.full((len(wavs), 12000), 0.7)
    for row, wav in zip(batch, wavs, strict=True):
        row[: len(wav)] = wav
    features, frames = cached_features(net, batch, lengths)
    assert frames.max() == features.shape[1]
    for wav, row, count in zip(wavs, features, frames, strict=True):
        alone, (n,) = cached_features(net, wav[None], [len(wav)])
        assert n == count
        assert alone.std() > 0
        torch.testing.assert_close(row[:count], alone[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_features_do_not_depend_on_the_mode(name):
    net, wav = encoder(name), sounds([8000])[0][None]
    evaluated, _ = cached_features(net, wav, [8000])
    with torch.no_grad():
        trained, _ = net.train()(wav, torch.tensor([8000]))
    net.eval()
    torch.testing.assert_close(trained, evaluated, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_it_has_its_numbers_at_true_size(name):
    tiny = encoder(name)
    with torch.device("meta"):
        net = build_part("encoder", name)
    assert (net.sample_rate, net.frame_rate) == (tiny.sample_rate, tiny.frame_rate) and net.frame_rate > 0
    assert type(net) is type(tiny)
    if "size" in pick("encoder", name):
        assert net.dim > tiny.dim and count_parameters(net) > 20 * count_parameters(tiny)
        with pytest.raises(ValueError, match=r"size 'small': no such size \(choices: published, tiny\)"):
            build_part("encoder", name, size="small")


def test_no_encoder_says_so():
    with pytest.raises(ValueError, match="encoder: this system has none; give it features, not recordings"):
        build_part("encoder", "none")(torch.zeros(1, 16000), torch.tensor([16000]))
