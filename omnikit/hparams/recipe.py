"""From a YAML file and overrides to built objects."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml.error import YAMLError

from omnikit.hparams.command_line import split_command_line
from omnikit.hparams.lookup import locate, nearest
from omnikit.hparams.overrides import as_overrides
from omnikit.hparams.parts import KINDS, part_files, pick
from omnikit.hparams.tree import dotted_name, one_line, read_tree, read_tree_text, tag_of, walk, write_tree

MODEL = "model"
"""Key of the model that joins the parts."""
_NOT_TRAINED = ("weights", "tokenizer", "attention", "lora")


@dataclass(frozen=True)
class Recipe:
    """What a training script starts from."""

    path: str  # the YAML file
    hparams: dict[str, Any]  # built
    run_opts: dict[str, Any]  # for SpeechBrain's Brain
    overrides: dict[str, Any]  # for SpeechBrain's create_experiment_directory
    parts: str  # YAML text of the parts and the model, for `omnikit.checkpoint`


def load_recipe(argv: list[str] | None = None) -> Recipe:
    """Build what a training script's command line describes.

    Args:
        argv: the arguments without the script's name; `None` = those of this process.

    Raises:
        ValueError: bad file, flag or value; the message is one line for the user.
    """
    path, run_opts, settings = split_command_line(sys.argv[1:] if argv is None else argv)
    overrides, text = resolve(path, settings)
    hparams = build(text, path)
    return Recipe(path=path, hparams=hparams, run_opts=run_opts, overrides=overrides, parts=dump_parts(text))


def build_parts(names: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The system of `hparams/system.yaml` with other parts or options.

    Args:
        names: kind of part -> name, such as `{"codec": "mimi"}`.
        overrides: dotted key -> value, such as `{"codec.num_codebooks": 4}`.

    Returns:
        The objects by the keys of that file: the parts by kind, and `model`.

    Raises:
        ValueError: unknown kind, name or key.
    """
    for kind in names or {}:
        if kind not in KINDS:
            raise ValueError(f"part {kind!r}: no such kind of part{nearest(kind, KINDS)}")
    path = str(part_files() / "system.yaml")
    _, text = resolve(path, {**(names or {}), **(overrides or {})})
    return build(text, path)


def build_part(part: str, name: str, **options: Any) -> Any:
    """One part alone.

    Raises:
        ValueError: unknown kind, name or option.
    """
    return build(write_tree({part: pick(part, name, **options)}), name)[part]


def resolve(path: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Overrides in HyperPyYAML's form, and the YAML text with every choice made and every reference replaced.

    Raises:
        ValueError: see `load_recipe`.
    """
    tree = read_tree(path)
    overrides = as_overrides(tree, settings, Path(path).parent)
    _check_placeholders(tree, overrides, path)
    with open(path, encoding="utf-8") as stream:
        return overrides, resolve_references(stream, copy.deepcopy(overrides)).getvalue()


def build(text: str, source: str) -> dict[str, Any]:
    """The objects of a resolved YAML text; the model remembers the text of its parts in `model.recipe`."""
    try:
        objects = load_hyperpyyaml(text)
    except YAMLError as error:
        raise ValueError(f"{source}: {one_line(error)}") from None
    if MODEL in objects:
        objects[MODEL].recipe = dump_parts(text)
    return objects


def dump_parts(text: str) -> str:
    """From a resolved recipe, what is needed to build its model again without the part files.

    Weights are left out: those of a built model are its own.
    """
    tree = read_tree_text(text, "recipe")
    for key in [key for key in tree if key not in (*KINDS, MODEL)]:
        del tree[key]
    for node in tree.values():
        if isinstance(node, Mapping) and "weights" in node:
            node["weights"] = None
    return write_tree(tree)


def different_parts(recipe: str, other: str) -> dict[str, tuple[str, str]]:
    """Kinds of parts that two texts of `dump_parts` do not share, each with what it is in the one and in the other.

    Where a part's files come from, how fast it runs and the decoding strategy may differ: weights fit all the same.
    """
    trees = read_tree_text(recipe, "recipe"), read_tree_text(other, "recipe")
    different = {}
    for kind in KINDS:
        parts = [tree.get(kind) for tree in trees]
        if kind == "strategy" or None in parts:
            continue
        if tag_of(parts[0]) != tag_of(parts[1]):
            different[kind] = (dotted_name(parts[0]), dotted_name(parts[1]))
        elif changed := _changed(*parts):
            different[kind] = tuple(", ".join(f"{key} {part.get(key)}" for key in changed) for part in parts)
    return different


def _changed(part: Mapping, other: Mapping) -> list[str]:
    keys = [key for key in {**part, **other} if key not in _NOT_TRAINED]
    return [key for key in keys if _option(part, key) != _option(other, key)]


def _option(part: Mapping, key: str) -> Any:
    """An option of a part; its class's default where the text, perhaps older than the option, does not list it."""
    if key in part:
        return part[key]
    argument = inspect.signature(locate(part, key)).parameters.get(key)
    return argument.default if argument is not None else None


def _check_placeholders(tree: Mapping, overrides: Mapping[str, Any], path: str) -> None:
    for key, node in walk(tree):
        if tag_of(node) == "!PLACEHOLDER" and not _given(overrides, key.split(".")):
            raise ValueError(f"--{key}: required by {path}, give it a value")


def _given(overrides: Any, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(overrides, Mapping) or key not in overrides:
            return False
        overrides = overrides[key]
    return True
