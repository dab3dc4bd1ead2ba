"""The conversation of a Realtime session: its questions are submitted to the system, its edits are carried out."""

from __future__ import annotations

import logging
from contextlib import suppress
from threading import Event
from typing import TYPE_CHECKING

import soxr
import torch

from omnikit.conversation import TASK_OF, Conversation
from omnikit.generate import Question, Request
from omnikit.serve.realtime.actions import RATE, Crop, Forget, Remember, SpokenQuestion, StartAnswer, WrittenQuestion
from omnikit.serve.serving import steps_of
from omnikit.streaming import LOW_LATENCY

if TYPE_CHECKING:
    from omnikit.api import Omni

_logger = logging.getLogger(__name__)


class SessionConversation:
    """A Realtime session's conversation with the system, which its actions continue and edit; the methods may block.

    Args:
        omni: system that answers.
        seconds: maximum number of seconds spent on one answer; None = no limit.
        conversation: conversation that is continued; None = a new one.

    Raises:
        ValueError: the system's engine cannot hold a conversation.
    """

    def __init__(self, omni: Omni, *, seconds: float | None, conversation: Conversation | None = None):
        self.omni, self.seconds = omni, seconds
        self._conversation: Conversation | None = omni.conversation() if conversation is None else conversation

    def submit(self, answer: StartAnswer, cancel: Event) -> Request:
        """Submit the question of an answer, which continues the conversation or stands alone.

        Raises:
            ValueError: the system refuses the question.
            omnikit.generate.QueueFull: too many questions are waiting.
        """
        return self._submit_turn(answer, cancel) if answer.remembered else self._submit_alone(answer, cancel)

    def question(self, question: SpokenQuestion | WrittenQuestion) -> Question:
        """Convert a session's question to one of the system; speech is resampled to the encoder's rate."""
        if isinstance(question, WrittenQuestion):
            return self.omni.written_question(question.text)
        wav = soxr.resample(question.samples, RATE, self.omni.model.encoder.sample_rate)
        return self.omni.spoken_question(torch.from_numpy(wav))

    def edit(self, edit: Crop | Forget | Remember) -> None:
        """Change the conversation; an error is logged, since nobody waits for the edit."""
        try:
            with suppress(KeyError):  # a turn that the conversation never remembered, or dropped at its limit
                self._edit(edit)
        except ValueError as error:  # its message may quote the client's text, which is not logged
            _logger.warning("Realtime session: %s failed: %s", type(edit).__name__.lower(), type(error).__name__)
        except Exception:
            _logger.exception("Realtime session: %s failed", type(edit).__name__.lower())

    def close(self) -> None:
        """Free the conversation's KV cache now, not at the next garbage collection."""
        self._conversation = None

    def _submit_turn(self, answer: StartAnswer, cancel: Event) -> Request:
        text = answer.question.text if isinstance(answer.question, WrittenQuestion) else None
        return self._conversation.submit(
            self.question(answer.question), speak=answer.speak, key=answer.response_id, text=text,
            max_steps=steps_of(self.omni, answer.max_steps), mode=LOW_LATENCY, cancel=cancel, time_limit=self.seconds,
        )  # fmt: skip

    def _submit_alone(self, answer: StartAnswer, cancel: Event) -> Request:
        task = TASK_OF[isinstance(answer.question, SpokenQuestion), answer.speak]
        sound = LOW_LATENCY if answer.speak else None
        return self.omni.submit(
            task, self.question(answer.question), sound=sound, max_steps=steps_of(self.omni, answer.max_steps),
            cancel=cancel, time_limit=self.seconds,
        )  # fmt: skip

    def _edit(self, edit: Crop | Forget | Remember) -> None:
        if isinstance(edit, Crop):
            self._conversation.crop(edit.seconds, key=edit.response_id)
        elif isinstance(edit, Forget):
            self._conversation.forget(edit.key)
        else:
            self._conversation.remember(edit.key, edit.question, edit.answer)
