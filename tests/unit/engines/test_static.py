"""Steps over caches of fixed size are those of the model itself."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import omnikit
from omnikit.engines import open_engine, static
from omnikit.engines.static import StaticEngine
from omnikit.generate import Answer, Decoding, Question, answers, generate
from omnikit.model import Engine, OmniLM
from omnikit.strategies import BATCH_PARALLEL, PARALLEL, Strategy
from omnikit.tasks import TASKS
from tests.unit.engines.comparing import build, end_texts, error
from tests.unit.toy import toy_model

LLMS = sorted(file.stem for file in (Path(__file__).parents[3] / "hparams" / "llm").glob("*.yaml"))
STEPS = Decoding(max_steps=12)


def asked(model: OmniLM, *lengths: int) -> list[Question]:
    draw = torch.Generator().manual_seed(4)
    return [Question(features=torch.randn(n, model.encoder.dim, generator=draw).to(model.device)) for n in lengths]


def both(
    model: OmniLM, engine: Engine, questions: list[Question], strategy: Strategy, decoding: Decoding = STEPS
) -> tuple[list, list]:
    def plain(found: list[Answer]) -> list:
        return [(answer.text, answer.codes.tolist(), answer.end) for answer in found]

    options = {"decoding": decoding, "strategy": strategy}
    ours = answers(model, TASKS["A1A2"], questions, **options)
    return plain(ours), plain(answers(model, TASKS["A1A2"], questions, engine=engine, **options))


@pytest.mark.parametrize("llm", [name for name in LLMS if name != "any"])
def test_hidden_states(llm: str):
    """Also beyond the windows of those that have some: tiny ones have 8 positions."""
    model = build(llm, tts_blocks=1)
    assert error(model, open_engine("static", model), lengths=(21, 14)) < 1e-6


@pytest.mark.parametrize("strategy", [PARALLEL, BATCH_PARALLEL], ids=["parallel", "batch parallel"])
def test_same_answers_in_a_batch(strategy):
    model = toy_model(tts_blocks=1)
    ours, theirs = both(model, open_engine("static", model), asked(model, 9, 4, 14), strategy)
    assert theirs == ours


def test_an_answer_outgrows_its_cache(monkeypatch):
    monkeypatch.setattr(static, "SMALLEST", 4)
    model = toy_model(tts_blocks=1)
    engine, rooms = open_engine("static", model), []
    monkeypatch.setattr(engine, "take", lambda rows, room: rooms.append(room) or static.Slots(engine, rows, room))
    lasting = Decoding(min_steps=40, max_steps=40)
    ours, theirs = both(model, engine, asked(model, 9), PARALLEL, lasting)
    assert theirs == ours
    assert rooms == [16, 32, 64]


def test_only_the_row_that_speaks_goes_on_when_the_texts_have_ended(monkeypatch):
    """They end at the third step."""
    model = toy_model()
    engine, found = open_engine("static", model), []
    for network in (model, engine):
        end_texts(network, model.layout, 3, monkeypatch)
        options = {"decoding": STEPS, "strategy": BATCH_PARALLEL, "engine": network}
        found.append([a.codes.tolist() for a in answers(model, TASKS["A1A2"], asked(model, 9, 4), **options)])
    assert found[0] == found[1]
    assert sorted(slots.rows for slots in engine._free) == [2, 4]


def test_answers_at_the_same_time_and_one_after_another(monkeypatch):
    """Each has a cache of its own; the next answers find those that are free."""
    model = toy_model()
    engine, made = open_engine("static", model), []
    new = static.Slots
    monkeypatch.setattr(static, "Slots", lambda *about: made.append(new(*about)) or made[-1])
    alone = [list(generate(model, TASKS["A1A2"], [one], decoding=STEPS)) for one in asked(model, 9, 5)]
    for _ in range(2):
        running = [generate(model, TASKS["A1A2"], [one], decoding=STEPS, engine=engine) for one in asked(model, 9, 5)]
        for steps in zip(*alone, *running, strict=True):
            assert torch.equal(steps[0].tokens, steps[2].tokens)
            assert torch.equal(steps[1].tokens, steps[3].tokens)
        del running
        gc.collect()
    assert len(made) == 2


def test_nothing_is_left_of_an_answer_that_went_wrong():
    """Masked or not, a NaN comes through: whatever it is multiplied with."""
    model = toy_model(tts_blocks=1)
    engine = open_engine("static", model)
    broken = Question(features=torch.full((20, model.encoder.dim), float("nan")))
    answers(model, TASKS["A1A2"], [broken], decoding=STEPS, engine=engine)
    assert any(slots.layers[-1].keys.isnan().any() for slots in engine._free)
    ours, theirs = both(model, engine, asked(model, 9), PARALLEL)
    assert theirs == ours


def test_an_answer_is_dropped_in_the_middle_of_taking(monkeypatch):
    """As the garbage collector may do it."""
    engine = open_engine("static", toy_model())
    slots = [static.Slots(engine, 1, room) for room in (256, 512)]
    engine.give_back(slots[0])
    taken = engine._taken
    monkeypatch.setattr(engine, "_taken", lambda: engine.give_back(slots[1]) or taken())
    assert engine.take(1, 256) is slots[0]
    assert engine.take(1, 512) is slots[1]


@pytest.mark.skipif(static.find_compiler() is None, reason="needs a C++ compiler")
def test_compiled_once(capsys):
    model = toy_model(tts_blocks=1)
    engine = open_engine("compiled", model)
    for _ in range(2):
        ours, theirs = both(model, engine, asked(model, 9, 4), PARALLEL)
        assert theirs == ours
    assert capsys.readouterr().err.count("compiling a step of 2 rows among 256 positions") == 1


def test_many_shapes_are_compiled(monkeypatch):
    """Torch by itself would go on uncompiled after the eighth."""
    model, seen = toy_model(), []

    def backend(graph, inputs):
        seen.append(len(inputs))
        return graph.forward

    compiling = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: compiling(model, backend=backend, **options))
    engine = StaticEngine(model, compiled=True)
    for rows in range(1, 11):
        answers(model, TASKS["A1A2"], asked(model, *[9] * rows), decoding=Decoding(max_steps=2), engine=engine)
    assert len(seen) == 10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", [f"cuda:{n}" for n in range(torch.cuda.device_count())])
@pytest.mark.parametrize("name", ["static", "compiled"])
@pytest.mark.parametrize("strategy", [PARALLEL, BATCH_PARALLEL], ids=["parallel", "batch parallel"])
def test_replayed_on_a_gpu(name, strategy, device, monkeypatch):
    """Also when an answer outgrows its cache, and when two begin in two threads."""
    monkeypatch.setattr(static, "SMALLEST", 4)
    model = toy_model(tts_blocks=1).to(device)
    engine, lasting = open_engine(name, model), Decoding(min_steps=40, max_steps=40)
    for _ in range(2):
        ours, theirs = both(model, engine, asked(model, 9, 4), strategy, lasting)
        assert theirs == ours
    assert all(slots.graph is not None for slots in engine._free)
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(both, model, engine, asked(model, 7, 5), strategy) for _ in range(2)]
    assert all(len({str(side) for side in future.result()}) == 1 for future in found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_replay_changes_nothing_that_was_given(monkeypatch):
    model = toy_model().to("cuda")
    engine = open_engine("static", model)
    kept, copies = [], []

    def logits(hidden: torch.Tensor) -> list[torch.Tensor]:
        kept.append(hidden)
        copies.append(hidden.clone())
        return model.audio_logits(hidden)

    monkeypatch.setattr(engine, "audio_logits", logits)
    answers(model, TASKS["A1A2"], asked(model, 9), decoding=STEPS, engine=engine)
    assert len(kept) == STEPS.max_steps
    assert all(torch.equal(*pair) for pair in zip(kept, copies, strict=True))


def test_the_shipped_system_in_bfloat16():
    question = Path(__file__).parents[3] / "egs" / "mini" / "questions" / "sum.wav"
    heard = [omnikit.load(engine=engine, dtype="bfloat16").transcribe(question) for engine in ("torch", "static")]
    assert heard[0] == heard[1] != ""


def test_backbones_that_it_cannot_run():
    for kind in ("falcon", "bloom"):
        model = build("any", **{"llm.config.model_type": kind})
        with pytest.raises(ValueError, match=rf"of the type {kind}: it cannot be told"):
            open_engine("static", model)
    model = build("llama")
    model.llm.config.rope_parameters["rope_type"] = "dynamic"
    with pytest.raises(ValueError, match=r"with dynamic rotary positions"):
        open_engine("static", model)
    model = build()
    model.llm.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match=r"llm.attention flex_attention .*sdpa, eager"):
        open_engine("static", model)


def test_bad_input(monkeypatch):
    engine = open_engine("static", build())
    cache = engine.new_cache()
    steps, mask = torch.ones(1, engine.model.layout.num_streams, 4, dtype=torch.long), torch.ones(1, 8)
    for begin, end in ((0, 4), (4, 5)):
        engine(steps[..., : end - begin], positions=torch.arange(begin, end)[None], mask=mask[:, :end], cache=cache)
    with pytest.raises(ValueError, match="cannot go back"):
        engine(steps[..., :3], positions=torch.arange(5, 8)[None], mask=mask, cache=cache)
    monkeypatch.setenv("CXX", "nowhere-c++")
    with pytest.raises(ValueError, match=r"no C\+\+ compiler nowhere-c\+\+"):
        omnikit.load("no-such-folder", engine="compiled")
