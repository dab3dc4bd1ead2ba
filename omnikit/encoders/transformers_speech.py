"""HuBERT, wav2vec 2.0 and WavLM encoders, which take waveforms, as implemented in Hugging Face's `transformers`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, PretrainedConfig

from omnikit.encoders.transformers_speech_weights import read_speech
from omnikit.hub import holds_transformers
from omnikit.interfaces import AudioEncoder
from omnikit.part_sizes import PUBLISHED, sized
from omnikit.public_weights import located
from omnikit.size_limits import check_counts
from omnikit.untrusted_models import build_network

FAMILIES = ("hubert", "wav2vec2", "wavlm")
SAMPLE_RATE = 16000
TINY = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
NO_CHANCE = {
    "layerdrop": 0.0, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "hidden_dropout": 0.0,
    "activation_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0,
}  # fmt: skip
"""Configuration options of `transformers` that turn dropout and masking off; their defaults are for pre-training."""


class TransformersSpeechEncoder(AudioEncoder):
    """A HuBERT, wav2vec 2.0 or WavLM encoder, whose features are the network's last hidden states.

    Waveforms of equal length are encoded together and unpadded, because padding would change the features: the group
    norm of the base networks runs over time. Features are the same in training and in evaluation mode: layer drop,
    dropout and masking are off unless `config` sets them.

    Args:
        config: `model_type` (hubert, wav2vec2, wavlm) and the values of its transformers configuration.
        normalize: whether each waveform is first normalised to zero mean and unit variance (`do_normalize` of the
            published `preprocessor_config.json`).
        weights: see `Part`; or a folder or hub id in the format of transformers.
        size: `published`, or `tiny` for few and narrow layers, see `omnikit.part_sizes`.

    Raises:
        ValueError: the `model_type` or the size is unknown.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, *, config: dict[str, Any], normalize: bool, weights: str | None = None, size: str = PUBLISHED):
        super().__init__()
        self.normalize, self.weights = normalize, weights
        self.net = build_network(AutoModel, _read_config(sized(config, TINY, size)))
        numbers = self.net.config
        self.dim = numbers.hidden_size
        self.frame_rate = SAMPLE_RATE / math.prod(numbers.conv_stride)
        self.convolutions = list(zip(numbers.conv_kernel, numbers.conv_stride, strict=True))
        self.shortest = shortest_input(numbers.conv_kernel, numbers.conv_stride)

    def load_weights(self) -> None:
        """Read the weights of a speech encoder from safetensors like every part, or from the format of `transformers`.

        Raises:
            ValueError: the weights cannot be read or do not fit.
        """
        weights = located(self.weights)
        if weights is not None and holds_transformers(weights):
            read_speech(weights, self.net)
        else:
            super().load_weights()

    def forward(self, wav: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode waveforms [B, N] with lengths [B] in samples as features [B, T, D]; see `AudioEncoder.forward`.

        The convolutions are not padded, so the published networks have `(N - 80) // 320` frames for N samples.

        Raises:
            ValueError: a recording is too short for one frame.
        """
        self._check(int(lengths.min()))
        rows: dict[int, Tensor] = {}
        for samples in sorted(set(lengths.tolist())):
            alike = (lengths == samples).nonzero()[:, 0]
            rows |= dict(zip(alike.tolist(), self._encode(wav[alike, :samples]), strict=True))
        features = [rows[i] for i in range(len(rows))]
        return pad_sequence(features, batch_first=True), lengths.new_tensor([len(row) for row in features])

    def num_frames(self, samples: int) -> int:
        """Return the number of features of a recording of N samples; see `AudioEncoder.num_frames`."""
        self._check(samples)
        for kernel, stride in self.convolutions:
            samples = (samples - kernel) // stride + 1
        return samples

    def _check(self, shortest: int) -> None:
        if shortest < self.shortest:
            raise ValueError(f"a recording of {shortest} samples is shorter than one frame ({self.shortest} samples)")

    def _encode(self, wav: Tensor) -> Tensor:
        """Encode waveforms of equal length [B, N] as features [B, T, D]."""
        if self.normalize:
            # as Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm
            variance, mean = torch.var_mean(wav, dim=1, correction=0, keepdim=True)
            wav = (wav - mean) / (variance + 1e-7).sqrt()
        return self.net(wav.to(self.net.dtype)).last_hidden_state


def shortest_input(kernels: list[int], strides: list[int]) -> int:
    """Return the minimum number of samples from which a stack of unpadded convolutions computes one frame."""
    samples = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def _read_config(numbers: dict[str, Any]) -> PretrainedConfig:
    kind = numbers.pop("model_type", None)
    if kind not in FAMILIES:
        raise ValueError(f"encoder.config.model_type: {kind!r} is not one of {', '.join(FAMILIES)}")
    check_counts("encoder.config", numbers)
    config = AutoConfig.for_model(kind, **NO_CHANCE | numbers)
    config.dtype = torch.float32
    return config
