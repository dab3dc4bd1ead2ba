"""Detection of turns in a client's audio: when somebody begins to speak, goes on, and has ended."""

from __future__ import annotations

import numpy as np

from omnikit.serve.realtime import voice_activity
from omnikit.serve.realtime.actions import (
    RATE,
    Detection,
    Heard,
    Idle,
    SpeechContinues,
    SpeechStarted,
    SpeechStopped,
)
from omnikit.serve.realtime.voice_activity import Hearing, VoiceActivity
from omnikit.serve.resample import Resampler

WINDOW_MS = 1000 * voice_activity.WINDOW / voice_activity.RATE
"""Milliseconds of audio that are judged at a time."""
_HYSTERESIS = 0.15  # between the probabilities at which speech begins and ends, Silero's own choice


class TurnDetector:
    """A detector of turns, which hears one client's audio.

    Its clock is the audio that it was fed, so that its reports depend neither on when the audio arrives nor on how it
    is divided: a file sent at once gives those of the same words spoken live.

    A turn begins with the first window whose probability of speech reaches `threshold`. It ends when the probability
    has stayed below for `silence_ms`, counted from a window with less than `threshold` - 0.15. Its end, `end_ms`,
    includes that pause, since that is where the turn's audio ends; nothing after it belongs to the turn.

    Args:
        detection: the settings.
        vad: network that tells speech; None = Silero's, which all detectors share.

    Raises:
        ValueError: see `voice_activity.shipped`.
    """

    def __init__(self, detection: Detection, vad: VoiceActivity | None = None):
        self.detection = detection
        self.vad = voice_activity.shipped() if vad is None else vad
        self.hearing = Hearing()
        self.resampler = Resampler(RATE, voice_activity.RATE)
        self.waiting = np.zeros(0, np.float32)
        self.fed_ms = self.now_ms = self.last_end_ms = 0.0
        self.speaking = False
        self.speech_ms = 0.0
        self.pause_began_ms: float | None = None
        self.idle_at_ms: float | None = None

    def push(self, samples: np.ndarray) -> list[Heard]:
        """Process further samples [n] (float32, at `RATE`) and return what was detected, in order.

        A window is judged once it is whole, and 2 ms more for resampling have come.
        """
        self.fed_ms += 1000 * len(samples) / RATE
        self.waiting = np.concatenate([self.waiting, self.resampler.push(samples)])
        whole = len(self.waiting) - len(self.waiting) % voice_activity.WINDOW
        windows, self.waiting = self.waiting[:whole].reshape(-1, voice_activity.WINDOW), self.waiting[whole:]
        return [heard for window in windows for heard in self._hear(window)]

    def change(self, detection: Detection) -> None:
        """Change the settings and keep the state: a turn that has begun ends by them, and its pause so far counts."""
        self.detection = detection
        self.pause_idle()

    def start_idle(self) -> None:
        """Begin to wait for speech: `Idle` is reported once, after `idle_ms` of audio without any."""
        if self.detection.idle_ms is not None and not self.speaking:
            self.idle_at_ms = self.fed_ms + self.detection.idle_ms

    def pause_idle(self) -> None:
        """Stop waiting for speech."""
        self.idle_at_ms = None

    def _hear(self, window: np.ndarray) -> list[Heard]:
        began_ms = self.now_ms
        self.now_ms += WINDOW_MS
        probability = self.vad.probability(window, self.hearing)
        return self._go_on(probability, began_ms) if self.speaking else self._wait(probability, began_ms)

    def _wait(self, probability: float, began_ms: float) -> list[Heard]:
        """Process the speech probability of a window between two turns; return `SpeechStarted` or `Idle` if due."""
        if probability >= self.detection.threshold:
            self.speaking, self.speech_ms, self.pause_began_ms, self.idle_at_ms = True, WINDOW_MS, None, None
            start_ms = max(self.last_end_ms, began_ms - self.detection.prefix_ms)
            return [SpeechStarted(start_ms, self.speech_ms)]
        if self.idle_at_ms is not None and self.now_ms >= self.idle_at_ms:
            self.idle_at_ms = None
            return [Idle(self.now_ms)]
        return []

    def _go_on(self, probability: float, began_ms: float) -> list[Heard]:
        """Process a window of samples within a turn."""
        if probability >= self.detection.threshold:
            self.pause_began_ms = None
        elif self.pause_began_ms is None and probability < self.detection.threshold - _HYSTERESIS:
            self.pause_began_ms = began_ms
        if self.pause_began_ms is None:
            self.speech_ms += WINDOW_MS
        elif self.now_ms - self.pause_began_ms >= self.detection.silence_ms:
            self.speaking = False
            self.last_end_ms = self.pause_began_ms + self.detection.silence_ms
            return [SpeechStopped(self.last_end_ms, self.speech_ms)]
        return [SpeechContinues(self.speech_ms)]
