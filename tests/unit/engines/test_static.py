"""Test that decode steps over a KV cache of fixed size equal the model's own computation, in any batch."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import omnikit
from omnikit import checkpoint
from omnikit.cuda_graphs import MOST_FAILURES, UNRECORDED, GraphRecorder
from omnikit.engines import open_engine, static
from omnikit.engines.static import StaticEngine, StaticSlots
from omnikit.llms.llama import supports
from omnikit.llms.transformers_lm import TransformersLM
from omnikit.model import OmniLM
from tests.unit.engines.replayed import ReplayedOperations
from tests.unit.engines.slots import Batch, Greedy, Sequence, alone, build, greedy_alone
from tests.unit.llms.test_llama import numbers
from tests.unit.toy import toy_model

LLMS = sorted(file.stem for file in (Path(__file__).parents[3] / "hparams" / "llm").glob("*.yaml"))
OTHERS = ("gemma2_2b", "gemma3_1b", "gemma_2b", "phi2", "phi3_mini")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def small(monkeypatch) -> None:
    """Reduce the initial size of KV caches to 4 positions, so that they have to grow."""
    monkeypatch.setattr(static, "SMALLEST", 4)


@pytest.fixture
def steps_only(monkeypatch) -> None:
    """Turn off the recording of prefills as CUDA graphs."""
    monkeypatch.setattr(static, "MOST_RECORDED", 0)


def replayed(slots: StaticSlots) -> ReplayedOperations:
    """Make slots on a CPU record decode steps and prefills as on a GPU; return the stand-in for CUDA graphs."""
    graphs = ReplayedOperations()
    slots.recorder = GraphRecorder(graphs)
    return graphs


@pytest.mark.parametrize("llm", [name for name in LLMS if name not in OTHERS])
@torch.inference_mode()
def test_hidden_states(llm: str):
    """Check that the engine `static` computes hidden states of several backbones, some with an 8-position window."""
    model = build(llm, tts_blocks=1)
    batch = Batch(model, open_engine("static", model).open(2))
    batch.new(14, 6)
    batch.advance(6)


@torch.inference_mode()
def test_blocks_in_a_window_beside_others():
    model = toy_model(tts_blocks=2)
    config = {**numbers("qwen2, some blocks in a window"), "vocab_size": 80}
    llm = TransformersLM(config=config, tokenizer="bytes").eval()
    assert llm.config.layer_types == ["full_attention", "sliding_attention"]
    model.llm, model.tts_adapter = llm, llm.blocks(2).eval()
    batch = Batch(model, open_engine("static", model).open(2))
    batch.new(14, 3)
    batch.advance(8)


@pytest.mark.parametrize("seed", range(4))
@torch.inference_mode()
def test_sequences_join_and_leave_at_any_time(seed, small):
    """Check hidden states under random admissions, copies and releases of sequences while the KV cache grows."""
    model, chance = toy_model(tts_blocks=1), random.Random(seed)
    batch = Batch(model, open_engine("static", model).open(5))
    for _ in range(30):
        free, slot = 5 - len(batch.sequences), chance.randrange(max(1, len(batch.sequences)))
        what = chance.choice(["new", "new", "copy", "release", "advance"])
        if what == "new" and free:
            batch.new(*(chance.randint(1, 12) for _ in range(chance.randint(1, free))), piece=chance.randint(1, 30))
        elif what == "copy" and free and batch.sequences:
            batch.copy(slot)
        elif what == "release" and batch.sequences:
            batch.release(slot)
        if batch.sequences:
            batch.advance()


@torch.inference_mode()
def test_room_grows_by_powers_of_two(small):
    model = toy_model()
    slots = open_engine("static", model).open(2)
    batch, rooms = Batch(model, slots), []
    batch.new(3, 2)
    for _ in range(16):
        batch.advance()
        rooms.append(slots.room)
    assert rooms == [4] * 1 + [8] * 4 + [16] * 8 + [32] * 3


@torch.inference_mode()
def test_the_last_slot_takes_the_number_of_a_released_one():
    model = toy_model()
    batch = Batch(model, open_engine("static", model).open(3))
    batch.new(9, 4, 7)
    batch.release(0)
    assert batch.slots.lengths == [7, 4]
    batch.advance(2)
    batch.release(1)
    batch.new(3)
    batch.advance(2)
    for _ in range(2):
        batch.release(0)
    assert len(batch.slots) == 0
    assert not any(own.any() for own in batch.slots.cache)
    assert not batch.slots.positions.any()


@pytest.mark.parametrize("how", ["released", "moved", "failed"])
@torch.inference_mode()
def test_nothing_is_left_of_a_sequence_that_went_wrong(how):
    """Check that no NaN of a failed sequence is left in the KV cache, where it would spread to later sequences.

    An attention mask alone would not prevent it, since NaN times zero is NaN.
    """
    model = toy_model(tts_blocks=1)
    slots = open_engine("static", model).open(2)
    batch = Batch(model, slots)
    batch.new(3)
    broken = torch.full((1, model.llm.dim), float("nan"))
    for _ in range(9):
        slots.advance(broken)
    assert slots.cache[-1].isnan().any()
    if how == "failed":
        slots.engine.compute(broken, slots.positions[:1], slots.cache, 13)  # as if an error followed
    if how == "moved":
        slots.admit(_prefilled(slots, batch))
    slots.release(0)
    batch.sequences = batch.sequences[1:]
    assert not any(own.isnan().any() for own in slots.cache)
    if how != "moved":
        batch.new(2)
    batch.advance(14)


def _prefilled(slots, batch):
    batch.sequences.append(Sequence(batch._random(80), 2))
    prefill = slots.prefill([batch.sequences[-1].embeddings[:2]])
    prefill.advance(9)
    return prefill


@torch.inference_mode()
def test_prompts_of_different_lengths_are_prefilled_in_pieces():
    model = toy_model(tts_blocks=1)
    slots = open_engine("static", model).open(4)
    batch = Batch(model, slots)
    prompts = [torch.randn(n, model.llm.dim) for n in (2, 11, 5)]
    prefill, left = slots.prefill(prompts), []
    while prefill.left:
        prefill.advance(6)
        left.append(prefill.left)
    assert left == [12, 6, 0]  # 2 positions of each prompt; 3 of the two unfinished ones; 6 of the longest
    assert len(slots) == 0
    slots.admit(prefill)
    assert slots.lengths == [2, 11, 5]
    fed = torch.randn(3, model.llm.dim)
    hidden = slots.advance(fed)
    for slot, prompt in enumerate(prompts):
        expected = alone(model, torch.cat([prompt, fed[slot : slot + 1]]))
        batch.check(hidden.text[slot], expected.text[-1])
        batch.check(hidden.audio[slot], expected.audio[-1])


def decode(
    model: OmniLM,
    slots: StaticSlots,
    engine: StaticEngine,
    joins: dict[int, tuple[int, ...]],
    steps: int,
    audio: list[bool] | None = None,
) -> tuple[list[torch.Tensor], Greedy]:
    """Decode greedily while prompts join a batch, and compare the tokens of each with those of decoding it alone.

    Args:
        joins: mapping from decode step to lengths of the prompts that join before it.
        audio: whether audio streams are chosen, for each step; None = in every step.
    """
    draw, greedy = torch.Generator().manual_seed(3), Greedy(engine, model, slots.capacity)
    prompts: list[torch.Tensor] = []
    found: list[list[torch.Tensor]] = []
    for step in range(steps):
        new = [torch.randn(n, model.llm.dim, generator=draw).to(model.device) for n in joins.get(step, ())]
        if new:
            prefill = slots.prefill(new)
            while prefill.left:
                prefill.advance(16)
            greedy.tokens[len(slots) : len(slots) + len(new)] = 1
            slots.admit(prefill)
            prompts += new
            found += [[] for _ in new]
        for tokens, own in zip(greedy.step(slots, audio=audio is None or audio[step]), found, strict=True):
            own.append(tokens)
    for prompt, tokens in zip(prompts, found, strict=True):
        first = torch.ones(model.layout.num_streams, dtype=torch.long, device=model.device)
        chosen = None if audio is None else audio[steps - len(tokens) :]
        expected = greedy_alone(model, prompt, first, len(tokens), chosen)
        assert torch.equal(torch.stack(tokens), expected)
    return prompts, greedy


@torch.inference_mode()
def test_greedy_steps(small):
    model = toy_model(tts_blocks=1)
    engine = open_engine("static", model)
    decode(model, engine.open(4), engine, {0: (5,), 3: (9, 2), 8: (30,)}, 14)


@torch.inference_mode()
def test_recorded_steps_are_those_that_are_run(small, steps_only):
    """Check that decode steps are recorded as CUDA graphs per power of two of sequences and of positions.

    The recordings are dropped when the KV cache grows.
    """
    model = toy_model(tts_blocks=1)
    engine = open_engine("static", model)
    slots = engine.open(3)
    graphs = replayed(slots)
    steps = 27
    _, greedy = decode(model, slots, engine, {0: (1,), 6: (2,), 16: (4,)}, steps)
    assert int(greedy.steps) == steps  # neither warm-up nor recording chooses tokens
    assert graphs.runs + graphs.replays == steps
    # 3 steps of (1 row, 4 columns) and of (1, 8), 1 of (2, 8), 8 of (2, 16), 1 of (2, 32), 11 of (3, the capacity, 32)
    assert set(slots.recorder.replays) == {(3, 32, ())}
    assert (graphs.recorded, graphs.replays) == (2, 5 + 8)


@torch.inference_mode()
def test_recorded_prefills():
    """Check prefills that are recorded as CUDA graphs, also with fewer prompts than recorded and after a dropped one.
    """
    model = toy_model(tts_blocks=1)
    slots = open_engine("static", model).open(12)
    graphs = replayed(slots)
    batch = Batch(model, slots)
    for length in (1, 9, 64, 33, 7):  # each is computed as 64 positions
        batch.new(length, piece=64)
    assert (graphs.runs, graphs.recorded, graphs.replays) == (UNRECORDED, 1, 2)
    slots.prefill([torch.full((5, model.llm.dim), 1e9)]).advance(64)
    batch.new(12, piece=64)
    assert graphs.replays == 4
    batch.new(70, piece=70)
    batch.new(3, 8, 5, piece=64)
    assert set(slots.recorder.runs) == {("prompts", 1, 64), ("prompts", 1, 128), ("prompts", 4, 64)}
    batch.advance(2)


@torch.inference_mode()
def test_prefills_that_are_not_recorded(small, monkeypatch):
    """Check prefills that are not recorded as CUDA graphs: too many positions, or the recording is in use."""
    model = toy_model(tts_blocks=1)
    slots = open_engine("static", model).open(8)
    graphs = replayed(slots)
    batch = Batch(model, slots)
    batch.new(20, piece=19)
    monkeypatch.setattr(static, "MOST_RECORDED", 128)
    batch.new(129, piece=200, room=150)
    batch.new(3, 4, 5, piece=200)
    assert not graphs.runs
    first = Sequence(batch._random(80), 6)
    prefill = slots.prefill([first.embeddings[:6]])
    prefill.advance(64)
    batch.new(8, piece=64)
    assert graphs.runs == 1
    slots.admit(prefill)
    batch.sequences.append(first)
    batch.new(11, piece=64)
    assert graphs.runs == 2
    batch.advance(2)


@torch.inference_mode()
def test_a_short_sequence_does_not_read_the_room_of_a_long_one(small, steps_only):
    model = toy_model()
    engine = open_engine("static", model)
    slots = engine.open(2)
    replayed(slots)
    Batch(model, slots).new(20)
    slots.release(0)
    assert slots.room == 32
    decode(model, slots, engine, {0: (2,)}, 10)
    assert set(slots.recorder.runs) == {(1, 4, ()), (1, 8, ()), (1, 16, ())}


@torch.inference_mode()
def test_variants_are_recorded_apart(steps_only):
    model = toy_model()
    engine = open_engine("static", model)
    slots = engine.open(2)
    graphs = replayed(slots)
    decode(model, slots, engine, {0: (3, 5)}, 16, audio=[step % 3 != 1 for step in range(16)])
    assert set(slots.recorder.replays) == {(2, 256, ()), (2, 256, ("text",))}
    assert (graphs.recorded, graphs.runs) == (2, 2 * UNRECORDED)


@torch.inference_mode()
def test_what_asks_the_device_for_a_value_is_not_recorded():
    """Check that recording a step that reads a value from the device fails on a CPU, as it would on a GPU."""
    model = toy_model()
    engine = open_engine("static", model)
    slots = engine.open(1)
    replayed(slots)
    Batch(model, slots).new(3)
    greedy = Greedy(engine, model, 1)
    with pytest.raises(AssertionError, match="makes the host wait"):
        for _ in range(UNRECORDED + 1):
            slots.step(greedy.embed, lambda hidden: hidden.text.sum().item())


@torch.inference_mode()
def test_several_slots_over_one_engine():
    model = toy_model(tts_blocks=1)
    engine = open_engine("static", model)
    batches = [Batch(model, engine.open(2)) for _ in range(2)]
    for batch, lengths in zip(batches, ((4,), (9, 2)), strict=True):
        batch.new(*lengths)
    for batch in batches * 3:
        batch.advance()


def test_weights_are_in_memory_once_and_the_model_stays_what_it_was(tmp_path):
    torch.manual_seed(0)
    model = omnikit.build(size="tiny", encoder="none", llm="mini", codec="none", adapter="linear", tts_blocks=1).eval()
    steps = torch.randint(0, 9, (2, model.layout.num_streams, 12))
    before, state = model(steps), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(2):
        engine = open_engine("static", model)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(model(steps).audio, before.audio)
    pieces = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    assert sum(pieces.values()) == sum(p.nbytes for p in model.parameters())
    joint = engine.trunk[0].qkv.weight
    assert joint.untyped_storage().data_ptr() in pieces
    checkpoint.save(model, tmp_path, torch.float32)
    loaded = checkpoint.load(tmp_path).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in loaded.items())


@torch.inference_mode()
def test_the_shipped_system():
    """Check hidden states of the shipped system in float32 and bfloat16, built without transformers' classes."""
    model, other = checkpoint.load(), checkpoint.load(dtype=torch.bfloat16)
    for one, most in ((model, 1e-5), (other, 0.03)):
        batch = Batch(one, open_engine("static", one).open(2), most)
        batch.new(30, 12, piece=64)
        batch.advance(3)


@torch.inference_mode()
def test_lora_is_computed():
    model = build("mini", **{"llm.lora.rank": 2})
    for name, parameter in model.llm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    batch = Batch(model, open_engine("static", model).open(2))
    batch.new(9, 4)
    batch.advance(2)


def compile_by(monkeypatch, backend) -> None:
    """Make `torch.compile` use another backend, because the default one needs a minute."""
    compiling = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **options: compiling(call, backend=backend, **options))


def check_compiled_once(engine: StaticEngine, capsys) -> None:
    for _ in range(2):
        batch = Batch(engine.model, engine.open(3))
        batch.new(9, 4)
        batch.advance(2)
    assert capsys.readouterr().err == "engine compiled: compiling a step of 2 rows among 256 positions, once\n"


@torch.inference_mode()
def test_compiled_once(monkeypatch, capsys):
    compile_by(monkeypatch, "aot_eager")
    check_compiled_once(StaticEngine(toy_model(tts_blocks=1), compiled=True), capsys)


@pytest.mark.long
@pytest.mark.skipif(static.find_compiler() is None, reason="needs a C++ compiler")
@torch.inference_mode()
def test_really_compiled_once(capsys):
    check_compiled_once(open_engine("compiled", toy_model(tts_blocks=1)), capsys)


@torch.inference_mode()
def test_many_shapes_are_compiled(monkeypatch, small):
    """Check that more than eight tensor shapes are compiled, although torch by default compiles no more than eight."""
    model, seen = toy_model(), []

    def backend(graph, inputs):
        seen.append(len(inputs))
        return graph.forward

    compile_by(monkeypatch, backend)
    engine = StaticEngine(model, compiled=True)
    engine.trunk = engine.trunk[:1]
    for capacity in range(1, 6):
        slots = engine.open(capacity)
        Batch(model, slots).new(*[3] * capacity)
        for _ in range(2):  # the second step needs a larger KV cache
            slots.advance(torch.randn(capacity, model.llm.dim))
    assert len(seen) == 10


@NEEDS_CUDA
@pytest.mark.parametrize("device", [f"cuda:{n}" for n in range(torch.cuda.device_count())])
@pytest.mark.parametrize("name", ["static", "compiled"])
@torch.inference_mode()
def test_replayed_on_a_gpu(name, device, small):
    """Check decode steps replayed as CUDA graphs on a GPU, also when the KV cache grows and when two threads decode."""
    model = toy_model(tts_blocks=1).to(device)
    engine = open_engine(name, model)
    slots = engine.open(3)
    decode(model, slots, engine, {0: (5,), 4: (9, 2)}, 24)
    assert slots.recorder.replays

    @torch.inference_mode()
    def other(length: int) -> None:
        decode(model, engine.open(2), engine, {0: (length,), 7: (3,)}, 24)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(other, length) for length in (4, 6)]:
            future.result()


@NEEDS_CUDA
@torch.inference_mode()
def test_hidden_states_on_a_gpu(small):
    model = toy_model(tts_blocks=1).to("cuda")
    batch = Batch(model, open_engine("static", model).open(3), most=1e-4)
    batch.new(9, 4)
    batch.advance(4)
    batch.release(0)
    batch.new(20)
    batch.copy(0)
    batch.advance(4)


@pytest.mark.parametrize("llm", OTHERS)
def test_backbones_that_it_cannot_run(llm):
    model = build(llm)
    with pytest.raises(ValueError, match=rf"static: .* the type {model.llm.config.model_type}: it is none of"):
        open_engine("static", model)
    assert static.unsupported_reason(model).endswith(supports(model.llm.config))


def test_llamas_that_it_cannot_run():
    model = build("llama")
    model.llm.config.rope_parameters["rope_type"] = "dynamic"
    with pytest.raises(ValueError, match=r"of the type llama: dynamic rotary positions"):
        open_engine("compiled", model)


def test_a_backbone_of_ones_own_is_refused():
    class Own(torch.nn.Module):
        pass

    model = toy_model()
    assert static.unsupported_reason(model) is None
    model.llm = Own()
    with pytest.raises(ValueError, match="engine static: cannot run a backbone of the class Own"):
        open_engine("static", model)


def test_bad_input(monkeypatch):
    monkeypatch.setenv("CXX", "nowhere-c++")
    with pytest.raises(ValueError, match=r"no C\+\+ compiler nowhere-c\+\+"):
        omnikit.load("no-such-folder", engine="compiled")


def test_a_recording_that_fails_is_tried_again():
    """Check that a failed recording of a CUDA graph is retried, and that its decode step is computed nevertheless.

    Recording fails, for example, when another thread waits for the GPU.
    """

    class Graphs(ReplayedOperations):
        failures = 1

        def record(self, call):
            if self.failures:
                self.failures -= 1
                raise RuntimeError("operation not permitted when stream is capturing")
            return super().record(call)

    graphs, counted = Graphs(), torch.zeros(())
    recorder = GraphRecorder(graphs)
    for _ in range(UNRECORDED + 3):
        recorder.run("key", lambda: counted.add_(1))
    assert counted == UNRECORDED + 3 and graphs.recorded == 1 and graphs.replays == 2
    graphs.failures = 100
    with pytest.raises(RuntimeError, match="capturing"):
        for _ in range(100):
            recorder.run("other", lambda: counted.add_(1))
    assert 100 - graphs.failures == MOST_FAILURES + 1
