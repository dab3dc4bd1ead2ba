"""The placeholder codec of a system that answers in text only."""

from __future__ import annotations

from torch import Tensor

from omnikit.interfaces import Codec
from omnikit.streaming import EXACT, DecodeStream, DecodeStreams

MESSAGE = "codec: this system has none, so it answers in text only; for speech, build or convert it with a --codec"


class NoCodec(Codec):
    """A placeholder codec that neither encodes nor decodes.

    It only provides the sizes that determine the model's audio streams and heads.

    Args:
        num_codebooks: number of codebooks of the codec that the model was trained with.
        codebook_size: codes per codebook of that codec.
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
