"""Tests that a copy of a recipe can change its training loss in a few lines, without a change of the package."""

from __future__ import annotations

import difflib
import json
import shutil

from tests.recipes.conftest import changed
from tests.recipes.test_train import TRAIN, command

PLAIN = """token_loss = cross_entropy  # for another loss of each token, write a function, see recipes/README.md
"""
WITH_Z_LOSS = """

def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels) + 0.1 * logits.logsumexp(dim=-1).square()
"""


def test_a_copied_recipe_changes_its_loss(run_here, data, tmp_path):
    recipe = shutil.copytree(TRAIN.parent, tmp_path / "recipe", ignore=shutil.ignore_patterns("results"))
    script, text = recipe / "train.py", TRAIN.read_text()
    own = text.replace(PLAIN, WITH_Z_LOSS)
    lines = [line for line in difflib.ndiff(text.splitlines(), own.splitlines()) if line[0] in "+-"]
    assert 0 < len(lines) <= 10
    logs = {}
    for name, source in (("plain", text), ("own", own)):
        script.write_text(source)
        status, out, err = run_here(script, *command("stage1", data, tmp_path / name, "--epochs.limit", "1")[2:])
        assert status == 0, out + err
        logs[name] = json.loads((tmp_path / name / "train_log.jsonl").read_text().splitlines()[-1])
        assert (tmp_path / name / "train.py").read_text() == source
    for kind in ("train", "valid"):
        streams = [key for key in logs["plain"][kind] if key == "text" or key.startswith("audio")]
        assert len(streams) == 8
        for stream in streams:  # logsumexp over some hundred ids is about 6
            assert logs["own"][kind][stream] > logs["plain"][kind][stream] + 1, (kind, stream)
    embeddings = {"new_text_embeddings", "new_audio_embeddings"}
    assert changed(tmp_path / "plain", tmp_path / "own") == {"adapter", "tts_adapter", *embeddings}
