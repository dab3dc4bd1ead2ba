"""Test the audio encoders HuBERT, wav2vec 2.0 and WavLM: they compute the features of transformers' models.

Weights are read from files in the format of transformers.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, Wav2Vec2FeatureExtractor, WhisperConfig

from omnikit.encoders.transformers_speech import TINY, TransformersSpeechEncoder
from omnikit.hparams import build_part
from omnikit.interfaces import count_parameters
from omnikit.weights import save_weights

MILLIONS = {  # arXiv 2106.07447, 2006.11477 and 2110.13900
    "hubert_base": 95, "hubert_large": 317, "wav2vec2_base": 95, "wav2vec2_large": 317,
    "wavlm_base_plus": 94.7, "wavlm_large": 316.6,
}  # fmt: skip
OF_ITS_OWN = ("conv_bias", "feat_extract_norm", "do_stable_layer_norm")


def ours(name: str, **changes) -> TransformersSpeechEncoder:
    return build_part("encoder", name, size="tiny", **changes).eval()


def write(folder, name: str, auto=AutoModel, **changes):
    """Save and return a random model in the format of transformers, like the one that a part file builds."""
    torch.manual_seed(3)
    like = ours(name).net.config
    numbers = TINY | {key: getattr(like, key) for key in OF_ITS_OWN} | changes
    model = auto.from_config(AutoConfig.for_model(like.model_type, **numbers)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


def sound(samples: int = 4000) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.05


def check_features(net: TransformersSpeechEncoder, theirs) -> None:
    """Check that an audio encoder computes the same features as transformers' model and feature extractor."""
    extract = Wav2Vec2FeatureExtractor(do_normalize=net.normalize)
    with torch.inference_mode():
        values = extract(sound().numpy(), sampling_rate=16000, return_tensors="pt").input_values
        expected = theirs(values).last_hidden_state
        features, _ = net(sound()[None], torch.tensor([4000]))
    assert expected.std() > 0.01
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MILLIONS)
def test_weights_give_transformers_own_features(tmp_path, name):
    theirs, net = write(tmp_path, name), ours(name, weights=str(tmp_path))
    net.load_weights()
    check_features(net, theirs)


def test_weights_as_they_were_written_once(tmp_path):
    """Weights of wav2vec 2.0 are read from files like those on the model hub.

    They are pickled, hold a network for pre-training, and use the old names of torch's weight norm.
    """
    theirs = write(tmp_path, "wav2vec2_base", AutoModelForPreTraining)
    (tmp_path / "model.safetensors").unlink()
    norm = "conv.parametrizations.weight.original"
    state = {
        name.replace(f"{norm}0", "conv.weight_g").replace(f"{norm}1", "conv.weight_v"): tensor
        for name, tensor in theirs.state_dict().items()
    }
    assert "wav2vec2.encoder.pos_conv_embed.conv.weight_g" in state
    torch.save(state, tmp_path / "pytorch_model.bin")
    net = ours("wav2vec2_base", weights=str(tmp_path))
    net.load_weights()
    check_features(net, theirs.wav2vec2)


def test_omnikits_own_weights(tmp_path):
    torch.manual_seed(0)
    first = ours("hubert_base")
    save_weights(first, tmp_path, dtype=torch.float32)
    torch.manual_seed(1)
    second = ours("hubert_base", weights=str(tmp_path))
    second.load_weights()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


@pytest.mark.parametrize("name", ["hubert_base", "wav2vec2_large", "wavlm_large"])
def test_frames_of_every_length(name):
    """The number of features of a recording is the one that transformers expects, for every length."""
    net = ours(name)
    assert net.shortest == 400
    lengths = [*range(400, 1500, 53), 719, 720, 1039, 1040, 15999, 16000]
    with torch.inference_mode():
        for samples in lengths:
            features, (frames,) = net(sound(samples)[None], torch.tensor([samples]))
            assert frames == features.shape[1] == (samples - 80) // 320
            assert frames == net.net._get_feat_extract_output_lengths(samples)


@pytest.mark.parametrize("name", MILLIONS)
def test_true_size(name):
    with torch.device("meta"):
        net = build_part("encoder", name)
    assert count_parameters(net) / 1e6 == pytest.approx(MILLIONS[name], rel=0.01)
    assert (net.frame_rate, net.shortest) == (50.0, 400)


def test_loudness_counts_only_where_it_is_left_in():
    wav, lengths = sound()[None], torch.tensor([4000])
    for normalize in (True, False):
        net = ours("wavlm_large", normalize=normalize)
        with torch.inference_mode():
            same = torch.allclose(net(wav, lengths)[0], net(wav * 3, lengths)[0], atol=1e-4)
        assert same == normalize


def test_it_can_train():
    net = ours("hubert_base").train()
    features, _ = net(sound().repeat(2, 1), torch.tensor([4000, 2000]))
    features.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_an_unknown_family_is_refused():
    for config in ({"model_type": "bert"}, {}):
        with pytest.raises(ValueError, match=r"encoder.config.model_type: .* is not one of hubert, wav2vec2, wavlm$"):
            TransformersSpeechEncoder(config=config, normalize=True)


def refused(net: TransformersSpeechEncoder, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        net.load_weights()
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit(tmp_path):
    write(tmp_path, "hubert_base", hidden_size=8, conv_bias=True)
    there = f"weights {tmp_path} does not fit encoder.config: "
    refused(ours("hubert_base", weights=str(tmp_path)), there + "hidden_size is 8, expected 16; conv_bias is True")
    refused(ours("wavlm_base_plus", weights=str(tmp_path)), there + "model_type is hubert, expected wavlm$")
    WhisperConfig().save_pretrained(tmp_path)
    refused(ours("hubert_base", weights=str(tmp_path)), there + "model_type is whisper, expected hubert$")


def test_weights_that_are_not_whole(tmp_path):
    write(tmp_path, "hubert_base")
    net = ours("hubert_base", weights=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"none")
    refused(net, f"^weights {tmp_path}/model.safetensors: ")
    (tmp_path / "model.safetensors").unlink()
    refused(net, f"^weights {tmp_path}: model.safetensors or .* or pytorch_model.bin is missing$")
    torch.save({"masked_spec_embed": torch.zeros(16)}, tmp_path / "pytorch_model.bin")
    refused(net, r"pytorch_model.bin does not fit this encoder: lacks encoder.layer_norm.bias, .* and \d+ more$")
    (tmp_path / "config.json").write_text("{}")
    refused(net, f"^weights {tmp_path}/config.json: ")
    refused(ours("hubert_base", weights=str(tmp_path / "none")), "none: no such file$")


def test_building_fetches_nothing_and_reading_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(ours("hubert_base"), r"^facebook/hubert-base-ls960: no such folder here, and not from the hub")
