"""A codec without a neural network: residual k-means over patches of log-mel, and a vocoder that searches phases.

Letters: B batch, N samples, T frames, K codebooks, C codes per codebook, P mel frames per patch, M mel bands.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from omnikit.codecs.rtisi import PhaseSearch, Search
from omnikit.interfaces import Codec
from omnikit.public_weights import located
from omnikit.skip_init import empty_on_meta
from omnikit.streaming import EXACT, DecodeStream, DecodeStreams, check_frames, check_mode
from omnikit.weights import load_into

LARGEST_FFT, MOST_BANDS = 16384, 512
"""Maximum window in samples (about 1 s at 16 kHz) and maximum number of mel bands; the memory that the mel filters take
grows with their product."""
FLOOR = 1e-3
"""Amplitude below which a mel band counts as silent; a full-scale sine has amplitude 1."""


class MelRVQ(Codec):
    """A codec that quantises patches of a log-mel spectrogram with residual vector quantisation (RVQ).

    A frame is a patch of `patch` mel frames. Each codebook quantises the residual of those before it.

    Args:
        sample_rate: sample rate of the waveforms (Hz).
        n_mels: M, number of mel bands.
        n_fft: length of the analysis window in samples; mel frames are a quarter of it apart.
        patch: P, mel frames per patch.
        num_codebooks: K; if the weights have more codebooks, the first K are used.
        codebook_size: C, codes per codebook.
        iterations: rounds of the phase search per mel frame.
        weights: file, folder or hub id of trained codebooks, see `Part`.
    """

    encodes_padded = True

    def __init__(
        self,
        sample_rate: int,
        *,
        n_mels: int,
        n_fft: int,
        patch: int,
        num_codebooks: int,
        codebook_size: int,
        iterations: int = 8,
        weights: str | None = None,
    ):
        super().__init__()
        if n_fft % 8 or not 0 < n_fft <= LARGEST_FFT:
            raise ValueError(f"--codec.n_fft {n_fft}: must be a multiple of 8 up to {LARGEST_FFT}")
        if not 0 < n_mels <= min(MOST_BANDS, n_fft // 2):
            raise ValueError(f"--codec.n_mels {n_mels}: must be from 1 to {min(MOST_BANDS, n_fft // 2)}")
        self.sample_rate, self.n_fft, self.patch, self.iterations = sample_rate, n_fft, patch, iterations
        self.num_codebooks, self.codebook_size, self.weights = num_codebooks, codebook_size, weights
        self.hop = n_fft // 4
        self.margin = (n_fft - self.hop) // 2  # centres the P mel frames of a patch in the patch's samples
        self.frame_samples = patch * self.hop
        self.lookahead = n_fft - self.hop + self.margin
        filters = mel_filters(sample_rate, n_fft, n_mels)
        self.register_buffer("window", empty_on_meta((n_fft,), lambda: torch.hann_window(n_fft)), persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("inverse", torch.from_numpy(np.linalg.pinv(filters)).float(), persistent=False)
        shape = num_codebooks, codebook_size, patch * n_mels
        self.register_buffer("codebooks", empty_on_meta(shape, lambda: torch.randn(shape)))

    def load_weights(self) -> None:
        """Read the trained codebooks that `self.weights` names; see `Part.load_weights`.

        Raises:
            ValueError: also if the weights have fewer than K codebooks.
        """
        if self.weights is not None:
            load_into(self, located(self.weights), fit=self._first_codebooks)

    def _first_codebooks(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        if "codebooks" not in stored:
            return stored
        found = stored["codebooks"]
        if len(found) < self.num_codebooks:
            raise ValueError(f"codec.num_codebooks {self.num_codebooks}: {self.weights} has {len(found)} codebooks")
        return {**stored, "codebooks": found[: self.num_codebooks]}

    def encode(self, wav: Tensor) -> Tensor:
        """Encode waveforms [B, N] as codes [B, K, ceil(N / frame_samples)]."""
        rest = self.patches(wav)
        codes = []
        for codebook in self.codebooks:
            codes.append(nearest(rest, codebook))
            rest = rest - codebook[codes[-1]]
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [B, K, T] to waveforms [B, T * frame_samples]."""
        with self.stream(len(codes)) as stream:
            return torch.cat([stream.push(codes), stream.finish()], dim=-1)

    def stream(self, batch_size: int = 1, mode: str = EXACT) -> DecodeStream:
        """Return a decode stream; it is the same in all modes and lags about one window behind its frames."""
        check_mode(mode)
        return MelRVQStream(self, batch_size)

    def streams(self, mode: str = EXACT) -> DecodeStreams:
        check_mode(mode)
        return MelRVQStreams(self)

    def patches(self, wav: Tensor) -> Tensor:
        """Compute the log-mel patches [B, T, P * M] of waveforms [B, N], padded to whole frames."""
        mel = (self.magnitudes(wav) @ self.filters).clamp(min=FLOOR).log()
        return mel.unflatten(1, (-1, self.patch)).flatten(2)

    def magnitudes(self, wav: Tensor) -> Tensor:
        """Compute the amplitude spectra [B, T * P, F] of waveforms [B, N], padded to whole frames.

        F is the number of frequency bins; a full-scale sine has amplitude 1.
        """
        padding = -wav.shape[-1] % self.frame_samples
        wav = torch.nn.functional.pad(wav, (self.margin, self.margin + padding))
        spectrum = torch.fft.rfft(wav.unfold(-1, self.n_fft, self.hop) * self.window)
        return spectrum.abs() * (2 / self.window.sum())

    def linear(self, log_mel: Tensor) -> Tensor:
        """Convert log-mel spectra [..., M] to linear magnitudes [..., F] in the scale of `PhaseSearch`."""
        return (log_mel.exp() @ self.inverse).clamp_(min=0).mul_(self.n_fft / 4)  # half the sum of the window

    def columns(self, codes: Tensor) -> Tensor:
        """Return the magnitude spectra [P, F] that the codes [K] of one frame stand for.

        Frames are converted one at a time, whatever the batch and the chunk, because a matrix product of another shape
        rounds differently, and the phase search amplifies such differences.
        """
        patch = self.codebooks[torch.arange(self.num_codebooks, device=codes.device), codes].sum(dim=0)
        return self.linear(patch.unflatten(0, (self.patch, -1)))

    def phase_search(self) -> PhaseSearch:
        return PhaseSearch(self.window, hop=self.hop, iterations=self.iterations)

    @torch.no_grad()
    def fit(self, wavs: Iterable[Tensor], *, rounds: int = 20, max_patches: int = 40_000, seed: int = 0) -> list[float]:
        """Train the codebooks by residual k-means on the log-mel patches of waveforms [N].

        Args:
            wavs: waveforms to train on.
            rounds: iterations of k-means per codebook.
            max_patches: number of patches, chosen at random, that are used at most.
            seed: seed of all random choices.

        Returns:
            The share of the patches' variance that is left after each codebook.

        Raises:
            ValueError: there are fewer patches than codes in a codebook.
        """
        rng = torch.Generator().manual_seed(seed)
        rest = torch.cat([self.patches(wav[None])[0] for wav in wavs])
        if len(rest) < self.codebook_size:
            raise ValueError(f"{len(rest)} patches are too few for {self.codebook_size} codes")
        rest = rest[torch.randperm(len(rest), generator=rng)[:max_patches]]
        total, left = rest.var(dim=0, correction=0).sum(), []
        for codebook in self.codebooks:
            codebook.copy_(kmeans(rest, self.codebook_size, rounds, rng))
            rest = rest - codebook[nearest(rest, codebook)]
            left.append((rest.square().sum() / len(rest) / total).item())
        return left


class MelRVQStreams(DecodeStreams):
    """Concurrent streaming decodings by one `MelRVQ` codec, with the phase search of all of them in one batch.

    Each stream's samples are bit for bit those of decoding it alone.
    """

    def __init__(self, codec: MelRVQ):
        self.codec, self.search, self.opened = codec, codec.phase_search(), 0
        self.streams: dict[int, Search] = {}
        self.skip: dict[int, int] = {}  # samples from the search that still precede those of the first frame

    def open(self) -> int:
        self.opened += 1
        self.streams[self.opened], self.skip[self.opened] = self.search.begin(), self.codec.lookahead
        return self.opened

    @torch.no_grad()
    def push(self, codes: Mapping[int, Tensor]) -> dict[int, Tensor]:
        check_frames(self.codec, codes)
        pieces: dict[int, list[Tensor]] = {number: [] for number in codes}
        for t in range(max((frames.shape[-1] for frames in codes.values()), default=0)):
            numbers = [number for number, frames in codes.items() if t < frames.shape[-1]]
            columns = torch.stack([self.codec.columns(codes[number][:, t]) for number in numbers])
            for number, wav in zip(numbers, self._sound(numbers, columns), strict=True):
                pieces[number].append(wav)
        return {number: self._emit(number, wavs) for number, wavs in pieces.items()}

    @torch.no_grad()
    def finish(self, streams: Iterable[int]) -> dict[int, Tensor]:
        numbers, due = list(dict.fromkeys(streams)), self.codec.lookahead
        if not numbers:
            return {}
        columns = math.ceil(due / self.codec.hop)
        silence = self.codec.window.new_zeros(len(numbers), columns, self.search.bins)
        wavs = self._sound(numbers, silence)[:, :due]
        given = {number: self._emit(number, [wav]) for number, wav in zip(numbers, wavs, strict=True)}
        for number in numbers:
            self.drop(number)
        return given

    def drop(self, stream: int) -> None:
        del self.streams[stream], self.skip[stream]

    def _sound(self, numbers: Sequence[int], columns: Tensor) -> Tensor:
        """Return the next samples [R, P * hop] of R decode streams, given their next magnitude spectra [R, P, F]."""
        together = Search(*map(torch.cat, zip(*(self.streams[number] for number in numbers), strict=True)))
        wavs, together = self.search.push(together, columns)
        rows = zip(*(tensor.split(1) for tensor in together), strict=True)
        self.streams.update((number, Search(*row)) for number, row in zip(numbers, rows, strict=True))
        return wavs

    def _emit(self, number: int, pieces: Sequence[Tensor]) -> Tensor:
        wav = torch.cat([self.codec.window.new_zeros(0), *pieces])
        skip = min(self.skip[number], len(wav))
        self.skip[number] -= skip
        return wav[skip:]


class MelRVQStream(DecodeStream):
    """A decode stream of a `MelRVQ` codec for a batch of utterances that begin and end together."""

    def __init__(self, codec: MelRVQ, batch_size: int):
        self.codec, self.streams = codec, MelRVQStreams(codec)
        self.rows = [self.streams.open() for _ in range(batch_size)]

    def push(self, codes: Tensor) -> Tensor:
        self.codec.check_codes(codes)
        wavs = self.streams.push(dict(zip(self.rows, codes, strict=True)))
        return torch.stack([wavs[row] for row in self.rows])

    def finish(self) -> Tensor:
        wavs = self.streams.finish(self.rows)
        return torch.stack([wavs[row] for row in self.rows])


def nearest(points: Tensor, codebook: Tensor) -> Tensor:
    """Return for each point [..., D] the index [...] of the nearest entry of a codebook [C, D]."""
    return (codebook.square().sum(dim=-1) - 2 * points @ codebook.T).argmin(dim=-1)


def kmeans(points: Tensor, size: int, rounds: int, rng: torch.Generator) -> Tensor:
    """Cluster points [N, D] with Lloyd's algorithm and return the centres [size, D].

    A centre without points restarts at a random point.
    """
    centres = points[torch.randperm(len(points), generator=rng)[:size]]
    for _ in range(rounds):
        owner = nearest(points, centres)
        counts = torch.bincount(owner, minlength=size)
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        anywhere = points[torch.randint(len(points), (size,), generator=rng)]
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), anywhere)
    return centres


def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> np.ndarray:
    """Return triangular filters on the mel scale (2595 log10(1 + f / 700)) [n_fft / 2 + 1, n_mels].

    The weights of each filter sum to 1.
    """
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, n_mels + 2) / 2595) - 1)
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    return filters / filters.sum(axis=0).clip(min=1e-6)
