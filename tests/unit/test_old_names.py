"""Test the table of old names: it loads checkpoints of version 0.1, and errors point to the new names.

No old name of the table may be in use otherwise.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from omnikit import checkpoint, old_names
from omnikit.evaluate.recipe_checks import check_evaluation
from omnikit.hparams import load_recipe
from omnikit.old_names import MODULES, OPTIONS, SOURCE_OPTIONS, WEIGHTS, new_path, pointer
from omnikit.train.recipe_checks import check_sources, check_stage

ROOT = Path(__file__).parents[2]
OLD = Path(__file__).parent / "checkpoints" / "v0"
ONE_WORD = {"audio", "bench", "ways", "held_out", "hold_out"}
"""Old names that today are ordinary words or a folder's name, and so are not searched for in the repository."""


def test_a_checkpoint_is_saved_again_with_new_names(tmp_path):
    before = load_file(OLD / "model.safetensors")
    assert any(name.startswith("text_rows.") for name in before)
    checkpoint.save(checkpoint.load(OLD), tmp_path / "new")
    after = load_file(tmp_path / "new" / "model.safetensors")
    assert sorted(after) == sorted(old_names.new_weight(name) for name in before)
    assert not any(name.partition(".")[0] in WEIGHTS for name in after)


def test_weights_that_stay_in_the_file_are_found_by_their_old_names():
    """Weights that stay in the checkpoint file, as for the engine openvino, are found by their old names."""
    whole, skeleton = checkpoint.load(OLD).state_dict(), checkpoint.load(OLD, skeleton=True).state_dict()
    table = "new_audio_embeddings.embed.weight"
    assert (skeleton[table].to(whole[table].dtype) == whole[table]).all()


def test_old_paths_of_classes_in_a_checkpoint_are_understood(tmp_path, monkeypatch):
    """The old module path of a class in a checkpoint is replaced by the new one.

    No shipped class has moved, so the test invents a move.
    """
    folder = shutil.copytree(OLD, tmp_path / "v0")
    text = (folder / "hparams.yaml").read_text()
    monkeypatch.setitem(MODULES, "codecs.residual_kmeans", "codecs.mel_rvq")
    (folder / "hparams.yaml").write_text(text.replace("omnikit.codecs.mel_rvq.", "omnikit.codecs.residual_kmeans."))
    assert "omnikit.codecs.mel_rvq.MelRVQ" in checkpoint.load(folder).recipe


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("omnikit.audio.load_audio", "omnikit.audio.io.load_audio"),
        ("omnikit.audio.io.load_audio", "omnikit.audio.io.load_audio"),
        ("omnikit.audio.reader.read", "omnikit.audio.reader.read"),
        ("omnikit.data.mix.TaskMix", "omnikit.data.step_sampler.StepSampler"),
        ("omnikit.train.guarded.GuardedBrain", "omnikit.train.robust_brain.RobustBrain"),
        ("omnikit.model.OmniLM", "omnikit.model.OmniLM"),
        ("torch.nn.Linear", "torch.nn.Linear"),
    ],
)
def test_a_path_is_led_to_its_new_place(old, new):
    assert new_path(old) == new
    assert pointer(old) == ("" if old == new else f"; it is called {new} now")


def test_the_table_leads_from_what_is_gone_to_what_is_there():
    package = ROOT / "omnikit"
    for old, new in MODULES.items():
        assert (package / f"{new.replace('.', '/')}.py").is_file(), new
        assert not (package / f"{old.replace('.', '/')}.py").exists(), old
    for path in old_names.CLASSES.values():
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(f"omnikit.{module}"), name), path


def test_nothing_else_knows_an_old_name():
    """No code, recipe or page uses an old name of the table, except words that mean something else today."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    own = {"omnikit/old_names.py", "tests/unit/test_old_names.py", "tests/unit/test_old_checkpoints.py", "CHANGELOG.md"}
    texts = [name for name in listed if name.endswith((".py", ".md", ".yaml", ".sh", ".toml", ".cfg"))]
    names = {*OPTIONS, *SOURCE_OPTIONS, *WEIGHTS, *(f"omnikit.{old}" for old in MODULES)}
    words = [re.escape(name) for name in names if name.rpartition(".")[2] not in ONE_WORD]
    pattern = re.compile(rf"(?<![\w./])({'|'.join(words)})(?![\w/])")
    left = {
        f"{name}: {found[0]}"
        for name in texts
        if name not in own and (ROOT / name).is_file() and "checkpoints/v0" not in name
        for found in pattern.finditer((ROOT / name).read_text(encoding="utf-8"))
    }
    assert not left, sorted(left)


def message(call, *arguments) -> str:
    with pytest.raises(ValueError) as error:
        call(*arguments)
    return str(error.value)


def test_errors_point_to_new_names(tmp_path, run):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("max_batch_length: 1\n")
    expected = "--batch_steps: no such option; it is called max_batch_length now"
    assert message(load_recipe, [str(recipe), "--batch_steps", "3"]) == expected
    assert message(check_stage, {"batch_steps": 3}) == expected
    assert "it is called answer_modes now" in message(check_evaluation, {"ways": {}})
    options = {"a": {"manifest": "m.csv", "hold_out": 3}}
    assert message(check_sources, options, "sources") == (
        "--sources.a.hold_out: no such option; it is called without_held_out now"
    )
    recipe.write_text("mix: !name:omnikit.data.mix.TaskMix\n")
    assert "there is no class omnikit.data.mix.TaskMix; it is called omnikit.data.step_sampler.StepSampler now" in (
        message(load_recipe, [str(recipe)])
    )
    status, _, err = run("tokenize", "m.csv", "--save_folder", tmp_path, "--shard_rows", "3")
    assert status == 2 and "--shard_rows: no such option; it is called shard_size now" in err
    status, _, err = run("synthesize", "m.csv", "--save_folder", tmp_path, "--shard_rows", "3")
    assert status == 2 and "it is called shard_size now" in err


def test_a_part_that_trains_is_pointed_to():
    model = checkpoint.load(OLD)
    assert "; it is called new_text_embeddings now; choices: " in message(model.freeze_all_but, ["text_rows"])
