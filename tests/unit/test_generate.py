"""Training and decoding are one function: what a model has learned by heart, greedy decoding gives back."""

from __future__ import annotations

import pytest
import torch

from omnikit.data.collate import collate
from omnikit.generate import Decoding, Question, answers, generate
from omnikit.losses import stream_losses, weighted_mean
from omnikit.strategies import BATCH_PARALLEL, PARALLEL
from omnikit.tasks import TASKS, make_sample
from tests.unit.toy import toy_model

TEXTS = ["the cat sees", "two is red", "no"]
ANSWERS = ["yes", "the dog hears one", "blue two"]


def material(model, task):
    """Three questions of different lengths with their answers."""
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
            heard = question.features
            frames = None if heard is None else model.frames_heard(len(heard))
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
            features.append(heard)
    batch = collate(samples, features, model.layout, model.encoder.dim)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(steps):
        speech = batch.speech(*model.adapter(batch.features, batch.lengths)) if batch.has_speech else None
        loss = weighted_mean(
            stream_losses(model, model(batch.steps, speech), batch.labels), torch.ones(model.layout.num_streams)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), loss.item()


def check(model, task, strategy=PARALLEL, decoding=None):
    questions, targets = material(model, task)
    for got, (reply, codes) in zip(
        answers(model, task, questions, strategy=strategy, decoding=decoding), targets, strict=True
    ):
        assert got.text == reply
        assert not got.truncated
        if task.speaks:
            assert torch.equal(got.codes, codes)


LEADS = [
    ("delayed", {}), ("delayed", {"tts_blocks": 1}), ("parallel", {}), ("flattened", {}),
    *(
        pytest.param(pattern, options, marks=pytest.mark.long)
        for pattern, options in (
            ("delayed", {"delays": [2, 0, 1], "text_lead": 1}), ("parallel", {"text_lead": 4}),
            ("flattened", {"text_lead": 0}), ("flattened", {"text_lead": 4}),
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
            decoding = Decoding(max_steps=12)
            together = answers(model, task, questions, strategy=strategy, decoding=decoding)
            alone = [answers(model, task, [q], strategy=strategy, decoding=decoding)[0] for q in questions]
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
    """Constrained decoding of random weights: pads while a stream waits, codes of the right codebook."""
    for pattern in ("delayed", "parallel", "flattened"):
        model = toy_model(pattern)
        task = TASKS["T1A2"]
        questions, _ = material(model, task)
        steps = list(generate(model, task, questions, decoding=Decoding(max_steps=30)))
        tokens = torch.stack([s.tokens for s in steps], dim=-1)
        for step in range(tokens.shape[-1]):
            for stream, book in enumerate(model.pattern.codebook_at(step)):
                ids, emitted = model.layout.audio[stream], tokens[:, 1 + stream, step]
                if book < 0:
                    assert (emitted == ids.pad).all()
                else:
                    begin = model.layout.carries[stream].index(book) * model.codec.codebook_size
                    inside = (emitted >= begin) & (emitted < begin + model.codec.codebook_size)
                    assert (inside | (emitted == ids.eoa) | (emitted == ids.pad)).all()
        for answer in answers(model, task, questions, decoding=Decoding(max_steps=30)):
            model.codec.check_codes(answer.codes[None])


def test_generation_can_be_dropped_between_steps():
    model = toy_model()
    questions, _ = material(model, TASKS["T1A2"])
    steps = generate(model, TASKS["T1A2"], questions)
    first = next(steps)
    steps.close()
    assert first.tokens.shape == (3, model.layout.num_streams)
