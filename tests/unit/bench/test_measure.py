"""Tests of the table and the counts that `omnikit bench` prints, without limits on the measured times."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import count

import pytest
import torch

from omnikit import cli
from omnikit.api import Omni
from omnikit.bench import measure as bench
from omnikit.bench.table import ROWS, table
from omnikit.llms.transformers_lm import TransformersLM
from tests.unit.toy import tokenizer_file, toy_model

SMALL = bench.BenchSizes(seconds=0.1, context=40, steps=5, frames=4, answers=2, repeats=2, gib=0.001)


def test_every_row_of_the_shipped_system_is_printed(monkeypatch, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["omnikit", "bench", "--quick", "--seconds", "1", "--threads", str(threads)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "| p50 / p95 | static |"
    assert [line.split(" | ")[0][2:] for line in lines[2:]] == [words for words, _ in ROWS.values()]
    assert f"{threads} threads, a question of 1 s" in printed.err


@pytest.mark.parametrize("pattern", ["delayed", "parallel", "flattened"])
def test_every_piece_is_measured(pattern):
    figures = bench.measure(Omni(toy_model(pattern, tts_blocks=1)), SMALL)
    assert figures.keys() == ROWS.keys()
    lengths = {name: len(values) for name, values in figures.items()}
    assert lengths["encode"] == lengths["prefill"] == lengths["codec"] == lengths["first_sound"] == SMALL.repeats
    assert lengths["step"] == lengths["step_batch_parallel"] == SMALL.steps
    assert lengths["real_time_factor"] == SMALL.answers
    assert all(value > 0 for values in figures.values() for value in values)


@pytest.mark.parametrize("streams", [1, 3])
def test_steps_are_timed_around_the_context(streams, monkeypatch):
    """Timed decode steps of the benchmark compute all sequences of the batch, around the requested context length."""
    model, seen = toy_model(), []
    hidden = model.hidden

    def watched(embeddings, *, positions, **options):
        seen.append((len(embeddings), int(positions[0, -1])))
        return hidden(embeddings, positions=positions, **options)

    monkeypatch.setattr(model, "hidden", watched)
    bench._step_times(Omni(model), replace(SMALL, streams=streams), bench.BATCH_PARALLEL)
    timed = seen[-SMALL.steps :]
    assert [rows for rows, _ in timed] == [2 * streams] * SMALL.steps
    assert timed[SMALL.steps // 2][1] == SMALL.context


def test_weights_of_a_step():
    model = toy_model(tts_blocks=1)
    blocks = [*model.llm.trunk.layers, *model.tts_adapter.trunk.layers, model.llm.norm, model.tts_adapter.trunk.norm]
    read = [*blocks, model.llm.lm_head, model.new_text_embeddings.head, model.new_audio_embeddings.head]
    assert bench.weights_per_step(model) == sum(p.numel() for module in read for p in module.parameters())
    config = {**model.llm.config.to_dict(), "tie_word_embeddings": True}
    tied = TransformersLM(config=config, tokenizer=tokenizer_file())
    assert tied.lm_head.weight is tied.trunk.get_input_embeddings().weight
    before = bench.weights_per_step(model)
    model.llm = tied
    assert bench.weights_per_step(model) == before


def test_real_time_factor(monkeypatch):
    """The real-time factor leaves out the prompt and the steps of delay; each decode step takes a second here."""
    seconds = count()
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(seconds) / 2)  # looked at twice for each step
    model = toy_model()
    steps = bench.TimedIterator(iter(range(13))).through()
    samples = model.codec.frame_samples * (13 - 3)
    found = bench.real_time_factor(steps, samples, model) * samples / model.codec.sample_rate
    assert found == pytest.approx(10, abs=1)


def test_a_share_of_what_memory_allows(monkeypatch):
    monkeypatch.setattr(bench, "_read_bandwidth", lambda gib, device: [5.0, 4.0, 1.0])
    figures = bench.memory_figures(2_000_000_000, [2.0, 1.0, 9.0], SMALL, torch.device("cpu"))
    assert (figures["gb_per_s"], figures["step_gb"], figures["percent_of_floor"]) == ([4.0], [2.0], [25.0])


def test_the_table_shows_the_middle_and_the_slow_end():
    figures = {name: [1.0] for name in ROWS} | {"step": [i / 1000 for i in range(101)]}
    lines = table({"one": figures, "other": {name: [2.0] for name in ROWS}}).splitlines()
    assert lines[0] == "| p50 / p95 | one | other |"
    assert "| step, one row, ms | 50 / 95 | 2000 |" in lines
    assert "| peak memory, GiB | 1 | 2 |" in lines


def test_bad_flags():
    with pytest.raises(ValueError, match="--seconds 0: must be above 0"):
        bench.BenchSizes(seconds=0)
