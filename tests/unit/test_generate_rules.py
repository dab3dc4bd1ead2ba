"""How generation ends and what is fed, rule by rule, with logits written by hand."""

from __future__ import annotations

import pytest
import torch

from omnikit.generate import Decoding, Question, answers, generate, read_codes
from omnikit.strategies import BATCH_PARALLEL, PARALLEL
from omnikit.tasks import TASKS
from tests.unit.toy import toy_model

FREE = Decoding(constrain=False, max_steps=20)
SAFE = Decoding(max_steps=20)
WORD = 7


class Script:
    """A toy model whose heads say what is written; `fed` [step][row][stream] is what went in after the prompt.

    Args:
        text, audio: the best id per step, for text and for each audio stream; the last one goes on for ever.
        pattern, options: of the toy model.
    """

    def __init__(self, monkeypatch, text: list, audio: list[list], pattern: str = "delayed", **options):
        self.model = toy_model(pattern, **options)
        self.text, self.audio, self.fed = self._ids(0, text), [self._ids(1 + s, a) for s, a in enumerate(audio)], []
        # `parameters` of the network stay as they are: only what the heads say is replaced
        monkeypatch.setattr(self.model, "text_logits", self._text_logits)
        monkeypatch.setattr(self.model, "audio_logits", self._audio_logits)
        embed = self.model.embed

        def watched(steps, speech=None):
            if steps.shape[2] == 1:
                self.fed.append(steps[..., 0].tolist())
            return embed(steps, speech)

        monkeypatch.setattr(self.model, "embed", watched)

    def _ids(self, stream: int, words: list) -> list[int]:
        layout = self.model.layout
        names = layout.text if stream == 0 else layout.audio[stream - 1]
        return [getattr(names, word) if isinstance(word, str) else word for word in words]

    def _at(self, stream: int, words: list[int], batch: int) -> torch.Tensor:
        logits = torch.zeros(batch, self.model.layout.sizes[stream])
        logits[:, words[min(len(self.fed) - 1, len(words) - 1)]] = 1.0
        return logits

    def _text_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._at(0, self.text, len(hidden))

    def _audio_logits(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        return [self._at(1 + s, words, len(hidden)) for s, words in enumerate(self.audio)]

    def run(self, task: str, decoding: Decoding, strategy=PARALLEL, questions: list[Question] | None = None):
        """Emitted tokens [S][L]."""
        given = [Question(text=[3])] if TASKS[task].given == "text" else [Question(features=torch.zeros(4, 12))]
        self.fed.clear()
        steps = list(generate(self.model, TASKS[task], questions or given, decoding=decoding, strategy=strategy))
        return torch.stack([step.tokens[0] for step in steps], dim=-1).tolist() if steps else []

    def codes(self, tokens: list[list[int]]) -> list[list[int]]:
        """Codes [K][T] that emitted tokens carry."""
        return read_codes(self.model, torch.tensor(tokens[1:])).tolist()

    @property
    def pads(self) -> list[int]:
        return self.model.layout.pads().tolist()


@pytest.fixture
def script(monkeypatch):
    return lambda *args, **options: Script(monkeypatch, *args, **options)


CODES = [[1], [2], [3]]


@pytest.mark.parametrize("task", ["T1T2", "A1T2", "A1T1"])
@pytest.mark.parametrize("decoding", [FREE, SAFE])
def test_a_written_answer_ends_at_eot_and_does_not_emit_it(script, task, decoding):
    scripted = script([WORD, WORD, WORD, "eot"], CODES)
    tokens = scripted.run(task, decoding)
    assert tokens[0] == [WORD] * 3
    assert tokens[1:] == [[pad] * 3 for pad in scripted.pads[1:]]


@pytest.mark.parametrize("task", ["T1T2", "A1T2"])
def test_a_written_answer_is_fed_pads_in_the_audio_rows(script, task):
    scripted = script([WORD, WORD, "eot"], CODES)
    scripted.run(task, FREE)
    assert scripted.fed[1:] == [[[WORD, *scripted.pads[1:]]]] * 2


@pytest.mark.parametrize("decoding", [FREE, SAFE])
def test_a_spoken_answer_emits_eot_once_and_then_pads(script, decoding):
    ends = [[0, 0, 0, 0, 0, "eoa"], [0, 0, 0, 0, 0, 0, "eoa"], [0, 0, 0, 0, 0, 0, 0, "eoa"]]
    scripted = script([WORD, WORD, "eot", WORD], ends)
    tokens = scripted.run("T1A2", decoding)
    eot, pad = scripted.model.layout.text.eot, scripted.pads[0]
    assert tokens[0] == [WORD, WORD, eot, pad, pad, pad, pad]
    # the first entry is the last position of the prompt; what is fed is what was emitted
    assert [step[0][0] for step in scripted.fed[1:]] == tokens[0]


@pytest.mark.parametrize("decoding", [FREE, SAFE])
def test_a_spoken_answer_ends_with_the_last_stream_and_drops_that_step(script, decoding):
    ends = [[0, 4, 5, "eoa"], [0, 0, 4, 5, "eoa"], [0, 0, 0, 4, 5, "eoa"]]
    tokens = script(["eot"], ends).run("T1A2", decoding)
    assert len(tokens[0]) == 5


def test_other_streams_do_not_end_it(script):
    scripted = script([WORD], [["eoa"], ["eoa"], [2]])
    assert len(scripted.run("T1A2", FREE)[0]) == FREE.max_steps


def test_after_its_end_a_stream_goes_on_freely_as_published(script):
    ends = [[0, 4, "eoa", 9], [0, 0, 4, "eoa", 9], [0, 0, 0, 4, 5, 6, "eoa"]]
    tokens = script([WORD], ends).run("T1A2", FREE)
    assert tokens[1][3:] == [9, 9, 9]


def test_constrained_streams_end_together_and_are_padded(script):
    """Only the leading stream's end is the network's word; the script has the others go on for ever."""
    scripted = script([WORD], [[0, 4, 5, "eoa"], [2], [3]])
    tokens = scripted.run("T1A2", SAFE)
    pads, ids = scripted.pads, scripted.model.layout.audio
    assert tokens[1] == [pads[1], 4, 5, ids[0].eoa, pads[1]]
    assert tokens[2] == [pads[2], pads[2], 2, 2, ids[1].eoa]
    assert tokens[3] == [pads[3]] * 3 + [3, 3]


def test_constrained_answers_have_a_frame_at_least(script):
    scripted = script([WORD], [["eoa"], [2], [3]])
    question = [Question(text=[3])]
    answer = answers(scripted.model, TASKS["T1A2"], question, decoding=SAFE)[0]
    assert answer.codes.shape == (3, 1)


@pytest.mark.parametrize("lead", [0, 1, 4])
@pytest.mark.parametrize(
    ("pattern", "delays"),
    [("delayed", [2, 0, 1]), ("delayed", [0, 0, 2, 1]), ("delayed", [1, 1, 1]), ("parallel", None)],
)
def test_streams_end_with_the_frame_of_the_leader(script, pattern, delays, lead):
    """The stream that begins first speaks two frames; the others follow at their own time, in whatever order."""
    starts = [lead + d for d in delays or [0, 0, 0]]
    leader = starts.index(min(starts))
    audio = [[2 + s] for s in range(len(starts))]
    audio[leader] = [9] * starts[leader] + [4, 5, "eoa"]
    options = {"num_codebooks": len(starts), "text_lead": lead} | ({"delays": delays} if delays else {})
    scripted = script([WORD], audio, pattern, **options)
    tokens = scripted.run("T1A2", SAFE)
    assert len(tokens[0]) == max(starts) + 2
    for s, (start, row) in enumerate(zip(starts, tokens[1:], strict=True)):
        pad, eoa = scripted.pads[1 + s], scripted.model.layout.audio[s].eoa
        codes = [4, 5] if s == leader else [2 + s] * 2
        whole = [pad] * start + codes + [eoa] + [pad] * len(tokens[0])
        assert row == whole[: len(tokens[0])]
    assert scripted.codes(tokens) == [[4, 5] if s == leader else [2 + s] * 2 for s in range(len(starts))]


FLAT = [1, 11 + 2, 22 + 3]
"""A frame of three codebooks of eleven codes in one stream."""


@pytest.mark.parametrize("lead", [0, 1, 4])
def test_a_flattened_answer_ends_between_frames(script, lead):
    """Constrained, an end is not taken inside a frame, where the script begins to ask for it, but after it."""
    scripted = script([WORD], [[9] * lead + [*FLAT, FLAT[0], "eoa"]], "flattened", text_lead=lead)
    tokens = scripted.run("T1A2", SAFE)
    assert tokens[1][: lead + 4] == [scripted.pads[1]] * lead + [*FLAT, FLAT[0]]
    assert len(tokens[1]) == lead + 6
    assert [row[0] for row in scripted.codes(tokens)] == [1, 2, 3]
    assert len(scripted.codes(tokens)[0]) == 2


@pytest.mark.parametrize("lead", [0, 1, 4])
def test_a_flattened_answer_has_a_frame_at_least(script, lead):
    scripted = script([WORD], [["eoa"]], "flattened", text_lead=lead)
    tokens = scripted.run("T1A2", SAFE)
    assert tokens[1][:lead] == [scripted.pads[1]] * lead
    assert len(tokens[1]) == lead + 3


def test_a_flattened_answer_that_ends_inside_a_frame_loses_that_frame(script):
    scripted = script([WORD], [[*FLAT, *FLAT[:2], "eoa"]], "flattened", text_lead=0)
    tokens = scripted.run("T1A2", FREE)
    assert tokens[1] == [*FLAT, *FLAT[:2]]
    assert scripted.codes(tokens) == [[1], [2], [3]]


@pytest.mark.parametrize("decoding", [FREE, SAFE])
def test_ids_outside_the_codebook(script, decoding):
    """As published they are emitted and fed; constrained they never appear."""
    scripted = script([WORD], [["answer"], ["input"], ["split"]])
    tokens = scripted.run("T1A2", decoding)
    codes = scripted.model.codec.codebook_size
    steps = list(zip(*tokens[1:], strict=True))
    if decoding is FREE:
        assert all(code >= codes for step in steps for code in step)
    else:
        pads = scripted.pads[1:]
        assert all(code < codes or code == pad for step in steps for code, pad in zip(step, pads, strict=True))


def test_the_delay_is_forced_only_when_constrained(script):
    scripted = script([WORD], CODES)
    assert [row[0] for row in scripted.run("T1A2", FREE)[1:]] == [1, 2, 3]
    assert [row[0] for row in scripted.run("T1A2", SAFE)[1:]] == scripted.pads[1:]


def test_the_first_step_is_not_checked_for_an_end_as_published(script):
    scripted = script(["eot", WORD, WORD, "eot"], CODES)
    eot = scripted.model.layout.text.eot
    assert scripted.run("T1T2", FREE)[0] == [eot, WORD, WORD]
    assert scripted.run("T1T2", SAFE) == []
    spoken = script([WORD], [[0], [0], ["eoa", 0, 0, 0, "eoa"]])
    assert len(spoken.run("T1A2", FREE)[0]) == 4


def test_given_text_is_forced_in_synthesis(script):
    scripted = script([WORD], CODES)
    tokens = scripted.run("T1A1", SAFE, questions=[Question(text=[3, 5, 8])])
    eot, pad = scripted.model.layout.text.eot, scripted.pads[0]
    assert tokens[0] == [3, 5, 8, eot] + [pad] * (SAFE.max_steps - 4)


def test_batch_parallel_feeds_each_row_its_own(script):
    scripted = script([WORD, WORD, "eot"], CODES)
    tokens = scripted.run("A1A2", FREE, BATCH_PARALLEL)
    layout, pads = scripted.model.layout, scripted.pads
    speaks, writes = scripted.fed[0]
    assert speaks == layout.marks(text="answer", audio=True).tolist()
    assert writes == layout.marks(text="answer", audio=False).tolist()
    for step, (first, second) in enumerate(scripted.fed[1:]):
        assert first == [row[step] for row in tokens]
        assert second == [tokens[0][step], *pads[1:]]


def test_batch_parallel_takes_text_and_audio_from_their_rows(monkeypatch):
    model = toy_model()
    seen = {}
    text, audio = model.text_logits, model.audio_logits
    forward = model.forward

    def watched(*args, **options):
        seen["hidden"] = forward(*args, **options)
        return seen["hidden"]

    monkeypatch.setattr(model, "forward", watched)
    monkeypatch.setattr(model, "text_logits", lambda h: seen.setdefault("text", h) is None or text(h))
    monkeypatch.setattr(model, "audio_logits", lambda h: seen.setdefault("audio", h) is None or audio(h))
    next(generate(model, TASKS["T1A2"], [Question(text=[3])], strategy=BATCH_PARALLEL))
    assert seen["hidden"].text.shape[0] == 2
    assert torch.equal(seen["text"][0], seen["hidden"].text[1, -1])
    assert torch.equal(seen["audio"][0], seen["hidden"].audio[0, -1])


def test_a_text_only_answer_takes_one_row(script):
    scripted = script([WORD, "eot"], CODES)
    scripted.run("A1T2", FREE, BATCH_PARALLEL)
    assert all(len(rows) == 1 for rows in scripted.fed)


def test_max_steps_cuts_and_says_so(script):
    scripted = script([WORD], CODES)
    question = [Question(text=[3])]
    assert answers(scripted.model, TASKS["T1T2"], question, decoding=Decoding(max_steps=4))[0].truncated
    ended = script([WORD, "eot"], CODES)
    assert not answers(ended.model, TASKS["T1T2"], question, decoding=Decoding(max_steps=4))[0].truncated
