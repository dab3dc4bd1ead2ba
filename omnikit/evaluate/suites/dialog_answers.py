"""Answers to questions that are the rounds of conversations: each is asked after those before and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from omnikit.api import Omni, Reply
from omnikit.audio.reader import Unusable
from omnikit.data.manifest_reader import ManifestEntry
from omnikit.errors import one_line
from omnikit.evaluate.conversation import REFUSED, Partner, conversations
from omnikit.generate import END, BadQuestion
from omnikit.offline.batches import DecodedAnswer, Problem, Replied, Respond
from omnikit.tasks import Task

AFTER_REFUSED = Problem(REFUSED, "a round before it was refused")


def by_conversations(omni: Omni, task: Task, entries: Sequence[ManifestEntry]) -> Respond:
    """Return a function that answers the rounds of conversations with a system.

    A conversation is held as a whole when the first of its rounds is asked for, the conversations of a batch side by
    side. The answers have their waveform in place of codes, see `waveform`.

    Args:
        omni: system that answers.
        task: task of the answers.
        entries: all rounds of all conversations.
    """
    begin, found, rounds = conversations(omni), {}, by_dialog(entries)

    def hold(name: str) -> None:
        conversation, refused = begin(name), False
        for entry in rounds[name]:
            found[entry.id] = AFTER_REFUSED if refused else _answer(conversation, entry, task, omni)
            refused = refused or isinstance(found[entry.id], Problem)

    def respond(batch: list[ManifestEntry]) -> Replied:
        names = list(dict.fromkeys(entry.dialog for entry in batch if entry.id not in found))
        with ThreadPoolExecutor(max(1, len(names))) as pool:
            list(pool.map(hold, names))
        for entry in batch:
            yield entry, found.pop(entry.id)

    return respond


def by_dialog(entries: Sequence[ManifestEntry]) -> dict[str, list[ManifestEntry]]:
    """Return the rounds of conversations in their order, by the name of the conversation."""
    rounds: dict[str, list[ManifestEntry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.turn):
        rounds.setdefault(entry.dialog, []).append(entry)
    return rounds


def waveform(codes: Tensor) -> Tensor:
    """Return the waveform [N] that an answer of `by_conversations` has in place of codes [1, N]."""
    return codes[0]


def _answer(conversation: Partner, entry: ManifestEntry, task: Task, omni: Omni) -> DecodedAnswer | Problem:
    try:
        reply = _reply(conversation, entry, task, omni)
    except Unusable as error:
        return Problem(error.reason, str(error))
    except BadQuestion as error:
        return Problem(REFUSED, one_line(error))
    return DecodedAnswer(reply.text, reply.wav.cpu()[None], reply.end != END)


def _reply(conversation: Partner, entry: ManifestEntry, task: Task, omni: Omni) -> Reply:
    if task.given == "text":
        return conversation.say(entry.t1, speak=task.speaks)
    return conversation.ask(entry.a1.load(omni.model.encoder.sample_rate), speak=task.speaks)
