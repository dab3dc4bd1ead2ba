"""Test that a conversation whose turns were cropped, forgotten or brought along goes on as if it had always been so."""

from __future__ import annotations

import random
import threading
import time
from functools import partial

import pytest
import torch

from omnikit.api import Omni
from omnikit.generate import CANCELLED, Decoding, Question, QueueFull, UnknownTurn
from omnikit.tasks import TASKS
from tests.unit.generate.test_conversation import Counted, Past, expected, features, tokens, wav
from tests.unit.toy import WORDS, toy_model

TEXTS = ("what is red", "is the dog blue", "one cat sees two", "yes")


class Named:
    """A conversation whose turns are asked by name, with the turns that it should have."""

    def __init__(self, monkeypatch, **options):
        self.counted = Counted(monkeypatch, **options)
        self.omni, self.talk = self.counted.omni, self.counted.omni.conversation()
        self.questions: dict[str, Question] = {}

    def ask(self, key: str, text: str | None = None, seed: int = 1) -> list[list[int]]:
        """Ask a written or else a spoken question, and return the tokens of the answer."""
        question = Question(wav=wav(seed)) if text is None else self.omni.written_question(text)
        self.questions[key] = features(self.omni.model, wav(seed)) if text is None else question
        self.talk.submit(question, key=key, text=text).wait(60)
        return tokens(self.talk)

    def past(self) -> list[Past]:
        """Return the turns that the conversation remembers, for the reference implementation."""
        return [Past(turn.task, self.questions[turn.key], turn.text, turn.codes.cpu())
                for turn in self.talk._history.turns if turn.whole]  # fmt: skip

    def check_next(self, text: str = "no") -> int:
        """Check that the next answer equals that of the whole sequence, and return the number of computed positions.

        The positions of its prompt are not counted.
        """
        self.counted.taken()
        before, question = self.past(), self.omni.written_question(text)
        key = f"next {len(self.questions)}"
        assert self.ask(key, text) == expected(self.talk, before, "T1A2", question)
        [computed] = self.counted.taken()
        return computed - len(question.text) - 2

    def positions(self, *keys: str) -> int:
        return sum(self.talk._history.find(key).length for key in keys)

    def seconds(self, frames: float) -> float:
        codec = self.omni.model.codec
        return frames * codec.frame_samples / codec.sample_rate


@pytest.fixture
def named(monkeypatch) -> Named:
    named = Named(monkeypatch)
    named.ask("a", TEXTS[0])
    named.ask("b")
    named.ask("c", TEXTS[1])
    return named


def test_an_earlier_answer_is_cut(named):
    turn = named.talk._history.find("b")
    assert turn.codes.shape[1] > 2
    named.talk.crop(named.seconds(2.4), key="b")
    assert turn.codes.shape[1] == 2
    encoded = named.counted.encoded
    assert named.check_next() == turn.answer.shape[1] + named.positions("c")
    assert named.counted.encoded == encoded


def test_more_than_an_earlier_answer_changes_nothing(named):
    named.talk.crop(100, key="a")
    assert named.check_next() == 1


@pytest.mark.parametrize(("key", "after"), [("a", "bc"), ("b", "c"), ("c", "")])
def test_a_turn_is_forgotten(key, after, named):
    whole = named.talk.turns
    named.talk.forget(key)
    assert named.talk.turns == [turn for turn, name in zip(whole, "abc", strict=True) if name != key]
    assert named.check_next() == named.positions(*after)
    assert named.check_next() == 1, "the KV cache was not kept"
    with pytest.raises(UnknownTurn, match=f"^turn {key}: the conversation has none of this name"):
        named.talk.forget(key)


def test_all_turns_are_forgotten(named):
    for key in "bac":
        named.talk.forget(key)
    assert named.talk.turns == [] and named.check_next() == 0


def test_edits_add_up(named):
    named.talk.crop(named.seconds(1), key="c")
    named.talk.forget("b")
    named.talk.crop(0, key="a")
    assert named.talk.turns[0].answer == ""
    assert named.check_next() == named.talk._history.find("a").answer.shape[1] + named.positions("c")


def remember(named: Named, key: str, question: str, answer: str) -> None:
    named.talk.remember(key, question, answer)
    named.questions[key] = named.omni.written_question(question)


def test_a_turn_is_brought_along(named):
    remember(named, "d", "what is two", "one one")
    assert [(turn.question, turn.answer) for turn in named.talk.turns][-1] == ("what is two", "one one")
    assert named.check_next() == 1 + named.positions("d")
    remember(named, "e", "what is two", "")
    assert named.talk.turns[-1].answer == ""
    named.talk.forget("d")
    named.check_next()
    assert named.omni.conversation().turns == []


def test_turns_are_edited_while_an_answer_is_running(named):
    """Check that an answer goes on with the turns that it was asked after, and the next one follows the edited ones."""
    before, question = named.past(), named.omni.written_question(TEXTS[2])
    named.omni.decoding = Decoding(max_steps=30, min_steps=30)
    named.questions["d"] = question
    begun, edited = threading.Event(), threading.Event()
    request = named.talk.submit(question, key="d", text=TEXTS[2])
    request.subscribe(lambda: (begun.set(), edited.wait(60)))  # which no caller may do: the batch stands still
    assert begun.wait(60)
    named.talk.forget("a")
    named.talk.crop(named.seconds(1), key="b")
    remember(named, "e", "what is two", "one one")
    assert not request.done
    assert [turn.question for turn in named.talk.turns] == [None, TEXTS[1], "what is two"]
    edited.set()
    request.wait(60)
    assert request.steps == expected(named.talk, before, "T1A2", question)
    assert [turn.question for turn in named.talk.turns] == [None, TEXTS[1], TEXTS[2], "what is two"]
    named.omni.decoding = Decoding(max_steps=30)
    assert named.check_next() == named.positions("b", "c", "d", "e")


def running(named: Named, key: str) -> object:
    named.omni.decoding = Decoding(max_steps=2000, min_steps=2000)
    request = named.talk.submit(named.omni.written_question(TEXTS[3]), key=key, text=TEXTS[3])
    named.questions[key] = request.question
    while len(request.steps) < 12:
        time.sleep(0.005)
    return request


def test_a_running_answer_is_cut_or_forgotten_by_name(named):
    request = running(named, "d")
    named.talk.crop(named.seconds(2), key="d")
    assert request.end == CANCELLED and named.talk._history.find("d").codes.shape[1] == 2
    request = running(named, "e")
    named.talk.forget("e")
    assert request.end == CANCELLED and len(named.talk.turns) == 4
    named.omni.decoding = Decoding(max_steps=30)
    named.check_next()


def test_a_question_after_a_cancelled_answer_waits_for_its_end(named):
    request = running(named, "d")
    with pytest.raises(RuntimeError, match="the previous answer is still being generated"):
        named.talk.submit(named.omni.written_question("no"))
    request.cancel()
    named.omni.decoding = Decoding(max_steps=30)
    question = named.omni.written_question("no")
    following = named.talk.submit(question)
    following.wait(60)
    assert request.done and 12 <= len(named.talk._history.find("d").answer[0])
    assert following.steps == expected(named.talk, named_past(named, without=1), "T1A2", question)


def named_past(named: Named, without: int) -> list[Past]:
    turns = named.talk._history.turns[:-without]
    return [Past(turn.task, named.questions[turn.key], turn.text, turn.codes) for turn in turns]


def test_names_that_are_unknown_or_in_use(named):
    for call in (lambda: named.talk.crop(1, key="z"), lambda: named.talk.forget("z")):
        with pytest.raises(KeyError, match=r"^turn z: the conversation has none of this name"):
            call()
    with pytest.raises(ValueError, match="turn a: the conversation has a turn of this name already"):
        named.talk.submit(named.omni.written_question("no"), key="a")
    with pytest.raises(ValueError, match="turn b: the conversation has a turn of this name already"):
        named.talk.remember("b", "no", "no")
    remember(named, "t", "no", "no")
    with pytest.raises(ValueError, match="crop 1: the answer of turn t is text only"):
        named.talk.crop(1, key="t")
    with pytest.raises(ValueError, match="text ' ': empty"):
        named.talk.remember("u", " ", "no")
    cancelled = threading.Event()
    cancelled.set()
    named.talk.submit(named.omni.written_question("no"), key="v", cancel=cancelled).wait(60)
    with pytest.raises(UnknownTurn, match=r"^turn v: .*does not remember its answer"):
        named.talk.crop(1, key="v")
    assert named.check_next() > 0


def test_turns_that_were_dropped_at_the_limit():
    omni = Omni(toy_model(), decoding=Decoding(max_steps=30, min_steps=30))
    talk = omni.conversation(max_positions=100)
    first = None
    for number in range(4):
        talk.submit(omni.written_question(" ".join(WORDS[:4])), key=str(number), max_steps=20).wait(60)
        first = first or talk._history.find("0")
    assert talk._history.dropped and len(talk.turns) == 4
    found_before = [partial(talk._history.crop, first, 1), partial(talk._history.forget, first)]
    for call in (partial(talk.crop, 1, key="0"), partial(talk.forget, "0"), *found_before):
        with pytest.raises(UnknownTurn, match=r"^turn 0: it was dropped, as the conversation had reached its limit"):
            call()
    with pytest.raises(ValueError, match="turn 0: the conversation has a turn of this name already"):
        talk.remember("0", "no", "no")
    with pytest.raises(ValueError, match=r"turn of 1[0-9][0-9] positions; the conversation has 100"):
        talk.remember("4", "no " * 100, "no")
    talk.remember("4", "no", "no " * 70)
    talk.submit(omni.written_question("no"), key="5").wait(60)
    assert [turn.key for turn in talk._history.turns] == ["5"]


def test_max_steps_of_one_answer():
    omni = Omni(toy_model(), decoding=Decoding(max_steps=30, min_steps=30))
    talk = omni.conversation()
    for limit, steps in ((4, 4), (None, 30)):
        assert len(talk.submit(omni.written_question("no"), max_steps=limit).wait(60).text) == steps


def test_threads_that_ask_and_edit_at_once():
    """Check that edits from some threads while another asks and cancels leave a conversation that still adds up."""
    omni = Omni(toy_model(), decoding=Decoding(max_steps=30), capacity=3)
    talk, stop, errors = omni.conversation(seed=1), threading.Event(), []

    def edit(number: int) -> None:
        draw, count = random.Random(number), 0
        while not stop.is_set():
            key = str(draw.randrange(12))
            try:
                what = draw.choice([
                    partial(talk.crop, 0.0002 * draw.random(), key=key), partial(talk.forget, key),
                    partial(talk.remember, f"{number}-{count}", "what is red", "red"), lambda: talk.turns,
                ])  # fmt: skip
                count += 1
                what()
            except KeyError:
                pass
            except ValueError as error:
                if "text only" not in str(error):
                    errors.append(error)
            except Exception as error:
                errors.append(error)
            time.sleep(0.01)

    threads = [threading.Thread(target=edit, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    draw = random.Random(9)
    for number in range(12):
        request = talk.submit(omni.written_question(draw.choice(TEXTS)), key=str(number), speak=draw.random() < 0.8)
        if draw.random() < 0.4:
            time.sleep(draw.random() * 0.02)
            request.cancel()
        else:
            request.wait(60)
    request.wait(60)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not errors and not talk._history.unfinished()
    past = []
    for turn in talk._history.turns:
        question = Question(text=turn.prompt[0, 1:-2].tolist())
        past.append(Past(turn.task, question, turn.text, turn.codes))
    question = omni.written_question("no")
    talk.submit(question, key="end").wait(60)
    assert tokens(talk) == expected(talk, past, "T1A2", question, seed=talk._request.seed)


def test_a_full_queue_leaves_the_conversation_as_it_was():
    omni = Omni(toy_model(), decoding=Decoding(max_steps=8))
    talk = omni.conversation()
    talk.say("what is red")
    waiting = omni.decoder._runner._state.batch.waiting
    waiting.most = 0
    with pytest.raises(QueueFull):
        talk.submit(omni.written_question("no"), key="a")
    waiting.most = 10
    talk.submit(omni.written_question("no"), key="a").wait(60)
    assert len(talk.turns) == 2


def test_a_written_turn_needs_no_embeddings_in_memory(named):
    """Check that a conversation stores ids of written questions, and features of spoken ones."""
    written, asked = (named.talk._history.find(key) for key in "ab")
    assert written.speech is None and written.prompt.dtype == torch.long and written.prompt.dim() == 2
    assert asked.speech.features.shape[1] == 15
    assert asked.task is TASKS["A1A2"]
