"""Conversion of emitted tokens to text and codes, for whole answers and for answers that are still being decoded.

Letters: R answers, S streams, L steps, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omnikit.generate.types import Answer
from omnikit.model import OmniLM
from omnikit.tasks import Task

UNFINISHED = "\ufffd"
"""Replacement character that tokenizers emit for bytes that do not form a whole character yet."""


@dataclass(frozen=True)
class Frames:
    """Codes of the audible frames in some decode steps of one answer."""

    codes: Tensor  # [K, T]
    ended: bool  # whether an `eoa` was found, so that no later frame is audible


def read_frames(model: OmniLM, steps: Tensor) -> Frames:
    """Return the codes of the complete, audible frames in the audio tokens of emitted steps [S - 1, L].

    Frames are audible up to the first one in which a stream has an `eoa`. A frame that holds another id outside its
    codebook is skipped; such ids are emitted only with `Decoding.constrain` off.
    """
    return _read(model, steps[None], [model.pattern.num_frames(steps.shape[-1])])[0]


def _read(model: OmniLM, steps: Tensor, complete: Sequence[int]) -> list[Frames]:
    """Return the audible frames of several answers from their audio tokens [R, S - 1, L].

    Args:
        complete: number of complete frames of each answer; later frames are ignored.
    """
    layout, pattern = model.layout, model.pattern
    ends = torch.tensor([[ids.eoa] for ids in layout.audio], device=steps.device)
    over = pattern.deinterleave(steps == ends).any(dim=1).cumsum(dim=1) > 0  # [R, T]
    codes = layout.to_codes(steps, pattern.codebooks(steps.shape[-1]).to(steps.device))
    codes = pattern.deinterleave(codes)
    known = ((codes >= 0) & (codes < layout.codebook_size)).all(dim=1)
    audible, over = known & ~over, over.tolist()
    return [
        Frames(codes[row, :, :count][:, audible[row, :count]], any(over[row][:count]))
        for row, count in enumerate(complete)
    ]


def read_answer(model: OmniLM, task: Task, steps: Sequence[Sequence[int]], end: str) -> Answer:
    """Convert the emitted steps of an answer (L lists of S tokens) to text ids and the codes of its audible frames."""
    text = [step[0] for step in steps if model.layout.is_text(step[0])]
    if not (task.speaks and steps):
        return Answer(text, torch.zeros(model.pattern.num_codebooks, 0, dtype=torch.long), end)
    return Answer(text, read_frames(model, torch.tensor(steps).T[1:]).codes, end)


class FrameReader:
    """A buffer of the audio tokens of one growing answer that returns the codes of each frame once it is complete."""

    def __init__(self, model: OmniLM):
        self.model, self.pattern = model, model.pattern
        self.steps: list[list[int]] = []  # audio tokens from the next frame's first on, again a prefix of the pattern
        self.given = 0  # number of frames taken so far
        self.complete = 0  # number of complete frames that have not been taken
        self.silent = False  # whether an `eoa` has ended the audible frames

    def push(self, tokens: Sequence[int]) -> None:
        """Append the S tokens of the answer's next step."""
        self.steps.append(list(tokens[1:]))
        self.complete = self.pattern.num_frames(len(self.steps))

    def remove(self, read: Frames | None) -> Tensor | None:
        """Remove the complete frames from the buffer; return the codes [K, T] of those that were read and are audible.

        Args:
            read: the complete frames as read from the buffer; None if they are not audible.
        """
        if read is not None:
            self.silent = read.ended
            self.given += self.complete
        del self.steps[: self.complete * self.pattern.stride]
        self.complete = 0
        return read.codes if read is not None and read.codes.shape[1] else None


def take_frames(readers: Sequence[FrameReader]) -> list[Tensor | None]:
    """Remove the complete frames from the buffers of readers that share a model, and read them as one batch.

    Returns:
        For each reader the codes [K, T] of its audible frames, or None if there are none.
    """
    waiting = [reader for reader in readers if reader.complete and not reader.silent]
    found: dict[FrameReader, Frames] = {}
    if waiting:
        longest = max(len(reader.steps) for reader in waiting)
        padded = [reader.steps + reader.steps[-1:] * (longest - len(reader.steps)) for reader in waiting]
        frames = _read(waiting[0].model, torch.tensor(padded).transpose(1, 2), [each.complete for each in waiting])
        found = dict(zip(waiting, frames, strict=True))
    return [reader.remove(found.get(reader)) for reader in readers]


class TextReader:
    """A streaming detokenizer of one answer, which takes text tokens and returns the text that each of them adds."""

    def __init__(self, model: OmniLM):
        self.tokenizer, self.layout = model.llm.tokenizer, model.layout
        self.ids: list[int] = []
        self.text = ""

    def push(self, token: int) -> str:
        """Append a token and return the text that it adds.

        A character of several tokens is returned with its last token.
        """
        if not self.layout.is_text(token):
            return ""
        self.ids.append(token)
        return "" if self.tokenizer.decode(self.ids).endswith(UNFINISHED) else self.finish()

    def finish(self) -> str:
        """Return the text that has not been returned yet, an unfinished character included.

        All ids are decoded again, because a token may change how the text before it is written.
        """
        whole = self.tokenizer.decode(self.ids)
        new, self.text = whole[len(self.text) :], whole
        return new
