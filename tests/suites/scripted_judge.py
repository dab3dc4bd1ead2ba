"""A judge of free answers with judgements from a list."""

from __future__ import annotations

from collections.abc import Sequence

from omnikit.evaluate.suites.judges import JudgeRequest


class ScriptedJudge:
    """A judge that says what it is told to, and keeps the requests."""

    def __init__(self, *said: str):
        self.said, self.requests = said, []

    def ask_all(self, requests: Sequence[JudgeRequest], title: str = "") -> list[str]:
        self.requests += requests
        return list(self.said)
