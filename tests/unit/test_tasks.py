"""Test the layouts of prompts and answers of all tasks against drawings."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from omnikit.patterns import Delayed, Flattened
from omnikit.tasks import (
    AUDIO_START,
    TASKS,
    answer_ends,
    draw,
    make_prompt,
    make_sample,
    prompt_length,
    sample_length,
    text_only,
)
from omnikit.tokens import IGNORE, TokenLayout

PATTERN = Delayed(num_codebooks=2)
LAYOUT = TokenLayout(text_vocab=100, codebook_size=50, carries=PATTERN.carries)
CODES = torch.tensor([[10, 11, 12], [20, 21, 22]])

# prompt and answer without its last step, which is never fed
DRAWN = {
    "A1A2": """
input pad pad eot answer 7 8 eot pad pad
input f f eoa answer pad 10 11 12 eoa
input f f eoa answer pad pad 20 21 22""",
    "A1T1": """
input pad pad eot asr 7 8
input f f eoa pad pad pad
input f f eoa pad pad pad""",
    "A1T2": """
input pad pad eot answer 7 8
input f f eoa pad pad pad
input f f eoa pad pad pad""",
    "T1T2": """
input 5 6 eot answer 7 8
pad pad pad pad pad pad pad
pad pad pad pad pad pad pad""",
    "T1A1": """
input 5 6 eot pad 7 8 eot pad pad
pad pad pad pad answer pad 10 11 12 eoa
pad pad pad pad answer pad pad 20 21 22""",
    "T1A2": """
input 5 6 eot answer 7 8 eot pad pad
pad pad pad pad answer pad 10 11 12 eoa
pad pad pad pad answer pad pad 20 21 22""",
}


def sample_of(name: str, pattern=PATTERN, layout=LAYOUT, codes=CODES):
    task = TASKS[name]
    given = {"audio_frames": 2} if task.given == "speech" else {"question": [5, 6]}
    return make_sample(task, layout, pattern, answer=[7, 8], codes=codes if task.speaks else None, **given)


@pytest.mark.parametrize("name", TASKS)
def test_layout_as_drawn(name):
    sample = sample_of(name)
    drawn = [line.split() for line in draw(sample.steps, LAYOUT, sample.audio_frames).splitlines()]
    assert drawn == [line.split() for line in DRAWN[name].strip().splitlines()]


@pytest.mark.parametrize("name", TASKS)
def test_labels_are_the_next_step_where_the_answer_is(name):
    task, sample = TASKS[name], sample_of(name)
    labelled = sample.labels != IGNORE
    assert torch.equal(sample.labels[:, :-1][labelled[:, :-1]], sample.steps[:, 1:][labelled[:, :-1]])
    mark = 4
    assert not labelled[:, :mark].any()
    text = sample.labels[0][labelled[0]].tolist()
    assert text == ([7, 8, LAYOUT.text.eot] if task.writes else [])
    eoa, pad = LAYOUT.audio[0].eoa, LAYOUT.audio[0].pad
    rows = [row[keep].tolist() for row, keep in zip(sample.labels[1:], labelled[1:], strict=True)]
    assert rows == ([[pad, 10, 11, 12, eoa, pad], [pad, pad, 20, 21, 22, eoa]] if task.speaks else [[], []])


def test_text_longer_than_audio():
    task = TASKS["T1A2"]
    sample = make_sample(task, LAYOUT, PATTERN, question=[5], answer=[7] * 9, codes=CODES[:, :1])
    labelled = sample.labels != IGNORE
    assert labelled[0].sum() == 10
    assert labelled[1:].sum(dim=1).tolist() == [4, 4]


def test_flattened_layout():
    pattern = Flattened(num_codebooks=2, text_lead=1)
    layout = TokenLayout(text_vocab=100, codebook_size=50, carries=pattern.carries)
    sample = sample_of("T1A2", pattern, layout)
    drawn = draw(sample.steps, layout).splitlines()
    assert drawn[1].split() == ["pad"] * 4 + ["answer", "pad", "10", "70", "11", "71", "12", "72"]
    assert sample.labels[1, -1] == layout.audio[0].eoa


def test_text_only_twins():
    assert text_only(TASKS["A1A2"]).name == "A1T2"
    assert text_only(TASKS["T1A2"]).name == "T1T2"


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("count", [0, 1, 6])
def test_prompt_length_is_that_of_the_prompt(name, count):
    speech = TASKS[name].given == "speech"
    prompt = make_prompt(TASKS[name], LAYOUT, **({"audio_frames": count} if speech else {"text": [5] * count}))
    assert prompt.steps.shape[1] == prompt_length(count)
    given = prompt.steps[:, AUDIO_START : AUDIO_START + count]
    assert (given[0] == (LAYOUT.text.pad if speech else 5)).all()
    assert prompt.steps[0, AUDIO_START + count] == LAYOUT.text.eot


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("pattern", [PATTERN, Flattened(num_codebooks=2, text_lead=3)], ids=["delayed", "flattened"])
def test_lengths_and_ends_are_those_of_the_sample(name, pattern):
    task, layout = TASKS[name], TokenLayout(text_vocab=100, codebook_size=50, carries=pattern.carries)
    for given, text, frames in [(0, 0, 0), (1, 0, 2), (5, 9, 1), (2, 3, 7)]:
        codes = torch.zeros(2, frames, dtype=torch.long)
        question = {"audio_frames": given} if task.given == "speech" else {"question": [5] * given}
        sample = make_sample(task, layout, pattern, answer=[7] * text, codes=codes, **question)
        steps = sample.whole[:, prompt_length(given) :]
        marks = [layout.text.eot, *(ids.eoa for ids in layout.audio)]
        ends = [(row == mark).nonzero()[0].tolist() for row, mark in zip(steps, marks, strict=True)]
        expected = answer_ends(task, pattern, text=text, frames=frames)
        assert ends == [[end] for end in expected] + [[]] * (len(ends) - len(expected))
        assert sample.steps.shape[1] == sample_length(task, pattern, given=given, text=text, frames=frames)


def test_conditions_ask_for_a_tasks_properties_and_not_for_its_name():
    root, found = Path(__file__).parents[2], []
    for path in (path for folder in ("omnikit", "recipes", "egs") for path in (root / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare | ast.Match):
                names = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)} & set(TASKS)
                found += [f"{path.relative_to(root)}:{node.lineno}: {name}" for name in names]
    assert not found


def test_recognition_alone_transcribes_and_answers_of_t1_repeat_it():
    assert [name for name, task in TASKS.items() if task.transcribes] == ["A1T1"]
    assert [name for name, task in TASKS.items() if task.repeats] == ["A1T1", "T1A1"]
