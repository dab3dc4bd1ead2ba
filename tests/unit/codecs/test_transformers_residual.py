"""Test the residual audio codecs from transformers: they compute the library's outputs and read its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from codec_tools import in_chunks, loud
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from omnikit.codecs.mimi import MimiCodec
from omnikit.codecs.transformers_residual import ResidualCodec
from omnikit.hparams import build_part, pick

ENCODE = {  # encode with 8 codebooks by the library's own function
    "mimi": lambda net, wav: net.encode(wav, num_quantizers=8).audio_codes,
    "encodec_24khz": lambda net, wav: net.encode(wav, bandwidth=6.0).audio_codes[0],
    "dac_24khz": lambda net, wav: net.encode(wav, n_quantizers=8).audio_codes,
}
DECODE = {
    "mimi": lambda net, codes: net.decode(codes).audio_values[:, 0],
    "encodec_24khz": lambda net, codes: net.decode(codes[None], [None]).audio_values[:, 0],
    "dac_24khz": lambda net, codes: net.decode(audio_codes=codes).audio_values,
}
NAMES = sorted(DECODE)


def tiny(name: str, weights: Path | None = None, **options: object) -> ResidualCodec:
    weights = None if weights is None else str(weights)
    return build_part("codec", name, size="tiny", weights=weights, **{"num_codebooks": 8, **options}).eval()


def theirs(name: str, **changes: object) -> PreTrainedModel:
    """Return transformers' own network with the configuration of the tiny residual codec and all its codebooks."""
    codec = tiny(name)
    network = loud(codec.network_class(codec.config_class(**{**codec.numbers, **changes})).eval())
    for key, buffer in network.named_buffers():
        if key.endswith(("codebook.embed", "codebook.embed_sum")):
            nn.init.normal_(buffer)
    return network


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_it_is_the_librarys_codec(name, tmp_path):
    network = theirs(name)
    network.save_pretrained(tmp_path)
    codec = tiny(name, tmp_path)
    wav = torch.rand(2, 9 * codec.frame_samples) - 0.5
    codec.decode(codec.encode(wav))  # the tables that this caches must not outlive the weights
    codec.load_weights()
    codes = codec.encode(wav)
    assert torch.equal(codes, ENCODE[name](network, wav[:, None]))
    ours, expected = codec.decode(codes), DECODE[name](network, codes)
    assert wav.shape[-1] - expected.shape[-1] == (8 if name == "dac_24khz" else 0)
    assert (ours[:, : expected.shape[-1]] - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not ours[:, expected.shape[-1] :].any()


PUBLISHED_NAMES = {  # kyutai/mimi has a flat layout; facebook/encodec_24khz the names of torch's former weight norm
    "mimi": [
        ("encoder.encoder_seanet.", "encoder."), ("encoder.encoder_transformer.", "encoder_transformer."),
        ("encoder.downsample.", "downsample."), ("decoder.decoder_seanet.", "decoder."),
        ("decoder.decoder_transformer.", "decoder_transformer."), ("decoder.upsample.", "upsample."),
    ],
    "encodec_24khz": [
        ("parametrizations.weight.original0", "weight_g"), ("parametrizations.weight.original1", "weight_v"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PUBLISHED_NAMES))
def test_weights_under_their_published_names(name, tmp_path):
    network = theirs(name)
    network.config.save_pretrained(tmp_path)
    stored = network.state_dict()
    for new, old in PUBLISHED_NAMES[name]:
        assert any(new in key for key in stored), new
        stored = {key.replace(new, old): tensor for key, tensor in stored.items()}
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    codec, expected = tiny(name, tmp_path), network.state_dict()
    codec.load_weights()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in codec.network.state_dict().items())


@pytest.mark.parametrize("sizes", [[1], [2, 5], [1000]], ids=str)
def test_attention_with_a_short_window_streams(sizes):
    """Streaming with Mimi equals decoding at once when its attention window is 6 positions, shorter than the audio."""
    config = dict(pick("codec", "mimi")["config"])
    short, long = (MimiCodec(config={**config, "sliding_window": n}, num_codebooks=4, size="tiny") for n in (6, 250))
    long.load_state_dict(loud(short.eval()).state_dict())
    codes = torch.randint(2048, (2, 4, 20))
    whole = short.decode(codes)
    assert (long.eval().decode(codes) - whole).abs().max() > 0.01 * whole.abs().max()
    wav, _ = in_chunks(short, codes, sizes)
    assert (wav - whole).abs().max() <= 1e-4 * whole.abs().max()


def test_rows_at_other_positions_attend_to_their_own_window():
    """Each of three Mimi decode streams that began some frames apart attends to its own window of 6 positions."""
    config = {**pick("codec", "mimi")["config"], "sliding_window": 6}
    codec = loud(MimiCodec(config=config, num_codebooks=4, size="tiny").eval())
    codes, streams = torch.randint(2048, (3, 4, 12)), codec.streams()
    numbers, given = [streams.open() for _ in range(3)], [[], [], []]
    for step in range(16):
        now = {row: step - 2 * row for row in range(3) if 0 <= step - 2 * row < 12}
        wavs = streams.push({numbers[row]: codes[row, :, t : t + 1] for row, t in now.items()})
        for row in now:
            given[row].append(wavs[numbers[row]])
    for row, whole in enumerate(codec.decode(codes)):
        wav = torch.cat([*given[row], streams.finish([numbers[row]])[numbers[row]]])
        assert (wav - whole).abs().max() <= 1e-5 * whole.abs().max()


@pytest.mark.parametrize("name, samples", [("mimi", 0), ("encodec_24khz", 6 * 320), ("dac_24khz", 3141)])
def test_lookahead(name, samples):
    """The residual codecs' lookaheads in samples are as expected; EnCodec's first convolution reflects six frames.

    DAC's was counted by hand.
    """
    assert tiny(name).lookahead == samples


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "wanted, words", [(0, "must be 1 or more"), (33, r"this codec has 32 \(choices: 1 to 32\)")]
)
def test_codebooks_that_it_does_not_have(name, wanted, words):
    with pytest.raises(ValueError, match=f"codec.num_codebooks {wanted}: {words}"):
        tiny(name, num_codebooks=wanted)


def refused(codec: ResidualCodec) -> str:
    before = {name: tensor.clone() for name, tensor in codec.state_dict().items()}
    with pytest.raises(ValueError) as error:
        codec.load_weights()
    assert all(torch.equal(before[name], tensor) for name, tensor in codec.state_dict().items())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_weights_that_do_not_fit(tmp_path):
    theirs("encodec_24khz", num_filters=8).save_pretrained(tmp_path)
    assert refused(tiny("encodec_24khz", tmp_path)) == (
        f"weights {tmp_path / 'config.json'} does not fit codec: num_filters is 8, expected 4"
    )
    assert "model_type is encodec, expected mimi" in refused(tiny("mimi", tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert f"weights {tmp_path / 'config.json'}: not a configuration" in refused(tiny("mimi", tmp_path))


def test_weights_with_holes(tmp_path):
    theirs("dac_24khz").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    del stored["decoder.conv1.bias"]
    save_file(stored, file, metadata={"format": "pt"})
    assert "tensors are missing (1, the first is decoder.conv1.bias)" in refused(tiny("dac_24khz", tmp_path))
    file.write_bytes(b"nothing")
    assert f"weights {tmp_path}: " in refused(tiny("dac_24khz", tmp_path))
    file.unlink()
    assert f"weights {tmp_path}: " in refused(tiny("dac_24khz", tmp_path))


def test_the_stereo_encodec_is_another_codec(tmp_path):
    config = {**pick("codec", "encodec_24khz")["config"], "normalize": True}
    with pytest.raises(ValueError, match=r"codec.config.normalize True: EncodecCodec is for False only"):
        type(tiny("encodec_24khz"))(config=config, num_codebooks=8)
    theirs("encodec_24khz").save_pretrained(tmp_path)
    published = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(published | {"normalize": True}))
    assert "normalize is True, expected False" in refused(tiny("encodec_24khz", tmp_path))
