"""Test that each answer of a conversation equals that of the whole sequence of its turns computed at once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import Tensor

import omnikit.engines.torch as torch_engine
from omnikit.api import Omni
from omnikit.conversation import TASK_OF, Conversation
from omnikit.generate import END, STEP_LIMIT, BadQuestion, Decoder, Decoding, History, Question, Request, RunningBatch
from omnikit.generate.history import Turn
from omnikit.interfaces import Engine
from omnikit.model import AdaptedSpeech, OmniLM
from omnikit.sampling import Sampling
from omnikit.strategies import BATCH_PARALLEL, PARALLEL, Strategy
from omnikit.tasks import AUDIO_START, TASKS, Task, make_sample
from omnikit.turns import heard_part
from tests.unit.engines.compared import sharpen
from tests.unit.generate.test_running_batch import ends_often, open_named, ties
from tests.unit.plain import plainly
from tests.unit.toy import WORDS, toy_model

ENGINES = ("torch", "separate", "static", "recorded", "openvino", "compiled")
TURN_TASKS = ("A1A2", "A1A2", "T1A2", "T1A2", "A1T2", "T1T2")


def engine_of(name: str, model: OmniLM, folder: Path, monkeypatch) -> Engine:
    """Open an engine whose heads are those of the model, which tests change."""
    if name == "openvino":
        pytest.importorskip("openvino", reason="omnikit[openvino] is not installed")
    if name == "separate":
        monkeypatch.setattr(torch_engine, "can_join", lambda cache: False)
    engine = open_named("torch" if name == "separate" else name, model, folder)
    engine.text_logits = model.text_logits
    engine.audio_logits = lambda hidden: torch.cat(model.audio_logits(hidden), dim=-1)
    return engine


@dataclass(eq=False)
class Past:
    """A turn as the reference implementation remembers it."""

    task: Task
    question: Question
    text: Sequence[int]
    codes: Tensor | None
    """Codes [K, T] of the answer; None until it has ended."""
    turn: Turn | None = None
    request: Request | None = None
    """Request of an answer that has not ended."""


@torch.no_grad()
def embedded(model: OmniLM, past: Sequence[Past]) -> Tensor:
    """Return the embeddings [P, D] of turns, laid out by `make_sample` with their closing steps."""
    found = [torch.zeros(0, model.llm.dim)]
    for turn in past:
        speech, given = None, {"question": turn.question.text}
        if turn.question.features is not None:
            features, lengths = model.adapter(turn.question.features[None], torch.tensor([len(turn.question.features)]))
            speech = AdaptedSpeech(features, lengths, torch.tensor([AUDIO_START]))
            given = {"audio_frames": features.shape[1]}
        codes = turn.codes if turn.task.speaks else None
        whole = make_sample(turn.task, model.layout, model.pattern, **given, answer=turn.text, codes=codes).whole
        found.append(model.embed(torch.from_numpy(whole)[None], speech)[0])
    return torch.cat(found)


@dataclass
class Talk:
    """A conversation of a test: its history, the turns that it should have, and what each request should follow."""

    history: History
    past: list[Past] = field(default_factory=list)
    asked: list[tuple[Request, list[Past]]] = field(default_factory=list)
    edits: list[str] = field(default_factory=list)

    def ask(self, request: Request) -> None:
        self.past.append(Past(request.task, request.question, [], None, request.turn, request))
        self.asked.append((request, []))

    @property
    def unfinished(self) -> list[Request]:
        return [turn.request for turn in self.past if turn.request is not None]

    def settle(self) -> None:
        """Note the answers that ended, an interrupted one as far as its frames go; forget those that never began."""
        for turn in [each for each in self.past if each.request is not None and each.request.done]:
            request, turn.request = turn.request, None
            if not request.turn.whole:
                self.past.remove(turn)
                continue
            answer = request.wait(0)
            turn.text, turn.codes = answer.text, answer.codes
            if answer.end != END and request.task.speaks:
                turn.text, turn.codes = heard_part(turn.text, turn.codes, turn.codes.shape[1])

    def edit(self, draw: random.Random) -> None:
        """Crop, forget or insert a turn, while an answer is running, waiting, or none is."""
        what, old = ("remember", "crop", "forget")[len(self.edits) % 3], [each for each in self.past if each.turn.whole]
        if what == "remember":
            ids = [[draw.randrange(self.history.model.layout.text_vocab) for _ in range(draw.randint(1, 6))]
                   for _ in range(2)]  # fmt: skip
            self.history.remember(None, "a question", *ids)
            turn = self.history.turns[-1]
            self.past.append(Past(turn.task, Question(text=ids[0]), ids[1], turn.codes, turn))
        elif old:
            turn = draw.choice(old)
            if what == "forget":
                self.history.forget(turn.turn)
                self.past.remove(turn)
            elif turn.task.speaks:
                frames = draw.randint(0, 6)
                self.history.crop(turn.turn, frames)
                turn.text, turn.codes = heard_part(turn.text, turn.codes, frames)
        self.edits.append(f"{what} while {'running' if self.unfinished else 'idle'}")

    def note(self) -> None:
        """Note the turns that each request follows that has not begun yet."""
        for number, (request, _) in enumerate(self.asked):
            if not request.done and request.turn.prompt is None:
                at = next(i for i, each in enumerate(self.past) if each.request is request)
                self.asked[number] = request, [replace(each) for each in self.past[:at]]


def draw_question(model: OmniLM, task: Task, draw: random.Random) -> Question:
    if task.given == "text":
        return Question(text=[draw.randrange(model.layout.text_vocab) for _ in range(draw.randint(1, 8))])
    shape, seed = (draw.randint(1, 15), model.encoder.dim), draw.randrange(1000)
    return Question(features=torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def converse(decoder: Decoder, talks: list[Talk], turns: int, draw: random.Random, *, rough: bool) -> None:
    """Ask random questions in several conversations at once; `rough` ones are cancelled and edited, too."""
    batch, left = decoder.batch(4), {id(talk): turns for talk in talks}
    while any(left.values()) or batch.busy:
        for talk in talks:
            talk.settle()
            if rough and draw.random() < (0.05 if talk.unfinished else 0.3):
                talk.edit(draw)
            cancelled = talk.unfinished and rough and draw.random() < 0.02
            if cancelled:
                talk.unfinished[-1].cancel()
            if left[id(talk)] and (not talk.unfinished or (cancelled and draw.random() < 0.5)):
                left[id(talk)] -= 1
                task = TASKS[draw.choice(TURN_TASKS)]
                sampling = draw.choice([Sampling(), Sampling(temperature=1.0)])
                decoding = Decoding(text=sampling, audio=sampling, max_steps=draw.choice([8, 40, 40, 40]))
                request = decoder.request(
                    task, draw_question(decoder.model, task, draw), decoding=decoding, history=talk.history,
                    seed=draw.randrange(2**31), sound=draw.choice([None, "exact"]),
                )  # fmt: skip
                talk.ask(request)
                batch.submit(request)
            talk.note()
        batch.turn()
    assert not batch.owners and not batch.slots.lengths


def check(model: OmniLM, talks: list[Talk]) -> None:
    tied = 0
    for talk in talks:
        for request, before in talk.asked:
            request.wait(0)
            tied += ties(model, request, embedded(model, [turn for turn in before if turn.codes is not None]))
    assert tied <= 1


STRATEGIES = {"parallel": PARALLEL, "batch_parallel": BATCH_PARALLEL}
OFTEN = {("torch", "parallel"), ("torch", "batch_parallel"), ("recorded", "batch_parallel"), ("openvino", "parallel")}
"""Engines and strategies of the quick tests."""


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        pytest.param(engine, strategy, marks=[pytest.mark.long] * ((engine, kind) not in OFTEN), id=f"{engine}-{kind}")
        for engine in ENGINES
        for kind, strategy in STRATEGIES.items()
    ],
)
def test_answers_are_those_of_the_whole_sequence(name, strategy, tmp_path, monkeypatch):
    """Check turns of several conversations in one batch; some are interrupted, cut or cancelled, or reach a limit."""
    model = ends_often(sharpen(toy_model("delayed", tts_blocks=1), 5.0))
    decoder = Decoder(model, engine_of(name, model, tmp_path, monkeypatch), strategy=strategy)
    draw = random.Random(3)
    talks = [Talk(History(model)) for _ in range(3)]
    converse(decoder, talks, 4, draw, rough=True)
    check(model, talks)
    ends = {request.end for talk in talks for request, _ in talk.asked}
    assert {END, STEP_LIMIT} <= ends
    assert {edit.split()[0] for talk in talks for edit in talk.edits} == {"crop", "forget", "remember"}
    assert any("running" in edit for talk in talks for edit in talk.edits)


class Ready:
    """A stand-in for a CUDA event, which makes the batch read tokens one step late as on a GPU."""

    def synchronize(self) -> None:
        pass


def test_tokens_that_are_read_one_step_late(tmp_path, monkeypatch):
    """Check conversations whose KV caches hold one position more than they should when an answer ends."""
    send = RunningBatch._send

    def late(batch):
        read = send(batch)
        return replace(read, tokens=read.tokens.clone(), ready=Ready())

    monkeypatch.setattr(RunningBatch, "_send", late)
    model = ends_often(sharpen(toy_model(), 5.0))
    talks = [Talk(History(model)) for _ in range(3)]
    decoder = Decoder(model, engine_of("static", model, tmp_path, monkeypatch), strategy=BATCH_PARALLEL)
    converse(decoder, talks, 4, random.Random(7), rough=True)
    check(model, talks)


@pytest.mark.parametrize(
    ("pattern", "options"), [("flattened", {}), ("parallel", {"text_lead": 1}), ("delayed", {"delays": [2, 0, 1]})]
)
def test_patterns(pattern, options):
    model = ends_often(toy_model(pattern, **options))
    talks = [Talk(History(model)) for _ in range(3)]
    converse(Decoder(model, strategy=BATCH_PARALLEL), talks, 4, random.Random(5), rough=True)
    check(model, talks)


# the API


class Counted:
    """A system whose computed prompt positions and encoded recordings are counted."""

    def __init__(self, monkeypatch, engine: str = "torch", **options):
        self.model = ends_often(sharpen(toy_model(), 5.0))
        self.positions: list[int] = []
        self.encoded = 0
        opened = engine_of(engine, self.model, None, monkeypatch)
        self.omni = Omni(self.model, engine=opened, **{"decoding": Decoding(max_steps=60, min_steps=6), **options})
        open_slots, encoder = opened.open, self.model.encoder.forward

        def open_counted(capacity):
            slots = open_slots(capacity)
            prefill = slots.prefill

            def counted(prompts, *after):
                self.positions += map(len, prompts)
                return prefill(prompts, *after)

            slots.prefill = counted
            return slots

        def encode(wav, lengths):
            self.encoded += len(wav)
            return encoder(wav, lengths)

        opened.open = open_counted
        self.model.encoder.forward = encode

    def taken(self) -> list[int]:
        found, self.positions[:] = list(self.positions), []
        return found


def wav(seed: int, samples: int = 4800) -> Tensor:
    return torch.rand(samples, generator=torch.Generator().manual_seed(seed)) - 0.5


def spoken(samples: int = 4800) -> int:
    """Return the number of prompt positions of a recording, without its marks."""
    return samples // 160 // 2 + 2


@pytest.mark.parametrize("engine", ["torch", "static"])
@pytest.mark.parametrize("strategy", [PARALLEL, BATCH_PARALLEL], ids=["parallel", "batch_parallel"])
def test_a_turn_computes_its_own_positions_alone(engine, strategy, monkeypatch):
    """Check that a prefill has the positions of its prompt and the closing step before it, and nothing twice."""
    counted = Counted(monkeypatch, engine, strategy=strategy)
    talk = counted.omni.conversation()
    assert talk.ask(wav(1)).end == END
    assert counted.taken() == [spoken()]
    assert talk.say("what is red").end == END
    written = len(counted.model.llm.tokenizer.encode("what is red")) + 2
    assert counted.taken() == [1 + written]
    assert talk.ask(wav(2, 3200), speak=False).end == END
    assert counted.taken() == [1 + spoken(3200)]
    talk.say("what is red", speak=False)
    assert counted.taken() == [1 + written]
    assert counted.encoded == 2
    assert [turn.question for turn in talk.turns] == [None, "what is red", None, "what is red"]


def test_after_a_crop_only_that_answer_is_computed_anew(monkeypatch):
    counted = Counted(monkeypatch)
    talk, codec = counted.omni.conversation(), counted.model.codec
    talk.ask(wav(1))
    talk.ask(wav(2))
    counted.taken()
    last = talk._history.turns[-1]
    assert last.codes.shape[1] > 3
    text, codes = heard_part(last.text, last.codes, 2)
    talk.crop(2.4 * codec.frame_samples / codec.sample_rate)
    assert (list(last.text), last.codes.tolist()) == (list(text), codes.tolist())
    talk.say("what is red")
    answer = make_sample(TASKS["A1A2"], counted.model.layout, counted.model.pattern, audio_frames=0, answer=text,
                         codes=codes).whole[:, 3:]  # fmt: skip
    assert counted.taken() == [answer.shape[1] + len(counted.model.llm.tokenizer.encode("what is red")) + 2]
    assert counted.encoded == 2


def tokens(talk: Conversation) -> list[list[int]]:
    return talk._request.steps


def expected(talk: Conversation, past: list[Past], task: str, question: Question, **asked) -> list[list[int]]:
    omni = talk.omni
    found, _ = plainly(omni.model, task, question, omni.decoding, **asked, before=embedded(omni.model, past))
    return found


def past_of(talk: Conversation, questions: list[Question]) -> list[Past]:
    turns = zip(talk._history.turns, questions, strict=True)
    return [Past(turn.task, question, turn.text, turn.codes.cpu()) for turn, question in turns]


@torch.no_grad()
def features(model: OmniLM, recording: Tensor) -> Question:
    return Question(features=model.encoder(recording[None], torch.tensor([len(recording)]))[0][0])


def test_a_crop_is_a_conversation_whose_answer_was_the_cut_one(monkeypatch):
    counted = Counted(monkeypatch)
    talk, codec = counted.omni.conversation(), counted.model.codec
    talk.ask(wav(1))
    whole = talk.turns[0].answer
    talk.crop(codec.frame_samples / codec.sample_rate)
    assert whole.startswith(talk.turns[0].answer) and whole != talk.turns[0].answer
    assert talk._history.turns[0].codes.shape[1] == 1
    questions = [features(counted.model, wav(1))]
    before = past_of(talk, questions)
    talk.say("what is red")
    question = counted.omni.written_question("what is red")
    assert tokens(talk) == expected(talk, before, "T1A2", question)
    talk.crop(0)
    assert talk.turns[1].answer == "" and talk._history.turns[1].codes.shape[1] == 0
    before = past_of(talk, [*questions, question])
    talk.say("is the dog blue")
    assert tokens(talk) == expected(talk, before, "T1A2", counted.omni.written_question("is the dog blue"))


def test_more_than_the_answer_is_the_whole_answer(monkeypatch):
    counted = Counted(monkeypatch)
    talk = counted.omni.conversation()
    reply = talk.ask(wav(1))
    talk.crop(len(reply.wav) / reply.sample_rate)
    talk.crop(100)
    assert talk.turns[0].answer == reply.text
    counted.taken()
    talk.say("no")
    assert counted.taken()[0] == 1 + len(counted.model.llm.tokenizer.encode("no")) + 2


def test_the_oldest_turns_go_at_the_limit(monkeypatch):
    """Check that at the limit a conversation goes on from position 0 with the turns of at most half of the positions.
    """
    counted = Counted(monkeypatch, decoding=Decoding(max_steps=30))
    most, questions, lengths = 180, [], []
    talk = counted.omni.conversation(max_positions=most)
    texts = [" ".join(WORDS[i : i + 5]) for i in range(10)]
    for number, text in enumerate(texts):
        question = counted.omni.written_question(text)
        kept = len(talk._history.dropped)
        full = talk._history.length
        talk.say(text)
        dropped = len(talk._history.dropped)
        before = past_of(talk, [*questions, question][dropped:])[:-1]
        assert tokens(talk) == expected(talk, before, "T1A2", question)
        questions.append(question)
        [positions] = counted.taken()
        prompt = len(question.text) + 2
        lengths.append(talk._history.length)
        if dropped > kept:
            rest = sum(turn.length for turn in talk._history.turns[:-1])
            assert positions == rest + prompt and rest <= most // 2
            assert full + prompt + 1 + 30 > most
        elif number and before:
            assert positions < prompt + 35  # the closing step, or a truncated answer that was laid out anew
    assert max(lengths) <= most and talk._history.dropped
    assert [turn.question for turn in talk.turns] == texts


def test_answers_end_at_the_limit():
    model = toy_model()
    talk = Omni(model, decoding=Decoding(max_steps=1000)).conversation(max_positions=60)
    reply = talk.say("what is red")
    assert reply.end == STEP_LIMIT
    assert talk.say("what is red").end == STEP_LIMIT
    with pytest.raises(BadQuestion, match="question: a prompt of 93 positions; the conversation has 60"):
        talk.ask(wav(1, 180 * 160))
    assert len(talk.turns) == 2


def test_conversations_at_once_have_the_answers_of_each_alone():
    """Check that sampled answers of two conversations in turns are those that each has by itself, by its seed alone."""
    sampling = Sampling(temperature=1.0)
    omni = Omni(ends_often(toy_model()), decoding=Decoding(text=sampling, audio=sampling, max_steps=40))
    alone = []
    for seed in (1, 2):
        talk, found = omni.conversation(seed=seed), []
        for number in range(3):
            found.append((talk.ask(wav(number)).text, tokens(talk)))
        alone.append(found)
    talks, together = [omni.conversation(seed=seed) for seed in (1, 2)], [[], []]
    for number in range(3):
        streams = [talk.stream(wav(number)) for talk in talks]
        for talk, stream, found in zip(talks, streams, together, strict=True):
            found.append(("".join(chunk.text for chunk in stream), tokens(talk)))
    assert together == alone
    assert alone[0][0] != alone[1][0]
    same = omni.conversation(seed=1)
    assert same.say("yes").text != same.say("yes").text or tokens(same)


def test_a_dropped_answer_is_closed_where_it_ended(monkeypatch):
    counted = Counted(monkeypatch, decoding=Decoding(max_steps=400, min_steps=400))
    talk = counted.omni.conversation()
    for number, _ in enumerate(talk.stream(wav(1))):
        if number == 5:
            break
    question = counted.omni.written_question("what is red")
    counted.omni.decoding = Decoding(max_steps=20)
    talk.say("what is red")
    before = past_of(talk, [features(counted.model, wav(1)), question])[:1]
    assert 0 < before[0].codes.shape[1] < 300
    assert tokens(talk) == expected(talk, before, "T1A2", question)


def test_a_crop_ends_an_answer_that_is_being_generated(monkeypatch):
    counted = Counted(monkeypatch, decoding=Decoding(max_steps=1000, min_steps=1000))
    talk, codec = counted.omni.conversation(), counted.model.codec
    chunks = talk.stream(wav(1))
    while not len(next(chunks).wav):
        pass
    with pytest.raises(RuntimeError, match="the previous answer is still being generated"):
        talk.say("what is red")
    talk.crop(codec.frame_samples / codec.sample_rate)
    assert [chunk.end for chunk in chunks][-1] == "cancelled"
    assert talk._history.turns[-1].codes.shape[1] == 1
    counted.omni.decoding = Decoding(max_steps=20)
    assert len(talk.say("what is red").wav)
    talk.reset()
    assert talk.turns == []
    assert len(talk.say("what is red").wav)


def test_an_answer_that_never_began_leaves_the_one_before_whole():
    omni = Omni(toy_model(), decoding=Decoding(max_steps=20, min_steps=20))
    talk, cancelled = omni.conversation(), Event()
    talk.say("what is red")
    turns = talk.turns
    cancelled.set()
    talk.say("what is blue", cancel=cancelled)
    with pytest.raises(ValueError, match="crop 0: the last answer was ended before it began"):
        talk.crop(0)
    assert talk.turns == turns
    talk.say("what is blue")
    talk.crop(0)
    assert [turn.answer for turn in talk.turns] == [turns[0].answer, ""]


def test_an_answer_without_steps_is_not_remembered():
    omni = Omni(toy_model(), decoding=Decoding(max_steps=8))
    talk = omni.conversation()
    talk.say("what is red")
    request = omni.decoder.request(TASKS["T1A2"], omni.written_question("what is blue"), history=talk._history)
    batch = omni.decoder.batch(2)
    admit = batch._join
    batch._join = lambda group: (admit(group), request.cancel())
    batch.submit(request)
    batch.run()
    assert request.end == "cancelled" and not request.steps
    assert [turn.question for turn in talk.turns] == ["what is red"]


def test_a_turn_that_cannot_be_remembered_fails_alone(monkeypatch):
    omni = Omni(toy_model(), decoding=Decoding(max_steps=8))
    talk, batch = omni.conversation(), omni.decoder.batch(2)

    def refuse(*arguments):
        raise RuntimeError("no memory")

    monkeypatch.setattr(talk._history, "complete", refuse)
    question = omni.written_question("what is red")
    bad = omni.decoder.request(TASKS["T1A2"], question, history=talk._history)
    good = omni.decoder.request(TASKS["T1A2"], question, decoding=Decoding(max_steps=12, min_steps=12))
    for request in (bad, good):
        batch.submit(request)
    batch.run()
    with pytest.raises(RuntimeError, match="no memory"):
        bad.wait(0)
    assert len(good.wait(0).text) > 0 and len(good.steps) == 12
    assert not batch.owners


def test_a_failed_turn_is_not_remembered(monkeypatch):
    counted = Counted(monkeypatch)
    talk = counted.omni.conversation()
    talk.say("what is red")
    for bad, words in ((torch.zeros(0), "without samples"), (torch.full((800,), float("nan")), "not finite")):
        with pytest.raises(ValueError, match=words):
            talk.ask(bad)
    with pytest.raises(ValueError, match="empty"):
        talk.say(" ")
    advance, failing = counted.omni.decoder._runner._state.batch.slots.advance, []

    def fail(embeddings):
        failing.append(1)
        raise RuntimeError("broken engine")

    counted.omni.decoder._runner._state.batch.slots.advance = fail
    with pytest.raises(RuntimeError, match="broken engine"):
        talk.say("what is blue")
    assert failing and advance
    assert [turn.question for turn in talk.turns] == ["what is red"]
    counted.taken()
    before = past_of(talk, [counted.omni.written_question("what is red")])
    talk.say("no")
    assert tokens(talk) == expected(talk, before, "T1A2", counted.omni.written_question("no"))
    assert counted.taken() == [1 + len(counted.model.llm.tokenizer.encode("no")) + 2]


def test_bad_calls_are_refused(monkeypatch):
    omni = Omni(toy_model(), decoding=Decoding(max_steps=8))
    talk = omni.conversation()
    with pytest.raises(ValueError, match="crop 1: the conversation has no answer"):
        talk.crop(1)
    talk.say("what is red", speak=False)
    with pytest.raises(ValueError, match="crop 1: the last answer is text only"):
        talk.crop(1)
    for seconds in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"crop .*: must be .*0 or more"):
            talk.crop(seconds)
    with pytest.raises(ValueError, match="--seed -1: must be 0 or more"):
        omni.conversation(seed=-1)
    with pytest.raises(ValueError, match="--max_positions 0: must be 1 or more"):
        omni.conversation(max_positions=0)
    with pytest.raises(ValueError, match=r"--max_positions 1000000000: must be at most 32768"):
        omni.conversation(max_positions=10**9)
    monkeypatch.setattr(type(omni.decoder.engine), "parks", False)
    with pytest.raises(ValueError, match="engine torch: cannot hold a conversation"):
        omni.conversation()


def test_every_pair_of_question_and_answer_has_a_task():
    for (is_spoken, speaks), name in TASK_OF.items():
        task = TASKS[name]
        assert (task.given == "speech", task.speaks, task.text_mark) == (is_spoken, speaks, "answer")


@pytest.mark.long
@pytest.mark.parametrize("strategy", [PARALLEL, BATCH_PARALLEL], ids=["parallel", "batch_parallel"])
@pytest.mark.parametrize("seed", range(4))
def test_long_conversations(seed, strategy: Strategy, tmp_path, monkeypatch):
    model = ends_often(toy_model("delayed", tts_blocks=1))
    talks = [Talk(History(model)) for _ in range(6)]
    decoder = Decoder(model, engine_of("static", model, tmp_path, monkeypatch), strategy=strategy)
    converse(decoder, talks, 12, random.Random(seed), rough=True)
    check(model, talks)
