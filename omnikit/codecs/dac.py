"""DAC, the Descript Audio Codec (Kumar et al. 2023, arXiv 2306.06546), from Hugging Face's `transformers`."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor, nn
from transformers import DacConfig, DacModel

from omnikit.codecs.joined_streams import JoinedStreams
from omnikit.codecs.streaming_centred import CentredDecoder
from omnikit.codecs.transformers_residual import ResidualCodec
from omnikit.streaming import EXACT, DecodeStream, DecodeStreams

TINY = {"encoder_hidden_size": 4, "decoder_hidden_size": 32}


class DacCodec(ResidualCodec):
    """The DAC codec, using the implementation in Hugging Face's `transformers`.

    Its arguments are those of `ResidualCodec`.

    Where an upsampling rate is odd, the network's output is a few samples shorter than whole frames (8 at 24 kHz, as
    in the published code). It is padded with silence.
    """

    config_class, network_class = DacConfig, DacModel
    tiny = TINY

    def samples_per_frame(self) -> int:
        return self.network.config.hop_length

    def lag(self) -> int:
        return self.decoder.lookahead

    @cached_property
    def decoder(self) -> CentredDecoder:
        return CentredDecoder(list(self.network.decoder.children()), self._latents, self.frame_samples)

    def quantizers(self) -> list[nn.ModuleList]:
        return [self.network.quantizer.quantizers]

    def tables(self) -> list[Tensor]:
        return [layer.codebook.weight for layer in self.network.quantizer.quantizers]

    def encode_frames(self, wav: Tensor) -> Tensor:
        return self.network.encode(wav, n_quantizers=self.num_codebooks).audio_codes

    def decode_frames(self, codes: Tensor) -> Tensor:
        return self.network.decode(audio_codes=codes).audio_values

    def stream(self, batch_size: int = 1, mode: str = EXACT) -> DecodeStream:
        return self.decoder.stream(self, batch_size, mode)

    def streams(self, mode: str = EXACT) -> DecodeStreams:
        return JoinedStreams(self, mode)

    def _latents(self, codes: Tensor) -> Tensor:
        return self.network.quantizer.from_codes(codes)[0]
