"""Chooses the answers of training dialogs that are cut, so that the turns after them agree with what was heard.

After an interruption a conversation remembers only the part that was heard. A directly following answer that repeats
the whole one ("say that again") is cut likewise, but ends like any other answer. An answer that merely contains it
("yes, ..." after "are you sure") cannot be cut, because the codes of the shorter answer do not exist: the answer before
it is never chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from omnikit.interfaces import Tokenizer

_AROUND = " .,;:!?\"'"  # characters around an answer that do not count


@dataclass(frozen=True)
class TurnAnswers:
    """The spoken answers of the dialogs of a source, turn by turn."""

    ids: Callable[[int], list[int]]
    """Function that returns the text ids of the answer of a turn, given by its index."""
    text: np.ndarray
    """Number of text ids of each answer [turns]."""
    frames: np.ndarray
    """Number of frames of each answer [turns]."""
    tokenizer: Tokenizer

    def repeats(self, turn: int) -> bool:
        """Return whether an answer is the one of the turn before: the same text ids and number of frames."""
        same = all(sizes[turn - 1] == sizes[turn] for sizes in (self.text, self.frames))
        return same and self.ids(turn - 1) == self.ids(turn)

    def contains(self, turn: int, part: int) -> bool:
        """Return whether the text of an answer contains that of another, whatever the case of letters."""
        whole, inner = (self.tokenizer.decode(self.ids(each)).casefold() for each in (turn, part))
        return inner.strip(_AROUND) in whole

    def repetitions(self, turn: int, end: int) -> int:
        """Return the number of turns directly after a turn, before turn `end`, that repeat its answer."""
        after = turn + 1
        while after < end and self.repeats(after):
            after += 1
        return after - turn - 1

    def longest_cut(self, turn: int, repeated: bool) -> int:
        """Return the maximum number of frames that are kept of an answer that is cut, 0 if it cannot be cut.

        At least one frame is lost, and of an answer that is repeated at least one text id: otherwise the text would
        be remembered whole, and spoken in part.
        """
        frames, text = int(self.frames[turn]), int(self.text[turn])
        if repeated:
            return frames * (text - 1) // text if text else 0
        return max(frames - 1, 0)


@dataclass(frozen=True)
class Cut:
    """An answer that is cut, with its repetitions."""

    turn: int
    frames: int
    """Number of frames that are heard."""
    repetitions: int = 0
    """Number of turns directly after it that repeat its answer, and are cut likewise."""

    @property
    def turns(self) -> range:
        """Indices of the turn and of its repetitions."""
        return range(self.turn, self.turn + self.repetitions + 1)


def chosen_cut(answers: TurnAnswers, begin: int, end: int, which: int, where: int) -> Cut | None:
    """Return the cut of an answer of the dialog with the turns from `begin` to before `end`; None if none fits.

    An answer that the next turn repeats is preferred to others. The last answer is never cut.

    Args:
        which: hash that chooses among the answers.
        where: hash that chooses the number of frames.
    """
    for turn, repetitions in _in_order(answers, begin, end, which):
        longest, after = answers.longest_cut(turn, repetitions > 0), turn + repetitions + 1
        if longest > 0 and not (after < end and answers.contains(after, turn)):
            return Cut(turn, 1 + where % longest, repetitions)
    return None


def _in_order(answers: TurnAnswers, begin: int, end: int, which: int) -> Iterator[tuple[int, int]]:
    """Yield the answers but the last, with the number of repetitions of each: repeated ones first."""
    found = [(turn, answers.repetitions(turn, end)) for turn in range(begin, end - 1)]
    for some in ([each for each in found if each[1]], [each for each in found if not each[1]]):
        first = which % max(len(some), 1)
        yield from some[first:] + some[:first]
