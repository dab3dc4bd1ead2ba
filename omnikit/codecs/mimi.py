"""Mimi (Défossez et al. 2024, arXiv 2410.00037), the codec of Moshi, from Hugging Face's `transformers`."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from transformers import MimiConfig, MimiModel

from omnikit.codecs.streaming_attention import transform
from omnikit.codecs.streaming_causal import CausalCodec, Memory, run
from omnikit.streaming import EXACT, DecodeStream

TINY = {
    "num_filters": 4,
    "hidden_size": 16,
    "upsample_groups": 16,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
# with one semantic codebook, `num_codebooks` can be any number from 1
FIXED = {"use_causal_conv": True, "trim_right_ratio": 1.0, "audio_channels": 1, "num_semantic_quantizers": 1}


class MimiCodec(CausalCodec):
    """The Mimi codec, using the implementation in Hugging Face's `transformers`.

    Its arguments are those of `ResidualCodec`.

    The first codebook is semantic: it was distilled from a speech encoder. The others are acoustic.
    """

    config_class, network_class = MimiConfig, MimiModel
    tiny, fixed = TINY, FIXED
    encodes_padded = True  # the encoder is causal, and pads the start with zeros where EnCodec reflects the input

    def samples_per_frame(self) -> int:
        return self.network.config.frame_size

    def quantizers(self) -> list[nn.ModuleList]:
        both = self.network.quantizer
        return [both.semantic_residual_vector_quantizer.layers, both.acoustic_residual_vector_quantizer.layers]

    def tables(self) -> list[Tensor]:
        return [layer.codebook.embed_sum for layers in self.quantizers() for layer in layers]

    def decoder_layers(self) -> Iterable[nn.Module]:
        return self.network.decoder.decoder_seanet.layers

    def encode_frames(self, wav: Tensor) -> Tensor:
        self._drop_cached_tables()
        return self.network.encode(wav, num_quantizers=self.num_codebooks).audio_codes

    def decode_frames(self, codes: Tensor) -> Tensor:
        self._drop_cached_tables()
        return self.network.decode(codes).audio_values[:, 0]

    def stream(self, batch_size: int = 1, mode: str = EXACT) -> DecodeStream:
        self._drop_cached_tables()
        return super().stream(batch_size, mode)

    def decode_next(self, codes: Tensor, memory: Memory) -> Tensor:
        decoder = self.network.decoder
        x = run([decoder.upsample], self.network.quantizer.decode(codes), memory)
        x = transform(decoder.decoder_transformer, x.transpose(1, 2), memory)
        return run(self.decoder_layers(), x.transpose(1, 2), memory)[:, 0]

    def _drop_cached_tables(self) -> None:
        """Discard the codebook entries that `transformers` caches, stale after a change of weights or device."""
        for layers in self.quantizers():
            for layer in layers:
                layer.codebook._embed = None
