"""Decoding of the codes of growing answers to waveforms, in codec calls that all answers of a running batch share.

Letters: K codebooks, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic

import torch
from torch import Tensor

from omnikit.generate.detokenize import take_frames
from omnikit.generate.request import Request
from omnikit.model import OmniLM
from omnikit.streaming import EXACT, DecodeStreams

LONGEST_CHUNK = 8
"""Maximum number of frames that are collected before a chunk is decoded."""
MARGIN = 2.0
"""Minimum ratio of the duration of the first chunk of sound to the time in which the next frame is computed."""


@dataclass(frozen=True)
class Sounds:
    """Decoded samples [n] of some requests, on the CPU, and the errors of requests for which the codec raised one."""

    wavs: dict[Request, Tensor] = field(default_factory=dict)
    failed: dict[Request, Exception] = field(default_factory=dict)


class Average:
    """An exponential moving average of durations in seconds."""

    WEIGHT = 0.25  # of the latest duration

    def __init__(self) -> None:
        self.value = 0.0

    @contextmanager
    def measured(self, parts: int = 1) -> Iterator[None]:
        """Time a `with` block and add its duration, divided by `parts`, to the average."""
        began = monotonic()
        yield
        last = (monotonic() - began) / parts
        self.value += self.WEIGHT * (last - self.value) if self.value else last


class SoundDecoder:
    """A decoder of codes to waveforms for a running batch, with one decode stream of the codec for each answer."""

    def __init__(self, model: OmniLM):
        self.model, self.codec = model, model.codec
        self.streams: dict[str, DecodeStreams] = {}
        """Mapping from streaming mode to the codec's decode streams in that mode."""
        self.step_seconds, self.frame_seconds = Average(), Average()
        """Average seconds of a decode step of the batch, and of decoding one frame of every answer."""

    def streams_of(self, mode: str) -> DecodeStreams:
        """Return the codec's decode streams in a mode of `omnikit.streaming.MODES`; the first call opens them.

        Raises:
            ValueError: the system has no codec.
        """
        if mode not in self.streams:
            self.streams[mode] = self.codec.streams(mode)
        return self.streams[mode]

    def decode_due(self, requests: Iterable[Request]) -> Sounds:
        """Decode all complete chunks, and return their samples.

        Chunks that are at least half complete are decoded early in the same codec call, so that answers that began at
        different times come to share calls. This is not done in modes where chunk boundaries affect the waveform.
        """
        speaking = [request for request in requests if request.frames is not None and request.frames.complete]
        if not any(request.frames.complete >= self._wanted(request) for request in speaking):
            return Sounds()
        return self._decode(
            request for request in speaking
            if request.frames.complete * (2 if _flexible(request) else 1) >= self._wanted(request)
        )  # fmt: skip

    def finish(self, requests: list[Request]) -> Sounds:
        """Decode the remaining frames of ended answers, close their decode streams, and return the samples."""
        sounds = self._decode(request for request in requests if request.frames is not None)
        for mode in dict.fromkeys(request.sound for request in requests if request.stream is not None):
            ending = [each for each in requests if each.sound == mode and each.stream is not None]
            try:
                found = self.streams_of(mode).finish([request.stream for request in ending])
            except Exception as error:
                sounds.failed.update(dict.fromkeys(ending, error))
                continue
            for request in ending:
                wav, request.stream = found[request.stream].cpu(), None
                sounds.wavs[request] = torch.cat([sounds.wavs[request], wav]) if request in sounds.wavs else wav
        return sounds

    def drop(self, request: Request) -> None:
        """Close the decode stream of a request, if it has one, and discard its remaining samples."""
        stream, request.stream = request.stream, None
        if stream is not None:
            with suppress(Exception):  # after an error the codec may have dropped the stream itself
                self.streams[request.sound].drop(stream)

    def _wanted(self, request: Request) -> int:
        """Return the number of frames that the next chunk of an answer is to hold.

        Chunks grow, so that the first one comes soon and later ones need fewer codec calls: 1, 2, 4 .. frames. In an
        exact stream, which holds back the end of its last frame, a chunk has half as many frames as were decoded before
        it: 1, 1, 1, 1, 2, 3 .., so that it is ready long before the previous one has been played; its first chunk is
        long enough to last until the second is ready. Where frames are computed more slowly than they are played, no
        chunk length avoids gaps, so the first chunk is decoded at once.
        """
        given, soon = request.frames.given, self.step_seconds.value + self.frame_seconds.value
        if request.sound != EXACT:
            return min(given + 1, LONGEST_CHUNK)
        if given or soon >= self.codec.frame_samples / self.codec.sample_rate:
            return min(max(1, given // 2), LONGEST_CHUNK)
        samples = self.codec.lookahead + MARGIN * soon * self.codec.sample_rate
        return max(1, min(math.ceil(samples / self.codec.frame_samples), LONGEST_CHUNK))

    def _decode(self, requests: Iterable[Request]) -> Sounds:
        """Decode the complete frames of the requests that have any, in one codec call for each streaming mode."""
        requests = list(requests)
        found = zip(requests, take_frames([request.frames for request in requests]), strict=True)
        taken = {request: codes for request, codes in found if codes is not None}
        sounds = Sounds()
        for mode in dict.fromkeys(request.sound for request in taken):
            owners = {self._stream(request): request for request in taken if request.sound == mode}
            codes = {number: taken[request].to(self.model.device) for number, request in owners.items()}
            try:
                with self.frame_seconds.measured(parts=max(each.shape[1] for each in codes.values())):
                    wavs = self.streams_of(mode).push(codes)
                    sounds.wavs.update({owners[number]: wav.cpu() for number, wav in wavs.items()})
            except Exception as error:
                sounds.failed.update(dict.fromkeys(owners.values(), error))
        return sounds

    def _stream(self, request: Request) -> int:
        """Return the number of a request's decode stream, which is opened for its first frame."""
        if request.stream is None:
            request.stream = self.streams_of(request.sound).open()
        return request.stream


def _flexible(request: Request) -> bool:
    """Return whether a chunk of an answer may be decoded before it is complete.

    That holds in exact streams after the first chunk; in other modes the waveform depends on the chunks.
    """
    return request.sound == EXACT and request.frames.given > 0
