"""Test streaming audio codecs with centred convolutions: exact streams and low-latency estimates."""

from __future__ import annotations

import itertools
import pydoc
import random
from pathlib import Path

import pytest
import torch
from codec_tools import in_chunks, loud
from torch import Tensor, nn

from omnikit.audio.io import load_audio
from omnikit.codecs import streaming_centred
from omnikit.codecs.streaming_centred import StreamedLayers, final_outputs, rising, weights_of
from omnikit.cuda_graphs import RecordedFunction
from omnikit.hparams import build_part
from omnikit.interfaces import Codec
from omnikit.streaming import LOW_LATENCY, MODES
from tests.unit.engines.replayed import ReplayedOperations

MINI = Path(__file__).parents[3] / "egs" / "mini"
NAMES = ["snac_24khz", "snac_32khz", "snac_44khz", "dac_24khz"]


def random_codes(codec: Codec, batch: int, frames: int) -> Tensor:
    return torch.randint(codec.codebook_size, (batch, codec.num_codebooks, frames))


def random_sizes(seed: int, longest: int = 7) -> list[int]:
    return [random.Random(seed).randint(0, longest) for _ in range(5)] + [1]


@pytest.mark.parametrize(
    "name", [*streaming_centred.WINDOWED_ATTENTION, *streaming_centred.RESIDUAL, *streaming_centred.SNAKE]
)
def test_layers_that_are_found_by_name_exist(name: str):
    found = pydoc.locate(name)
    assert f"{found.__module__}.{found.__qualname__}" == name and issubclass(found, nn.Module)


@pytest.fixture(autouse=True)
def repeatable():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@torch.no_grad()
def audible(name: str, **options: object) -> Codec:
    """Return an audio codec with random weights whose output is about as loud as speech."""
    codec = loud(build_part("codec", name, **options).eval())
    last = [layer for layer in codec.modules() if isinstance(layer, nn.Conv1d) and layer.out_channels == 1][-1]
    weight = last.parametrizations.weight.original0 if hasattr(last, "parametrizations") else last.weight
    weight.mul_(0.1 / codec.decode(random_codes(codec, 1, 4)).std())
    return codec


@pytest.fixture(scope="module", params=NAMES)
def codec(request) -> Codec:
    return audible(request.param, size="tiny")


@pytest.fixture(scope="module")
def mini() -> Codec:
    codec = build_part("codec", "snac_mini", weights=str(MINI / "pretrained" / "snac_mini")).eval()
    codec.load_weights()
    return codec


@pytest.mark.parametrize("seed", range(3))
def test_random_chunks_equal_the_whole(codec, seed):
    codes = random_codes(codec, 2, random.Random(seed).randint(9, 21))
    whole = codec.decode(codes)
    assert whole.std() > 0.01
    wav, _ = in_chunks(codec, codes, random_sizes(seed))
    assert wav.shape == whole.shape and (wav - whole).abs().max() <= 1e-5


@pytest.mark.long
def test_random_chunks_equal_the_whole_at_true_size():
    codec = audible("snac_24khz")
    codes = random_codes(codec, 1, 12)
    whole = codec.decode(codes)
    assert whole.std() > 0.01
    for sizes in ([1], [2, 5]):
        assert (in_chunks(codec, codes, sizes)[0] - whole).abs().max() <= 1e-5


@pytest.mark.parametrize("seed", range(2))
def test_samples_are_computed_once(codec, seed, monkeypatch):
    """Streaming through a codec computes each sample once, as counted at the decoder's last convolution.

    It is the only convolution with one output channel.
    """
    computed, convolve = [], nn.functional.conv1d

    def counting(*args, **kwargs):
        y = convolve(*args, **kwargs)
        computed.append(y.shape[-1] if y.shape[1] == 1 else 0)
        return y

    monkeypatch.setattr(streaming_centred.functional, "conv1d", counting)
    wav, _ = in_chunks(codec, random_codes(codec, 1, 21 + seed), random_sizes(seed))
    assert 0.99 * wav.shape[-1] < sum(computed) <= 1.05 * wav.shape[-1]


def test_streams_interleave(codec):
    """Decode streams of both modes over one codec, fed in turn, return the same samples as when decoded alone."""
    modes = ["exact", "low_latency", "exact"]
    all_codes = [random_codes(codec, 1, 5) for _ in modes]
    alone = [in_chunks(codec, codes, [1], mode)[0] for mode, codes in zip(modes, all_codes, strict=True)]
    streams, pieces = [codec.stream(mode=mode) for mode in modes], [[] for _ in modes]
    for t in range(5):
        for stream, own, codes in zip(streams, pieces, all_codes, strict=True):
            own.append(stream.push(codes[..., t : t + 1]))
    for stream, own, expected in zip(streams, pieces, alone, strict=True):
        assert torch.equal(torch.cat([*own, stream.finish()], dim=-1), expected)


@pytest.mark.parametrize("mode", [pytest.param(m, marks=[pytest.mark.long] * (m == LOW_LATENCY)) for m in MODES])
def test_recorded_pushes_are_those_that_are_run(codec, mode):
    """Decode streams whose operations are recorded and replayed return the samples of streams decoded alone.

    The streams begin at different times, so that each state and number of batch rows occurs several times.
    """
    streams, graphs, rng = codec.streams(mode), ReplayedOperations(), random.Random(0)
    streams.recorded = RecordedFunction(graphs)
    codes, given = {}, {}
    for step in range(24):
        if step % 2 == 0:
            number = streams.open()
            codes[number], given[number] = [], []
        pushed = {number: random_codes(codec, 1, rng.choice([1, 1, 1, 2]))[0] for number in list(codes)[-3:]}
        for number, wav in streams.push(pushed).items():
            codes[number].append(pushed[number])
            given[number].append(wav)
    assert graphs.replays > 5 and not streams.recorded.refused
    for number, wav in streams.finish(list(codes)).items():
        with codec.stream(mode=mode) as stream:
            alone = torch.cat([*(stream.push(each[None])[0] for each in codes[number]), stream.finish()[0]])
        torch.testing.assert_close(torch.cat([*given[number], wav]), alone, rtol=0, atol=1e-5)


def test_a_push_that_cannot_be_recorded_is_run(mini):
    class Refusing(ReplayedOperations):
        def record(self, call):
            raise RuntimeError("operation not permitted when stream is capturing")

    streams, codes = mini.streams(), random_codes(mini, 1, 30)
    streams.recorded = RecordedFunction(Refusing())
    number = streams.open()
    given = [streams.push({number: frame[:, None]})[number] for frame in codes[0].T]
    given.append(streams.finish([number])[number])
    assert streams.recorded.refused
    torch.testing.assert_close(torch.cat(given), mini.decode(codes)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_short_streams(codec, frames):
    codes = random_codes(codec, 2, frames)
    wav, _ = in_chunks(codec, codes, [1])
    assert wav.shape == (2, frames * codec.frame_samples)
    assert torch.allclose(wav, codec.decode(codes), atol=1e-5)


def test_low_latency_gives_what_its_frames_cover(codec):
    codes = random_codes(codec, 2, 13)
    wav, log = in_chunks(codec, codes, [1, 0, 2, 6], "low_latency")
    assert all(samples == frames * codec.frame_samples for frames, samples in log)
    assert wav.shape[-1] == 13 * codec.frame_samples


def test_low_latency_is_exact_where_it_can_be(codec):
    """Samples of a long low-latency chunk are exact after the cross-fade and up to those that later frames change."""
    codes = random_codes(codec, 1, 18)
    whole, fade = codec.decode(codes), round(streaming_centred.FADE * codec.sample_rate)
    wav, _ = in_chunks(codec, codes, [3, 15], "low_latency")
    begin, end = 3 * codec.frame_samples, 18 * codec.frame_samples - codec.lookahead
    error = (wav - whole).abs()[0]
    assert error[begin + fade : end].max() <= 1e-5
    assert error[:begin].max() > 1e-3 and error[end:].max() > 1e-3


def in_low_latency_slowly(codec: Codec, codes: Tensor) -> Tensor:
    """Decode codes in low-latency mode by a simple implementation, for codecs without attention and noise.

    For each frame it decodes all latents so far, followed by zeros, and computes the cross-fade sample by sample.
    """
    frame, fade, out, before = codec.frame_samples, round(streaming_centred.FADE * codec.sample_rate), [], None
    for frames in range(1, codes.shape[-1] + 1):
        latents = codec.snac.quantizer.from_codes(codec.unpack(codes[..., :frames]))
        wav = codec.snac.decoder(nn.functional.pad(latents, (0, 50)))[:, 0, (frames - 1) * frame :]
        new = wav[:, : frame + fade].clone()
        for n in range(fade if before is not None else 0):
            share = rising(fade)[n]
            new[:, n] = (1 - share) * before[:, n] + share * new[:, n]
        out.append(new[:, :frame])
        before = wav[:, frame : frame + fade]
    return torch.cat(out, dim=-1)


def test_low_latency_against_slow_twin(mini):
    codes = random_codes(mini, 2, 5)
    wav, _ = in_chunks(mini, codes, [1], "low_latency")
    assert torch.allclose(wav, in_low_latency_slowly(mini, codes), atol=1e-5)


def errors(wav: Tensor, whole: Tensor, joints: list[int], rate: int) -> tuple[float, float, float]:
    """Return three relative errors of a streamed waveform [N], compared with the waveform [N] decoded at once.

    These are the RMS of the error over that of the signal, overall and within 10 ms of the joints of chunks, and the
    RMS of the largest second differences at the joints over the RMS of the whole decoding's second differences.
    """
    near = torch.zeros(len(whole), dtype=torch.bool)
    for joint in joints:
        near[joint - rate // 100 : joint + rate // 100] = True
    error, bend, usual = wav - whole, wav.diff(n=2).abs(), whole.diff(n=2)
    sharpest = torch.stack([bend[joint - 3 : joint + 2].max() for joint in joints])
    return tuple(
        float(x.norm() / y.norm() * (len(y) / len(x)) ** 0.5)
        for x, y in [(error, whole), (error[near], whole[near]), (sharpest, usual)]
    )


@pytest.mark.parametrize("sizes, bound", [([1], 0.32), ([1, 2, 4, 8, 8], 0.2)], ids=["single", "growing"])
def test_low_latency_errs_less_than_chunks_alone(mini, sizes, bound):
    """Low-latency streaming of a spoken answer with trained weights errs less than decoding each chunk separately."""
    wav = load_audio(MINI / "answers" / "capital.wav", mini.sample_rate)
    codes = mini.encode(wav[None])[..., :23]
    ends = [n for n in itertools.accumulate(itertools.islice(itertools.cycle(sizes), 24)) if n < codes.shape[-1]]
    whole, joints = mini.decode(codes)[0], [n * mini.frame_samples for n in ends]
    alone = torch.cat([mini.decode(piece)[0] for piece in codes.tensor_split(ends, dim=-1)])
    ours = errors(in_chunks(mini, codes, sizes, "low_latency")[0][0], whole, joints, mini.sample_rate)
    naive = errors(alone, whole, joints, mini.sample_rate)
    assert ours[0] < bound and ours[0] < 0.85 * naive[0] and ours[1] < 0.85 * naive[1]
    assert ours[2] < 2


def test_weight_norm_is_folded_once_and_again_when_weights_change(mini):
    codes, names = random_codes(mini, 1, 4), list(mini.state_dict())
    first, second = mini.stream(), mini.stream()
    assert first.back.weights is second.back.weights and len(first.back.weights) > 10
    changed = mini.decoder.back[1].parametrizations.weight.original0
    changed.mul_(0.5)
    whole = mini.decode(codes)
    assert torch.allclose(in_chunks(mini, codes, [1])[0], whole, atol=1e-5)
    changed.mul_(2)
    assert not torch.allclose(in_chunks(mini, codes, [1])[0], whole, atol=1e-3)
    assert list(mini.state_dict()) == names


@pytest.mark.parametrize("kernel, stride, padding, more", [(4, 2, 1, 0), (10, 5, 3, 0), (10, 5, 3, 1), (7, 3, 2, 1)])
def test_layers_against_torch(kernel, stride, padding, more):
    """Convolutions computed in chunks return torch's outputs, each as soon as `final_outputs` says that it is final."""
    layers = nn.Sequential(
        nn.Conv1d(2, 4, 7, padding=9, dilation=3, groups=2),
        nn.ConvTranspose1d(4, 3, kernel, stride=stride, padding=padding, output_padding=more),
        nn.Conv1d(3, 1, 3, padding=1),
    )
    x = torch.randn(2, 2, 17)
    whole, pieces, given = layers(x), StreamedLayers(layers, weights_of(layers)), []
    for n in range(17):
        given.append(pieces.push(x[..., n : n + 1]))
        assert sum(y.shape[-1] for y in given) == max(0, final_outputs(layers, n + 1))
    assert torch.allclose(torch.cat([*given, pieces.push(x[..., :0], last=True)], dim=-1), whole, atol=1e-6)
