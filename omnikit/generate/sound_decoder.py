"""Decoding the codes of growing answers to sound: what is due is decoded together, for all answers of a running batch.

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
"""Maximum number of frames that a chunk waits for."""
MARGIN = 2.0
"""How many times as long as the next frame takes to come the first chunk of sound is to last."""


@dataclass(frozen=True)
class Sounds:
    """Decoded samples [n] of some answers, on the CPU, and the errors of answers whose codec raised."""

    wavs: dict[Request, Tensor] = field(default_factory=dict)
    failed: dict[Request, Exception] = field(default_factory=dict)


class Average:
    """Exponential moving average of durations in seconds."""

    WEIGHT = 0.25  # of the last value

    def __init__(self) -> None:
        self.value = 0.0

    @contextmanager
    def measured(self, parts: int = 1) -> Iterator[None]:
        """Measure the duration of a `with` block; each of its `parts` counts as an equal share."""
        began = monotonic()
        yield
        last = (monotonic() - began) / parts
        self.value += self.WEIGHT * (last - self.value) if self.value else last


class SoundDecoder:
    """Decoder of the sound of all answers in a running batch, over the codec's streams."""

    def __init__(self, model: OmniLM):
        self.model, self.codec = model, model.codec
        self.streams: dict[str, DecodeStreams] = {}
        """Streams by mode."""
        self.step_seconds, self.frame_seconds = Average(), Average()
        """Of a decode step, and of decoding a frame of every answer."""

    def streams_of(self, mode: str) -> DecodeStreams:
        """Return the codec's streams in a mode of `omnikit.streaming.MODES`, opened at the first call.

        Raises:
            ValueError: the system has no codec.
        """
        if mode not in self.streams:
            self.streams[mode] = self.codec.streams(mode)
        return self.streams[mode]

    def decode_due(self, requests: Iterable[Request]) -> Sounds:
        """Decode the chunks that are complete. What is half a chunk goes along, so that chunks of answers that began at
        different times come to be decoded together; not where the sound depends on the chunks."""
        speaking = [request for request in requests if request.frames is not None and request.frames.complete]
        if not any(request.frames.complete >= self._wanted(request) for request in speaking):
            return Sounds()
        return self._decode(
            request for request in speaking
            if request.frames.complete * (2 if _flexible(request) else 1) >= self._wanted(request)
        )  # fmt: skip

    def finish(self, requests: list[Request]) -> Sounds:
        """Decode all that ended answers still owe."""
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
        """Forget the stream of an answer, if it has one."""
        stream, request.stream = request.stream, None
        if stream is not None:
            with suppress(Exception):  # after an error a codec may not know its stream any more
                self.streams[request.sound].drop(stream)

    def _wanted(self, request: Request) -> int:
        """Return the number of frames that the next chunk of an answer waits for.

        Chunks grow, so that the first comes soon and the codec is called less often later: 1, 2, 4 .. frames. An exact
        stream, which holds back the end of its last frame, takes half as many as were taken before, 1, 1, 1, 1, 2, 3
        .., so that a chunk has come long before the last one has been played; its first chunk lasts until the second
        can be there. Where frames come more slowly than they are played nothing helps, so the first is given at once.
        """
        given, soon = request.frames.given, self.step_seconds.value + self.frame_seconds.value
        if request.sound != EXACT:
            return min(given + 1, LONGEST_CHUNK)
        if given or soon >= self.codec.frame_samples / self.codec.sample_rate:
            return min(max(1, given // 2), LONGEST_CHUNK)
        samples = self.codec.lookahead + MARGIN * soon * self.codec.sample_rate
        return max(1, min(math.ceil(samples / self.codec.frame_samples), LONGEST_CHUNK))

    def _decode(self, requests: Iterable[Request]) -> Sounds:
        """Decode the frames that are waiting, of those that have any."""
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
        """Return the number of an answer's stream, which is opened for its first frame."""
        if request.stream is None:
            request.stream = self.streams_of(request.sound).open()
        return request.stream


def _flexible(request: Request) -> bool:
    """Tell whether frames may be decoded before their chunk is complete: not the first ones, nor where sound depends on
    the chunks."""
    return request.sound == EXACT and request.frames.given > 0
