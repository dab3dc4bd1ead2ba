"""No codec: a system that writes and never speaks."""

from __future__ import annotations

from torch import Tensor

from omnikit.interfaces import Codec
from omnikit.streaming import EXACT, DecodeStream, DecodeStreams

MESSAGE = "codec: this system has none, so it only writes; to hear it speak, build or convert it with a --codec"


class NoCodec(Codec):
    """Stands where a codec would, so that the model has its audio streams and heads.

    Args:
        num_codebooks, codebook_size: of the codec that the model was trained with.
    """

    sample_rate = frame_rate = frame_samples = lookahead = None

    def __init__(self, *, num_codebooks: int, codebook_size: int):
        super().__init__()
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size

    def encode(self, wav: Tensor) -> Tensor:
        raise ValueError(MESSAGE)

    def decode(self, codes: Tensor) -> Tensor:
        raise ValueError(MESSAGE)

    def stream(self, batch_size: int = 1, mode: str = EXACT) -> DecodeStream:
        raise ValueError(MESSAGE)

    def streams(self, mode: str = EXACT) -> DecodeStreams:
        raise ValueError(MESSAGE)
