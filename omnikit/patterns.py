"""Patterns: maps that say at which answer step and in which audio stream each code stands.

Sources: MusicGen (arXiv 2306.05284, section 2.2) and Mini-Omni (arXiv 2408.16725, section 3).

Three frames a, b, c of K = 3 codebooks, `.` a hole, `|` the end mark:

    delayed (1, 2, 3)      parallel         flattened, text_lead 1

    . a0 b0 c0 |           a0 b0 c0 |       . a0 a1 a2 b0 b1 b2 c0 c1 c2 |
    . .  a1 b1 c1 |        a1 b1 c1 |
    . .  .  a2 b2 c2 |     a2 b2 c2 |

`interleave` applies the map to frames, and `deinterleave` undoes it, also while an answer is being decoded
(`omnikit/generate/detokenize.py`).

All three are the same map with different numbers: code (k, t) stands in stream `stream_of[k]` at step `start[k] +
stride * t`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from omnikit.interfaces import Pattern


class AffinePattern(Pattern):
    """A pattern that places code t of codebook k in stream `stream_of[k]` at step `start[k] + stride * t`.

    The first codes of a stream's codebooks stand at different steps, less than `stride` after the first of them.
    """

    def __init__(self, *, stream_of: list[int], start: list[int], stride: int):
        self.num_codebooks = len(stream_of)
        self.stream_of, self.start, self.stride = stream_of, start, stride
        streams = range(max(stream_of) + 1)
        in_order = sorted(range(self.num_codebooks), key=start.__getitem__)
        self.carries = tuple(tuple(k for k in in_order if stream_of[k] == stream) for stream in streams)
        self.first = [start[books[0]] for books in self.carries]

    def codebook_at(self, step: int) -> list[int]:
        found = [-1] * len(self.carries)
        for k, (stream, start) in enumerate(zip(self.stream_of, self.start, strict=True)):
            if step >= start and (step - start) % self.stride == 0:
                found[stream] = k
        return found

    def num_steps(self, frames: int) -> int:
        return max(self.start) + self.stride * (frames - 1) + 1 if frames else 0

    def _steps_of(self, frames: int, device: torch.device) -> Tensor:
        start = torch.tensor(self.start, device=device)
        return start[:, None] + self.stride * torch.arange(frames, device=device)

    def interleave(self, frames: Tensor, hole: int = -1) -> Tensor:
        count = frames.shape[-1]
        steps = frames.new_full((frames.shape[0], len(self.carries), self.num_steps(count)), hole)
        streams = torch.tensor(self.stream_of, device=frames.device)[:, None].expand(-1, count)
        steps[:, streams, self._steps_of(count, frames.device)] = frames
        return steps

    def deinterleave(self, steps: Tensor) -> Tensor:
        count = self.num_frames(steps.shape[-1])
        streams = torch.tensor(self.stream_of, device=steps.device)[:, None].expand(-1, count)
        return steps[:, streams, self._steps_of(count, steps.device)]


class Delayed(AffinePattern):
    """A pattern with one stream per codebook, where stream k starts `delays[k] + text_lead` steps after the text.

    Args:
        num_codebooks: number K of codebooks.
        delays: delay of each codebook in steps; None = 1, 2, .. K as in Mini-Omni.
        text_lead: further steps by which all audio streams start later.

    Raises:
        ValueError: the number of delays differs from that of codebooks, or a stream would start before the answer.
    """

    def __init__(self, *, num_codebooks: int, delays: list[int] | None = None, text_lead: int = 0):
        delays = list(range(1, num_codebooks + 1)) if delays is None else list(delays)
        if len(delays) != num_codebooks:
            raise ValueError(f"pattern.delays: {len(delays)} delays for {num_codebooks} codebooks: {delays}")
        if min(delays) + text_lead < 0:
            raise ValueError(f"pattern.delays: {delays} with text_lead {text_lead} start before the answer")
        super().__init__(stream_of=list(range(num_codebooks)), start=[d + text_lead for d in delays], stride=1)


class Parallel(Delayed):
    """A pattern with one stream per codebook and all codes of a frame in one step, `text_lead` steps after the text."""

    def __init__(self, *, num_codebooks: int, text_lead: int = 0):
        super().__init__(num_codebooks=num_codebooks, delays=[0] * num_codebooks, text_lead=text_lead)


class Flattened(AffinePattern):
    """A pattern with a single audio stream of K steps per frame, starting `text_lead` steps after the text."""

    def __init__(self, *, num_codebooks: int, text_lead: int = 1):
        if text_lead < 0:
            raise ValueError(f"pattern.text_lead: {text_lead}; it must be 0 or more")
        start = [text_lead + k for k in range(num_codebooks)]
        super().__init__(stream_of=[0] * num_codebooks, start=start, stride=num_codebooks)
