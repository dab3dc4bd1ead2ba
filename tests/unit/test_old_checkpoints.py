"""Test that checkpoints saved by earlier versions load and answer with the same tokens.

`checkpoints/v0` is an untrained system of the shipped kinds of parts, saved by version 0.1.0 before modules and classes
were renamed. Its `answers.json` has that version's answers, and `checkpoints/shipped.json` has those of the package's
system.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from omnikit import checkpoint
from omnikit.generate import Decoder, Decoding, Question
from omnikit.sampling import Sampling
from omnikit.tasks import TASKS

FOLDER = Path(__file__).parent / "checkpoints"
CASES = {FOLDER / "v0": FOLDER / "v0" / "answers.json", None: FOLDER / "shipped.json"}
STEPS = {"max_steps": 24, "min_steps": 24}
HOW = {
    "greedy": (Decoding(**STEPS), None),
    "seeded": (Decoding(Sampling(0.9), Sampling(1.1, top_k=8), **STEPS), 7),
}


def answer(model, task: str, question: Question, how: str) -> dict:
    decoding, seed = HOW[how]
    [found] = Decoder(model).answers(TASKS[task], [question], decoding=decoding, seed=seed)
    text = model.llm.tokenizer.decode(found.text)
    return {"text_ids": found.text, "text": text, "codes": found.codes.tolist(), "end": found.end}


def answers(model) -> dict[str, dict]:
    """Return a model's answers to a rising tone and to a written question, with greedy and with seeded sampling."""
    time = torch.arange(16000) / 16000
    questions = {
        "A1A2": Question(wav=0.1 * torch.sin(6400 * time**2)),
        "T1A2": Question(text=model.llm.tokenizer.encode("two five")),
    }
    return {f"{task} {how}": answer(model, task, q, how) for task, q in questions.items() for how in HOW}


@pytest.mark.parametrize("folder", CASES, ids=["v0", "shipped"])
def test_a_checkpoint_gives_the_same_answers_as_ever(folder):
    expected = json.loads(CASES[folder].read_text())
    assert all(found["text_ids"] and found["codes"][0] for found in expected.values())
    assert len({json.dumps(found) for found in expected.values()}) == len(expected) == 4
    assert answers(checkpoint.load(folder)) == expected
