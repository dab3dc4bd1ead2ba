"""Tests that the validation during training compares texts as the evaluation does."""

# ruff: noqa: RUF001

from types import SimpleNamespace

import pytest
from torch import nn

from omnikit.data.manifest_reader import ManifestEntry
from omnikit.generate import Decoder, Question
from omnikit.llms.tokenizers import ByteTokenizer
from omnikit.tasks import TASKS
from omnikit.train import validation
from omnikit.train.distributed import Alone
from omnikit.train.validation import Validation, first_turns, hypotheses
from tests.unit.toy import toy_model


def figures(monkeypatch, task: str, targets: list[str], given: list[str]) -> dict[str, float]:
    tokenizer, model = ByteTokenizer(), nn.Module()
    model.llm = SimpleNamespace(tokenizer=tokenizer)
    monkeypatch.setattr(validation, "Decoder", lambda *_, **__: None)
    monkeypatch.setattr(validation, "hypotheses", lambda *_: given)
    made = Validation.__new__(Validation)
    made.material = [(TASKS[task], [None] * len(targets), [(text, "en") for text in targets])]
    return made(SimpleNamespace(model=model, parallel=Alone()))


def test_case_and_punctuation_are_no_errors(monkeypatch):
    targets, given = ["Don’t stop!", "It is Köln."], ["don't stop", "it is bonn"]
    assert figures(monkeypatch, "A1T1", targets, given) == {"wer": pytest.approx(20)}
    assert figures(monkeypatch, "T1T2", targets, given) == {"wrong T1T2": pytest.approx(50)}


def test_a_target_without_a_word_stops_nothing(monkeypatch):
    assert figures(monkeypatch, "A1T1", ["...", "a b"], ["c", "a b"]) == {"wer": pytest.approx(50)}
    assert figures(monkeypatch, "A1T1", ["..."], ["c"]) == {"wer": pytest.approx(100)}


def test_a_question_that_cannot_be_asked_is_wrong(caplog):
    model = toy_model()
    model.llm.max_positions = 12
    given = hypotheses(Decoder(model), TASKS["T1T2"], [Question(text=[3] * 30), Question(text=[3])])
    assert given[0] == "" and "a prompt of 33 positions" in caplog.text
    assert given[1] == model.llm.tokenizer.decode(Decoder(model).answers(TASKS["T1T2"], [Question(text=[3])])[0].text)


def test_the_first_turn_of_a_dialog_is_decoded():
    turns = [("a", "x", 2), ("b", "", None), ("c", "y", 0), ("d", "x", 1), ("e", "y", 1), ("f", "z", None)]
    entries = [ManifestEntry(name, "what", dialog=dialog, turn=turn) for name, dialog, turn in turns]
    assert [entry.id for entry in first_turns(entries)] == ["d", "b", "c"]
