"""Test that greedy decoding returns what a model was trained on: training and decoding compute the same function."""

from __future__ import annotations

import pytest
import torch

from omnikit.data.collate import collate
from omnikit.generate import Decoder, Decoding, Question
from omnikit.losses import label_weights, stream_losses
from omnikit.strategies import BATCH_PARALLEL, PARALLEL
from omnikit.tasks import TASKS, make_sample
from tests.unit.scripted import emitted
from tests.unit.toy import toy_model

TEXTS = ["the cat sees", "two is red", "no"]
ANSWERS = ["yes", "the dog hears one", "blue two"]


def material(model, task):
    """Return three questions of different lengths for a task, and the answer to each (text ids, codes)."""
    generator = torch.Generator().manual_seed(3)
    questions, targets = [], []
    for i, (text, answer) in enumerate(zip(TEXTS, ANSWERS, strict=True)):
        ids = model.llm.tokenizer.encode(text)
        features = torch.randn(5 + 2 * i, model.encoder.dim, generator=generator)
        questions.append(Question(text=ids) if task.given == "text" else Question(features=features))
        reply = ids if task.text_forced else model.llm.tokenizer.encode(answer)
        codes = torch.randint(0, model.codec.codebook_size, (model.codec.num_codebooks, 3 + i), generator=generator)
        targets.append((reply, codes))
    return questions, targets


def train(model, tasks, steps=250):
    samples, features = [], []
    for task in tasks:
        questions, targets = material(model, task)
        for question, (reply, codes) in zip(questions, targets, strict=True):
            speech = question.features
            frames = None if speech is None else model.num_speech_positions(len(speech))
            samples.append(
                make_sample(
                    task,
                    model.layout,
                    model.pattern,
                    question=question.text,
                    audio_frames=frames,
                    answer=reply,
                    codes=codes if task.speaks else None,
                )
            )
            features.append(speech)
    batch = collate(samples, features, model.layout, model.encoder.dim)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    weights = label_weights(batch.step_labels, torch.ones(model.layout.num_streams))
    for _ in range(steps):
        speech = batch.speech(*model.adapter(batch.features, batch.lengths)) if batch.has_speech else None
        loss, _ = stream_losses(model, model(batch.steps, speech), batch, weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), loss.item()


def check(model, task, strategy=PARALLEL, decoding=None):
    questions, targets = material(model, task)
    decoder = Decoder(model, strategy=strategy, decoding=decoding)
    for got, (reply, codes) in zip(decoder.answers(task, questions), targets, strict=True):
        assert got.text == reply
        assert not got.truncated
        if task.speaks:
            assert torch.equal(got.codes, codes)


LEADS = [
    ("delayed", {}), ("flattened", {}),
    *(
        pytest.param(pattern, options, marks=pytest.mark.long)
        for pattern, options in (
            ("delayed", {"tts_blocks": 1}), ("delayed", {"delays": [2, 0, 1], "text_lead": 1}), ("parallel", {}),
            ("parallel", {"text_lead": 4}), ("flattened", {"text_lead": 0}), ("flattened", {"text_lead": 4}),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "options"), LEADS)
def test_overfitted_batch_is_decoded_back(pattern, options):
    model = toy_model(pattern, **options)
    model, loss = train(model, list(TASKS.values()))
    assert loss < 0.05
    for task in TASKS.values():
        check(model, task)
        check(model, task, decoding=Decoding(constrain=False))
    check(model, TASKS["A1A2"], BATCH_PARALLEL)
    check(model, TASKS["T1A2"], BATCH_PARALLEL)


def test_batch_equals_one_by_one():
    model = toy_model("delayed", tts_blocks=1)
    for task in TASKS.values():
        questions, _ = material(model, task)
        for strategy in (PARALLEL, BATCH_PARALLEL):
            decoder = Decoder(model, strategy=strategy, decoding=Decoding(max_steps=12))
            together = decoder.answers(task, questions)
            alone = [decoder.answers(task, [question])[0] for question in questions]
            for a, b in zip(together, alone, strict=True):
                assert a.text == b.text
                assert torch.equal(a.codes, b.codes)


def test_cache_equals_whole_forward():
    model = toy_model("delayed", tts_blocks=1)
    steps = torch.stack([torch.randint(0, size, (2, 9)) for size in model.layout.sizes], dim=1)
    with torch.no_grad():
        whole = model(steps)
        cache = model.new_cache()
        pieces = []
        for begin, end in ((0, 4), (4, 5), (5, 9)):
            positions = torch.arange(begin, end)[None].expand(2, -1)
            pieces.append(model(steps[..., begin:end], positions=positions, mask=torch.ones(2, end), cache=cache))
    assert torch.allclose(torch.cat([p.text for p in pieces], 1), whole.text, atol=1e-5)
    assert torch.allclose(torch.cat([p.audio for p in pieces], 1), whole.audio, atol=1e-5)


def test_untrained_model_stays_inside_the_rules():
    """Check constrained decoding with random weights: pads before a stream begins, then codes of the right codebook."""
    for pattern in ("delayed", "parallel", "flattened"):
        model = toy_model(pattern)
        task = TASKS["T1A2"]
        questions, _ = material(model, task)
        decoder = Decoder(model, decoding=Decoding(max_steps=30))
        for tokens in emitted(decoder, task.name, questions):
            for step, (_, *audio) in enumerate(zip(*tokens, strict=True)):
                for stream, book in enumerate(model.pattern.codebook_at(step)):
                    ids, token = model.layout.audio[stream], audio[stream]
                    if book < 0:
                        assert token == ids.pad
                    else:
                        begin = model.layout.carries[stream].index(book) * model.codec.codebook_size
                        assert begin <= token < begin + model.codec.codebook_size or token in (ids.eoa, ids.pad)
        for answer in decoder.answers(task, questions):
            model.codec.check_codes(answer.codes[None])
