"""No encoder: a system that is given ready features."""

from __future__ import annotations

from torch import Tensor

from omnikit.interfaces import AudioEncoder


class NoEncoder(AudioEncoder):
    """Stands where an encoder would; features are computed elsewhere.

    Args:
        dim: D, width of the features.
        frame_rate: of the features (Hz).
        sample_rate: of the recordings that they are made from (Hz).
    """

    def __init__(self, *, dim: int, frame_rate: float, sample_rate: int):
        super().__init__()
        self.dim, self.frame_rate, self.sample_rate = dim, frame_rate, sample_rate

    def forward(self, wav: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        raise ValueError("encoder: this system has none, so it cannot hear; give it features, or choose an --encoder")
