"""Test truncated, cancelled and failing answers: why they ended, and that the output before the end is valid."""

from __future__ import annotations

import threading

import pytest
import torch

from omnikit.api import Omni
from omnikit.engines.torch import TorchEngine
from omnikit.generate import (
    CANCELLED,
    END,
    ENDS,
    STEP_LIMIT,
    TIME_LIMIT,
    Decoder,
    Decoding,
    Question,
    read_frames,
    request,
)
from omnikit.generate.detokenize import FrameReader, take_frames
from omnikit.strategies import BATCH_PARALLEL, PARALLEL
from omnikit.tasks import TASKS
from tests.unit.scripted import FREE, SAFE, WORD, Script
from tests.unit.toy import toy_model

QUESTION = Question(text=[3, 5])
SPOKEN = torch.rand(1600, generator=torch.Generator().manual_seed(0)) - 0.5
STRATEGIES = pytest.mark.parametrize("strategy", [PARALLEL, BATCH_PARALLEL])


class Watched(TorchEngine):
    """An engine that calls the function `at[n]` while it computes the n-th decode step, counted from 1."""

    def __init__(self, model, at=None):
        super().__init__(model)
        self.at, self.calls = at or {}, 0

    def open(self, capacity):
        slots = super().open(capacity)
        advance = slots.advance

        def watched(embeddings):
            self.calls += 1
            self.at.get(self.calls, lambda: None)()
            return advance(embeddings)

        slots.advance = watched
        return slots


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock that limits the time of answers by one that only the test advances."""

    class Clock:
        now = 100.0

        def tick(self):
            self.now += 1.0

    clock = Clock()
    monkeypatch.setattr(request, "monotonic", lambda: clock.now)
    return clock


def test_another_thread_cancels_within_a_step():
    """Check that an answer that is cancelled during its third decode step includes that step and has no fourth."""
    cancel, under_way, cancelled = (threading.Event() for _ in range(3))

    def third():
        under_way.set()
        assert cancelled.wait(60)

    engine = Watched(toy_model(), {3: third})
    decoder = Decoder(engine.model, engine)
    asked = decoder.submit(TASKS["T1A2"], QUESTION, cancel=cancel)
    assert under_way.wait(60)
    cancel.set()
    cancelled.set()
    assert asked.wait(60).end == CANCELLED
    decoder.close()
    assert engine.calls == len(asked.steps) == 3


def test_cancelled_before_it_begins():
    cancel = threading.Event()
    cancel.set()
    engine = Watched(toy_model())
    assert Decoder(engine.model, engine).answers(TASKS["T1A2"], [QUESTION], cancel=cancel)[0].end == CANCELLED
    assert engine.calls == 0


def test_closed():
    decoder = Decoder(toy_model(), decoding=Decoding(min_steps=1000))
    asked = decoder.submit(TASKS["T1A2"], QUESTION, sound="exact")
    chunks = iter(asked)
    next(chunks)
    decoder.close()
    *_, last = chunks
    assert last.end == asked.wait(0).end == CANCELLED
    assert decoder.submit(TASKS["T1T2"], QUESTION, decoding=Decoding(max_steps=2)).wait(60).end in (END, STEP_LIMIT)
    decoder.close()


def test_an_iterator_that_is_dropped_cancels_its_answer():
    decoder = Decoder(toy_model(), decoding=Decoding(min_steps=1000))
    for begun in (True, False):
        asked = decoder.submit(TASKS["T1A2"], QUESTION, sound="exact")
        chunks = iter(asked)
        if begun:
            next(chunks)
        del chunks
        assert asked.wait(60).end == CANCELLED
    decoder.close()


def test_a_time_limit_stops_within_a_step(clock):
    """Check time limits of answers, with decode steps that take one second each."""
    engine = Watched(toy_model(), dict.fromkeys(range(1, 99), clock.tick))
    for limit, expected in ((0.5, 1), (1.0, 1), (3.5, 4)):
        engine.calls = 0
        decoder = Decoder(engine.model, engine, decoding=Decoding(time_limit=limit, min_steps=50, max_steps=50))
        asked, batch = decoder.request(TASKS["T1A2"], QUESTION), decoder.batch()
        batch.submit(asked)
        clock.now += 1000  # waiting does not count: the limit begins when the prompt is encoded
        batch.run()
        assert len(asked.steps) == engine.calls == expected
        assert asked.end == TIME_LIMIT


def test_each_answer_of_a_batch_has_its_own_end(monkeypatch):
    """Check a batch of two written answers, of which the first ends at its third step and the second never ends."""
    model, asked = toy_model(), []

    def logits(hidden):
        asked.append(hidden)
        scores = torch.zeros(len(hidden), model.layout.sizes[0])
        scores[:, WORD] = 1.0
        scores[0, model.layout.text.eot] = 2.0 if len(asked) == 3 else 0.0
        return scores

    monkeypatch.setattr(model, "text_logits", logits)
    found = Decoder(model, decoding=Decoding(max_steps=5)).answers(TASKS["T1T2"], [QUESTION] * 2)
    assert [answer.text for answer in found] == [[WORD] * 2, [WORD] * 5]
    assert [answer.end for answer in found] == [END, STEP_LIMIT]
    assert [answer.truncated for answer in found] == [False, True]


@pytest.mark.parametrize(
    ("name", "value"), [("max_steps", 0), ("time_limit", 0), ("time_limit", -1.0), ("time_limit", float("nan"))]
)
def test_limits_that_leave_no_step_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: {value}"):
        Decoding(**{name: value})


@STRATEGIES
def test_what_a_cancelled_stream_gave_is_valid(strategy):
    whole = Omni(toy_model(), decoding=SAFE, strategy=strategy).ask(SPOKEN)
    cancel = threading.Event()
    engine = Watched(toy_model(), {12: cancel.set})
    omni = Omni(engine.model, decoding=SAFE, strategy=strategy, engine=engine)
    chunks = list(omni.stream(SPOKEN, cancel=cancel))
    wav, text = torch.cat([chunk.wav for chunk in chunks]), "".join(chunk.text for chunk in chunks)
    assert 0 < len(wav) < len(whole.wav) and len(wav) % omni.model.codec.frame_samples == 0
    assert torch.equal(wav, whole.wav[: len(wav)])
    assert whole.text.startswith(text)
    assert [chunk.end for chunk in chunks] == [None] * (len(chunks) - 1) + [CANCELLED]


def test_every_verb_is_stopped(clock):
    engine = Watched(toy_model(), dict.fromkeys(range(1, 999), clock.tick))
    omni = Omni(engine.model, engine=engine, decoding=Decoding(min_steps=50))
    for verb, given in (
        (omni.ask, SPOKEN), (omni.answer, "two is red"), (omni.speak, "two is red"), (omni.chat, "two is red"),
        (omni.transcribe, SPOKEN),
    ):  # fmt: skip
        engine.calls = 0
        reply = verb(given, time_limit=5)
        assert engine.calls == 5
        assert isinstance(reply, str) or reply.end == TIME_LIMIT
    assert omni.generate_text("A1T1", omni.spoken_question(SPOKEN), time_limit=5).end == TIME_LIMIT
    with pytest.raises(ValueError, match="time_limit: -1"):
        omni.ask(SPOKEN, time_limit=-1)


@pytest.fixture
def script(monkeypatch):
    """Return the constructor of a model with scripted logits: `script(text, audio, pattern, **options)`; see `Script`.
    """
    return lambda *args, **options: Script(monkeypatch, *args, **options)


def ask(scripted: Script, decoding: Decoding, strategy=PARALLEL):
    """Return text ids, codes [K][T] and end of a spoken answer, and check that streaming gives the same answer."""
    scripted.restart()
    decoder = Decoder(scripted.model, decoding=decoding, strategy=strategy)
    found = decoder.answers(TASKS["A1A2"], [Question(features=torch.zeros(4, 12))])[0]
    scripted.restart()
    reply = Omni(scripted.model, decoding=decoding, strategy=strategy).ask(SPOKEN)
    assert torch.equal(reply.wav, scripted.model.codec.decode(found.codes[None])[0])
    assert reply.text == scripted.model.llm.tokenizer.decode(found.text)
    assert reply.end == found.end in ENDS
    return found.text, found.codes.tolist(), found.end


SHORT = [[0, 4, 5, "eoa"], [0, 0, 4, 5, "eoa"], [0, 0, 0, 4, 5, "eoa"]]
"""Scripted tokens of three audio streams with two frames and the delays 1, 2 and 3."""


@STRATEGIES
@pytest.mark.parametrize("decoding", [FREE, SAFE])
def test_text_longer_than_its_sound_ends_with_it(script, decoding, strategy):
    text, codes, end = ask(script([WORD], SHORT), decoding, strategy)
    assert (text, codes, end) == ([WORD] * 5, [[4, 5]] * 3, END)


@STRATEGIES
@pytest.mark.parametrize("decoding", [FREE, SAFE])
def test_sound_longer_than_its_text_goes_on(script, decoding, strategy):
    ends = [[0] * delay + [4] * 12 + ["eoa"] for delay in (1, 2, 3)]
    text, codes, end = ask(script([WORD, "eot", WORD], ends), decoding, strategy)
    assert (text, codes, end) == ([WORD], [[4] * 12] * 3, END)


@STRATEGIES
@pytest.mark.parametrize("decoding", [FREE, SAFE])
def test_sound_that_never_ends_is_cut(script, decoding, strategy):
    text, codes, end = ask(script(["eot"], [[1], [2], [3]]), decoding, strategy)
    frames = decoding.max_steps - 3
    assert (text, codes, end) == ([], [[1] * frames, [2] * frames, [3] * frames], STEP_LIMIT)


def test_a_text_that_never_ends_is_cut(script):
    scripted = script([WORD], [[1], [2], [3]])
    for decoding in (FREE, SAFE):
        scripted.restart()
        found = Decoder(scripted.model, decoding=decoding).answers(TASKS["T1T2"], [QUESTION])[0]
        assert (found.text, found.end) == ([WORD] * 20, STEP_LIMIT)


@pytest.mark.parametrize("bad", ["pad", "input", "answer", "split"])
@pytest.mark.parametrize("stream", [0, 1, 2])
def test_a_frame_with_an_id_that_is_no_code_is_left_out(script, stream, bad):
    """Check that an unconstrained audio frame with an id outside the codebook is skipped, and its neighbours are not.
    """
    audio = [[0] * delay + [4, 5, 6, 7, "eoa"] for delay in (1, 2, 3)]
    audio[stream][1 + stream + 2] = bad  # in the third frame
    assert ask(script(["eot"], audio), FREE) == ([], [[4, 5, 7]] * 3, END)


@pytest.mark.parametrize("stream", [0, 1])
def test_nothing_is_heard_behind_an_end_mark(script, stream):
    """Check that frames after the end token `eoa` of one stream are left out, though the answer ends four steps later.
    """
    audio = [[0] * delay + [4, 5, 6, 7, 8, 9, "eoa"] for delay in (1, 2, 3)]
    audio[stream][1 + stream + 2] = "eoa"
    assert ask(script(["eot"], audio), FREE) == ([], [[4, 5]] * 3, END)


@pytest.mark.parametrize(
    ("pattern", "options"),
    [
        ("delayed", {}), ("delayed", {"delays": [2, 0, 1], "text_lead": 1}), ("parallel", {"text_lead": 2}),
        ("flattened", {}), ("flattened", {"text_lead": 0}),
    ],
)  # fmt: skip
def test_frames_of_a_stream_are_those_of_the_whole(pattern, options):
    """Check that frames read step by step equal those read from the whole answer, also with random ids among the codes.
    """
    model, draw = toy_model(pattern, **options), torch.Generator().manual_seed(1)
    for _ in range(30):
        sizes = model.layout.sizes
        steps = torch.stack([torch.randint(0, size, (25,), generator=draw) for size in sizes])
        codes = torch.stack([torch.randint(0, size - 64, (25,), generator=draw) for size in sizes])
        steps = torch.where(torch.rand(25, generator=draw) < 0.1, steps, codes)
        reader = FrameReader(model)
        found = []
        for step in steps.T.tolist():
            reader.push(step)
            if reader.complete >= 2:
                found += take_frames([reader])
        found = [codes for codes in [*found, *take_frames([reader])] if codes is not None]
        whole = read_frames(model, steps[1:]).codes
        assert torch.equal(torch.cat([whole[:, :0], *found], dim=1), whole)
        assert len(reader.steps) <= model.pattern.num_steps(1)


def test_silence_is_a_question(tiny):
    omni = Omni(tiny(), decoding=Decoding(max_steps=20))
    for samples in (320, 16000):
        reply = omni.ask(torch.zeros(samples))
        assert reply.end in (END, STEP_LIMIT)
        assert torch.isfinite(reply.wav).all() and len(reply.wav)


def test_questions_may_last_as_long_as_the_encoder_hears(tiny):
    omni = Omni(tiny(options={"encoder.n_ctx": 1500}), decoding=Decoding(max_steps=8))
    assert len(omni.ask(torch.rand(30 * 16000)).wav)
    with pytest.raises(ValueError, match=r"waveform: a recording of 31\.0 s is longer than the encoder's 30 s"):
        omni.stream(torch.rand(31 * 16000))
