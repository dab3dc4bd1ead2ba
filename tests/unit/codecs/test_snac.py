"""Test the audio codec SNAC, whose codes of several frame rates are packed into a rectangular matrix.

Packing is compared with a simple implementation, decoding with the package snac, and streaming with decoding at once.
"""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from codec_tools import in_chunks
from snac import SNAC

from omnikit.codecs.snac import SnacCodec, depth_first
from omnikit.hparams import build_part
from omnikit.interfaces import count_parameters

SMALL = {
    "encoder_dim": 4,
    "encoder_rates": [2, 4, 5],
    "decoder_dim": 16,
    "decoder_rates": [5, 4, 2],
    "attn_window_size": None,
    "codebook_size": 16,
    "codebook_dim": 4,
    "depthwise": True,
}


def small_codec(strides=(4, 2, 1), noise=False, gain=1.2, **changes) -> SnacCodec:
    torch.manual_seed(0)
    codec = SnacCodec(16000, vq_strides=list(strides), noise=noise, **{**SMALL, **changes}).eval()
    for name, parameter in codec.named_parameters():
        if name.endswith("original0"):  # the gain of the weight norm; without it a random network is nearly silent
            parameter.data.mul_(gain)
    return codec


def windowed(window: int | None) -> dict:
    """Return the options of a SNAC codec with local attention, whose heads have width 64; empty if `window` is None."""
    return {} if window is None else {"attn_window_size": window, "encoder_dim": 8, "decoder_dim": 64}


def pack_slowly(codes: list[list[int]], strides: list[int], frame: int) -> list[int]:
    """Return one frame of SNAC's code matrix by a recursive implementation of `SnacCodec.pack`."""
    if len(strides) == 1:
        return [codes[0][frame]]
    fan = strides[0] // strides[1]
    children = [pack_slowly(codes[1:], strides[1:], frame * fan + child) for child in range(fan)]
    return [codes[0][frame], *itertools.chain(*children)]


def random_lists(strides, batch: int, frames: int) -> list[torch.Tensor]:
    return [torch.randint(16, (batch, frames * strides[0] // stride)) for stride in strides]


@pytest.mark.parametrize("strides", [(1,), (2, 1), (4, 2, 1), (8, 4, 2, 1), (6, 3, 1), (4, 4, 1)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_pack_against_slow_twin(strides, batch, frames):
    codec = small_codec(strides)
    lists = random_lists(strides, batch, frames)
    packed = codec.pack(lists)
    for b in range(batch):
        columns = [pack_slowly([level[b].tolist() for level in lists], list(strides), t) for t in range(frames)]
        assert packed[b].T.tolist() == columns
    assert all(torch.equal(back, level) for back, level in zip(codec.unpack(packed), lists, strict=True))


def test_published_order_of_a_frame():
    assert depth_first([4, 2, 1]) == [(0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (2, 2), (2, 3)]


@pytest.mark.parametrize("strides", [[], [4, 2], [4, 3, 1], [1, 2]])
def test_strides_that_make_no_tree(strides):
    with pytest.raises(ValueError, match="vq_strides"):
        depth_first(strides)


@pytest.mark.parametrize("strides", [(4, 2, 1), (2, 1)])
def test_decode_is_the_package_decode(strides):
    codec = small_codec(strides)
    package = SNAC(sampling_rate=16000, vq_strides=list(strides), noise=False, **SMALL).eval()
    package.load_state_dict(codec.snac.state_dict())
    lists = random_lists(strides, 2, 3)
    with torch.no_grad():
        ours, theirs = codec.decode(codec.pack(lists)), package.decode(lists)[:, 0]
    assert theirs.std() > 1e-3
    assert torch.equal(ours, theirs)


def test_noise_stands_where_the_package_has_it(monkeypatch):
    """Codes are decoded as by the package snac when its random generator is replaced with the codec's noise."""
    from omnikit.codecs.position_noise import normal_at

    codec = small_codec(noise=True)
    package = SNAC(sampling_rate=16000, vq_strides=[4, 2, 1], noise=True, **SMALL).eval()
    package.load_state_dict(codec.snac.state_dict())
    samples_of_block = iter([8, 2, 1])

    def ours(shape, device, dtype):
        return normal_at(torch.arange(shape[-1]), next(samples_of_block)).to(dtype).expand(shape)

    lists = random_lists((4, 2, 1), 1, 3)
    with torch.no_grad():
        got = codec.decode(codec.pack(lists))
        monkeypatch.setattr(torch, "randn", ours)
        assert torch.allclose(got, package.decode(lists)[:, 0], atol=1e-6)


def test_noise_is_normal():
    from omnikit.codecs.position_noise import normal_at

    values = normal_at(torch.arange(200_000), salt=2)
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01
    assert abs((values[1:] * values[:-1]).mean()) < 0.01
    assert not torch.allclose(values[:100], normal_at(torch.arange(100), salt=1))


@pytest.mark.parametrize("strides", [(4, 2, 1), (2, 1)])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("window", [None, 4, 6, 8])
def test_chunks_equal_the_whole(strides, noise, window):
    """Streaming with SNAC equals decoding at once, for attention windows that end with a frame and that do not."""
    codec = small_codec(strides, noise, **windowed(window))
    assert codec.decoder.align == {None: 1, 4: 4 // strides[0], 6: 3, 8: 8 // strides[0]}[window]
    codes = torch.randint(16, (2, codec.num_codebooks, 37))
    with torch.no_grad():
        whole = codec.decode(codes)
    for sizes in ([1], [5, 0, 2], [40]):
        wav, log = in_chunks(codec, codes, sizes)
        assert torch.allclose(wav, whole, atol=1e-5)
        assert all(samples >= frames * codec.frame_samples - codec.lookahead for frames, samples in log)


def test_codes_are_filled_up_to_whole_windows():
    codec = small_codec(**windowed(6))
    codes = torch.randint(16, (2, 7, 4))
    filled = torch.cat([codes, codes[..., -1:], codes[..., -1:]], dim=-1)
    with torch.no_grad():
        expected = codec.snac.decode(codec.unpack(filled))[:, 0, : 4 * codec.frame_samples]
        assert torch.equal(codec.decode(codes), expected)


@pytest.mark.parametrize("window", [None, 8])
def test_lookahead_is_the_measured_one(window):
    """SNAC's lookahead is the distance from the end of the frames back to the first sample that later frames change."""
    codec = small_codec(gain=1.4, **windowed(window)).double()
    codes = torch.randint(16, (1, codec.num_codebooks, 80))
    middle = 40 * codec.frame_samples
    with torch.no_grad():
        whole, left = codec.decode(codes), codec.decode(codes[..., :40])
    wrong = torch.nonzero((left - whole[:, :middle]).abs()[0] > 1e-13)[:, 0]
    assert middle - wrong.min() == codec.lookahead


@pytest.mark.parametrize("changes, lookahead", [({}, 3141), ({"encoder_rates": [2, 4, 8, 8]}, 4757)])
def test_lookahead_of_other_sizes(changes, lookahead):
    rates = changes.get("encoder_rates", [2, 4, 5, 8])
    config = {**SMALL, "encoder_rates": rates, "decoder_rates": rates[::-1]}
    codec = SnacCodec(24000, vq_strides=[4, 2, 1], noise=False, **config)
    assert codec.lookahead == lookahead


def test_numbers_come_from_the_configuration():
    codec = small_codec()
    assert (codec.num_codebooks, codec.codebook_size, codec.sample_rate) == (7, 16, 16000)
    assert (codec.frame_samples, codec.frame_rate) == (160, 100.0)


def test_weights_as_published(tmp_path):
    codec, other = small_codec(noise=True), small_codec(noise=True, gain=1.0)
    package = SNAC(sampling_rate=16000, vq_strides=[4, 2, 1], noise=True, **SMALL)
    package.load_state_dict(codec.snac.state_dict())  # the package's noise blocks have the same names
    torch.save(package.state_dict(), tmp_path / "pytorch_model.bin")
    other.weights = str(tmp_path)
    other.load_weights()
    codes = torch.randint(16, (1, 7, 4))
    with torch.no_grad():
        assert torch.equal(other.decode(codes), codec.decode(codes))


def test_published_weights_of_another_size(tmp_path):
    torch.save(small_codec(decoder_dim=32).snac.state_dict(), tmp_path / "pytorch_model.bin")
    codec = small_codec()
    codec.weights = str(tmp_path)
    with pytest.raises(ValueError, match=r"pytorch_model.bin does not fit this SNAC"):
        codec.load_weights()


def test_published_weights_of_another_sample_rate(tmp_path):
    """Weights of a SNAC for another sample rate are refused by their `config.json`; the tensors' shapes are equal."""
    codec = small_codec()
    torch.save(codec.snac.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(codec.numbers | {"sampling_rate": 44100}))
    codec.weights = str(tmp_path)
    with pytest.raises(ValueError, match=r"config.json does not fit codec: sampling_rate is 44100, expected 16000"):
        codec.load_weights()


def test_weights_that_the_hub_does_not_give(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    codec = small_codec()
    codec.weights = "nobody/nothing"
    with pytest.raises(ValueError, match="nobody/nothing"):
        codec.load_weights()


@pytest.mark.parametrize(
    "name, millions, bits, lookahead",
    [("snac_24khz", 19.8, 980, 4757), ("snac_32khz", 54.5, 1900, 14735), ("snac_44khz", 54.5, 2600, 14735)],
)
def test_published_sizes(name, millions, bits, lookahead):
    """The published SNAC codecs have the parameter counts and bits per second that the package's README gives.

    Those with local attention have a lookahead that is one window longer.
    """
    with torch.device("meta"):
        codec = build_part("codec", name)
    assert round(count_parameters(codec) / 1e6, 1) == millions
    rate = codec.frame_rate * codec.num_codebooks * math.log2(codec.codebook_size)
    assert rate == pytest.approx(bits, rel=0.02)
    assert codec.lookahead == lookahead


def test_an_option_that_snac_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"--codec.num_codebooks: no such option \(choices: attn_window_size, "):
        build_part("codec", "snac_24khz", size="tiny", num_codebooks=3)
