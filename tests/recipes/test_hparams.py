"""What the stages' files must share, since HyperPyYAML has no inheritance."""

from __future__ import annotations

import pytest

from omnikit.hparams.yaml_tree import read_tree
from tests.recipes.conftest import ROOT

STAGES = {path.stem: read_tree(path) for path in (ROOT / "recipes/VoiceAssistant/QA/hparams").glob("*.yaml")}
EVALUATION = STAGES.pop("eval")
OWN = {"stage", "output_folder", "initial_weights", "trainable", "tasks", "peak_lr", "epochs"}
"""Keys of a stage's recipe that may differ between stages."""


@pytest.mark.parametrize("stage", STAGES)
def test_stages_differ_in_nothing_else(stage):
    first, other = STAGES["stage1"], STAGES[stage]
    assert list(other) == list(first)
    assert {key for key in first if str(first[key]) != str(other[key])} <= OWN


def test_all_stages_are_there():
    assert set(STAGES) == {"stage1", "stage2", "stage3", "anneal", "single_stage"}


def test_each_stage_starts_from_the_former_ones_folder():
    folders = {name: STAGES[name]["output_folder"].value for name in STAGES}
    starts = [STAGES[name]["initial_weights"].value for name in ("stage2", "stage3", "anneal")]
    assert starts == [folders["stage1"], folders["stage2"], folders["stage3"]]
    assert STAGES["stage1"]["initial_weights"] is None and STAGES["single_stage"]["initial_weights"] is None


@pytest.mark.parametrize("recipe", ["LibriSpeech/ASR", "LibriTTS/TTS"])
def test_the_smaller_recipes_have_the_same_keys(recipe):
    assert list(read_tree(ROOT / "recipes" / recipe / "hparams/train.yaml")) == list(STAGES["stage1"])
