"""Tests that the recipes of the training stages have the same keys, and that little YAML is repeated between recipes.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from omnikit.hparams.include import read_recipe
from tests.recipes.conftest import ROOT

STAGES = {path.stem: read_recipe(path) for path in (ROOT / "recipes/VoiceAssistant/QA/hparams").glob("*.yaml")}
del STAGES["eval"], STAGES["eval_dialogs"], STAGES["stages"]
BLOCK = 5
"""Minimum number of consecutive equal YAML lines that count as repeated."""
OWN = {"stage", "output_folder", "initial_weights", "trainable", "tasks", "peak_lr", "epochs"}
"""Keys that may have different values in the recipes of the training stages."""


@pytest.mark.parametrize("stage", STAGES)
def test_stages_differ_in_nothing_else(stage):
    first, other = STAGES["stage1"], STAGES[stage]
    assert list(other) == list(first)
    own = OWN | {"valid_sources"} if stage == "anneal" else OWN  # it also validates a task that it does not train
    assert {key for key in first if str(first[key]) != str(other[key])} <= own


def test_all_stages_are_there():
    assert set(STAGES) == {"stage1", "stage2", "stage3", "anneal", "single_stage"}


def test_each_stage_starts_from_the_former_ones_folder():
    folders = {name: STAGES[name]["output_folder"].value for name in STAGES}
    starts = [STAGES[name]["initial_weights"].value for name in ("stage2", "stage3", "anneal")]
    assert starts == [folders["stage1"], folders["stage2"], folders["stage3"]]
    assert STAGES["stage1"]["initial_weights"] is None and STAGES["single_stage"]["initial_weights"] is None


@pytest.mark.parametrize("recipe", ["LibriSpeech/ASR", "LibriTTS/TTS"])
def test_the_smaller_recipes_have_the_same_keys(recipe):
    assert list(read_recipe(ROOT / "recipes" / recipe / "hparams/train.yaml")) == list(STAGES["stage1"])


def test_little_of_the_yaml_stands_twice():
    """At most a tenth of the recipes' YAML lines belong to blocks of `BLOCK` lines that occur in two files.

    Comments are not counted.
    """
    paths = [path for folder in ("recipes", "egs") for path in (ROOT / folder).rglob("hparams/**/*.yaml")]
    files = {path: lines_of(path) for path in (*paths, *(ROOT / "hparams").glob("*.yaml"))}
    where = defaultdict(set)
    for path, lines in files.items():
        for block in blocks(lines):
            where[block].add(path)
    repeated = sum(len(twice(lines, where)) for lines in files.values())
    assert len(files) > 20
    assert repeated <= 0.1 * sum(map(len, files.values()))


def test_repeated_lines_are_found():
    shared = ["a: 1", "b: 2", "c: 3", "d: 4", "e: 5"]
    where = {block: {"one", "other"} for block in blocks(shared)}
    assert twice(["x: 0", *shared, "f: 6"], where) == {1, 2, 3, 4, 5} and twice(shared[1:], where) == set()


def lines_of(path: Path) -> list[str]:
    lines = (line.partition(" #")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def blocks(lines: list[str]) -> list[tuple[str, ...]]:
    return [tuple(lines[i : i + BLOCK]) for i in range(len(lines) - BLOCK + 1)]


def twice(lines: list[str], where: dict[tuple[str, ...], set]) -> set[int]:
    """Return the indices of the lines of a YAML file that belong to a block of lines that occurs in several files."""
    starts = [i for i, block in enumerate(blocks(lines)) if len(where.get(block, ())) > 1]
    return {line for start in starts for line in range(start, start + BLOCK)}


def test_the_mini_backbone_trains_on_written_sources_alone():
    """Its stage builds the encoder with random weights, whose features would teach nothing."""
    mini = ROOT / "egs/mini/hparams"
    sources = {**read_recipe(mini / "system.yaml")["sources"], **read_recipe(mini / "backbone.yaml")["sources"]}
    tasks = read_recipe(mini / "backbone.yaml")["tasks"]
    assert [task for task, weight in tasks.items() if weight] == ["T1T2"]
    served = {name for name, source in sources.items() if source and "T1T2" in source.get("tasks", ["T1T2"])}
    assert served == {"text"} and str(sources["text"]["manifest"].value).endswith("text.parquet")
