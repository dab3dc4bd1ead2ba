"""Tests of the recipe that fine-tunes a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnikit import checkpoint
from omnikit.finetune import write_recipe
from omnikit.hparams import different_parts, dump_parts, names_of, resolve


def written(folder: Path, **options) -> str:
    """Return the resolved text of the recipe that fine-tunes the mini system."""
    write_recipe(folder, **options)
    return resolve(str(folder / "train.yaml"), {"data_folder": str(folder)})[1]


def test_it_has_the_parts_of_the_checkpoint_with_their_names(tmp_path):
    text = written(tmp_path)
    trained = checkpoint.read_parts(checkpoint.SHIPPED)
    assert different_parts(trained, dump_parts(text)) == {}
    assert names_of(text) == names_of(trained) and names_of(text)["codec"] == "mel_rvq"


@pytest.mark.parametrize(("rank", "expected"), [(8, {"rank": 8, "alpha": 16}), (2, {"rank": 2, "alpha": 4}), (0, None)])
def test_the_backbone_trains_by_lora(rank, expected, tmp_path):
    from omnikit.hparams.yaml_tree import read_tree_text

    assert read_tree_text(written(tmp_path, lora_rank=rank), "train.yaml")["llm"].get("lora") == expected


def test_what_it_cannot_write_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"lora_rank:? -1"):
        write_recipe(tmp_path / "a", lora_rank=-1)
    with pytest.raises(ValueError, match=r"checkpoint .*nothing: no such folder"):
        write_recipe(tmp_path / "a", tmp_path / "nothing")
    assert not (tmp_path / "a").exists()
    write_recipe(tmp_path / "a")
    (tmp_path / "a" / "train.yaml").unlink()
    with pytest.raises(ValueError, match=r"train\.py: exists already; choose another folder"):
        write_recipe(tmp_path / "a")
    assert not (tmp_path / "a" / "train.yaml").exists()
