"""Chooses the answers of training dialogs that are cut, so that the turns after them agree with what was heard.

After an interruption a conversation remembers only the part that was heard, or that was written by then. A directly
following answer that repeats the whole one ("say that again"), or ends with it ("yes .." after "are you sure"), is cut
likewise, but closed like any other answer. If another answer is repeated with words of its own in front, its frames are
cut at the same share as its text. An answer that contains it in any other way cannot be cut: the answer before it is
never chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from omnikit.interfaces import Tokenizer
from omnikit.turns import heard_tokens

_AROUND = " .,;:!?\"'"  # characters around an answer that do not count


@dataclass(frozen=True)
class TurnAnswers:
    """The answers of the dialogs of a source, turn by turn, all of them spoken or all of them written."""

    ids: Callable[[int], list[int]]
    """Function that returns the text ids of the answer of a turn, given by its index."""
    text: np.ndarray
    """Number of text ids of each answer [turns]."""
    frames: np.ndarray
    """Number of frames of each answer [turns]; of a written one that of its text ids."""
    tokenizer: Tokenizer

    def added(self, turn: int, part: int) -> int | None:
        """Return the number of text ids in an answer before another one, with which it ends; None if it does not.

        An answer with the same text ids is another one if its number of frames differs. An answer ends with another one
        by chance if that is not the greater part of it, as "two plus three is five" ends with "five".
        """
        extra = int(self.text[turn] - self.text[part])
        if not 0 <= extra < self.text[part] or (not extra and self.frames[turn] != self.frames[part]):
            return None  # without reading text ids
        return extra if self.ids(turn)[extra:] == self.ids(part) else None

    def contains(self, turn: int, part: int) -> bool:
        """Return whether the text of an answer contains that of another, whatever the case of letters."""
        whole, inner = (self.tokenizer.decode(self.ids(each)).casefold() for each in (turn, part))
        return inner.strip(_AROUND) in whole

    def repetitions(self, turn: int, end: int) -> list[int]:
        """Return `added` for each turn directly after a turn, before turn `end`, as long as they repeat its answer."""
        found = []
        while turn + len(found) + 1 < end and (extra := self.added(turn + len(found) + 1, turn)) is not None:
            found.append(extra)
        return found

    def longest_cut(self, turn: int, repeated: bool) -> int:
        """Return the maximum number of frames that are kept of an answer that is cut, 0 if it cannot be cut.

        At least one frame is lost, and of an answer that is repeated at least one text id: otherwise the text would
        be remembered whole, and spoken in part.
        """
        frames, text = int(self.frames[turn]), int(self.text[turn])
        if repeated:
            return frames * (text - 1) // text if text else 0
        return max(frames - 1, 0)

    def cut_alike(self, turn: int, heard: int, repetition: int, extra: int) -> int | None:
        """Return the number of frames to keep of a repetition if `heard` frames are kept of the answer that it repeats.

        The same text is kept of both, and the `extra` text ids before it. None if no number of frames gives that text.
        """
        if not extra:
            return heard
        kept = extra + heard_tokens(int(self.text[turn]), heard, int(self.frames[turn]))
        text, frames = int(self.text[repetition]), int(self.frames[repetition])
        alike = frames * kept // text
        return alike if heard_tokens(text, alike, frames) == kept else None


@dataclass(frozen=True)
class Cut:
    """An answer that is cut, with its repetitions."""

    turn: int
    frames: tuple[int, ...]
    """Number of frames that are kept of it, and of each turn directly after it that repeats its answer."""


def chosen_cut(answers: TurnAnswers, begin: int, end: int, which: int, where: int) -> Cut | None:
    """Return the cut of an answer of the dialog with the turns from `begin` to before `end`; None if none fits.

    An answer that the next turn repeats is preferred to others. The last answer is never cut.

    Args:
        which: hash that chooses among the answers.
        where: hash that chooses the number of frames.
    """
    for turn, extras in _in_order(answers, begin, end, which):
        longest, after = answers.longest_cut(turn, bool(extras)), turn + len(extras) + 1
        if longest > 0 and not (after < end and answers.contains(after, turn)):
            heard = 1 + where % longest
            alike = [answers.cut_alike(turn, heard, turn + i, extra) for i, extra in enumerate(extras, 1)]
            if None not in alike:
                return Cut(turn, (heard, *alike))
    return None


def _in_order(answers: TurnAnswers, begin: int, end: int, which: int) -> Iterator[tuple[int, list[int]]]:
    """Yield each answer but the last with its `TurnAnswers.repetitions`, those that are repeated first."""
    found = [(turn, answers.repetitions(turn, end)) for turn in range(begin, end - 1)]
    for some in ([each for each in found if each[1]], [each for each in found if not each[1]]):
        first = which % max(len(some), 1)
        yield from some[first:] + some[:first]
