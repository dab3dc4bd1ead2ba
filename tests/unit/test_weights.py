"""Test reading and writing of model weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from omnikit.weights import FILE_NAME, load_into, save_weights


class Tied(nn.Module):
    """A module that has one tensor under two names and a buffer of integers."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.embed = nn.Embedding(5, width)
        self.head = nn.Linear(width, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(width)


def test_round_trip_casts_and_keeps_ties(tmp_path):
    model, other = Tied(), Tied()
    model.norm.num_batches_tracked.fill_(70001)  # bf16 cannot represent it
    file = save_weights(model, tmp_path / "folder")
    stored = load_file(file)
    assert ("embed.weight" in stored) != ("head.weight" in stored)
    assert stored["norm.weight"].dtype == torch.bfloat16
    load_into(other, tmp_path / "folder")
    assert other.head.weight is other.embed.weight
    assert other.embed.weight.dtype == torch.float32
    assert torch.equal(other.embed.weight, model.embed.weight.bfloat16().float())
    assert other.norm.num_batches_tracked == 70001
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_others_may_read_a_file_as_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        files = [save_weights(nn.Linear(3, 2), tmp_path) for _ in range(2)]  # the second one replaces the first
    finally:
        os.umask(before)
    assert [file.stat().st_mode & 0o777 for file in files] == [0o666 & ~umask] * 2


def test_full_precision_is_exact(tmp_path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    load_into(other, save_weights(model, tmp_path / "a.safetensors", dtype=torch.float32))
    assert torch.equal(other.weight, model.weight)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists mapped files")
def test_what_is_stored_in_the_type_that_is_wanted_can_stay_in_the_file(tmp_path):
    model, other = Tied(), Tied()
    other.embed.to(torch.bfloat16)
    save_weights(model, tmp_path)
    load_into(other, tmp_path, mapped=True)
    assert torch.equal(other.embed.weight, model.embed.weight.bfloat16())
    assert other.head.weight is other.embed.weight
    assert torch.equal(other.norm.weight, model.norm.weight)
    maps = Path("/proc/self/maps")
    mapped = [line.split()[0] for line in maps.read_text().splitlines() if line.endswith(str(tmp_path / FILE_NAME))]
    ranges = [[int(end, 16) for end in place.split("-")] for place in mapped]
    assert [first <= other.embed.weight.data_ptr() < end for first, end in ranges] == [True]


def refused(module, path) -> str:
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_into(module, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    return str(error.value)


def test_what_does_not_fit_is_named_and_nothing_is_changed(tmp_path):
    file = save_weights(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), tmp_path / "a.safetensors")
    message = refused(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5), nn.Linear(5, 1)), file)
    assert str(file) in message
    assert "lacks 2.weight, 2.bias" in message
    assert "1.weight is [2, 2] where [5, 2] is needed" in message
    assert "unknown 1.bias, 1.weight" in refused(nn.Sequential(nn.Linear(3, 2)), file)


def test_missing_and_foreign_files_are_refused(tmp_path):
    assert "no such file" in refused(nn.Linear(1, 1), tmp_path / "none.safetensors")
    assert "model.safetensors is missing" in refused(nn.Linear(1, 1), tmp_path)
    torch.save({"weight": torch.zeros(1, 1)}, tmp_path / "pickle.bin")
    assert "not a safetensors file" in refused(nn.Linear(1, 1), tmp_path / "pickle.bin")


def test_numbers_that_are_not_finite_are_not_saved(tmp_path):
    module = nn.Linear(3, 2)
    file = save_weights(module, tmp_path)
    before = file.read_bytes()
    module.weight.data[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"model.safetensors: has numbers that are not finite .* weight"):
        save_weights(module, tmp_path)
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_numbers_too_large_for_the_type_on_disk_are_not_saved(tmp_path):
    module = nn.Linear(1, 1)
    module.weight.data.fill_(1e5)
    save_weights(module, tmp_path)
    with pytest.raises(ValueError, match=r"not finite .* weight"):
        save_weights(module, tmp_path, dtype=torch.float16)
