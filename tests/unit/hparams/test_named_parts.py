"""Test that every part file builds the part of its name, with the options that the file lists."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest
import torch

from omnikit.hparams import KINDS, build_part, choices, part_files, pick

NAMES = [(kind, name) for kind in KINDS for name in choices(kind)]
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("kind", "name"), NAMES, ids=["-".join(pair) for pair in NAMES])
def test_it_builds_and_its_options_are_arguments(kind, name):
    listed = dict(pick(kind, name))
    with torch.device("meta"):
        assert build_part(kind, name, **listed) is not None


def test_a_backbones_base_of_rotation_is_no_whole_number():
    assert pick("llm", "qwen2_0.5b", **{"config.rope_theta": 12345.5})["config"]["rope_theta"] == 12345.5


def test_there_is_a_choice_of_every_kind():
    assert {kind for kind, _ in NAMES} == set(KINDS)


def test_all_of_them_are_installed():
    """The package data patterns in setup.cfg match all part files, so that the installed package has them."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["omnikit.part_files"].split()
    matched = {file for pattern in patterns for file in part_files().glob(pattern)}
    assert matched == {file for file in part_files().rglob("*") if file.is_file()}
