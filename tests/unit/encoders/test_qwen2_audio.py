"""Test the audio encoder of Qwen2-Audio: it computes the features of transformers' model, with weights in its format.
"""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
    WhisperFeatureExtractor,
)
from transformers import Qwen2AudioEncoder as TheirEncoder

from omnikit.encoders.qwen2_audio import Qwen2AudioEncoder
from omnikit.encoders.whisper import TINY
from omnikit.hparams import build_part
from omnikit.interfaces import count_parameters

AUDIO = {
    "d_model": TINY["width"], "encoder_attention_heads": TINY["heads"], "encoder_layers": TINY["layers"],
    "encoder_ffn_dim": 4 * TINY["width"],
}  # fmt: skip
TEXT = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "vocab_size": 20,
}  # fmt: skip
AUDIO_ID = 19
LENGTHS = [640, 641, 960, 961, 1279, 1280, 16000, 20001]


def ours(weights: object = None, **changes) -> Qwen2AudioEncoder:
    torch.manual_seed(0)
    return build_part("encoder", "qwen2_audio", size="tiny", weights=weights and str(weights), **changes).eval()


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(1)
    config = Qwen2AudioConfig(
        audio_config=Qwen2AudioEncoderConfig(**AUDIO), text_config=Qwen2Config(**TEXT), audio_token_index=AUDIO_ID
    )
    model = Qwen2AudioForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    """Return the folder of a Qwen2-Audio model in the format of transformers, with all weights in one file."""
    folder = tmp_path_factory.mktemp("whole")
    theirs.save_pretrained(folder)
    return folder


def sounds() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(n, generator=generator) * 0.1 for n in LENGTHS]


def their_features(model, wav: torch.Tensor, frames: int) -> torch.Tensor:
    """Return the features [frames, D] that the audio encoder inside transformers' whole Qwen2-Audio model computes."""
    extract = WhisperFeatureExtractor(feature_size=128)
    inputs = extract(wav.numpy(), sampling_rate=16000, return_attention_mask=True, return_tensors="pt")
    caught = []
    hook = model.model.audio_tower.register_forward_hook(lambda *args: caught.append(args[-1].last_hidden_state))
    try:
        # the model requires as many audio tokens as there are features
        ids = torch.tensor([[1, *[AUDIO_ID] * frames, 2]])
        model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            input_features=inputs.input_features,
            feature_attention_mask=inputs.attention_mask,
        )
    finally:
        hook.remove()
    return caught[0][0, :frames]


def test_weights_give_transformers_own_features(theirs, folder):
    net = ours(folder)
    net.load_weights()
    with torch.inference_mode():
        for wav in sounds()[2:]:
            features, (frames,) = net(wav[None], torch.tensor([len(wav)]))
            expected = their_features(theirs, wav, int(frames))
            assert expected.std() > 0.01
            torch.testing.assert_close(features[0], expected, atol=1e-5, rtol=0)


def test_unpadded_is_the_same_inside():
    """Features of a recording with and without padding to 30 s are similar, except near the recording's end."""
    padded, short = ours(), ours(pad_to_30s=False)
    wav, lengths = sounds()[-2][None], torch.tensor([16000])
    with torch.inference_mode():
        (one, (n,)), (other, (m,)) = padded(wav, lengths), short(wav, lengths)
    assert n == m == 25
    assert (one - other)[0, :20].abs().mean() < 0.05 * one.std()


@pytest.mark.parametrize("pad_to_30s", [True, False])
def test_frames(pad_to_30s):
    """The audio encoder of Qwen2-Audio computes half as many features as Whisper's encoder, rounded down."""
    net = ours(pad_to_30s=pad_to_30s)
    for wav in sounds():
        features, (frames,) = net(wav[None], torch.tensor([len(wav)]))
        columns = -(-len(wav) // 160) if pad_to_30s else len(wav) // 160  # frames of the spectrogram, 10 ms each
        assert frames == features.shape[1] == ((columns - 1) // 2 + 1) // 2
    with pytest.raises(ValueError, match=r"a recording of 30\.1 s is longer than the encoder's 30 s"):
        net(torch.zeros(1, 481600), torch.tensor([481600]))


def test_true_size():
    with torch.device("meta"):
        net = build_part("encoder", "qwen2_audio")
        known = TheirEncoder(Qwen2AudioEncoderConfig())
    assert count_parameters(net) + known.embed_positions.weight.numel() == count_parameters(known)
    assert (net.dim, net.frame_rate) == (1280, 25.0)


def test_files_of_several_shards(theirs, folder, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="2KB")
    whole, parts = ours(folder), ours(tmp_path)
    whole.load_weights()
    # shards without a tensor of the encoder are not read
    listed = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    used = {file for name, file in listed.items() if "audio_tower." in name}
    assert 1 < len(used) < len(set(listed.values()))
    for file in set(listed.values()) - used:
        (tmp_path / file).unlink()
    parts.load_weights()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name])
    (tmp_path / sorted(used)[0]).unlink()
    with pytest.raises(ValueError, match=rf"^weights {tmp_path}: {sorted(used)[0]} is missing$"):
        parts.load_weights()


def test_the_encoder_alone(theirs, folder, tmp_path):
    theirs.model.audio_tower.save_pretrained(tmp_path)
    whole, alone = ours(folder), ours(tmp_path)
    whole.load_weights()
    alone.load_weights()
    assert torch.equal(whole.encoder.conv1.weight, alone.encoder.conv1.weight)


def test_weights_that_do_not_fit(folder):
    with pytest.raises(ValueError, match=r"does not fit this encoder: n_mels is 128, expected 80$"):
        ours(folder, n_mels=80).load_weights()
    net = build_part("encoder", "whisper_small", size="tiny", weights=str(folder))
    with pytest.raises(ValueError, match=rf"^weights {folder}: model_type is qwen2_audio, expected whisper$"):
        net.load_weights()
