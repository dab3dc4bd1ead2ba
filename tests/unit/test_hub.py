"""Test names of models on the Hugging Face hub, without access to the hub."""

from __future__ import annotations

import pytest
import torch

import omnikit
from omnikit.hub import hub_file, hub_folder, is_hub_id


@pytest.mark.parametrize("name", ["owner/name", "Owner-1/na.me_2"])
def test_hub_ids(name):
    assert is_hub_id(name)


@pytest.mark.parametrize(
    "name", ["name", "small.pt", "a/b/c", "/a/b", "../a", "./a", "here/there", "here/nothing", "~/a", "a/", "a b/c"]
)
def test_names_of_files_are_none(name, tmp_path, monkeypatch):
    """Names of local files, existing or misspelt, are not taken for names of models on the hub."""
    (tmp_path / "here" / "there").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id(name)


@pytest.mark.parametrize("fetch", [hub_folder, lambda repo: hub_file(repo, "config.json")])
def test_what_cannot_be_had_is_said_in_one_line(fetch, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="owner/name: no such folder here, and not from the hub") as error:
        fetch("owner/name")
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_the_hub(saved, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo: asked.append(repo) or str(saved))
    theirs, ours = omnikit.load(saved).model, omnikit.load("owner/name").model
    assert set(asked) == {"owner/name"}
    assert torch.equal(ours.new_audio_embeddings.head.weight, theirs.new_audio_embeddings.head.weight)
