"""Test the contract of `Codec` for every audio codec that has a YAML file, at size tiny where it has one."""

from __future__ import annotations

import math
import random

import pytest
import torch
from codec_tools import in_chunks, loud
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from omnikit.codecs.mel_rvq import MelRVQ
from omnikit.codecs.rtisi import PhaseSearch
from omnikit.hparams import build_part, choices, pick
from omnikit.interfaces import Codec
from omnikit.streaming import MODES
from omnikit.weights import save_weights

NAMES = [name for name in choices("codec") if name != "none"]
RESIDUAL = [name for name in NAMES if "num_codebooks" in pick("codec", name)]
SIZED = [name for name in NAMES if "size" in pick("codec", name)]
NUMBERS = ("num_codebooks", "codebook_size", "sample_rate", "frame_samples", "frame_rate")


def tiny(name: str, **options: object) -> Codec:
    size = {"size": "tiny"} if name in SIZED else {}
    return loud(build_part("codec", name, **size, **options).eval())


def random_codes(codec: Codec, batch: int, frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(codec.codebook_size, (batch, codec.num_codebooks, frames), generator=generator)


def enough_frames(codec: Codec) -> int:
    """Return a number of frames for which a decode stream returns most of the samples before it is finished."""
    return 2 * math.ceil(codec.lookahead / codec.frame_samples) + 5


@pytest.fixture(autouse=True)
def repeatable():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=NAMES)
def codec(request) -> Codec:
    return tiny(request.param)


def test_numbers_fit_each_other(codec):
    assert codec.frame_rate * codec.frame_samples == pytest.approx(codec.sample_rate)
    assert codec.num_codebooks >= 1 and codec.codebook_size > 1 and codec.lookahead >= 0


@pytest.mark.parametrize("name", SIZED)
def test_tiny_has_the_published_numbers(name):
    with torch.device("meta"):
        published, small = build_part("codec", name), build_part("codec", name, size="tiny")
    assert [getattr(small, number) for number in NUMBERS] == [getattr(published, number) for number in NUMBERS]
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in published.parameters()) / 20
    with pytest.raises(ValueError, match=r"size 'small': no such size \(choices: published, tiny\)"):
        build_part("codec", name, size="small")


def test_encode_has_a_frame_for_every_begun_one(codec):
    frame = codec.frame_samples
    for samples in (1, 2, frame - 1, frame, frame + 1, 3 * frame + 7, 4 * frame):
        codes = codec.encode(torch.rand(2, samples) - 0.5)
        assert codes.shape == (2, codec.num_codebooks, math.ceil(samples / frame)), samples
        assert codes.dtype == torch.int64
        codec.check_codes(codes)


def test_encode_hears(codec):
    """Audio codecs encode noise and silence, and different waveforms of a batch, as different codes."""
    wav = torch.rand(2, 4 * codec.frame_samples) - 0.5
    codes = codec.encode(wav)
    assert not torch.equal(codes, codec.encode(0 * wav)) and not torch.equal(codes[0], codes[1])
    assert torch.equal(codes[:1], codec.encode(wav[:1]))


def test_padding_changes_no_code_where_a_codec_says_so(codec):
    if not codec.encodes_padded:
        pytest.skip("padding changes codes of this codec")
    frame = codec.frame_samples
    wavs = [torch.rand(samples) - 0.5 for samples in (1, frame - 1, frame, 2 * frame + 7, 5 * frame, 12 * frame + 3)]
    for wav, codes in zip(wavs, codec.encode(pad_sequence(wavs, batch_first=True)), strict=True):
        assert torch.equal(codes[:, : math.ceil(len(wav) / frame)], codec.encode(wav[None])[0])


@pytest.mark.parametrize("frames", [0, 1, 2, 7])
def test_decode_gives_whole_frames(codec, frames):
    wav = codec.decode(random_codes(codec, 2, frames))
    assert wav.shape == (2, frames * codec.frame_samples) and wav.dtype == torch.float32


def test_every_codebook_is_heard(codec):
    """Every codebook of an audio codec changes the decoded waveform, so that tests of streaming can fail."""
    codes = random_codes(codec, 1, 4)
    whole = codec.decode(codes)
    for k in range(codec.num_codebooks):
        other = codes.clone()
        other[:, k] = (other[:, k] + 1) % codec.codebook_size
        assert (codec.decode(other) - whole).abs().max() > 0.01 * whole.abs().max(), k


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.long), 2])
@pytest.mark.parametrize("sizes", [[1], [2, 0, 5], [3], [0, 7, 1], [1000]], ids=str)
def test_chunks_equal_the_whole(codec, batch, sizes):
    for frames in (1, 3, enough_frames(codec)):
        codes = random_codes(codec, batch, frames)
        whole = codec.decode(codes)
        wav, _ = in_chunks(codec, codes, sizes)
        assert wav.shape == whole.shape
        assert (wav - whole).abs().max() <= 1e-4 * whole.abs().max(), frames


def test_lookahead_is_the_largest_lag(codec):
    _, log = in_chunks(codec, random_codes(codec, 1, enough_frames(codec)), [1])
    lags = [frames * codec.frame_samples - samples for frames, samples in log]
    assert min(lags) >= 0 and max(lags) == codec.lookahead


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_without_frames(codec, mode):
    with codec.stream(2, mode) as stream:
        assert stream.push(random_codes(codec, 2, 0)).shape == (2, 0)
        assert stream.finish().shape == (2, 0)
    assert codec.stream(2, mode).finish().shape == (2, 0)


def test_low_latency_is_never_later(codec):
    codes = random_codes(codec, 2, enough_frames(codec))
    (exact, lagging), (wav, log) = (in_chunks(codec, codes, [1, 0, 3], mode) for mode in MODES)
    assert wav.shape == exact.shape
    assert all(early >= late for (_, early), (_, late) in zip(log, lagging, strict=True))


def test_an_unknown_mode_is_refused(codec):
    with pytest.raises(ValueError, match=r"mode 'fast': no such mode of streaming \(choices: exact, low_latency\)"):
        codec.stream(mode="fast")


def test_streams_do_not_disturb_each_other(codec):
    both = [random_codes(codec, batch, 9) for batch in (1, 2)]
    streams = [codec.stream(len(codes)) for codes in both]
    pieces = [[], []]
    for t in range(9):
        for own, stream, codes in zip(pieces, streams, both, strict=True):
            own.append(stream.push(codes[..., t : t + 1]))
    for own, stream, codes in zip(pieces, streams, both, strict=True):
        whole = codec.decode(codes)
        assert (torch.cat([*own, stream.finish()], dim=-1) - whole).abs().max() <= 1e-4 * whole.abs().max()


def test_what_is_no_code_is_refused(codec):
    for bad in (-1, codec.codebook_size):
        codes = random_codes(codec, 1, 3)
        codes[0, -1, 1] = bad
        for use in (codec.decode, codec.stream().push):
            with pytest.raises(ValueError, match=f"code {bad} is outside the codebook"):
                use(codes)
    with pytest.raises(ValueError, match=rf"codes must be \[B, {codec.num_codebooks}, T\]"):
        codec.decode(random_codes(codec, 1, 3)[:, 1:])


def alone(codec: Codec, pushed: list[Tensor], mode: str) -> Tensor:
    """Return the samples [N] of a decode stream of its own that is fed the given chunks of codes [K, t]."""
    with codec.stream(mode=mode) as stream:
        return torch.cat([*(stream.push(codes[None])[0] for codes in pushed), stream.finish()[0]])


def assert_as_alone(codec: Codec, pushed: list[Tensor], given: list[Tensor], mode: str) -> None:
    wav, expected = torch.cat(given), alone(codec, pushed, mode)
    assert wav.shape == expected.shape
    if isinstance(codec, MelRVQ):
        assert torch.equal(wav, expected)
    elif len(wav):
        assert (wav - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_streams_that_come_and_go_are_as_alone(codec, mode, seed):
    rng, streams = random.Random(seed), codec.streams(mode)
    pushed, given, running = {}, {}, []
    for _ in range(10):
        for _ in range(rng.randint(0, 2 if len(running) < 4 else 0)):
            running.append(streams.open())
            pushed[running[-1]], given[running[-1]] = [], []
        some = {
            number: torch.randint(codec.codebook_size, (codec.num_codebooks, rng.choice([1, 1, 1, 2, 4])))
            for number in rng.sample(running, rng.randint(0, len(running)))
        }
        for number, wav in streams.push(some).items():
            pushed[number].append(some[number])
            given[number].append(wav)
        ending = [number for number in running if rng.random() < 0.15]
        running = [number for number in running if number not in ending]
        for number in ending[1::2]:
            streams.drop(number)
            del pushed[number]
        for number, wav in streams.finish(ending[::2]).items():
            given[number].append(wav)
    for number, wav in streams.finish(running).items():
        given[number].append(wav)
    assert len(pushed) > 3 and len(given) > len(pushed)
    for number, pieces in pushed.items():
        assert_as_alone(codec, pieces, given[number], mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_bad_stream_harms_no_other(codec, mode):
    streams = codec.streams(mode)
    numbers = [streams.open() for _ in range(3)]
    pushed, given = {number: [] for number in numbers}, {number: [] for number in numbers}
    bad = random_codes(codec, 1, 2)[0]
    bad[-1, -1] = codec.codebook_size
    for step, refused in enumerate([bad, bad[1:], -1 - bad, None]):
        codes = {number: random_codes(codec, number + step, 1)[0] for number in numbers}
        if refused is not None:
            with pytest.raises(ValueError, match=f"stream {numbers[1]}: code"):
                streams.push({**codes, numbers[1]: refused})
        for number, wav in streams.push(codes).items():
            pushed[number].append(codes[number])
            given[number].append(wav)
    for number, wav in streams.finish(numbers).items():
        assert_as_alone(codec, pushed[number], [*given[number], wav], mode)


@pytest.mark.parametrize("mode", MODES)
def test_streams_that_began_at_different_times_are_decoded_together(codec, mode, monkeypatch):
    """Decode streams that began at different times are decoded in one call once all of them return samples."""
    calls, kind = [], PhaseSearch if isinstance(codec, MelRVQ) else type(codec.stream(mode=mode))
    name = "push" if isinstance(codec, MelRVQ) else "advance"
    decode = getattr(kind, name)

    def counting(self, *args):
        calls.append(len(args[-1]))
        return decode(self, *args)

    align = codec.decoder.align if hasattr(codec, "decoder") else 1  # so that windows of all streams end together
    frames, streams, numbers = math.ceil(enough_frames(codec) / align) * align, codec.streams(mode), []
    for count in range(1, 4):
        numbers.append(streams.open())
        streams.push({numbers[-1]: random_codes(codec, 1, frames + count // 3 * align)[0]})
    monkeypatch.setattr(kind, name, counting)
    streams.push({number: random_codes(codec, 1, 1)[0] for number in numbers})
    streams.push({number: random_codes(codec, 1, 1)[0] for number in reversed(numbers)})
    assert calls == [3, 3]


def test_streams_without_frames(codec):
    streams = codec.streams()
    numbers = [streams.open() for _ in range(2)]
    assert streams.push({}) == {} and streams.finish([]) == {}
    assert all(wav.shape == (0,) for wav in streams.finish(numbers).values())
    with pytest.raises(KeyError):
        streams.push({numbers[0]: random_codes(codec, 1, 1)[0]})


def test_streams_of_an_unknown_mode_are_refused(codec):
    with pytest.raises(ValueError, match="mode 'fast': no such mode"):
        codec.streams("fast")


@pytest.mark.parametrize("name", RESIDUAL)
def test_fewer_codebooks_are_the_first(name, tmp_path):
    full = tiny(name)
    save_weights(full, tmp_path, torch.float32)
    few = tiny(name, num_codebooks=2, weights=str(tmp_path))
    few.load_weights()
    wav = torch.rand(1, 3 * full.frame_samples) - 0.5
    codes = few.encode(wav)
    assert few.num_codebooks == 2 and torch.equal(codes, full.encode(wav)[:, :2])
    assert few.decode(codes).shape == wav.shape
    assert sum(t.numel() for t in few.state_dict().values()) < sum(t.numel() for t in full.state_dict().values())


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_nowhere(name, tmp_path):
    codec = tiny(name, weights=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="nothing: no such file"):
        codec.load_weights()


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_something_else(name, tmp_path):
    save_weights(nn.Linear(2, 2), tmp_path)
    codec = tiny(name, weights=str(tmp_path))
    with pytest.raises(ValueError, match=rf"model.safetensors does not fit {type(codec).__name__}: lacks ") as error:
        codec.load_weights()
    assert "\n" not in str(error.value)
