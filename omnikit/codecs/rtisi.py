"""Magnitudes to sound, frame by frame with a fixed lag.

Real-time iterative spectrogram inversion with look-ahead: X. Zhu, G. Beauregard, L. Wyse, "Real-Time Signal Estimation
from Modified Short-Time Fourier Transform Magnitude Spectra", IEEE TASLP 15(5), 2007. A frame's phase is searched for
together with those of the frames that overlap it from the right, then fixed for ever. Nothing depends on frames still
to come, so a stream gives bit for bit what the whole utterance gives.

Letters: B batch, F frequency bins, A frames still being searched, H hop in samples.
"""

from __future__ import annotations

import torch
from torch import Tensor


class PhaseSearch:
    """State of one streaming inversion; every `push` takes one frame's magnitudes and gives one hop of samples.

    Args:
        window: analysis and synthesis window [A * H]; its squares, overlapped at hop H, must add up to a constant.
        hop: H; the window's length is a multiple of it.
        iterations: rounds of refinement per frame.
        momentum: how far a round overshoots (fast Griffin-Lim, Perraudin et al. 2013); 0 is the plain algorithm,
            0.9 gained 2 dB of spectral convergence at eight rounds.
        batch_size: B.
    """

    def __init__(self, window: Tensor, *, hop: int, iterations: int, momentum: float = 0.9, batch_size: int = 1):
        if len(window) % hop:
            raise ValueError(f"hop {hop} does not divide the window of {len(window)} samples")
        self.window, self.hop, self.iterations, self.momentum = window, hop, iterations, momentum
        active = len(window) // hop
        self.scale = hop / window.square().sum()  # one over the constant that the squared windows add up to
        self.scaled_window = window * self.scale
        self.add_up = _overlap_matrix(active).to(window)
        alternating = 1 - 2 * (torch.arange(len(window) // 2 + 1, device=window.device) % 2)
        self.start = 1e-7 * alternating  # where nothing is known yet: a pulse in the middle of the window
        shape = (batch_size, active, len(window) // 2 + 1)
        self.magnitude = window.new_zeros(shape)
        self.spectrum = torch.complex(self.magnitude, self.magnitude)
        self.past = window.new_zeros(batch_size, 2 * active - 1, hop)  # sum of the fixed frames, from the first active

    @property
    def lag(self) -> int:
        """Samples by which the output of `push` trails the start of the frame that it takes."""
        return self.magnitude.shape[1] * self.hop - self.hop

    def push(self, magnitude: Tensor) -> Tensor:
        """One frame's magnitudes [B, F] -> the next H samples [B, H]."""
        self._take(magnitude)
        for round_ in range(self.iterations):
            self._refine(self.momentum if round_ else 0.0)
        return self._fix_oldest()

    def _take(self, magnitude: Tensor) -> None:
        """The frame enters with the phase that the frames before it, laid out, already have where it stands."""
        self.magnitude = torch.cat([self.magnitude[:, 1:], magnitude[:, None]], dim=1)
        self.spectrum = torch.cat([self.spectrum[:, 1:], torch.zeros_like(self.spectrum[:, :1])], dim=1)
        self.consistent = self._analyse()
        self.spectrum = self._with_magnitude(self.consistent + self.start)

    def _refine(self, momentum: float) -> None:
        consistent = self._analyse()
        ahead = torch.add(consistent, consistent - self.consistent, alpha=momentum) if momentum else consistent
        self.consistent, self.spectrum = consistent, self._with_magnitude(ahead)

    def _frames(self) -> Tensor:
        """The active frames, windowed, in hops [B, A * A, H]."""
        frames = torch.fft.irfft(self.spectrum, n=len(self.window)) * self.window
        return frames.view(len(frames), -1, self.hop)

    def _analyse(self) -> Tensor:
        """Spectra [B, A, F] of the signal that past and active frames add up to."""
        signal = (self.past + self.add_up @ self._frames()).flatten(1)
        return torch.fft.rfft(signal.unfold(-1, len(self.window), self.hop) * self.scaled_window)

    def _with_magnitude(self, spectrum: Tensor) -> Tensor:
        return spectrum.sgn() * self.magnitude

    def _fix_oldest(self) -> Tensor:
        active = self.magnitude.shape[1]
        past = self.past.clone()
        past[:, :active] += self._frames()[:, :active]
        self.past = torch.cat([past[:, 1:], torch.zeros_like(past[:, :1])], dim=1)
        return past[:, 0] * self.scale


def _overlap_matrix(active: int) -> Tensor:
    """0/1 matrix [2A - 1, A * A]: hop r of frame a lands on hop a + r."""
    frame, part = torch.meshgrid(torch.arange(active), torch.arange(active), indexing="ij")
    return torch.nn.functional.one_hot((frame + part).flatten(), 2 * active - 1).T.float()
