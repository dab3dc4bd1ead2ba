"""Test that each answer in a running batch equals the answer that the same request gets alone."""

from __future__ import annotations

import os
import random
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from omnikit.api import Omni
from omnikit.cuda_graphs import GraphRecorder
from omnikit.engines import open_engine
from omnikit.engines.static import StaticEngine
from omnikit.engines.torch import TorchEngine
from omnikit.generate import (
    CANCELLED,
    STEP_LIMIT,
    BadQuestion,
    Decoder,
    Decoding,
    Question,
    QueueFull,
    Request,
    RunningBatch,
    runner,
)
from omnikit.generate.request import Chunks
from omnikit.interfaces import Engine
from omnikit.model import OmniLM
from omnikit.sampling import Sampling
from omnikit.strategies import BATCH_PARALLEL, PARALLEL, Strategy
from omnikit.streaming import FramewiseStream
from omnikit.tasks import TASKS
from tests.unit.engines.replayed import ReplayedOperations
from tests.unit.plain import plainly
from tests.unit.scripted import emitted
from tests.unit.toy import toy_model

TIE = 1e-4
"""Relative difference of the two largest logits up to which rounding may swap them."""
PATTERNS = pytest.mark.parametrize(
    ("pattern", "options"), [("delayed", {"tts_blocks": 1}), ("flattened", {}), ("parallel", {"text_lead": 1})]
)
WAYS = (
    Sampling(), Sampling(), Sampling(temperature=1.0), Sampling(temperature=0.7, top_k=5), Sampling(2.0, top_p=0.8),
    Sampling(1.0, 8, 0.9, 1.3), Sampling(repetition_penalty=1.5),
)  # fmt: skip


@dataclass
class Case:
    """A test's request, and the numbers of the batch's turns at which it is submitted and cancelled (None = never)."""

    request: Request
    arrives: int
    cancelled: int | None


def draw_cases(model: OmniLM, decoder: Decoder, count: int, draw: random.Random) -> list[Case]:
    cases = []
    for _ in range(count):
        task = TASKS[draw.choice([*TASKS, "A1A2", "T1A2"])]
        if task.given == "text":
            question = Question(text=[draw.randrange(model.layout.text_vocab) for _ in range(draw.randint(1, 12))])
        else:
            shape, seed = (draw.randint(1, 25), model.encoder.dim), draw.randrange(1000)
            question = Question(features=torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
        shortest = draw.choice([0, 0, 5])
        decoding = Decoding(
            text=draw.choice(WAYS), audio=draw.choice(WAYS), constrain=draw.random() < 0.8, min_steps=shortest,
            max_steps=draw.randint(max(1, shortest), 25),
        )  # fmt: skip
        request = decoder.request(
            task, question, decoding=decoding, strategy=draw.choice([PARALLEL, BATCH_PARALLEL]),
            seed=draw.randrange(2**31), sound=draw.choice([None, "exact", "low_latency"]),
        )  # fmt: skip
        arrives = draw.randint(0, 2 * count)
        cases.append(Case(request, arrives, arrives + draw.randint(0, 20) if draw.random() < 0.1 else None))
    return cases


def decode(decoder: Decoder, cases: list[Case], capacity: int) -> None:
    batch, turn, left = decoder.batch(capacity), 0, sorted(cases, key=lambda case: case.arrives)
    while left or batch.busy:
        while left and left[0].arrives <= turn:
            batch.submit(left.pop(0).request)
        for case in cases:
            if case.cancelled == turn:
                case.request.cancel()
        batch.turn()
        turn += 1
    assert not batch.owners and not batch.slots.lengths


def ties(model: OmniLM, request: Request, before: torch.Tensor | None = None) -> bool:
    """Compare a request's tokens with the reference implementation; return whether they differ because two logits tie.

    `before` are the embeddings [P, D] of a conversation that the request continues.
    """
    asked = {"decoding": request.decoding, "strategy": request.strategy, "seed": request.seed, "before": before}
    expected, logits = plainly(model, request.task.name, request.question, **asked)
    if request.end == CANCELLED:
        assert len(request.steps) <= len(expected)
        expected = expected[: len(request.steps)]
    for step, (ours, theirs) in enumerate(zip(request.steps, expected, strict=False)):
        for stream, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if a != b:
                scores = logits[step][stream]
                gap = abs(float(scores[a] - scores[b])) / float(scores.abs().max())
                assert gap < TIE, (request.task.name, step, stream, a, b, gap)
                return True
    assert len(request.steps) == len(expected), request.task.name
    return False


def check_whole(model: OmniLM, request: Request) -> None:
    """Check that the streamed chunks of a request add up to the text and the waveform of its answer."""
    chunks, answer = list(request), request.wait(0)
    assert "".join(chunk.text for chunk in chunks) == model.llm.tokenizer.decode(answer.text)
    assert chunks[-1].end == request.end == answer.end
    if request.sound is not None:
        wav = torch.cat([chunk.wav for chunk in chunks])
        assert torch.equal(wav, model.codec.decode(answer.codes[None])[0])


def ends_often(model: OmniLM) -> OmniLM:
    """Make a model's heads prefer an end token about every tenth step, which an untrained model seldom does."""
    text, audio, layout = model.text_logits, model.audio_logits, model.layout

    def with_end(logits: torch.Tensor, end: int, hidden: torch.Tensor) -> torch.Tensor:
        wanted = logits.amax(dim=-1) + 2 * (torch.sin(40 * hidden) - 0.9)
        return logits.index_copy(-1, torch.tensor([end]), wanted[..., None])

    def audio_logits(hidden: torch.Tensor) -> list[torch.Tensor]:
        streams = zip(audio(hidden), layout.audio, range(len(layout.audio)), strict=True)
        return [with_end(logits, ids.eoa, hidden[..., 1 + stream]) for logits, ids, stream in streams]

    model.text_logits = lambda hidden: with_end(text(hidden), layout.text.eot, hidden[..., 0])
    model.audio_logits = audio_logits
    return model


class Recorded(StaticEngine):
    """The engine `static` with decode steps that are recorded and replayed on a CPU, as CUDA graphs are on a GPU."""

    def open(self, capacity):
        slots = super().open(capacity)
        slots.recorder = GraphRecorder(ReplayedOperations())
        return slots


def open_named(name: str, model: OmniLM, folder: Path | None) -> Engine:
    if name == "recorded":
        return Recorded(model)
    return open_engine(name, model, folder, **({"weights": "f32"} if name == "openvino" else {}))


def check(
    pattern: str, options: dict, count: int, seed: int, engine: str = "torch", folder: Path | None = None
) -> None:
    model, draw = toy_model(pattern, **options), random.Random(seed)
    if engine == "torch":  # the other engines do not call the model's heads
        model = ends_often(model)
    decoder = Decoder(model, open_named(engine, model, folder))
    cases = draw_cases(model, decoder, count, draw)
    decode(decoder, cases, capacity=draw.choice([3, 6, 9]))
    tied = sum(ties(model, case.request) for case in cases)
    for case in cases:
        check_whole(model, case.request)
    assert tied <= 1 + sum(len(case.request.steps) for case in cases) / 10_000


@PATTERNS
def test_each_answer_is_the_one_that_it_would_be_alone(pattern, options):
    check(pattern, options, count=24, seed=1)


@pytest.mark.parametrize("engine", ["static", "recorded", "openvino"])
def test_each_answer_of_an_engine_is_the_one_that_it_would_be_alone(engine, tmp_path):
    if engine == "openvino":
        pytest.importorskip("openvino", reason="omnikit[openvino] is not installed")
    check("delayed", {"tts_blocks": 1}, count=16, seed=4, engine=engine, folder=tmp_path)


@pytest.mark.long
@PATTERNS
@pytest.mark.parametrize("seed", range(2, 12))
def test_each_answer_is_the_one_that_it_would_be_alone_long(pattern, options, seed):
    check(pattern, options, count=100, seed=seed)


def test_a_recorded_step_reads_from_its_own_rows_alone():
    """Check a batch-parallel answer that ends while another continues, so that an unused slot is computed, too."""
    model = toy_model()
    decoder = Decoder(model, Recorded(model), decoding=Decoding(min_steps=9, max_steps=9))
    short, question = Decoding(min_steps=3, max_steps=3), Question(text=[3])
    asked = [
        decoder.request(TASKS["T1A2"], question, strategy=BATCH_PARALLEL),
        decoder.request(TASKS["T1A2"], question),
        decoder.request(TASKS["T1A2"], question, strategy=BATCH_PARALLEL, decoding=short),
    ]
    cases = [Case(request, arrives, None) for request, arrives in zip(asked, (0, 0, 2), strict=True)]
    decode(decoder, cases, capacity=8)
    assert not any(ties(model, request) for request in asked)


def test_a_seed_alone_decides_what_is_sampled():
    model = toy_model()
    hot = Decoding(text=Sampling(1.5), audio=Sampling(1.5), max_steps=12, min_steps=12)
    decoder, question = Decoder(model, decoding=hot), Question(text=[3, 5])
    alone = emitted(decoder, "T1A2", [question], seed=7)[0]
    assert emitted(decoder, "T1A2", [Question(text=[9]), question, Question(text=[1, 2, 3])], seed=7)[1] == alone
    assert emitted(decoder, "T1A2", [question], seed=8)[0] != alone
    torch.manual_seed(5)
    first = emitted(decoder, "T1A2", [question])
    assert emitted(decoder, "T1A2", [question]) != first
    torch.manual_seed(5)
    assert emitted(decoder, "T1A2", [question]) == first


def test_prompts_are_computed_in_bounded_pieces(monkeypatch):
    """Check that the prompt positions computed between two decode steps are at most `PREFILL_POSITIONS`."""
    monkeypatch.setattr("omnikit.generate.running_batch.PREFILL_POSITIONS", 8)
    model, seen = toy_model(), []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda embeddings, **options: (
        seen.append(tuple(embeddings.shape[:2])), hidden(embeddings, **options))[1])  # fmt: skip
    decoder = Decoder(model, decoding=Decoding(min_steps=30, max_steps=30))
    batch = decoder.batch(4)
    batch.submit(decoder.request(TASKS["T1A2"], Question(text=[3])))
    batch.turn()
    seen.clear()
    for length in (20, 31):
        batch.submit(decoder.request(TASKS["T1A2"], Question(text=[4] * length)))
    batch.run()
    joined = next(i for i, (rows, length) in enumerate(seen) if length == 1 and rows == 3)
    pieces = [shape for shape in seen[:joined] if shape[0] == 2]
    assert all(rows * length <= 8 for rows, length in pieces) and len(pieces) >= 8
    # chunks of the prefill alternate with steps of the running answer; after the last one, a step of all three
    expected = [shape for piece in pieces for shape in (piece, (1, 1))]
    assert seen[: len(expected)] == [*expected[:-1], (3, 1)]


def test_questions_are_admitted_in_their_order():
    """Check that a request that needs two slots is not overtaken by a later one that needs a single slot."""
    decoder = Decoder(toy_model(), decoding=Decoding(min_steps=5, max_steps=5))
    batch, begun = decoder.batch(2), []
    for name, strategy in (("a", PARALLEL), ("b", BATCH_PARALLEL), ("c", PARALLEL), ("d", PARALLEL)):
        request = decoder.request(TASKS["T1A2"], Question(text=[3]), strategy=strategy)
        request.begin = lambda name=name: begun.append(name)
        batch.submit(request)
    batch.run()
    assert begun == ["a", "b", "c", "d"]


def bad_questions(model: OmniLM) -> dict[str, tuple[str, Question]]:
    nan = torch.randn(4, model.encoder.dim)
    nan[2, 3] = float("nan")
    return {
        "an empty text": ("T1A2", Question(text=[])),
        "not finite": ("A1A2", Question(features=nan)),
        "values that are not finite": ("A1T1", Question(wav=torch.full((3200,), float("inf")))),
        r"features \[4, 5\] are not of the system's encoder, which computes \[T, 12\]": (
            "A1T2", Question(features=torch.randn(4, 5))),
        "no features": ("A1A2", Question(features=torch.zeros(0, model.encoder.dim))),
        "a recording without samples": ("A1A2", Question(wav=torch.zeros(0))),
        "is given speech, the question has none": ("A1A2", Question(text=[3])),
        "is given text, the question has none": ("T1A2", Question(wav=torch.zeros(3200))),
        "a prompt of 63 positions; the backbone has 40": ("T1A2", Question(text=[3] * 60)),
        r"text id 999 is outside of 0\.\.": ("T1A2", Question(text=[3, 999])),
        r"a waveform must be a tensor \[N\] of floating-point samples, not torch.float32 \[\]": (
            "A1A2", Question(wav=torch.tensor(0.5))),
        r"not torch.int16 \[800\]": ("A1A2", Question(wav=torch.zeros(800, dtype=torch.int16))),
        "not list": ("A1A2", Question(wav=[0.1] * 800)),
    }  # fmt: skip


def test_bad_questions_fail_alone():
    model = toy_model()
    model.llm.max_positions = 40
    decoder = Decoder(model, decoding=Decoding(min_steps=6, max_steps=9))
    good = Question(text=[3, 5])
    alone = emitted(decoder, "T1A2", [good])[0]
    batch, asked = decoder.batch(4), []
    for words, (task, question) in bad_questions(model).items():
        neighbour = decoder.request(TASKS["T1A2"], good)
        asked.append((words, decoder.request(TASKS[task], question, name="talk.wav"), neighbour))
        for request in asked[-1][1:]:
            batch.submit(request)
    batch.run()
    for words, bad, neighbour in asked:
        with pytest.raises(BadQuestion, match=rf"^talk\.wav: .*{words}"):
            bad.wait(0)
        assert [list(stream) for stream in zip(*neighbour.steps, strict=True)] == alone


class Broken(TorchEngine):
    """An engine that raises an error once, at the n-th call of one method of its slots."""

    def __init__(self, model: OmniLM, method: str, call: int = 1):
        super().__init__(model)
        self.method, self.left = method, call

    def open(self, capacity):
        slots = super().open(capacity)
        method = getattr(slots, self.method)

        def broken(*arguments):
            self.left -= 1
            if not self.left:
                raise RuntimeError("the device is gone")
            return method(*arguments)

        setattr(slots, self.method, broken)
        return slots


@pytest.mark.parametrize(("method", "call"), [("advance", 4), ("prefill", 1), ("admit", 1), ("release", 1)])
def test_an_engine_error_ends_the_answers_of_that_step(method, call):
    """Check that an engine error ends the running and joining answers, and that waiting requests are still answered."""
    model = toy_model()
    decoding = Decoding(min_steps=6, max_steps=6)
    decoder = Decoder(model, Broken(model, method, call), decoding=decoding)
    batch, requests = decoder.batch(2), [decoder.request(TASKS["T1A2"], Question(text=[n])) for n in (3, 4, 5)]
    for request in requests:
        batch.submit(request)
    batch.run()
    for request in requests[:2]:
        with pytest.raises(RuntimeError, match="the device is gone"):
            request.wait(0)
        with pytest.raises(RuntimeError, match="the device is gone"):
            list(request)
    expected = emitted(Decoder(model, decoding=decoding), "T1A2", [Question(text=[5])])[0]
    assert [list(stream) for stream in zip(*requests[2].steps, strict=True)] == expected


def test_bad_options_are_refused_before_anybody_waits():
    decoder = Decoder(toy_model())
    for option, error, words in (
        ({"cancel": True}, TypeError, "cancel: a threading.Event is wanted, not bool"),
        ({"seed": 2**32}, ValueError, "seed 4294967296"), ({"seed": -1}, ValueError, "seed -1"),
        ({"sound": "loud"}, ValueError, "mode 'loud'"),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            decoder.submit(TASKS["T1A2"], Question(text=[3]), **option)
    with pytest.raises(ValueError, match="capacity -5"):
        Decoder(decoder.model, capacity=-5)
    assert not of_generation()


def test_an_answer_ends_where_the_backbone_has_no_more_positions():
    model = toy_model()
    model.llm.max_positions = 30
    decoder = Decoder(model, decoding=Decoding(min_steps=99, max_steps=99))
    asked = [decoder.request(TASKS["T1A2"], Question(text=[3] * length)) for length in (20, 2, 27)]
    decoder.run(asked)
    assert [(request.end, len(request.steps)) for request in asked] == [(STEP_LIMIT, n) for n in (8, 26, 1)]


def test_a_bf16_neighbour_changes_no_features():
    model = toy_model()
    decoder = Decoder(model, decoding=Decoding(max_steps=8, min_steps=8))
    wav = torch.rand(1600, generator=torch.Generator().manual_seed(2)) - 0.5
    alone = emitted(decoder, "A1A2", [Question(wav=wav)])[0]
    assert emitted(decoder, "A1A2", [Question(wav=wav.bfloat16()), Question(wav=wav)])[1] == alone


def test_greedy_requests_leave_the_default_generator_alone():
    decoder = Decoder(toy_model())
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    decoder.request(TASKS["T1A2"], Question(text=[3]))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("method", ["push", "finish"])
def test_a_codec_error_ends_the_answers_that_it_decodes(method, monkeypatch):
    model, streams = toy_model(), []
    decoder = Decoder(model, decoding=Decoding(min_steps=9, max_steps=9))
    batch = decoder.batch(4)
    requests = [decoder.request(TASKS["T1A2"], Question(text=[3]), sound=sound) for sound in ("exact", None)]
    monkeypatch.setattr(FramewiseStream, method, lambda *given: streams.append(given) or 1 / 0)
    for request in requests:
        batch.submit(request)
    batch.run()
    with pytest.raises(ZeroDivisionError):
        requests[0].wait(0)
    assert len(requests[1].steps) == 9 and streams
    assert not batch._sound.streams["exact"].streams


def test_a_question_may_be_cancelled_while_it_waits():
    decoder = Decoder(toy_model(), decoding=Decoding(min_steps=30, max_steps=30))
    batch, requests = decoder.batch(1), [decoder.request(TASKS["T1A2"], Question(text=[3])) for _ in range(2)]
    for request in requests:
        batch.submit(request)
    batch.turn()
    requests[1].cancel()
    batch.turn()
    assert requests[1].end == CANCELLED and not requests[0].done


def test_a_question_waits_for_its_time_only(monkeypatch):
    decoder = Decoder(toy_model(), decoding=Decoding(min_steps=30, max_steps=30))
    decoder.wait_seconds = 5.0
    batch, now = decoder.batch(1), [100.0]
    monkeypatch.setattr("omnikit.generate.waiting.monotonic", lambda: now[0])
    requests = [decoder.request(TASKS["T1A2"], Question(text=[3]), low_priority=low) for low in (False, False, True)]
    for request in requests:
        batch.submit(request)
    batch.turn()
    now[0] += 4.9
    batch.turn()
    assert not any(request.done for request in requests)
    now[0] += 0.2
    batch.turn()
    for request in requests[1:]:
        with pytest.raises(QueueFull, match="no slot was free within 5 s"):
            request.wait(0)
    assert not requests[0].done and not batch.waiting


def test_the_queue_is_bounded():
    decoder = Decoder(toy_model())
    batch = decoder.batch(1)
    batch.waiting.most = 2
    for _ in range(2):
        batch.submit(decoder.request(TASKS["T1T2"], Question(text=[3])))
    with pytest.raises(QueueFull, match="2 questions are waiting already"):
        batch.submit(decoder.request(TASKS["T1T2"], Question(text=[3])))
    with pytest.raises(ValueError, match="2 sequences per question; the batch has 1 slots"):
        batch.submit(decoder.request(TASKS["T1A2"], Question(text=[3]), strategy=BATCH_PARALLEL))


def test_three_rows_keep_their_places():
    """Check a decoding strategy with three sequences per question while the slots of other answers are released."""
    model, three = toy_model(), Strategy(text_only=(True, False, True), text_from=2, audio_from=1)
    decoder = Decoder(model, decoding=Decoding(text=Sampling(1.0), min_steps=4, max_steps=20))
    questions = [Question(text=[n, 3]) for n in (4, 5, 6)]
    cases = [
        Case(decoder.request(TASKS["T1A2"], question, strategy=strategy, seed=seed), seed, None)
        for seed, (question, strategy) in enumerate(zip(questions, (three, PARALLEL, three), strict=True))
    ]
    decode(decoder, cases, capacity=8)
    assert not any(ties(model, case.request) for case in cases)


def test_a_backbone_whose_cache_cannot_be_joined(monkeypatch):
    monkeypatch.setattr("omnikit.engines.torch.can_join", lambda cache: False)
    check("delayed", {}, count=10, seed=3)


# the thread


def quick_omni(**options) -> Omni:
    return Omni(toy_model(), decoding=Decoding(max_steps=8), **options)


def test_threads_share_one_batch():
    omni, rows = quick_omni(), []
    words = ["what is red", "the cat sees", "two is one", "yes no"] * 3
    alone = [omni.answer(text) for text in words]
    hidden = omni.model.hidden
    omni.model.hidden = lambda embeddings, **options: (rows.append(len(embeddings)), hidden(embeddings, **options))[1]
    with ThreadPoolExecutor(len(words)) as pool:
        found = list(pool.map(omni.answer, words))
    omni.close()
    assert max(rows) > 1
    assert [reply.text for reply in found] == [reply.text for reply in alone]
    assert all(torch.equal(a.wav, b.wav) for a, b in zip(found, alone, strict=True))


def of_generation() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "omnikit-generate"]


def test_the_thread_ends_when_it_is_idle_and_begins_again(monkeypatch):
    monkeypatch.setattr(runner, "IDLE_SECONDS", 0.05)
    omni = quick_omni()
    assert not of_generation()
    for _ in range(2):
        omni.chat("what is red")
        until = time.monotonic() + 20
        while of_generation() and time.monotonic() < until:
            time.sleep(0.01)
        assert not of_generation()
    omni.close()


def test_whoever_asks_while_another_closes_is_answered():
    omni, errors, stop = quick_omni(), [], threading.Event()

    def ask() -> None:
        try:
            while not stop.is_set():
                omni.generate_text("T1T2", Question(text=[3]))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        time.sleep(0.02)
        omni.close()
    stop.set()
    for thread in threads:
        thread.join(60)
    omni.close()
    assert not errors and not of_generation()


def test_an_interrupted_call_cancels_its_answer(monkeypatch):
    omni, asked = Omni(toy_model(), decoding=Decoding(min_steps=10_000, max_steps=10_000)), []
    submit = omni.decoder.submit
    monkeypatch.setattr(omni.decoder, "submit", lambda *given, **how: asked.append(submit(*given, **how)) or asked[-1])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for kind, method, verb in ((Request, "wait", omni.chat), (Chunks, "__next__", omni.speak)):
        with monkeypatch.context() as patch:
            patch.setattr(kind, method, interrupted)
            with pytest.raises(KeyboardInterrupt):
                verb("what is red")
        assert asked[-1].wait(60).end == CANCELLED
    omni.close()


def test_a_request_may_be_iterated_twice():
    decoder = Decoder(toy_model(), decoding=Decoding(max_steps=4))
    asked = decoder.request(TASKS["T1A2"], Question(text=[3]), sound="exact")
    decoder.run([asked])
    first, second = list(asked), list(asked)
    assert len(first) > 1 and len(second) == 1 and second[0].end == first[-1].end


def test_a_newcomer_may_be_cancelled_while_its_prompt_is_computed(monkeypatch):
    monkeypatch.setattr("omnikit.generate.running_batch.PREFILL_POSITIONS", 4)
    decoder = Decoder(toy_model(), decoding=Decoding(min_steps=40, max_steps=40))
    batch = decoder.batch(4)
    first, *others = [decoder.request(TASKS["T1A2"], Question(text=[3] * n)) for n in (1, 30, 40)]
    batch.submit(first)
    batch.turn()
    for request in others:
        batch.submit(request)
    batch.turn()
    others[0].cancel()
    batch.turn()
    assert others[0].end == CANCELLED and not others[1].done
    batch.run()
    assert [request.end for request in (first, others[1])] == [STEP_LIMIT] * 2
    alone = emitted(decoder, "T1A2", [others[1].question])[0]
    assert [list(stream) for stream in zip(*others[1].steps, strict=True)] == alone
    assert not batch.slots.lengths


def test_a_dropped_system_leaves_no_thread():
    omni = quick_omni()
    omni.chat("what is red")
    assert of_generation()
    del omni
    assert not of_generation()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_refused():
    omni = quick_omni()
    omni.chat("what is red")
    child = os.fork()
    if not child:
        try:
            omni.chat("what is red")
        except RuntimeError as error:
            os._exit(7 if "the process was forked" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    omni.close()


def test_a_runner_that_cannot_go_on_leaves_nobody_waiting(monkeypatch):
    omni = quick_omni()
    monkeypatch.setattr(RunningBatch, "turn", lambda batch: 1 / 0)
    monkeypatch.setattr(threading, "excepthook", lambda *args: None)
    with pytest.raises(ZeroDivisionError):
        omni.chat("what is red")
    assert not of_generation()


def resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def storm(omni: Omni, count: int, seed: int) -> None:
    """Requests that are submitted from eight threads are answered or, at random moments, cancelled."""

    def ask(number: int) -> None:
        draw = random.Random(1000 * seed + number)
        for _ in range(count // 8):
            task = draw.choice(["T1T2", "T1A1", "T1A2", "A1T1", "A1A2"])
            text = Question(text=[draw.randrange(20) for _ in range(draw.randint(1, 9))])
            question = text if task[0] == "T" else Question(wav=torch.rand(draw.randint(200, 3200)) - 0.5)
            asked = omni.submit(task, question, sound=draw.choice([None, "exact"]))
            if draw.random() < 0.3:
                time.sleep(draw.random() * 0.01)
                asked.cancel()
            if draw.random() < 0.5:
                list(asked)
            asked.wait(120)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))  # raises the error of any thread


@pytest.mark.parametrize("count", [160, pytest.param(3000, marks=pytest.mark.long)])
def test_random_submits_and_cancels_leave_nothing_behind(count):
    omni = Omni(toy_model(), decoding=Decoding(max_steps=12), capacity=6)
    memory = []
    for seed in range(3):
        storm(omni, count // 3, seed)
        if os.path.exists("/proc/self/statm"):
            memory.append(resident_mib())
    batch = omni.decoder._runner._state.batch
    assert not batch.busy and not batch.slots.lengths and batch.newcomers is None
    assert not batch._sound.streams["exact"].streams
    omni.close()
    assert not of_generation()
    if count >= 3000 and memory:
        assert memory[2] <= 1.02 * memory[1], memory
