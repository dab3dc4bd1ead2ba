"""Test that the engine `openvino` computes the same hidden states, logits and transcripts as the model itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import omnikit
from omnikit.api import Omni
from omnikit.bench import measure as bench
from omnikit.cli import main
from omnikit.engines import engine_folder, load_openvino, open_engine
from omnikit.model import OmniLM
from tests.unit.engines.compared import Compared, greedy, greedy_alone, random_operations, sharpen
from tests.unit.engines.slots import build
from tests.unit.toy import toy_model

pytest.importorskip("openvino", reason="omnikit[openvino] is not installed")

from omnikit.engines.openvino import graph_files, release_memory_of


def compared(model: OmniLM, folder: Path, capacity: int = 6) -> Compared:
    """Return slots of the engine `openvino` with float32 weights, to be compared with the model."""
    return Compared(model, open_engine("openvino", model, folder, weights="f32").open(capacity))


@pytest.mark.parametrize("llm", ["qwen2_0.5b", "llama", "llama3_8b", "mistral_7b", "qwen3_0.6b", "smollm2_135m"])
def test_hidden_states(llm: str, tmp_path):
    """Check that the engine `openvino` computes hidden states of several backbones, one with an 8-position window."""
    slots = compared(sharpen(build(llm)), tmp_path)
    slots.admit(9, 6, 21, piece=12)
    slots.advance(3)
    assert slots.worst < 1e-5


def test_hidden_states_with_a_tts_adapter(tmp_path):
    slots = compared(sharpen(build(tts_blocks=2)), tmp_path)
    slots.admit(9, 6)
    slots.advance(3)
    assert slots.worst < 1e-5


@pytest.mark.parametrize(("weights", "most"), [("bf16", 0.02), ("int8", 0.04)])
def test_fewer_bits(weights: str, most: float, tmp_path):
    model = build()
    slots = Compared(model, open_engine("openvino", model, tmp_path, weights=weights).open(2))
    slots.admit(9, 6)
    slots.advance(3)
    assert 1e-5 < slots.worst < most


def test_neighbours_join_leave_and_are_copied(tmp_path):
    slots = compared(sharpen(build(tts_blocks=1)), tmp_path)
    slots.admit(7)
    slots.advance(2)
    slots.admit(12, 3)  # one of them is longer than all earlier ones
    slots.copy(1)
    slots.advance(2)
    slots.release(0)
    slots.copy(2)
    slots.release(1)
    slots.advance(2)
    slots.admit(5, 5)
    slots.advance(2)
    assert len(slots.fed) == 5
    assert slots.worst < 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_random_operations(seed: int, tmp_path):
    slots = compared(sharpen(build(tts_blocks=1)), tmp_path)
    random_operations(slots, 60, seed)
    assert 0 < slots.worst < 1e-4


def test_columns_that_no_sequence_needs_are_cut(tmp_path):
    slots = compared(sharpen(build()), tmp_path)
    slots.admit(40, 4, 12)
    slots.release(0)  # the longest sequence needs 12 of 40 columns now
    slots.advance()
    assert slots.slots.batch.columns == 13
    slots.release(0)
    slots.advance()  # it needs 5 of 13 columns, so those stay
    assert slots.slots.batch.columns in (6, 14)
    assert slots.worst < 1e-5


def test_release_gives_the_last_slot_its_number(tmp_path):
    slots = compared(sharpen(build()), tmp_path)
    slots.admit(5, 6, 7, 8)
    slots.slots.release(1)
    assert slots.slots.lengths == [5, 8, 7]
    slots.slots.release(2)
    assert slots.slots.lengths == [5, 8]
    slots.fed = [slots.fed[0], slots.fed[3]]
    slots.advance()
    slots.release(0)
    slots.release(0)
    assert len(slots.slots) == 0
    slots.admit(3)
    slots.advance()
    assert slots.worst < 1e-5


@pytest.mark.parametrize("weights", ["f32", "int8"])
def test_what_is_broken_breaks_no_neighbour(weights: str, tmp_path):
    """Check that NaN in the embeddings of one sequence does not spread to other sequences.

    An attention mask alone would not prevent it, since NaN times zero is NaN.
    """
    model = build(tts_blocks=1)
    slots = Compared(model, open_engine("openvino", model, tmp_path, weights=weights).open(6))
    slots.admit(6)
    slots.admit(30, 2, broken=True)
    slots.advance(2)
    slots.admit(11)
    slots.release(1)
    slots.admit(4, 5)
    slots.advance()
    slots.release(1)  # no broken sequence is left
    slots.copy(0)
    slots.advance(2)
    assert slots.worst < 0.04


def test_much_happens_between_two_steps(tmp_path):
    """Check the hidden states of sequences that are admitted, copied and released before and between steps."""
    slots = compared(sharpen(build()), tmp_path)
    slots.admit(6, 3)
    slots.admit(9)
    slots.copy(2)
    slots.advance()
    for _ in range(3):
        slots.release(0)
    slots.advance()
    slots.admit(4)
    slots.release(0)
    slots.advance()
    assert slots.slots.batch.columns == 5
    assert slots.worst < 1e-5


def test_new_sequences_are_admitted_after_an_error(tmp_path):
    slots = compared(sharpen(build()), tmp_path)
    slots.admit(5, 9)
    with pytest.raises(RuntimeError):
        slots.slots.advance(torch.zeros(2, 7))
    slots.advance()  # the failed step has changed nothing
    slots.release(0)
    slots.release(0)
    slots.admit(4)
    slots.advance(2)
    assert slots.worst < 1e-5


@pytest.mark.parametrize("llm", ["qwen2_0.5b", "qwen3_0.6b", "llama", "mistral_7b"])
def test_no_decode_step_copies_keys_and_values(llm: str, tmp_path):
    """Check that OpenVINO fuses each block's attention with its KV cache, so that no decode step copies the cache."""
    model = build(llm, tts_blocks=1)
    engine = open_engine("openvino", model, tmp_path, weights="f32")
    operations = engine.trunk.compiled.get_runtime_model().get_ordered_ops()
    kinds = Counter(operation.get_rt_info()["layerType"] for operation in operations)
    assert kinds["ScaledDotProductAttention"] == len(model.llm.trunk.layers) + 1
    assert kinds["Gather"] <= 1  # that of a shape


def test_a_prefill_computes_no_more_than_it_was_told(tmp_path):
    model = build()
    slots = open_engine("openvino", model, tmp_path, weights="f32").open(4)
    prefill = slots.prefill([torch.zeros(length, model.llm.dim) for length in (11, 3, 8)])
    left = [prefill.left]
    while prefill.left:
        prefill.advance(12)
        left.append(prefill.left)
    assert left == [22, 17, 9, 0]  # four columns at a time, some of them padding
    assert len(slots) == 0


def test_same_greedy_tokens_side_by_side(tmp_path):
    model = sharpen(toy_model(tts_blocks=1))
    draw = torch.Generator().manual_seed(4)
    shapes = [(model.layout.num_streams, length) for length in (9, 4, 14)]
    prompts = [torch.randint(0, 9, shape, generator=draw) for shape in shapes]
    found = greedy(model, open_engine("openvino", model, tmp_path, weights="f32"), prompts, 12)
    for prompt, tokens in zip(prompts, found, strict=True):
        assert torch.equal(tokens, greedy_alone(model, prompt, 12))
    assert not torch.equal(found[0], found[1])


def test_it_is_measured(tmp_path):
    engine = open_engine("openvino", toy_model(), tmp_path)
    plan = bench.BenchSizes(seconds=0.1, context=40, steps=3, frames=4, answers=1, repeats=1, gib=0.001)
    figures = bench.measure(Omni(engine.model, engine=engine), plan)
    assert figures["step_gb"] == [bench.weights_per_step(engine.model) / 1e9]  # one byte per weight


def test_the_second_time_nothing_is_converted(tmp_path, monkeypatch, capsys):
    model = build()
    first = open_engine("openvino", model, tmp_path)
    assert "once" in capsys.readouterr().err
    monkeypatch.setattr("omnikit.engines.openvino.convert", None)
    second = open_engine("openvino", model, tmp_path)
    x = torch.randn(3, model.llm.dim)
    assert torch.equal(first.text_logits(x), second.text_logits(x))


def test_two_threads_have_slots_of_their_own(tmp_path):
    """Check that two threads with slots of their own on one engine do not disturb each other."""
    model = sharpen(build(tts_blocks=1))
    engine = open_engine("openvino", model, tmp_path, weights="f32")
    head = torch.cat([model.llm.lm_head.weight, model.new_text_embeddings.head.weight])

    def use(seed: int) -> float:
        with torch.inference_mode():
            slots, worst = Compared(model, engine.open(6), seed), 0.0
            for turn in range(4):
                random_operations(slots, 10, 10 * seed + turn)
                for rows in (1, 3):
                    hidden = slots.noise(rows)
                    worst = max(worst, float((engine.text_logits(hidden) - hidden @ head.T).abs().max()))
            return max(slots.worst, worst)

    with ThreadPoolExecutor(2) as pool:
        assert max(pool.map(use, range(2))) < 1e-4


def test_the_shipped_system_from_the_command_line(tmp_path, monkeypatch, capsys):
    """Check that transcripts with 8-bit weights equal those of the model itself, and that the graphs are stored once.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    question = Path(__file__).parents[3] / "egs/mini/questions/sum.wav"
    transcripts = {}
    for engine in ("torch", "openvino"):
        monkeypatch.setattr(sys, "argv", ["omnikit", "transcribe", str(question), "--engine", engine])
        with pytest.raises(SystemExit) as status:
            main()
        transcripts[engine] = capsys.readouterr().out
        assert not status.value.code
    assert transcripts["openvino"] == transcripts["torch"] != ""
    assert len(list(tmp_path.glob("omnikit/engines/*/*.xml"))) == 3


def test_blocks_and_heads_are_not_loaded_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    omni = omnikit.load(engine="openvino")
    nowhere = {name for name, tensor in omni.model.state_dict().items() if tensor.is_meta}
    assert {"llm.lm_head.weight", "llm.trunk.layers.0.mlp.up_proj.weight", "llm.norm.weight"} <= nowhere
    assert any(name.startswith("tts_adapter.") for name in nowhere)
    assert all(name.startswith(("llm.", "tts_adapter.")) for name in nowhere)
    whole = omnikit.load().model
    for name, tensor in omni.model.state_dict().items():
        assert name in nowhere or torch.equal(tensor.float(), whole.state_dict()[name].float()), name


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is in memory")
def test_matrices_are_in_memory_once(tmp_path, monkeypatch):
    """Check that the mapped weight files take no memory once OpenVINO has its own copy of the weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _, engine = load_openvino(None)
    graphs = [file.with_suffix(".bin") for file in graph_files(engine_folder(None), "int8").values()]
    assert [in_memory(graph) for graph in graphs] == [0] * len(graphs)
    x = torch.randn(2, engine.model.llm.dim)
    before = engine.text_logits(x)
    release_memory_of(graphs[1])
    assert torch.equal(engine.text_logits(x), before)


@torch.inference_mode()
def test_lora_is_computed(tmp_path):
    model = build("mini", **{"llm.lora.rank": 2})
    for name, parameter in model.llm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    slots = compared(sharpen(model), tmp_path)
    slots.admit(9, 4)
    slots.advance(2)
    assert slots.worst < 1e-5


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("hidden_act", "gelu", "gelu"),
        ("rope_parameters", {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, "dynamic"),
    ],
)
def test_other_blocks_than_those_of_the_graph_are_refused(name, value, words, tmp_path):
    model = build("llama")
    setattr(model.llm.config, name, value)
    with pytest.raises(ValueError, match=f"engine openvino: .*{words}"):
        open_engine("openvino", model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_backbone_of_ones_own_is_refused(tmp_path):
    model = build()
    model.llm = torch.nn.Identity()
    with pytest.raises(ValueError, match="engine openvino: cannot run a backbone of the class Identity"):
        open_engine("openvino", model, tmp_path)


def test_threads_convert_once(tmp_path):
    model = build()
    with ThreadPoolExecutor(3) as pool:
        engines = list(pool.map(lambda _: open_engine("openvino", model, tmp_path), range(3)))
    x = torch.randn(2, model.llm.dim)
    assert all(torch.equal(engine.text_logits(x), engines[0].text_logits(x)) for engine in engines)
    assert not [file for file in tmp_path.iterdir() if file.suffix not in (".xml", ".bin")]


def test_graphs_belong_to_the_parts_too(tmp_path):
    for name in ("model.safetensors", "hparams.yaml"):
        (tmp_path / name).write_bytes(b"first")
    before = engine_folder(tmp_path)
    assert engine_folder(tmp_path) == before
    (tmp_path / "hparams.yaml").write_bytes(b"other")
    assert engine_folder(tmp_path) != before


def test_transformers_is_not_imported(tmp_path):
    code = "import sys, omnikit; omnikit.load(engine='openvino').chat('hello'); print('transformers' in sys.modules)"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.stdout.strip() == "False", done.stderr


def in_memory(file: Path) -> int:
    """Return how much of a memory-mapped file is resident in this process's memory, in kB."""
    found = wanted = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:
            wanted = line.endswith(f" {file.resolve()}")
        elif line.startswith("Rss:") and wanted:
            found += int(line.split()[1])
    return found


def test_bad_input(tmp_path, monkeypatch):
    model = build()
    with pytest.raises(ValueError, match=r"engine .tensorrt.: unknown .*torch, static, compiled, openvino"):
        open_engine("tensorrt", model)
    with pytest.raises(ValueError, match=r"int3: unknown .*f32, bf16, int8"):
        open_engine("openvino", model, tmp_path, weights="int3")
    with pytest.raises(ValueError, match=r"backbone of the type phi: it is none of qwen2, qwen3"):
        open_engine("openvino", build("phi2"), tmp_path)
    with pytest.raises(ValueError, match=r"openvino: runs on the CPU, not on --device cuda"):
        omnikit.load(device="cuda", engine="openvino")
    with pytest.raises(ValueError, match=r"nowhere: no such folder"):
        omnikit.load(tmp_path / "nowhere", engine="openvino")
    monkeypatch.delitem(sys.modules, "omnikit.engines.openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match="openvino"):
        open_engine("openvino", model, tmp_path)
