"""Test the rules by which answers end and by which tokens are fed back, with models whose logits are scripted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from omnikit.generate import Decoder, Decoding, Question
from omnikit.interfaces import Hidden
from omnikit.sampling import Sampling
from omnikit.strategies import BATCH_PARALLEL, PARALLEL, Strategy
from omnikit.tasks import TASKS
from tests.unit.plain import plainly
from tests.unit.scripted import FREE, SAFE, WORD, Script, emitted
from tests.unit.toy import toy_model


@pytest.fixture
def script(monkeypatch):
    """Return the constructor of a model with scripted logits: `script(text, audio, pattern, **options)`; see `Script`.
    """
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
def test_a_written_answer_is_fed_pads_in_the_audio_streams(script, task):
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
    # the first entry is the last position of the prompt; emitted tokens are fed afterwards
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
    """Check that the end of the leading audio stream ends the other streams, whose scripted codes never end."""
    scripted = script([WORD], [[0, 4, 5, "eoa"], [2], [3]])
    tokens = scripted.run("T1A2", SAFE)
    pads, ids = scripted.pads, scripted.model.layout.audio
    assert tokens[1] == [pads[1], 4, 5, ids[0].eoa, pads[1]]
    assert tokens[2] == [pads[2], pads[2], 2, 2, ids[1].eoa]
    assert tokens[3] == [pads[3]] * 3 + [3, 3]


def test_constrained_answers_have_a_frame_at_least(script):
    scripted = script([WORD], [["eoa"], [2], [3]])
    question = [Question(text=[3])]
    answer = Decoder(scripted.model, decoding=SAFE).answers(TASKS["T1A2"], question)[0]
    assert answer.codes.shape == (3, 1)


@pytest.mark.parametrize("lead", [0, 1, 4])
@pytest.mark.parametrize(
    ("pattern", "delays"),
    [("delayed", [2, 0, 1]), ("delayed", [0, 0, 2, 1]), ("delayed", [1, 1, 1]), ("parallel", None)],
)
def test_streams_end_with_the_frame_of_the_leader(script, pattern, delays, lead):
    """Check that all audio streams end with the two frames of the stream that begins first, for different delays."""
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
"""Token ids of one frame of three codebooks with eleven codes each, in a single flattened stream."""


@pytest.mark.parametrize("lead", [0, 1, 4])
def test_a_flattened_answer_ends_between_frames(script, lead):
    """Check that constrained decoding delays an end token `eoa` scripted inside a frame to the end of the frame."""
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
    """Check that ids outside the codebook are generated in unconstrained decoding, as published, and only there."""
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
    for step, (first, *second) in enumerate(scripted.fed[1:]):
        assert first == [row[step] for row in tokens]
        # the text ends at step 2, and with it the sequence that answers with text alone
        assert second == ([[tokens[0][step], *pads[1:]]] if step < 2 else [])


def test_batch_parallel_takes_text_and_audio_from_their_rows(monkeypatch):
    model = toy_model()
    seen = {}
    text, audio, hidden_of = model.text_logits, model.audio_logits, model.hidden

    def watched(embeddings, **options):
        found = hidden_of(embeddings, **options)
        if embeddings.shape[1] == 1:
            seen.setdefault("hidden", found)
        return found

    monkeypatch.setattr(model, "hidden", watched)
    monkeypatch.setattr(model, "text_logits", lambda h: seen.setdefault("text", h) is None or text(h))
    monkeypatch.setattr(model, "audio_logits", lambda h: seen.setdefault("audio", h) is None or audio(h))
    decoder = Decoder(model, strategy=BATCH_PARALLEL, decoding=Decoding(max_steps=1))
    decoder.answers(TASKS["T1A2"], [Question(text=[3])])
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
    four = Decoding(max_steps=4)
    assert Decoder(scripted.model, decoding=four).answers(TASKS["T1T2"], question)[0].truncated
    ended = script([WORD, "eot"], CODES)
    assert not Decoder(ended.model, decoding=four).answers(TASKS["T1T2"], question)[0].truncated


@pytest.mark.parametrize("decoding", [FREE, SAFE])
def test_no_stream_ends_before_min_steps(script, decoding):
    scripted = script(["eot"], [["eoa"], ["eoa"], ["eoa"]])
    assert len(scripted.run("T1A2", replace(decoding, min_steps=9))[0]) >= 9
    assert len(scripted.run("T1T2", replace(decoding, min_steps=9))[0]) == 9
    assert len(scripted.run("T1A2", decoding)[0]) < 9


@pytest.mark.parametrize("questions", [1, 3])
@pytest.mark.parametrize("task", ["T1A2", "A1A2"])
def test_what_is_computed(script, task, questions):
    """Check that a question's prompt is computed once for all its sequences, and that ended texts cost no logits."""
    given = {"T1A2": Question(text=[3, 4]), "A1A2": Question(features=torch.zeros(4, 12))}[task]
    scripted = script([WORD, WORD, "eot"], CODES)
    for strategy, rows in ((PARALLEL, 1), (BATCH_PARALLEL, 2)):
        steps = len(scripted.run(task, FREE, strategy, [given] * questions)[0])
        prompts, fed = scripted.calls[:questions], scripted.calls[questions:]
        assert all(shape[0] == 1 and shape[2] > 1 for shape in prompts)
        assert [shape[0] for shape in fed] == [questions * rows] * 3 + [questions] * (steps - 3)
        assert all(shape[2] == 1 for shape in fed)
        assert scripted.texts == 3


def test_given_text_needs_no_text_head(script):
    scripted = script([WORD], CODES)
    scripted.run("T1A1", SAFE)
    assert scripted.texts == 0


OTHER_WAY_ROUND = Strategy(text_only=(True, False), text_from=0, audio_from=1)


@pytest.mark.parametrize("strategy", [PARALLEL, BATCH_PARALLEL, OTHER_WAY_ROUND])
@pytest.mark.parametrize("decoding", [FREE, SAFE])
@pytest.mark.parametrize(("pattern", "options"), [("delayed", {}), ("delayed", {"tts_blocks": 1}), ("flattened", {})])
def test_tokens_are_those_of_computing_everything(monkeypatch, pattern, options, decoding, strategy):
    model = toy_model(pattern, **options)
    asked, head = [], model.text_logits

    def ends_at_the_fourth(hidden):
        asked.append(hidden)
        return head(hidden).index_fill(1, torch.tensor(model.layout.text.eot), 1000.0 if len(asked) == 4 else 0.0)

    monkeypatch.setattr(model, "text_logits", ends_at_the_fourth)
    question = Question(text=[3, 5, 8])
    decoding = replace(decoding, max_steps=30)
    expected, _ = plainly(model, "T1A2", question, decoding, strategy)
    assert len(asked) == len(expected) + (len(expected) < 30) and len(expected) > 5
    asked.clear()
    found = emitted(Decoder(model, decoding=decoding, strategy=strategy), "T1A2", [question])[0]
    assert list(map(list, zip(*found, strict=True))) == expected
    assert len(asked) == 4


class HostWaits(TorchDispatchMode):
    """A torch dispatch mode that counts operations in which a GPU and the host wait for each other.

    These read a value on the host, convert a boolean mask to indices, or copy a tensor from the host.
    """

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and torch.bool in [
            i.dtype for i in args[1] if i is not None
        ]
        from_host = name == "lift_fresh" and args[0].dim() > 0  # numbers are passed as kernel arguments
        if by_mask or from_host or name in ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select"):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("constrain", [True, False])
@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=1.0, top_k=5, top_p=0.9, repetition_penalty=1.2)])
@pytest.mark.parametrize("strategy", [PARALLEL, BATCH_PARALLEL], ids=["parallel", "batch parallel"])
def test_the_choice_of_tokens_never_asks_the_device(strategy, how, constrain):
    """Check that choosing tokens reads no value from the device, so that a CUDA graph can record it."""
    model = toy_model()
    decoding = Decoding(text=how, audio=how, constrain=constrain, min_steps=9, max_steps=9)
    decoder = Decoder(model, decoding=decoding, strategy=strategy)
    batch = decoder.batch()
    for frames in (9, 4):
        question = Question(features=torch.randn(frames, model.encoder.dim))
        batch.submit(decoder.request(TASKS["A1A2"], question))
    batch.turn()
    rows, variant = len(batch.slots), batch._variant()
    hidden = Hidden(torch.randn(rows, model.llm.dim), torch.randn(rows, model.llm.dim))
    with HostWaits() as asked, torch.inference_mode():
        batch.rules.choose(hidden, variant)
        batch.rules.embed(rows)
    assert asked.names == []
    with HostWaits() as asked:  # verifies that waits are counted
        bool(hidden.text[0, 0] > 0)
    assert asked.names == ["_local_scalar_dense"] or asked.names == ["is_nonzero"]
