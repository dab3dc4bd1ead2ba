"""Hyperparameters: HyperPyYAML files, parts chosen by name, dotted overrides, and safe loading of checkpoints' YAML.

Guide: docs/hparams.md.
"""

from __future__ import annotations

from omnikit.hparams.command_line import read_settings, split_command_line
from omnikit.hparams.named_parts import KINDS, choices, packaged, part_files, pick
from omnikit.hparams.recipe import (
    Recipe,
    build_part,
    build_parts,
    different_parts,
    dump_parts,
    load_recipe,
    names_of,
    resolve,
)
from omnikit.hparams.safe_yaml import check_safe, safe_load

__all__ = [
    "KINDS",
    "Recipe",
    "build_part",
    "build_parts",
    "check_safe",
    "choices",
    "different_parts",
    "dump_parts",
    "load_recipe",
    "names_of",
    "packaged",
    "part_files",
    "pick",
    "read_settings",
    "resolve",
    "safe_load",
    "split_command_line",
]
