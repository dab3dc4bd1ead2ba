"""OpenVINO computes what the model itself computes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import omnikit
from omnikit import bench
from omnikit.api import Omni
from omnikit.cli import main
from omnikit.engines import engine_folder, load_openvino, open_engine
from omnikit.generate import Decoding, Question, answers
from omnikit.strategies import BATCH_PARALLEL, PARALLEL
from omnikit.tasks import TASKS
from tests.unit.engines.comparing import build, end_texts, error
from tests.unit.toy import toy_model

pytest.importorskip("openvino", reason="omnikit[openvino] is not installed")

from omnikit.engines.openvino import graph_files, let_go


@pytest.mark.parametrize("llm", ["qwen2_0.5b", "llama", "llama3_8b", "mistral_7b", "qwen3_0.6b", "smollm2_135m"])
def test_hidden_states(llm: str, tmp_path):
    model = build(llm)
    assert error(model, open_engine("openvino", model, tmp_path, weights="f32")) < 1e-5


def test_hidden_states_with_a_tts_adapter(tmp_path):
    model = build(tts_blocks=2)
    assert error(model, open_engine("openvino", model, tmp_path, weights="f32")) < 1e-5


@pytest.mark.parametrize(("weights", "most"), [("bf16", 0.02), ("int8", 0.04)])
def test_fewer_bits(weights: str, most: float, tmp_path):
    model = build()
    assert 1e-5 < error(model, open_engine("openvino", model, tmp_path, weights=weights)) < most


@pytest.mark.parametrize("strategy", [PARALLEL, BATCH_PARALLEL], ids=["parallel", "batch parallel"])
def test_same_answers_in_a_batch(strategy, tmp_path):
    model = toy_model(tts_blocks=1).eval()
    draw = torch.Generator().manual_seed(4)
    questions = [Question(features=torch.randn(n, model.encoder.dim, generator=draw)) for n in (9, 4, 14)]
    options = {"decoding": Decoding(max_steps=12), "strategy": strategy}
    engine = open_engine("openvino", model, tmp_path, weights="f32")
    theirs = answers(model, TASKS["A1A2"], questions, engine=engine, **options)
    for ours, answer in zip(answers(model, TASKS["A1A2"], questions, **options), theirs, strict=True):
        assert answer.text == ours.text
        assert answer.codes.tolist() == ours.codes.tolist()


def test_only_the_row_that_speaks_goes_on_when_the_texts_have_ended(tmp_path, monkeypatch):
    """The script ends them at the third step; batch-parallel's second rows go no further."""
    model = toy_model().eval()
    engine = open_engine("openvino", model, tmp_path, weights="f32")
    questions = [Question(features=torch.randn(n, model.encoder.dim)) for n in (9, 4)]
    found = []
    for network in (model, engine):
        end_texts(network, model.layout, 3, monkeypatch)
        options = {"decoding": Decoding(max_steps=12), "strategy": BATCH_PARALLEL, "engine": network}
        found.append(answers(model, TASKS["A1A2"], questions, **options))
    assert [answer.codes.tolist() for answer in found[0]] == [answer.codes.tolist() for answer in found[1]]
    assert [answer.text for answer in found[1]] == [[5, 5]] * 2


def test_it_is_measured(tmp_path):
    engine = open_engine("openvino", toy_model(), tmp_path)
    plan = bench.Plan(seconds=0.1, context=40, steps=3, frames=4, answers=1, repeats=1, gib=0.001)
    figures = bench.measure(Omni(engine.model, engine=engine), plan)
    assert figures["step_gb"] == [bench.weights_per_step(engine.model) / 1e9]  # a byte each


def test_the_second_time_nothing_is_converted(tmp_path, monkeypatch, capsys):
    model = build()
    first = open_engine("openvino", model, tmp_path)
    assert "once" in capsys.readouterr().err
    monkeypatch.setattr("omnikit.engines.openvino.convert", None)
    second = open_engine("openvino", model, tmp_path)
    x = torch.randn(3, model.llm.dim)
    assert torch.equal(first.text_logits(x), second.text_logits(x))


def test_two_answers_at_a_time(tmp_path):
    model = build()
    engine = open_engine("openvino", model, tmp_path, weights="f32")
    steps, mask = torch.ones(1, model.layout.num_streams, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long)
    positions, caches = torch.arange(4)[None], [engine.new_cache() for _ in range(2)]
    with torch.inference_mode():
        for cache in caches:
            engine(steps[..., :3], positions=positions[:, :3], mask=mask[:, :3], cache=cache)
        last = [engine(steps[..., 3:], positions=positions[:, 3:], mask=mask, cache=cache).text for cache in caches]
    assert torch.equal(*last)


def test_the_shipped_system_from_the_command_line(tmp_path, monkeypatch, capsys):
    """Its 8-bit answers are those of the model itself; what was made of its weights is found again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    question = Path(__file__).parents[3] / "egs/mini/questions/sum.wav"
    heard = {}
    for engine in ("torch", "openvino"):
        monkeypatch.setattr(sys, "argv", ["omnikit", "transcribe", str(question), "--engine", engine])
        with pytest.raises(SystemExit) as status:
            main()
        heard[engine] = capsys.readouterr().out
        assert not status.value.code
    assert heard["openvino"] == heard["torch"] != ""
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
    """Not where the graphs are read from as well."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _, engine = load_openvino(None)
    graphs = [file.with_suffix(".bin") for file in graph_files(engine_folder(None), "int8").values()]
    assert [in_memory(graph) for graph in graphs] == [0] * len(graphs)
    x = torch.randn(2, engine.model.llm.dim)
    before = engine.text_logits(x)
    let_go(graphs[1])
    assert torch.equal(engine.text_logits(x), before)


def in_memory(file: Path) -> int:
    """kB of a file that this process has mapped and in memory."""
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
    with pytest.raises(ValueError, match=r"backbone of the type phi .*qwen2, llama"):
        open_engine("openvino", build("phi2"), tmp_path)
    with pytest.raises(ValueError, match=r"openvino: runs on the CPU, not on --device cuda"):
        omnikit.load(device="cuda", engine="openvino")
    with pytest.raises(ValueError, match=r"nowhere: no such folder"):
        omnikit.load(tmp_path / "nowhere", engine="openvino")
    monkeypatch.delitem(sys.modules, "omnikit.engines.openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match="openvino"):
        open_engine("openvino", model, tmp_path)
