"""Test what those who ask see of a request: its chunks without waiting, its counts and features, and its priority."""

from __future__ import annotations

import random
import threading

import pytest
import torch

from omnikit.api import Omni
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
    TokenCounts,
)
from omnikit.strategies import BATCH_PARALLEL, PARALLEL
from omnikit.tasks import TASKS
from tests.unit.generate.test_running_batch import check_whole, decode, draw_cases, ends_often, ties
from tests.unit.toy import toy_model

WRITTEN = Question(text=[3, 5])


def decoder_of(steps: int = 9, **options) -> Decoder:
    return Decoder(toy_model(), decoding=Decoding(min_steps=steps, max_steps=steps), **options)


def chunks_now(request: Request) -> list:
    found = []
    while (chunk := request.next_chunk()) is not None:
        found.append(chunk)
    return found


# chunks without waiting


def test_chunks_without_waiting_are_those_of_the_iterator():
    decoder = decoder_of(20)
    ours, theirs = (decoder.request(TASKS["T1A2"], WRITTEN, sound="exact") for _ in range(2))
    batch, found = decoder.batch(2), []
    assert ours.next_chunk() is None
    for request in (ours, theirs):
        batch.submit(request)
    while batch.busy:
        batch.turn()
        found += chunks_now(ours)
    expected = list(theirs)
    assert [(chunk.text, chunk.wav.tolist(), chunk.end) for chunk in found] == [
        (chunk.text, chunk.wav.tolist(), chunk.end) for chunk in expected
    ]
    assert found[-1].end == STEP_LIMIT and ours.next_chunk() is None


def test_an_error_is_raised_once():
    decoder = decoder_of()
    request = decoder.request(TASKS["T1A2"], Question(text=[]))
    decoder.run([request])
    with pytest.raises(BadQuestion, match="an empty text"):
        request.next_chunk()
    assert request.next_chunk() is None


def test_a_subscriber_is_called_for_every_chunk_and_the_end():
    decoder, seen = decoder_of(20), []
    request = decoder.request(TASKS["T1A2"], WRITTEN, sound="exact")
    request.subscribe(lambda: seen.append(chunks_now(request)))
    assert not seen
    decoder.run([request])
    assert all(len(each) == 1 for each in seen) and len(seen) > 3
    assert seen[-1][0].end == STEP_LIMIT and request.done
    assert "".join(chunk.text for [chunk] in seen) == decoder.model.llm.tokenizer.decode(request.wait(0).text)


def test_whoever_subscribes_late_is_called_at_once():
    decoder, called = decoder_of(), []
    request = decoder.request(TASKS["T1A2"], WRITTEN)
    decoder.run([request])
    request.subscribe(lambda: called.append(chunks_now(request)[-1].end))
    assert called == [STEP_LIMIT]
    failed = decoder.request(TASKS["T1A2"], Question(text=[]))
    decoder.run([failed])
    failed.subscribe(lambda: called.append("failed"))
    assert called[-1] == "failed"


def test_a_subscriber_that_fails_ends_its_own_answer_alone():
    decoder, calls = decoder_of(20), []

    def fail() -> None:
        calls.append(1)
        raise RuntimeError("the loop is closed")

    bad, good = (decoder.request(TASKS["T1A2"], WRITTEN) for _ in range(2))
    bad.subscribe(fail)
    decoder.run([bad, good])
    assert calls == [1] and bad.end == CANCELLED and good.end == STEP_LIMIT and len(good.steps) == 20


def test_no_chunk_is_missed_between_threads():
    """Check that a thread that sleeps until it is called, and then takes what there is, gets all chunks."""
    omni = Omni(toy_model(), decoding=Decoding(min_steps=30, max_steps=30))
    for _ in range(3):
        request, wake, found = omni.submit("T1A2", WRITTEN, sound="exact"), threading.Event(), []
        request.subscribe(wake.set)
        while not (found and found[-1].end):
            assert wake.wait(60), "nobody called"
            wake.clear()
            found += chunks_now(request)
        answer = request.wait(0)
        assert torch.equal(torch.cat([chunk.wav for chunk in found]), omni.model.codec.decode(answer.codes[None])[0])
    omni.close()


# counts and features


def test_counts():
    model = toy_model()
    omni = Omni(model, decoding=Decoding(min_steps=20, max_steps=20))
    recording = torch.rand(4800, generator=torch.Generator().manual_seed(1)) - 0.5
    talk = omni.conversation()
    first = talk.submit(Question(wav=recording))
    frames = first.wait(60).codes.shape[1]
    assert frames == model.pattern.num_frames(20)
    assert first.counts == TokenCounts(15 + 3, 0, 0, 30, 20, frames) and first.counts.spoken == 15  # of 30 frames
    second = talk.submit(Question(text=[3] * 7), speak=False)
    second.wait(60)
    history = talk._history.turns[0].length
    # the truncated answer was laid out anew, so only the first prompt was in the KV cache
    assert second.counts == TokenCounts(7 + 3, history, 15 + 3, 0, 20, 0) and second.counts.spoken == 0
    third = talk.submit(Question(text=[3]))
    third.wait(60)
    assert third.counts.history == history + talk._history.turns[1].length
    assert 0 < third.counts.cached < third.counts.history
    assert Decoder(model).request(TASKS["T1A2"], WRITTEN).counts == TokenCounts(0, 0, 0, 0, 0, 0)
    omni.close()


def test_features_are_encoded_once_for_two_requests(monkeypatch):
    model, encoded = toy_model(), []
    forward = model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda wav, n: encoded.append(len(wav)) or forward(wav, n))
    decoder = Decoder(model, decoding=Decoding(max_steps=12))
    recordings = [torch.rand(n, generator=torch.Generator().manual_seed(n)) - 0.5 for n in (3200, 1600)]
    requests = [decoder.request(TASKS["A1A2"], Question(wav=each)) for each in recordings]
    assert requests[0].features is None
    decoder.run(requests)
    assert encoded == [2]
    for request, recording in zip(requests, recordings, strict=True):
        assert request.features.shape == (len(recording) // 160, model.encoder.dim)
        assert request.features.untyped_storage().nbytes() == 4 * request.features.numel(), "a view of all features"
    again = decoder.answers(TASKS["A1T1"], [Question(features=requests[0].features)])[0]
    assert encoded == [2]
    assert again.text == decoder.answers(TASKS["A1T1"], [Question(wav=recordings[0])])[0].text
    assert decoder.request(TASKS["T1A2"], WRITTEN).features is None


# low priority


def low(decoder: Decoder, **options) -> Request:
    return decoder.request(TASKS["T1T2"], WRITTEN, low_priority=True, **options)


def admitted(batch: RunningBatch) -> list[Request]:
    return list(dict.fromkeys(batch.owners))


def test_low_priority_is_admitted_after_all_others():
    decoder = decoder_of(5)
    batch, begun = decoder.batch(2), []
    for name, waits in (("low 1", True), ("a", False), ("low 2", True), ("b", False), ("c", False)):
        request = decoder.request(TASKS["T1A2"], WRITTEN, low_priority=waits)
        request.begin = lambda name=name: begun.append(name)
        batch.submit(request)
    batch.run()
    assert begun == ["a", "b", "c", "low 1", "low 2"]


@pytest.mark.parametrize(("capacity", "most"), [(1, 1), (2, 2), (3, 3), (4, 3), (9, 7)])
def test_low_priority_never_takes_the_last_quarter_of_the_slots(capacity, most):
    decoder = decoder_of(40)
    batch = decoder.batch(capacity)
    for _ in range(capacity + 2):
        batch.submit(low(decoder))
    for _ in range(capacity + 4):
        batch.turn()
    assert len(batch.owners) == most
    others = [decoder.request(TASKS["T1A2"], WRITTEN) for _ in range(capacity - most)]
    for request in others:
        batch.submit(request)
    batch.turn()
    assert admitted(batch)[most:] == others
    batch.run()


def test_low_priority_with_several_sequences():
    decoder = decoder_of(6)
    batch = decoder.batch(2)
    request = decoder.request(TASKS["T1A2"], WRITTEN, strategy=BATCH_PARALLEL, low_priority=True)
    batch.submit(request)
    batch.run()
    assert request.wait(0).end == STEP_LIMIT


def test_a_prompt_of_low_priority_makes_way(monkeypatch):
    """Check that an ordinary request that comes during the prefill of one of low priority is prefilled first."""
    monkeypatch.setattr("omnikit.generate.running_batch.PREFILL_POSITIONS", 4)
    decoder = decoder_of(6)
    batch, begun = decoder.batch(4), []
    patient = decoder.request(TASKS["T1T2"], Question(text=[3] * 60), low_priority=True)
    batch.submit(patient)
    for _ in range(3):
        batch.turn()
    assert batch.newcomers is not None and not batch.owners
    others = [decoder.request(TASKS["T1A2"], WRITTEN) for _ in range(2)]
    for request in (patient, *others):
        request.begin = lambda request=request: begun.append(request)
    batch.submit(others[0])
    batch.turn()
    assert begun == [others[0]]
    batch.run()
    batch.submit(others[1])
    batch.run()
    assert begun == [others[0], patient, others[1]]
    assert not any(ties(decoder.model, request) for request in (patient, *others))


def test_low_priority_takes_no_place_in_the_queue_of_others():
    decoder = decoder_of()
    batch = decoder.batch(1)
    batch.waiting.most = 2
    for _ in range(2):
        batch.submit(low(decoder))
    with pytest.raises(QueueFull, match="2 questions are waiting already"):
        batch.submit(low(decoder))
    for _ in range(2):
        batch.submit(decoder.request(TASKS["T1A2"], WRITTEN))
    with pytest.raises(QueueFull):
        batch.submit(decoder.request(TASKS["T1A2"], WRITTEN))
    waiting = batch.waiting.take_ended()
    assert not waiting and len(batch.waiting) == 4
    batch.close()
    assert not len(batch.waiting)


def test_low_priority_may_be_cancelled_while_it_waits():
    decoder = decoder_of(30)
    batch, request = decoder.batch(1), low(decoder)
    batch.submit(decoder.request(TASKS["T1A2"], WRITTEN))
    batch.turn()
    batch.submit(request)
    batch.turn()
    request.cancel()
    batch.turn()
    assert request.end == CANCELLED and request.wait(0).text == []


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)])
def test_priorities_change_no_answer(seed, monkeypatch):
    monkeypatch.setattr("omnikit.generate.running_batch.PREFILL_POSITIONS", 5)
    model, draw = ends_often(toy_model()), random.Random(seed)
    decoder = Decoder(model)
    cases = draw_cases(model, decoder, 16, draw)
    for case in cases:
        case.request.low_priority = draw.random() < 0.5
    decode(decoder, cases, capacity=4)
    assert sum(ties(model, case.request) for case in cases) <= 1
    for case in cases:
        check_whole(model, case.request)


def test_low_priority_delays_no_other_request():
    """Check that ordinary requests wait as many turns for a slot as without those of low priority."""

    def waits(low_ones: int) -> list[int]:
        decoder = Decoder(toy_model(), decoding=Decoding(min_steps=8, max_steps=8))
        batch, asked, found = decoder.batch(8), {}, {}
        for turn in range(28):
            for _ in range(low_ones):
                batch.submit(low(decoder, strategy=PARALLEL))
            if turn % 4 == 3:  # two at a time
                request = decoder.request(TASKS["T1A2"], WRITTEN)
                batch.submit(request)
                asked[request] = turn
            batch.turn()
            for request in asked:
                if request.steps and request not in found:
                    found[request] = turn - asked[request]
        batch.close()
        return list(found.values())

    assert waits(3) == waits(0)
