"""The placeholder encoder of a system whose input is stored features."""

from __future__ import annotations

from torch import Tensor

from omnikit.interfaces import AudioEncoder


class NoEncoder(AudioEncoder):
    """A placeholder encoder that encodes nothing; the system's features are computed elsewhere.

    Args:
        dim: D, width of the features.
        frame_rate: frame rate of the features (Hz).
        sample_rate: sample rate of the recordings from which the features are computed (Hz).
    """

    def __init__(self, *, dim: int, frame_rate: float, sample_rate: int):
        super().__init__()
        self.dim, self.frame_rate, self.sample_rate = dim, frame_rate, sample_rate

    def forward(self, wav: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        raise ValueError("encoder: this system has none; give it features, not recordings, or choose an --encoder")
