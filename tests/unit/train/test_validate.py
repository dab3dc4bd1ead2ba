"""Texts are compared in validation as in evaluation."""

# ruff: noqa: RUF001

from types import SimpleNamespace

import pytest
from torch import nn

from omnikit.llms.tokenizers import ByteTokenizer
from omnikit.tasks import TASKS
from omnikit.train import validate
from omnikit.train.validate import Validation


def figures(monkeypatch, task: str, targets: list[str], given: list[str]) -> dict[str, float]:
    tokenizer, model = ByteTokenizer(), nn.Module()
    model.llm = SimpleNamespace(tokenizer=tokenizer)
    answered = [SimpleNamespace(text=tokenizer.encode(text)) for text in given]
    monkeypatch.setattr(validate, "answers", lambda *_, **__: answered)
    validation = Validation.__new__(Validation)
    validation.material = [(TASKS[task], [None] * len(targets), targets)]
    return validation(SimpleNamespace(model=model))


def test_case_and_punctuation_are_no_errors(monkeypatch):
    targets, given = ["Don’t stop!", "It is Köln."], ["don't stop", "it is bonn"]
    assert figures(monkeypatch, "A1T1", targets, given) == {"wer": pytest.approx(20)}
    assert figures(monkeypatch, "T1T2", targets, given) == {"wrong T1T2": pytest.approx(50)}


def test_a_target_without_a_word_stops_nothing(monkeypatch):
    assert figures(monkeypatch, "A1T1", ["...", "a b"], ["c", "a b"]) == {"wer": pytest.approx(50)}
    assert figures(monkeypatch, "A1T1", ["..."], ["c"]) == {"wer": pytest.approx(100)}
