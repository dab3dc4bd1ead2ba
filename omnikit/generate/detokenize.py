"""Reading emitted tokens as text and codes, of whole answers and of answers that still grow.

Letters: S streams, L steps, K codebooks, T frames.
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
"""Replacement character that tokenizers write for bytes that do not make a character yet."""


@dataclass(frozen=True)
class Frames:
    """Codes of the frames that can be heard in some decode steps."""

    codes: Tensor  # [K, T]
    ended: bool  # whether nothing behind these can be heard


def read_frames(model: OmniLM, steps: Tensor) -> Frames:
    """Read the audio tokens of emitted steps [S - 1, L] as the complete frames that can be heard.

    The sound ends before the first frame in which a stream has an `eoa`. A frame with another id that is no code of its
    codebook is left out. (Only where `Decoding.constrain` is off does the network have a choice of such ids.)
    """
    return _read(model, steps[None], [model.pattern.num_frames(steps.shape[-1])])[0]


def _read(model: OmniLM, steps: Tensor, complete: Sequence[int]) -> list[Frames]:
    """Read the first frames of several answers' steps [R, S - 1, L], of each answer as many as are complete."""
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
    """Read the tokens of emitted steps, L times S of them, as text ids and the codes of the complete frames."""
    text = [step[0] for step in steps if model.layout.is_text(step[0])]
    if not (task.speaks and steps):
        return Answer(text, torch.zeros(model.pattern.num_codebooks, 0, dtype=torch.long), end)
    return Answer(text, read_frames(model, torch.tensor(steps).T[1:]).codes, end)


class FrameReader:
    """Collects the emitted steps of one answer and gives the codes of the frames that they complete."""

    def __init__(self, model: OmniLM):
        self.model, self.pattern = model, model.pattern
        self.steps: list[list[int]] = []  # audio tokens that the next frame needs: a prefix of the pattern again
        self.given = 0  # frames that have been taken
        self.complete = 0  # frames that are waiting to be taken
        self.silent = False  # from here on

    def push(self, tokens: Sequence[int]) -> None:
        """Take the S tokens of the next step."""
        self.steps.append(list(tokens[1:]))
        self.complete = self.pattern.num_frames(len(self.steps))

    def take(self) -> Tensor | None:
        """Return the codes [K, T] of the frames that are waiting, or None if none of them can be heard."""
        return take_frames([self])[0]


def take_frames(readers: Sequence[FrameReader]) -> list[Tensor | None]:
    """Take the frames that are waiting from several readers of one model, see `FrameReader.take`."""
    waiting = [reader for reader in readers if reader.complete and not reader.silent]
    found: dict[FrameReader, Frames] = {}
    if waiting:
        longest = max(len(reader.steps) for reader in waiting)
        padded = [reader.steps + reader.steps[-1:] * (longest - len(reader.steps)) for reader in waiting]
        frames = _read(waiting[0].model, torch.tensor(padded).transpose(1, 2), [each.complete for each in waiting])
        found = dict(zip(waiting, frames, strict=True))
    for reader in readers:
        if reader in found:
            reader.silent = found[reader].ended
            reader.given += reader.complete
        del reader.steps[: reader.complete * reader.pattern.stride]
        reader.complete = 0
    taken = (found[reader].codes if reader in found else None for reader in readers)
    return [codes if codes is not None and codes.shape[1] else None for codes in taken]


class TextReader:
    """Turns the text tokens of one answer into text as it grows."""

    def __init__(self, model: OmniLM):
        self.tokenizer, self.layout = model.llm.tokenizer, model.layout
        self.ids: list[int] = []
        self.text = ""

    def push(self, token: int) -> str:
        """Return what the next text token adds to the text. A character of several tokens is held back until it is
        whole."""
        if not self.layout.is_text(token):
            return ""
        self.ids.append(token)
        return "" if self.tokenizer.decode(self.ids).endswith(UNFINISHED) else self.finish()

    def finish(self) -> str:
        """Return the text that was held back. A token may change how the text before it is written, so all of it is
        decoded and what is new is returned."""
        whole = self.tokenizer.decode(self.ids)
        new, self.text = whole[len(self.text) :], whole
        return new
