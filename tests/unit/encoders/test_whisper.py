"""Test `WhisperEncoder`: padding in a batch changes no feature, and features are those of openai-whisper."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import whisper
from transformers import HubertConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from whisper.audio import log_mel_spectrogram, pad_or_trim

from omnikit.encoders.log_mel import log_mel, mel_filters
from omnikit.encoders.whisper import WhisperEncoder
from omnikit.encoders.whisper_network import WhisperNetwork
from omnikit.hparams import build_part
from omnikit.interfaces import count_parameters

SMALL = {"n_mels": 80, "n_ctx": 1500, "width": 32, "heads": 2, "layers": 2}
LENGTHS = [320, 321, 479, 480, 5000, 16000, 16159, 16160, 31999]


def encoder(**changes) -> WhisperEncoder:
    torch.manual_seed(0)
    return WhisperEncoder(**(SMALL | changes)).eval()


def sounds() -> list[torch.Tensor]:
    """Return waveforms of noise of several lengths and very different loudness."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, generator=generator) * 10.0 ** -(i % 4) for i, n in enumerate(LENGTHS)]


def padded(wavs: list[torch.Tensor], fill: float) -> tuple[torch.Tensor, torch.Tensor]:
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True, padding_value=fill)
    return batch, torch.tensor([len(w) for w in wavs])


@pytest.mark.parametrize(("pad_to_30s", "gradient"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("fill", [0.0, 0.7])
def test_batch_equals_single(pad_to_30s: bool, gradient: bool, fill: float):
    net, wavs = encoder(pad_to_30s=pad_to_30s), sounds()[:: 3 if pad_to_30s else 1]
    with torch.set_grad_enabled(gradient):
        features, frames = net(*padded(wavs, fill))
        for wav, row, count in zip(wavs, features, frames, strict=True):
            alone, (n,) = net(wav[None], torch.tensor([len(wav)]))
            assert n == count == alone.shape[1]
            torch.testing.assert_close(row[:count], alone[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_mel_filters_are_the_table_of_openai_whisper(n_mels: int):
    assert torch.equal(torch.from_numpy(mel_filters(n_mels)), whisper.audio.mel_filters("cpu", n_mels))


def openais(net: WhisperNetwork) -> whisper.model.AudioEncoder:
    """Return openai-whisper's own encoder module with the weights of a small `WhisperNetwork`."""
    theirs = whisper.model.AudioEncoder(*SMALL.values()).eval()
    theirs.load_state_dict(net.state_dict())
    return theirs


@pytest.mark.parametrize("sizes", [tuple(SMALL.values()), (128, 40, 24, 3, 1)])
def test_the_network_is_openai_whispers(sizes: tuple[int, ...]):
    """`WhisperNetwork` has the parameter names, initial weights for a seed, and outputs of openai-whisper's network."""
    torch.manual_seed(3)
    mine = WhisperNetwork(*sizes)
    torch.manual_seed(3)
    theirs = whisper.model.AudioEncoder(*sizes)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[name], tensor), name
    frames = 2 * sizes[1]  # openai-whisper's module takes only inputs of the maximum length
    mel = torch.randn(2, sizes[0], frames, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        features, lengths = mine(mel, torch.tensor([frames, frames]))
        torch.testing.assert_close(features, theirs(mel), atol=1e-6, rtol=0)
    assert lengths.tolist() == [sizes[1]] * 2
    assert features.std() > 0.5  # so that a tolerance of 1e-6 is small


def test_log_mel_is_whispers():
    for wav in sounds()[4:]:
        mine, (frames,) = log_mel(wav[None], torch.tensor([len(wav)]), 80)
        torch.testing.assert_close(mine[0], log_mel_spectrogram(wav), atol=1e-5, rtol=0)
        assert frames == mine.shape[-1]


def test_padded_is_whispers_own_forward():
    net, wav = encoder(pad_to_30s=True), sounds()[6]
    with torch.no_grad():
        features, (frames,) = net(wav[None], torch.tensor([len(wav)]))
        expected = openais(net.encoder)(log_mel_spectrogram(pad_or_trim(wav))[None])
    assert frames == int(len(wav) / 16 / 20) + 1 == features.shape[1]
    torch.testing.assert_close(features, expected[:, :frames], atol=1e-5, rtol=0)


def test_unpadded_is_whispers_own_forward_on_a_full_window():
    net, wav = encoder(), torch.randn(1, 480000, generator=torch.Generator().manual_seed(2)) * 0.1
    with torch.no_grad():
        features, _ = net(wav, torch.tensor([480000]))
        expected = openais(net.encoder)(log_mel_spectrogram(wav[0])[None])
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)


def test_unpadded_frames():
    """Without padding to 30 s, a Whisper feature spans two spectrogram frames of 10 ms; the last may span one."""
    net = encoder(size="tiny")
    for samples in (*range(320, 1300, 49), 479, 480, 639, 640, 15999, 16000):
        features, (frames,) = net(torch.ones(1, samples), torch.tensor([samples]))
        assert frames == features.shape[1] == -(-(samples // 160) // 2)


@pytest.mark.parametrize(("samples", "message"), [(319, "shorter than one frame"), (480001, "longer than")])
def test_refuses_lengths_outside_its_range(samples: int, message: str):
    with pytest.raises(ValueError, match=message):
        encoder()(torch.zeros(1, samples), torch.tensor([samples]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"n_mels": 81}, "n_mels 81"), ({"heads": 3}, "width 32"), ({"n_ctx": 100, "pad_to_30s": True}, "n_ctx 100")],
)
def test_refuses_impossible_sizes(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        encoder(**changes)


def test_numbers_it_exposes():
    net = WhisperEncoder(n_mels=80, n_ctx=1500, width=192, heads=4, layers=4)
    assert (net.dim, net.frame_rate, net.sample_rate, net.max_seconds) == (192, 50.0, 16000, 30.0)
    assert 1.8e6 < count_parameters(net) < 2.2e6


def published(file, **changes) -> whisper.model.Whisper:
    """Save and return a small Whisper model in the format of openai-whisper."""
    dims = whisper.model.ModelDimensions(80, 1500, 32, 2, 2, 40, 4, 32, 2, 1)
    dims = dataclasses.replace(dims, **changes)
    model = whisper.model.Whisper(dims).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save({"dims": dataclasses.asdict(dims), "model_state_dict": model.state_dict()}, file)
    return model


def test_published_weights_give_whispers_own_features(tmp_path):
    theirs, wav = published(tmp_path / "small.pt"), sounds()[-1]
    net = build_part("encoder", "whisper_small", width=32, heads=2, layers=2, weights=str(tmp_path / "small.pt"))
    net.load_weights()
    with torch.no_grad():
        features, (frames,) = net(wav[None], torch.tensor([len(wav)]))
        expected = theirs.embed_audio(log_mel_spectrogram(pad_or_trim(wav))[None])
    assert frames == int(len(wav) / 16 / 20) + 1
    torch.testing.assert_close(features, expected[:, :frames], atol=1e-5, rtol=1e-5)


def test_published_weights_that_do_not_fit(tmp_path):
    published(tmp_path / "small.pt", n_audio_state=16)
    with pytest.raises(ValueError, match=r"small.pt does not fit this encoder: width is 16, expected 32"):
        encoder(weights=str(tmp_path / "small.pt")).load_weights()
    with pytest.raises(ValueError, match=r"none.pt: no such file .openai-whisper's names: tiny.en, tiny"):
        encoder(weights=str(tmp_path / "none.pt")).load_weights()
    torch.save([1], tmp_path / "small.pt")
    with pytest.raises(ValueError, match=r"small.pt: not a file of openai-whisper"):
        encoder(weights=str(tmp_path / "small.pt")).load_weights()


@pytest.mark.parametrize(
    ("name", "millions"), [("tiny", 39), ("base", 74), ("small", 244), ("medium", 769), ("large_v3", 1550)]
)
def test_sizes_by_name_are_whispers(name, millions):
    """Whisper encoders, with decoders of the same width and depth, have the parameter counts of openai-whisper's table.
    """
    with torch.device("meta"):
        net = build_part("encoder", f"whisper_{name}")
        width, heads, layers = net.dim, net.encoder.blocks[0].attn.n_head, len(net.encoder.blocks)
        decoder = whisper.model.TextDecoder(51865, 448, width, heads, layers)
    assert net.weights in whisper.available_models() and net.pad_to_30s
    assert (count_parameters(net) + count_parameters(decoder)) / 1e6 == pytest.approx(millions, rel=0.05)


TRANSFORMERS = {
    "num_mel_bins": 80, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 8, "vocab_size": 60, "pad_token_id": 0,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def transformers_model(folder, **changes) -> WhisperForConditionalGeneration:
    """Save and return a small Whisper model in the format of transformers."""
    torch.manual_seed(5)
    model = WhisperForConditionalGeneration(WhisperConfig(**TRANSFORMERS | changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", ["whisper_small", "whisper_small_hf"])
def test_transformers_weights_give_its_own_features(tmp_path, name):
    theirs, wav = transformers_model(tmp_path), sounds()[-1]
    net = build_part("encoder", name, width=32, heads=2, layers=2, weights=str(tmp_path))
    net.load_weights()
    mel = WhisperFeatureExtractor()(wav.numpy(), sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        features, (frames,) = net(wav[None], torch.tensor([len(wav)]))
        expected = theirs.model.encoder(mel).last_hidden_state[:, :frames]
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


def test_openais_and_transformers_files_of_the_same_weights(tmp_path):
    """Weights in the formats of openai-whisper and of transformers give the same encoder."""
    transformers_model(tmp_path)
    mine = encoder(weights=str(tmp_path))
    mine.load_weights()
    theirs = published(tmp_path / "small.pt")
    theirs.encoder.load_state_dict(mine.encoder.state_dict())
    file = {"dims": dataclasses.asdict(theirs.dims), "model_state_dict": theirs.state_dict()}
    torch.save(file, tmp_path / "small.pt")
    other = encoder(weights=str(tmp_path / "small.pt"))
    other.load_weights()
    for name, tensor in mine.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_transformers_weights_that_do_not_fit(tmp_path):
    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            encoder(weights=str(tmp_path)).load_weights()
        assert "\n" not in str(caught.value)

    transformers_model(tmp_path, d_model=16, encoder_layers=1)
    refused(rf"^weights {tmp_path} does not fit this encoder: width is 16, expected 32; layers is 1, expected 2$")
    transformers_model(tmp_path, encoder_ffn_dim=64)
    refused(rf"^weights {tmp_path} does not fit this encoder: .*size mismatch for blocks.0.mlp.0.weight")
    (tmp_path / "model.safetensors").write_bytes(b"none")
    refused(rf"^weights {tmp_path}/model.safetensors: ")
    (tmp_path / "model.safetensors").unlink()
    refused(rf"^weights {tmp_path}: model.safetensors or .* is missing$")
    HubertConfig().save_pretrained(tmp_path)
    refused(rf"^weights {tmp_path}: model_type is hubert, expected whisper$")


def test_a_hub_id_that_cannot_be_had(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    net = build_part("encoder", "whisper_small_hf", size="tiny")
    with pytest.raises(ValueError, match=r"^openai/whisper-small: no such folder here, and not from the hub"):
        net.load_weights()
