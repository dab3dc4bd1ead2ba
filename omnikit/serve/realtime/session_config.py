"""The settings of a Realtime session, as a client changes them and the server shows them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from omnikit.serve.realtime.actions import Detection
from omnikit.serve.realtime.events import Format, SessionSettings, TurnDetection, check_format

SILENCE_MS = {"low": 1200.0, "medium": 800.0, "high": 400.0, "auto": 800.0}
"""Pause in milliseconds that ends a turn, by the eagerness of `semantic_vad`; the detector itself is that of
`server_vad`."""
_FLAGS = {"create_response": True, "interrupt_response": True}
_DETECTIONS: dict[str, dict[str, Any]] = {
    "server_vad": {
        "type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500,
        "idle_timeout_ms": None, **_FLAGS,
    },
    "semantic_vad": {"type": "semantic_vad", "eagerness": "auto", **_FLAGS},
}  # fmt: skip
_PCM = {"type": "audio/pcm", "rate": 24000}
_DEFAULTS: dict[str, Any] = {
    "output_modalities": ["audio"],
    "instructions": "",
    "tools": [],
    "tool_choice": "auto",
    "max_output_tokens": "inf",
    "tracing": None,
    "truncation": "auto",
    "prompt": None,
    "include": None,
}
_INPUT: dict[str, Any] = {"format": _PCM, "transcription": None, "noise_reduction": None, "turn_detection": None}
_OUTPUT: dict[str, Any] = {"format": _PCM, "voice": None, "speed": 1.0}


class SessionConfig:
    """The settings of a session; `updated` returns changed ones.

    Args:
        session_id: id of the session.
        model: name of the system that answers.
    """

    def __init__(self, session_id: str, model: str):
        start = {"type": "realtime", "object": "realtime.session", "id": session_id, "model": model}
        audio = {"input": {**_INPUT, "turn_detection": _DETECTIONS["server_vad"]}, "output": _OUTPUT}
        self._shown: dict[str, Any] = deepcopy({**start, **_DEFAULTS, "audio": audio})

    def shown(self) -> dict[str, Any]:
        """Return the session object of the protocol."""
        return deepcopy(self._shown)

    def updated(self, change: SessionSettings) -> SessionConfig:
        """Return the settings after a change: fields that it does not have stay, null sets the default or turns off.

        Raises:
            ProtocolError: a rate that an audio format does not have.
        """
        config = deepcopy(self)
        shown, audio = config._shown, change.audio
        _merge(shown, _DEFAULTS, change.model_dump(exclude_unset=True, exclude={"type", "audio"}))
        if audio is not None and audio.input is not None:
            given = audio.input.model_dump(exclude_unset=True, exclude={"format", "turn_detection"})
            _merge(shown["audio"]["input"], _INPUT, given)
            _merge_format(shown["audio"]["input"], audio.input.format, "session.audio.input.format")
            if "turn_detection" in audio.input.model_fields_set:
                _merge_detection(shown["audio"]["input"], audio.input.turn_detection)
        if audio is not None and audio.output is not None:
            _merge(shown["audio"]["output"], _OUTPUT, audio.output.model_dump(exclude_unset=True, exclude={"format"}))
            _merge_format(shown["audio"]["output"], audio.output.format, "session.audio.output.format")
        return config

    @property
    def detection(self) -> Detection | None:
        """Settings of turn detection; None = the client commits its turns itself."""
        found = self._turns
        if found is None:
            return None
        if found["type"] == "semantic_vad":
            return Detection(silence_ms=SILENCE_MS[found["eagerness"]])
        idle = found["idle_timeout_ms"]
        return Detection(
            threshold=float(found["threshold"]),
            prefix_ms=float(found["prefix_padding_ms"]),
            silence_ms=float(found["silence_duration_ms"]),
            idle_ms=None if idle is None else float(idle),
        )

    @property
    def responds(self) -> bool:
        """Whether a detected turn is answered without being asked to."""
        return self._turns is not None and self._turns["create_response"]

    @property
    def interrupts(self) -> bool:
        """Whether detected speech ends the answer that is being generated."""
        return self._turns is not None and self._turns["interrupt_response"]

    @property
    def transcribes(self) -> bool:
        """Whether what the user said is transcribed."""
        return self._shown["audio"]["input"]["transcription"] is not None

    @property
    def input_format(self) -> str:
        """Name of the format of the client's audio."""
        return self._shown["audio"]["input"]["format"]["type"]

    @property
    def output(self) -> dict[str, Any]:
        """Format and voice of answers."""
        return {name: deepcopy(self._shown["audio"]["output"][name]) for name in ("format", "voice")}

    @property
    def output_modalities(self) -> list[str]:
        """Modalities of answers: audio with its text, or text alone."""
        return list(self._shown["output_modalities"])

    @property
    def max_output_tokens(self) -> int | str:
        """Maximum number of tokens of an answer, or "inf"."""
        return self._shown["max_output_tokens"]

    @property
    def _turns(self) -> dict[str, Any] | None:
        return self._shown["audio"]["input"]["turn_detection"]


def _merge(shown: dict[str, Any], defaults: dict[str, Any], change: dict[str, Any]) -> None:
    for name, value in change.items():
        shown[name] = deepcopy(defaults.get(name)) if value is None else value


def _merge_format(shown: dict[str, Any], format: Format | None, path: str) -> None:
    if format is not None:
        shown["format"] = check_format(format, path)


def _merge_detection(shown: dict[str, Any], change: TurnDetection | None) -> None:
    if change is None:
        shown["turn_detection"] = None
        return
    before = shown["turn_detection"]
    kind = change.type or (before or {}).get("type", "server_vad")
    start = before if before is not None and before["type"] == kind else _DETECTIONS[kind]
    shown["turn_detection"] = deepcopy(start)
    given = change.model_dump(exclude_unset=True, exclude={"type"})
    _merge(shown["turn_detection"], _DETECTIONS[kind], {name: given[name] for name in given if name in start})
