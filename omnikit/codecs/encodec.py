"""The causal 24 kHz EnCodec (Défossez et al. 2022, arXiv 2210.13438), from Hugging Face's `transformers`."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from transformers import EncodecConfig, EncodecModel

from omnikit.codecs.streaming_causal import CausalCodec, Memory, run

TINY = {"num_filters": 4, "hidden_size": 16, "codebook_dim": 16, "num_lstm_layers": 1}
# the model for 48 kHz is another codec: it is stereo, normalises over time and decodes overlapping segments of 1 s
FIXED = {
    "use_causal_conv": True,
    "trim_right_ratio": 1.0,
    "norm_type": "weight_norm",
    "normalize": False,
    "chunk_length_s": None,
    "audio_channels": 1,
}


class EncodecCodec(CausalCodec):
    """The causal EnCodec codec, using the implementation in Hugging Face's `transformers`.

    Its arguments are those of `ResidualCodec`.

    The network's number of codebooks follows from `target_bandwidths` of its configuration.
    """

    config_class, network_class = EncodecConfig, EncodecModel
    tiny, fixed = TINY, FIXED

    def samples_per_frame(self) -> int:
        return self.network.config.hop_length

    def quantizers(self) -> list[nn.ModuleList]:
        return [self.network.quantizer.layers]

    def tables(self) -> list[Tensor]:
        return [layer.codebook.embed for layer in self.network.quantizer.layers]

    def decoder_layers(self) -> Iterable[nn.Module]:
        return self.network.decoder.layers

    def encode_frames(self, wav: Tensor) -> Tensor:
        return self.network.quantizer.encode(self.network.encoder(wav)).transpose(0, 1)

    def decode_frames(self, codes: Tensor) -> Tensor:
        return self.network.decode(codes[None], [None]).audio_values[:, 0]

    def decode_next(self, codes: Tensor, memory: Memory) -> Tensor:
        return run(self.decoder_layers(), self.network.quantizer.decode(codes.transpose(0, 1)), memory)[:, 0]
